"""The labelled sets of light curves as one training set: units, bands, classes, groups and the split.

Reading goes through `broker.lightcurve`, the code that serves: what it drops in an alert, it drops here.
The split is by group, not by object: objects of any two sets that share a name or lie within 2 arcsec fall on the
same side, because several sets hold the same supernovae.
"""

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from broker.lightcurve import BANDS, LightCurves, Points, merge

CLASSES = ("SNIa", "SNII", "SNIbc", "SLSN", "TDE", "AGN", "VAR")
TAXONOMY_IDS = {"SNIa": 2222, "SNII": 2224, "SNIbc": 2223, "SLSN": 2242, "TDE": 2243, "AGN": 2332, "VAR": 2100}
UNLABELLED = -1
TRAIN, CALIBRATION, TEST = 0, 1, 2
TEST_FRACTION, CALIBRATION_FRACTION = 0.25, 0.12  # a quarter, because real SLSNe and TDEs are few
SAME_SKY_ARCSEC = 2.0
ZTF_WINDOW_D, LSST_WINDOW_D = 30.0, 365.0  # what a packet holds
BEFORE_FIRST_DETECTION_D = 30.0  # forced photometry starts there; older baselines never reach a broker

SUPERNOVAE = {"SNIa": "SNIa", "SNII": "SNII", "SNIbc": "SNIbc", "SLSN": "SLSN", "TDE": "TDE", "AGN": "AGN"}
VARIABLES = dict.fromkeys(["EB", "RRL", "CEP_DSCT", "LPV", "YSO", "STAR_OTHER", "CV", "ROT_FLARE"], "VAR")
YSE_CLASSES = {"SN Ia": "SNIa", "SN II": "SNII", "SN Ibc": "SNIbc"}
YSE_OTHERS = {"SLSN-I": "SLSN", "SLSN-II": "SLSN", "TDE": "TDE"}
SURVEY_BANDS = {"DES": "des", "PS1": "ps1", "PS1MD": "ps1", "FOUND": "ps1", "Pan-STARRS1": "ps1"}
SURVEY_BANDS |= {"P48": "ztf", "PSST": "ps1", "Blanco": "des"}

Strings = NDArray[np.str_]


@dataclass(frozen=True)
class LabelledSet:
    """One folder of the data: how to read it, what it may teach, and what its owners allow."""

    name: str
    licence: str
    zero_point: float  # AB magnitude of flux 1
    window_d: float  # evaluated as packets of this length
    weight: float  # share of the training batches
    label: str | None  # metadata column of the class; None: the class named in `only`
    classes: dict[str, str]
    bands: str  # survey prefix of the passbands, or "instrument"/"random"
    only: str = ""
    all_detections: bool = False  # alerts: each row was sent because it was detected
    has_positions: bool = True
    subtract_median: bool = False  # direct photometry, made to look like a difference
    unlabelled: bool = False  # also has unlabelled curves, for pre-training only


_NONE = "none stated"
SETS = (
    LabelledSet("mallorn", "none found (Kaggle)", 23.9, LSST_WINDOW_D, 0.20, "class6", SUPERNOVAE, "lsst",
                has_positions=False, unlabelled=True),
    LabelledSet("spcc", "MIT", 27.5, LSST_WINDOW_D, 0.25, "class3", SUPERNOVAE, "des", has_positions=False),
    LabelledSet("yse_dr1", _NONE, 27.5, LSST_WINDOW_D, 0.11, "spec_class_broad", YSE_CLASSES, "instrument"),
    LabelledSet("ztf_snia", _NONE, 27.5, ZTF_WINDOW_D, 0.06, None, {}, "ztf", only="SNIa", all_detections=True),
    LabelledSet("many_tde_ztf", _NONE, 23.9, ZTF_WINDOW_D, 0.05, None, {}, "ztf", only="TDE"),
    LabelledSet("sdss_rrl", _NONE, 27.5, LSST_WINDOW_D, 0.04, None, {}, "sdss", only="VAR",
                has_positions=False, subtract_median=True),
    LabelledSet("elasticc_fink_tutorials", "Apache-2.0", 31.4, LSST_WINDOW_D, 0.10, "class_broad", SUPERNOVAE, "lsst"),
    LabelledSet("real_transients", "MIT (SLSNe), else none stated", 31.4, LSST_WINDOW_D, 0.08, "class_broad",
                SUPERNOVAE, "instrument"),
    LabelledSet("varstars", _NONE, 31.4, LSST_WINDOW_D, 0.05, "class_broad", VARIABLES, "random"),
    LabelledSet("ztf_fink_labelled", "Apache-2.0", 31.4, ZTF_WINDOW_D, 0.06, "class_broad", SUPERNOVAE | VARIABLES,
                "ztf", all_detections=True),
)  # fmt: skip
SET_NAMES = tuple(s.name for s in SETS)


