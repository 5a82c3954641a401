"""Labelled light curves from a folder: metadata.parquet (one row per object) and lightcurves.parquet (one per point).

metadata: object_id and a column of classes; ra and dec in degrees where known. lightcurves: object_id, mjd (days),
passband, flux, flux_err, and where known detected, instrument, mag, zero_point. Fluxes are difference fluxes.
What the columns leave open (zero point, bands, survey, label) is found as docs/evaluate.md says, or given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from broker import classes, split
from broker.errors import ArchiveError, UsageError
from broker.lightcurve import AB_ZERO_POINT_NJY, BANDS, WINDOW_D, LightCurves, Points, merge, summarise

LABEL_COLUMNS = ("class_broad", "class6", "class3", "spec_class_broad", "class", "label", "type", "true_type")
SUBTYPE_COLUMNS = ("true_type", "spec_class", "type")
POINT_COLUMNS = ("object_id", "mjd", "passband", "flux", "flux_err")
BEFORE_FIRST_DETECTION_D = 30.0  # forced photometry starts there; older baselines never reach a broker
PLAUSIBLE_MAGNITUDES = (10.0, 28.0)
SYSTEMS = ("lsst", "ztf", "ps1", "des", "sdss")
SYSTEM_OF_INSTRUMENT = {"DES": "des", "Blanco": "des", "P48": "ztf", "ztf": "ztf", "ps1": "ps1", "PS1": "ps1"}
SYSTEM_OF_INSTRUMENT |= dict.fromkeys(("PS1MD", "FOUND", "Pan-STARRS1", "PSST"), "ps1") | {"LSST": "lsst", "ZTF": "ztf"}
UNITS = ((r"nano-?jansky|njy", 31.4), (r"micro-?jansky|[uµ]jy", 23.9), (r"fluxcal", 27.5))

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Options:
    """What the user says of a folder; None and empty: to be found."""

    label_column: str | None = None
    survey: str | None = None
    zero_point: float | None = None
    bands: str | None = None
    band_of: Mapping[str, str] = field(default_factory=dict)
    subtract_median: bool = False


@dataclass(frozen=True)
class Labelled:
    """n objects: curves, our class of each (None: unlabelled, "?": none of ours), label as written, name, position.

    notes: how the folder was read, in words.
    """

    name: str
    survey: str
    label_column: str
    zero_point: float
    curves: LightCurves
    label: list[str | None]
    written: list[str]
    object_name: NDArray[np.str_]
    ra: Floats
    dec: Floats
    notes: tuple[str, ...]


def read(folder: Path, options: Options, known_zero_points: Mapping[str, float]) -> Labelled:
    """The folder's light curves by the rules. known_zero_points: of folders of these names, where nothing else tells.

    Raises ArchiveError for files or columns that are missing or of a wrong kind, UsageError where an option is needed.
    """
    _check(options)
    name = folder.resolve().name
    meta = _table(folder / "metadata.parquet", ("object_id",))
    table = _table(folder / "lightcurves.parquet", POINT_COLUMNS)
    label_column = _label_column(folder, meta, options.label_column)
    label, written = labels(meta, label_column)
    zero_point, why = _zero_point(folder, table, options.zero_point, known_zero_points)
    rows = rows_of(meta["object_id"], table["object_id"], folder)
    n_strange = int((rows < 0).sum())
    table, rows = table[rows >= 0].reset_index(drop=True), rows[rows >= 0]
    letters = options.bands or system_of(set(table["passband"].astype(str).unique()))
    by_instrument = "instrument" in table and options.bands is None
    band = _codes(table, table["instrument"] if by_instrument else letters, options.band_of)
    notes = [f"classes from column {label_column}", f"flux 1 is AB magnitude {zero_point:g} ({why})"]
    notes.append("bands by " + ("column instrument" if by_instrument else f"letter, as {letters}'s"))
    if n_strange:
        notes.append(f"{n_strange} points of objects that metadata.parquet does not have")
    notes += _strange_bands(table, band)
    curves = curves_of(
        table, rows, band, len(meta), zero_point,
        subtract_median=options.subtract_median, detected=detections(table),
    )  # fmt: skip
    notes += _strange_fluxes(curves)
    is_ztf = all(BANDS[i].startswith("ztf") for i in np.unique(band[band >= 0]))
    survey = options.survey or ("ztf" if is_ztf else "lsst")
    return Labelled(
        name, survey, label_column, zero_point, curves, label, written,
        split.names_in(name, sky_names(meta)), *positions(meta), tuple(notes),
    )  # fmt: skip


def _table(path: Path, needed: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's ArrowInvalid is a ValueError
        raise ArchiveError(f"{path}: can't be read ({error}); a labelled set is a folder with this file") from error
    missing = [column for column in needed if column not in table]
    if missing:
        raise ArchiveError(f"{path}: no column {', '.join(missing)}; it has {', '.join(map(str, table.columns))}")
    for column in sorted({"mjd", "flux", "flux_err"} & set(needed)):
        if not pd.api.types.is_numeric_dtype(table[column]):
            raise ArchiveError(f"{path}: column {column} holds {table[column].dtype}, expected numbers")
    return table


def rows_of(known: pd.Series, wanted: pd.Series, folder: Path) -> NDArray[np.int64]:
    """Row in the metadata of each point's object, -1 for none. Raises ArchiveError when an id stands there twice."""
    if known.dtype != wanted.dtype:
        known, wanted = known.astype(str), wanted.astype(str)
    index = pd.Index(known)
    if not index.is_unique:
        twice = index[index.duplicated()].tolist()[0]
        raise ArchiveError(f"{folder / 'metadata.parquet'}: object_id {twice!r} stands in it more than once")
    return np.asarray(index.get_indexer(pd.Index(wanted)), np.int64)


