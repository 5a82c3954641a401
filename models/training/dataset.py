"""The labelled sets of light curves as one training set: units, bands, classes, groups and the split.

Reading goes through `broker.labelled` and `broker.lightcurve`, the code that evaluates and serves: what it drops in an
alert, it drops here. Names and ids of classes are those of `broker.classes`, the split is `broker.split`'s.
"""

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from broker import classes, labelled
from broker import split as splitting
from broker.lightcurve import BANDS, WINDOW_D, LightCurves
from broker.split import CALIBRATION, TEST, TRAIN, Strings

__all__ = [
    "CALIBRATION",
    "CLASSES",
    "OUTLIER",
    "TAXONOMY_IDS",
    "TEST",
    "TRAIN",
    "Metadata",
    "TrainingSet",
    "load",
    "load_for",
]

CLASSES = ("SNIa", "SNII", "SNIbc", "SLSN", "TDE", "AGN", "VAR")  # order of the graph's output
TRANSIENTS = [i for i, name in enumerate(CLASSES) if classes.BY_NAME[name].level == classes.TRANSIENT]
TAXONOMY_IDS = {name: classes.BY_NAME[name].taxonomy_id for name in CLASSES}
UNLABELLED, NOT_OURS = -1, -2
WITHHELD = -1  # a side of the split for nothing
OUTLIER = -3  # of a class that we know but do not answer: asteroids, kilonovae, flares. Taught as "could be anything"
ZTF_WINDOW_D, LSST_WINDOW_D = WINDOW_D["ztf"], WINDOW_D["lsst"]


@dataclass(frozen=True)
class LabelledSet:
    """One folder of the data: how to read it, what it may teach, and what its owners allow."""

    name: str
    licence: str
    zero_point: float  # AB magnitude of flux 1
    window_d: float  # evaluated as packets of this length
    weight: float  # share of the training batches
    label: str  # metadata column of the class
    bands: str  # survey prefix of the passbands, or "instrument"/"random"
    all_detections: bool = False  # alerts: each row was sent because it was detected
    has_positions: bool = True
    subtract_median: bool = False  # direct photometry, made to look like a difference
    unlabelled: bool = False  # also has files of unlabelled curves, for pre-training only
    mixed: bool = False  # its unlabelled objects stand among the others and are kept, for pre-training only
    permitted: bool | str = False  # licensed so that all may be passed on; a text: those of this `origin` alone


_NONE = "none stated"
SETS = (
    LabelledSet("mallorn", "none found (Kaggle)", 23.9, LSST_WINDOW_D, 0.20, "class6", "lsst",
                has_positions=False, unlabelled=True),
    LabelledSet("spcc", "MIT", 27.5, LSST_WINDOW_D, 0.25, "class3", "des", has_positions=False, permitted=True),
    LabelledSet("yse_dr1", _NONE, 27.5, LSST_WINDOW_D, 0.11, "spec_class_broad", "instrument",
                mixed=True),
    LabelledSet("ztf_snia", _NONE, 27.5, ZTF_WINDOW_D, 0.06, "type", "ztf", all_detections=True),
    LabelledSet("many_tde_ztf", _NONE, 23.9, ZTF_WINDOW_D, 0.05, "true_type", "ztf"),
    LabelledSet("sdss_rrl", _NONE, 27.5, LSST_WINDOW_D, 0.04, "true_type", "sdss",
                has_positions=False, subtract_median=True),
    LabelledSet("elasticc_fink_tutorials", "Apache-2.0", 31.4, LSST_WINDOW_D, 0.10, "class_broad", "lsst",
                permitted=True),
    LabelledSet("elasticc_fink_extra", "Apache-2.0, MIT", 31.4, LSST_WINDOW_D, 0.005, "class_broad", "lsst",
                permitted=True),
    LabelledSet("elasticc2_desc", _NONE, 31.4, LSST_WINDOW_D, 0.015, "class_broad", "lsst"),
    LabelledSet("real_transients", "MIT (SLSNe), else none stated", 31.4, LSST_WINDOW_D, 0.09, "class_broad",
                "instrument", permitted="slsne"),
    LabelledSet("varstars", _NONE, 31.4, LSST_WINDOW_D, 0.05, "class_broad", "random"),
    LabelledSet("ztf_fink_labelled", "Apache-2.0", 31.4, ZTF_WINDOW_D, 0.10, "class_broad", "ztf",
                all_detections=True, permitted=True),
)  # fmt: skip
SET_NAMES = tuple(s.name for s in SETS)
ONE_CLASS = ("ztf_snia", "many_tde_ztf", "sdss_rrl", "varstars")  # the set may give the class away
OPEN = "-open"  # end of the name of a model that permitted light curves alone have taught


@dataclass(frozen=True)
class Metadata:
    """One row per object: set (index into SETS), name, position in degrees (NaN: unknown), label, permitted.

    label: index into CLASSES, UNLABELLED or OUTLIER. permitted: under MIT, Apache-2.0 or BSD.
    """

    origin: NDArray[np.int8]
    name: Strings
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    label: NDArray[np.int8]
    permitted: NDArray[np.bool_]

    def take(self, rows: NDArray[np.integer]) -> "Metadata":
        """The rows of these indices."""
        return Metadata(*(getattr(self, f)[rows] for f in Metadata.__dataclass_fields__))

    @staticmethod
    def concatenate(parts: list["Metadata"]) -> "Metadata":
        """All rows of the parts."""
        return Metadata(*(np.concatenate([getattr(p, f) for p in parts]) for f in Metadata.__dataclass_fields__))