@dataclass(frozen=True)
class Metadata:
    """One row per object: set (index into SETS), name, position in degrees (NaN: unknown), label (-1: none)."""

    origin: NDArray[np.int8]
    name: Strings
    ra: NDArray[np.float64]
    dec: NDArray[np.float64]
    label: NDArray[np.int8]

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


def sky_name(name: str) -> str:
    """The IAU part of a transient's name ("SN 2019abh", "AT2019abh" -> "2019abh"), else the name itself."""
    found = re.fullmatch(r"(?:SN|AT|TDE)?[ _]?((?:19|20)\d\d[A-Za-z]+)", name)
    return found[1].lower() if found else name


def group(about: Metadata) -> NDArray[np.int64]:
    """Number of the group of each object: connected by name, or by lying within 2 arcsec of each other."""
    _, first, by_name = np.unique(about.name, return_index=True, return_inverse=True)
    pairs = np.concatenate([neighbours(about.ra, about.dec), np.stack([np.arange(len(by_name)), first[by_name]], 1)])
    label = np.arange(len(by_name))
    while True:  # each round every object takes the smallest number among its neighbours
        known = label.copy()
        np.minimum.at(label, pairs[:, 0], known[pairs[:, 1]])
        np.minimum.at(label, pairs[:, 1], known[pairs[:, 0]])
        if (label == known).all():
            return label


def neighbours(ra: NDArray[np.float64], dec: NDArray[np.float64]) -> NDArray[np.int64]:
    """Pairs (k, 2) of objects within 2 arcsec; ra and dec in degrees, NaN has no neighbour."""
    located = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    located = located[np.argsort(dec[located], kind="stable")]
    a, d = np.radians(ra[located]), np.radians(dec[located])
    on_sphere = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
    limit = np.radians(SAME_SKY_ARCSEC / 3600)
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, len(located)):  # ends at the most objects that share a strip of 2 arcsec in declination
        if not (d[step:] - d[:-step] <= limit).any():
            break
        near = np.flatnonzero(np.linalg.norm(on_sphere[step:] - on_sphere[:-step], axis=1) <= limit)
        found.append(np.stack([located[near], located[near + step]], 1))
    return np.concatenate(found)


def split(about: Metadata) -> NDArray[np.int8]:
    """Side of each object. The hash of a group's smallest name decides, so more data move no old group."""
    groups = group(about)
    order = np.lexsort((about.name, groups))
    _, first = np.unique(groups[order], return_index=True)
    draw = np.array([_uniform(str(name)) for name in about.name[order][first]])
    rest = np.where(draw < TEST_FRACTION + CALIBRATION_FRACTION, CALIBRATION, TRAIN)
    side = np.where(draw < TEST_FRACTION, TEST, rest)
    return side[np.unique(groups, return_inverse=True)[1]].astype(np.int8)


def _uniform(name: str) -> float:
    return int(hashlib.sha256(f"t2-split:{name}".encode()).hexdigest()[:12], 16) / 16**12


def load(folder: Path, sets: tuple[LabelledSet, ...] = SETS) -> TrainingSet:
    """Every set of `folder`: objects with a class of ours or none, and at least one detection."""
    parts = [_read(folder / s.name, s, "") for s in sets]
    parts += [_read(folder / s.name, s, "unlabelled_") for s in sets if s.unlabelled]
    curves = LightCurves.concatenate([c for c, _ in parts])
    about = Metadata.concatenate([m for _, m in parts])
    return TrainingSet(curves, about, split(about))


def _read(folder: Path, source: LabelledSet, prefix: str) -> tuple[LightCurves, Metadata]:
    meta = pd.read_parquet(folder / f"{prefix}metadata.parquet")
    table = pd.read_parquet(folder / f"{prefix}lightcurves.parquet")
    label = _labels(meta, source, prefix)
    kept = np.flatnonzero(label > -2)
    meta, label = meta.iloc[kept], label[kept]
    row = pd.Index(meta["object_id"]).get_indexer(pd.Index(table["object_id"]))
    table, row = table[row >= 0].reset_index(drop=True), row[row >= 0]
    nano_jansky = 10 ** (0.4 * (31.4 - source.zero_point))
    flux = table["flux"].to_numpy(np.float64) * nano_jansky
    error = table["flux_err"].to_numpy(np.float64) * nano_jansky
    if source.subtract_median:
        flux = flux - table.groupby(["object_id", "passband"])["flux"].transform("median").to_numpy() * nano_jansky
    found = np.ones(len(table), np.bool_) if source.all_detections else None
    mjd = table["mjd"].to_numpy(np.float64)
    points = Points.of_table(row.astype(np.int64), mjd, _bands(table, row, source), flux, error, found)
    curves, _ = merge(points, len(meta), np.full(len(meta), np.nan))
    return _as_packets(curves, _metadata(meta, label, source, prefix))