def _label_column(folder: Path, meta: pd.DataFrame, wanted: str | None) -> str:
    columns = ", ".join(map(str, meta.columns))
    if wanted is not None and wanted not in meta:
        raise UsageError(f"--label-column {wanted!r}: {folder / 'metadata.parquet'} has {columns}")
    found = wanted or next((name for name in LABEL_COLUMNS if name in meta), None)
    if found is None:
        raise UsageError(
            f"{folder / 'metadata.parquet'}: none of {', '.join(LABEL_COLUMNS)} among its columns ({columns}); "
            "name the column of classes with --label-column"
        )
    return found


def labels(meta: pd.DataFrame, column: str) -> tuple[list[str | None], list[str]]:
    """Our class of each object (see `classes.of_label`) and its label as written; a finer column is read as well."""
    subtype = next((name for name in SUBTYPE_COLUMNS if name in meta and name != column), column)
    pairs = list(zip(meta[column].astype(object), meta[subtype].astype(object), strict=True))
    ours = {pair: classes.of_label(*pair) for pair in set(pairs)}
    return [ours[pair] for pair in pairs], [str(label) for label, _ in pairs]


def _zero_point(
    folder: Path, table: pd.DataFrame, given: float | None, known: Mapping[str, float]
) -> tuple[float, str]:
    """AB magnitude of flux 1, and where that was found."""
    if given is not None:
        return given, "--zero-point"
    if "zero_point" in table and table["zero_point"].nunique() == 1:
        return float(table["zero_point"].iloc[0]), "column zero_point"
    for found in (_by_magnitude(table), _by_readme(folder / "README.md")):
        if found:
            return found
    name = folder.resolve().name
    if name in known:
        return known[name], "the training set of that name"
    raise UsageError(
        f"{folder}: nothing says in which unit its fluxes are (no column zero_point, no mag that fits flux, "
        "no README.md with a unit); give --zero-point, the AB magnitude of flux 1: 31.4 for nJy, 23.9 for uJy, "
        "27.5 for FLUXCAL"
    )


def _by_magnitude(table: pd.DataFrame) -> tuple[float, str] | None:
    if "mag" not in table or not pd.api.types.is_numeric_dtype(table["mag"]):
        return None
    flux, mag = table["flux"].to_numpy(np.float64), table["mag"].to_numpy(np.float64)
    usable = (flux > 0) & np.isfinite(flux) & np.isfinite(mag)
    if not usable.any():
        return None
    low, middle, high = np.percentile(mag[usable] + 2.5 * np.log10(flux[usable]), [5, 50, 95])
    return (round(float(middle), 2), "column mag") if high - low < 0.05 else None


def _by_readme(path: Path) -> tuple[float, str] | None:
    if not path.is_file():
        return None
    text = path.read_text(errors="replace")
    for line in text.splitlines():
        if re.match(r"\W*flux\b", line, re.IGNORECASE):
            number = re.search(r"zero[ -]?point\D{0,4}(\d\d(?:\.\d+)?)", line, re.IGNORECASE)
            if number:
                return float(number[1]), path.name
            for unit, value in UNITS:
                if re.search(unit, line, re.IGNORECASE):
                    return value, path.name
    return None


def system_of(letters: set[str]) -> str:
    """Survey whose letters these are: ugrizy LSST's, gri at most ZTF's, griz DES's, with u SDSS's."""
    if letters & {"y", "Y"}:
        return "lsst"
    if letters <= {"g", "r", "i"}:
        return "ztf"
    return "sdss" if "u" in letters else "des"


def bands_of(letters: pd.Series, systems: pd.Series | str, given: Mapping[str, str] | None = None) -> NDArray[np.int8]:
    """Index into BANDS of each point, -1 for a passband that no survey of ours has (U, B, V, R, I, unfiltered...).

    systems: survey prefix of the bands, or the instrument of each point. Instruments that are not known count as
    SDSS's, which most griz follow.
    """
    codes = {name: i for i, name in enumerate(BANDS)}
    chosen = given or {}
    letter = letters.astype(str)
    instrument = [systems] * len(letter) if isinstance(systems, str) else systems.astype(str)

    def code(system: str, passband: str) -> int:
        prefix = system if system in SYSTEMS else SYSTEM_OF_INSTRUMENT.get(system, "sdss")
        lower = passband.replace("Y", "y")
        return codes.get(chosen.get(passband, passband if passband in codes else f"{prefix}-{lower}"), -1)

    pair = {p: code(*p) for p in set(zip(instrument, letter, strict=True))}
    return np.array([pair[p] for p in zip(instrument, letter, strict=True)], np.int8)