@dataclass(frozen=True)
class TrainingSet:
    """Light curves with their metadata and split (TRAIN, CALIBRATION or TEST), unlabelled ones included."""

    curves: LightCurves
    about: Metadata
    split: NDArray[np.int8] = field(repr=False)

    def __len__(self) -> int:
        return len(self.curves)


def group(about: Metadata) -> NDArray[np.int64]:
    """Number of the group of each object: connected by name, or by lying within 2 arcsec of each other."""
    return splitting.group(about.name, about.ra, about.dec)


def split(about: Metadata) -> NDArray[np.int8]:
    """Side of each object: TRAIN, CALIBRATION or TEST."""
    return splitting.sides(about.name, about.ra, about.dec)


def withhold(data: TrainingSet, objects: NDArray[np.bool_]) -> TrainingSet:
    """Neither taught nor calibrated on (n,): on no side. Those of the test side stay there."""
    side = np.where(objects & (data.split != TEST), WITHHELD, data.split)
    return replace(data, split=side.astype(data.split.dtype))


def load_for(name: str, folder: Path) -> TrainingSet:
    """Every set of `folder`, for a model of this name: all else is withheld from one that ends in OPEN."""
    data = load(folder)
    return withhold(data, ~data.about.permitted) if name.endswith(OPEN) else data


def load(folder: Path, sets: tuple[LabelledSet, ...] = SETS) -> TrainingSet:
    """Every set of `folder`: objects with a detection, and a class of the table in broker/classes.py or none.

    Transients that only ever faded (`never_positive`) lose their label, except on the test side: figures stay those of
    all objects.
    """
    parts = [_read(folder / s.name, s, "") for s in sets]
    parts += [_read(folder / s.name, s, "unlabelled_") for s in sets if s.unlabelled]
    curves = LightCurves.concatenate([c for c, _ in parts])
    about = Metadata.concatenate([m for _, m in parts])
    side = split(about)
    faded = never_positive(curves, about)
    untaught = faded & (side != TEST)
    for origin in np.unique(about.origin[faded]):
        of_set = about.origin == origin
        names = ", ".join(about.name[of_set & untaught]) or "none"
        n_test = int((of_set & faded & ~untaught).sum())
        print(f"{SET_NAMES[origin]}: transients without a positive detection: {names} untaught, {n_test} in test")
    return TrainingSet(curves, replace(about, label=np.where(untaught, UNLABELLED, about.label)), side)


def never_positive(curves: LightCurves, about: Metadata) -> NDArray[np.bool_]:
    """Objects labelled as a transient (n,) whose every detection is below the reference: an old supernova in it."""
    positive = curves.detected & (curves.flux > 0)
    brightened = np.bincount(curves.rows[positive], minlength=len(curves)) > 0
    return np.isin(about.label, TRANSIENTS) & ~brightened


def _read(folder: Path, source: LabelledSet, prefix: str) -> tuple[LightCurves, Metadata]:
    meta = pd.read_parquet(folder / f"{prefix}metadata.parquet")
    table = pd.read_parquet(folder / f"{prefix}lightcurves.parquet")
    label = np.full(len(meta), UNLABELLED, np.int8) if prefix else _labels(meta, source)
    kept = np.flatnonzero(label != NOT_OURS)
    meta, label = meta.iloc[kept], label[kept]
    row = labelled.rows_of(meta["object_id"], table["object_id"], folder)
    table, row = table[row >= 0].reset_index(drop=True), row[row >= 0]
    found = np.ones(len(table), np.bool_) if source.all_detections else None
    curves = labelled.curves_of(
        table, row, _bands(table, row, source), len(meta), source.zero_point,
        subtract_median=source.subtract_median, detected=found,
    )  # fmt: skip
    about = _metadata(meta, label, source, prefix)
    seen = np.flatnonzero(np.bincount(curves.rows[curves.detected], minlength=len(curves)))
    return curves.take(seen), about.take(seen)


def _labels(meta: pd.DataFrame, source: LabelledSet) -> NDArray[np.int8]:
    """Class index; UNLABELLED; OUTLIER: of a class that the model does not answer; NOT_OURS: the label is unclear."""
    ours, _ = labelled.labels(meta, source.label)
    index = {name: classes.in_model(name, CLASSES) for name in set(ours) if name is not None}
    index = {name: i if i >= 0 else OUTLIER if name in classes.BY_NAME else NOT_OURS for name, i in index.items()}
    nameless = UNLABELLED if source.mixed else NOT_OURS
    return np.array([nameless if name is None else index[name] for name in ours], np.int8)


def _metadata(meta: pd.DataFrame, label: NDArray[np.int8], source: LabelledSet, prefix: str) -> Metadata:
    names = splitting.names_in(source.name, labelled.sky_names(meta))
    ra = dec = np.full(len(meta), np.nan)
    if source.has_positions and not prefix:
        ra, dec = labelled.positions(meta)
    allowed = np.full(len(meta), source.permitted is True)
    if isinstance(source.permitted, str):
        allowed = (meta["origin"] == source.permitted).to_numpy(np.bool_)
    return Metadata(np.full(len(meta), SET_NAMES.index(source.name), np.int8), names, ra, dec, label, allowed)


def _bands(table: pd.DataFrame, row: NDArray[np.int64], source: LabelledSet) -> NDArray[np.int8]:
    if source.bands == "random":
        # one band at about 550 nm or none named: ztf-g for half of the stars, ztf-r for the others
        return np.where(row % 2 == 0, BANDS.index("ztf-g"), BANDS.index("ztf-r")).astype(np.int8)
    return labelled.bands_of(table["passband"], table["instrument"] if source.bands == "instrument" else source.bands)