def _as_packets(curves: LightCurves, about: Metadata) -> tuple[LightCurves, Metadata]:
    """Drop objects that were never detected, and points long before the first detection."""
    first = np.full(len(curves), np.inf)
    np.minimum.at(first, curves.rows[curves.detected], curves.mjd_tai[curves.detected])
    kept = np.flatnonzero(np.isfinite(first))
    curves = curves.select(curves.mjd_tai >= first[curves.rows] - BEFORE_FIRST_DETECTION_D)
    return curves.take(kept), about.take(kept)


def _labels(meta: pd.DataFrame, source: LabelledSet, prefix: str) -> NDArray[np.int8]:
    """Class index; -1 where unlabelled; -2 where labelled with a class that is not ours."""
    if prefix:
        return np.full(len(meta), UNLABELLED, np.int8)
    if source.label is None:
        return np.full(len(meta), CLASSES.index(source.only), np.int8)
    raw = [source.classes.get(str(x), "") for x in meta[source.label]]
    if source.name == "yse_dr1":
        raw = [YSE_OTHERS.get(str(fine), name) for fine, name in zip(meta["spec_class"], raw, strict=True)]
        raw = ["?" if fine == "NA" else name for fine, name in zip(meta["spec_class"], raw, strict=True)]
    codes = {name: i for i, name in enumerate(CLASSES)} | {"?": UNLABELLED}
    return np.array([codes.get(name, -2) for name in raw], np.int8)


def _metadata(meta: pd.DataFrame, label: NDArray[np.int8], source: LabelledSet, prefix: str) -> Metadata:
    own = meta["object_id"].astype(str)
    iau = meta.get("iau_name", own)
    names = [sky_name(str(i if isinstance(i, str) and i else o)) for i, o in zip(iau, own, strict=True)]
    if not re.search("yse|ztf|tde|real", source.name):
        names = [f"{source.name}:{name}" for name in names]  # numbers of a simulation mean nothing elsewhere
    ra = dec = np.full(len(meta), np.nan)
    if source.has_positions and not prefix:
        ra, dec = _positions(meta)
    return Metadata(np.full(len(meta), SET_NAMES.index(source.name), np.int8), np.array(names), ra, dec, label)


def _positions(meta: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if "RA" not in meta:
        return meta["ra"].to_numpy(np.float64), meta["dec"].to_numpy(np.float64)
    hours = meta["RA"].str.split(":", expand=True).astype(float).to_numpy()
    degrees = meta["Dec"].str.lstrip("+-").str.split(":", expand=True).astype(float).to_numpy()
    sign = np.where(meta["Dec"].str.startswith("-"), -1.0, 1.0)
    sexagesimal = np.array([1, 1 / 60, 1 / 3600])
    return 15 * (hours @ sexagesimal), sign * (degrees @ sexagesimal)


def _bands(table: pd.DataFrame, row: NDArray[np.integer], source: LabelledSet) -> NDArray[np.int8]:
    """Index into BANDS, -1 for a passband that no survey of ours has (U, B, V, R, I, unfiltered...)."""
    codes = {name: i for i, name in enumerate(BANDS)}
    letters = table["passband"].astype(str)
    if source.bands == "random":
        # one band at about 550 nm or none named: ztf-g for half of the stars, ztf-r for the others
        return np.where(row % 2 == 0, codes["ztf-g"], codes["ztf-r"]).astype(np.int8)
    system: _Systems = (lambda _: source.bands) if source.bands != "instrument" else _system_of
    survey = table.get("instrument", letters)
    pair = {p: codes.get(f"{system(p[0])}-{p[1]}", -1) for p in set(zip(survey, letters, strict=True))}
    return np.array([pair[p] for p in zip(survey, letters, strict=True)], np.int8)


_Systems = Callable[[str], str]


def _system_of(instrument: str) -> str:
    """Survey whose bands are nearest to an instrument's; SDSS's where nothing is known (most griz follow it)."""
    return SURVEY_BANDS.get(instrument, instrument if instrument in ("ztf", "ps1") else "sdss")