def _codes(table: pd.DataFrame, systems: pd.Series | str, given: Mapping[str, str]) -> NDArray[np.int8]:
    band = bands_of(table["passband"], systems, given)
    if len(band) and (band < 0).all():
        names = ", ".join(sorted(table["passband"].astype(str).unique()))
        raise UsageError(
            f"passbands {names}: none is a band of ours; say which is which with --band, as --band V=ztf-g"
        )
    return band


def _check(options: Options) -> None:
    if options.survey not in (None, *WINDOW_D):
        raise UsageError(f"--survey {options.survey!r}: lsst and ztf are known")
    if options.bands not in (None, *SYSTEMS):
        raise UsageError(f"--bands {options.bands!r}: {', '.join(SYSTEMS)} are known")
    unknown = sorted(set(options.band_of.values()) - set(BANDS))
    if unknown:
        raise UsageError(f"--band: {', '.join(unknown)} is no band; there are {', '.join(BANDS)}")
    if options.zero_point is not None and not 0 <= options.zero_point <= 60:
        raise UsageError(f"--zero-point {options.zero_point:g}: an AB magnitude, 31.4 for nJy; 0 to 60 are taken")


def _strange_bands(table: pd.DataFrame, band: NDArray[np.int8]) -> list[str]:
    lost = table["passband"].astype(str)[band < 0]
    names = ", ".join(sorted(lost.unique()))
    return [f"{len(lost)} points dropped: passbands {names} are no bands of ours"] if len(lost) else []


def curves_of(
    table: pd.DataFrame,
    rows: NDArray[np.int64],
    band: NDArray[np.int8],
    n: int,
    zero_point: float,
    *,
    subtract_median: bool = False,
    detected: NDArray[np.bool_] | None = None,
) -> LightCurves:
    """Light curves of n objects by the rules; rows: object of each point; abs(flux)/error >= 5 is always a detection.

    subtract_median turns total into difference fluxes; the column `detected` then says nothing and is not used.
    """  # fmt: skip
    nano_jansky = 10 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point))
    flux = table["flux"].to_numpy(np.float64) * nano_jansky
    error = table["flux_err"].to_numpy(np.float64) * nano_jansky
    if subtract_median:
        flux = flux - table.groupby(["object_id", "passband"])["flux"].transform("median").to_numpy() * nano_jansky
    with np.errstate(all="ignore"):
        found = np.abs(flux) >= 5 * error
    if detected is not None and not subtract_median:
        found |= detected
    points = Points.of_table(rows, table["mjd"].to_numpy(np.float64), band, flux, error, found)
    curves, _ = merge(points, n, np.full(n, np.nan))
    first = summarise(curves).first_detection
    return curves.select(~(curves.mjd_tai < first[curves.rows] - BEFORE_FIRST_DETECTION_D))


def detections(table: pd.DataFrame) -> NDArray[np.bool_] | None:
    """The column `detected`, None where there is none; missing values count as not detected."""
    if "detected" not in table:
        return None
    return np.asarray(table["detected"].eq(True).astype("boolean").fillna(False), np.bool_)


def _strange_fluxes(curves: LightCurves) -> list[str]:
    flux = np.abs(curves.flux[curves.detected])
    flux = flux[flux > 0]
    if not len(flux):
        return ["no point is a detection"]
    magnitude = AB_ZERO_POINT_NJY - 2.5 * float(np.log10(np.median(flux)))
    if PLAUSIBLE_MAGNITUDES[0] <= magnitude <= PLAUSIBLE_MAGNITUDES[1]:
        return []
    return [f"the median detection would have magnitude {magnitude:.1f}: is the zero point right?"]


def sky_names(meta: pd.DataFrame) -> list[str]:
    """Name of each object: the IAU's where the set has it, else the set's own."""
    own = meta["object_id"].astype(str)
    iau = meta.get("iau_name", own)
    return [str(i if isinstance(i, str) and i else o) for i, o in zip(iau, own, strict=True)]


def positions(meta: pd.DataFrame) -> tuple[Floats, Floats]:
    """ra and dec in degrees from the columns ra and dec (degrees) or RA and Dec (sexagesimal); NaN where unknown."""
    if "ra" in meta and "dec" in meta:
        return meta["ra"].to_numpy(np.float64), meta["dec"].to_numpy(np.float64)
    if "RA" not in meta or "Dec" not in meta:
        return np.full(len(meta), np.nan), np.full(len(meta), np.nan)
    hours = meta["RA"].str.split(":", expand=True).astype(float).to_numpy()
    degrees = meta["Dec"].str.lstrip("+-").str.split(":", expand=True).astype(float).to_numpy()
    sign = np.where(meta["Dec"].str.startswith("-"), -1.0, 1.0)
    sexagesimal = np.array([1, 1 / 60, 1 / 3600])
    return 15 * (hours @ sexagesimal), sign * (degrees @ sexagesimal)
