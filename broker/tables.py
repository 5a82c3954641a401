"""What a table (Parquet, CSV) holds, by its columns: alerts of a survey, as Fink stores them, or plain light curves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from broker import surveys
from broker.classifier import UNITS
from broker.errors import ArchiveError, UsageError
from broker.labelled import SYSTEMS, system_of
from broker.lightcurve import BANDS
from broker.surveys import Survey
from broker.surveys.curves import NAMES

SUFFIXES = (".parquet", ".csv", ".csv.gz")
Read = TypeVar("Read")
_PARQUET = b"PAR1"
_CSV = (".csv", ".csv.gz")
_LISTS = {"list", "element", "item", "array", "bag", "array_element"}  # levels that Parquet's writers put in between


@dataclass(frozen=True)
class Hints:
    """What the user says of light curves: unit or AB magnitude of flux 1, and whose letters the bands are."""

    unit: str | None = None
    zero_point: float | None = None
    bands: str | None = None

    def check(self) -> None:
        """Raises UsageError for a unit or system that is not known."""
        if self.bands not in (None, *SYSTEMS):
            raise UsageError(f"--bands {self.bands!r}: {', '.join(SYSTEMS)} are known")
        if self.unit is not None and self.unit not in UNITS:
            raise UsageError(f"--unit {self.unit!r}: one of {', '.join(UNITS)}")
        if self.unit is not None and self.zero_point is not None:
            raise UsageError("--unit and --zero-point are both given; give one of them")


@dataclass(frozen=True)
class Plan:
    """What a table holds and how it is read.

    surveys: names for `surveys.find`; columns: ours -> the table's, of light curves (empty: alerts); bands: labels that
    are none of lightcurve.BANDS -> ours.
    """

    surveys: tuple[str, ...]
    columns: Mapping[str, str]
    unit: str | None
    zero_point: float | None
    bands: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """For the tasks."""
        return asdict(self)


def is_table(path: Path) -> bool:
    """Whether a file is for this module: Parquet by its first bytes, CSV by its name."""
    if path.name.endswith(_CSV):
        return True
    try:
        with path.open("rb") as file:
            return file.read(4) == _PARQUET or path.suffix == ".parquet"
    except OSError:
        return path.suffix == ".parquet"


# --- what a table holds -------------------------------------------------------------------------------------------


def look(path: Path, hints: Hints) -> Plan | None:
    """How to read a table; None where nothing in it looks like alerts or light curves.

    Raises ArchiveError for a file that can't be read or lacks columns (names them), UsageError where the user must say
    the unit of a flux or whose the bands are.
    """
    if path.name.endswith(_CSV):
        names = _opened(path, lambda: list(pa.csv.open_csv(path).schema.names))
    else:
        names, leaves = _opened(path, lambda: _names(path))
        lacking = {name: _lacking(surveys.find(name), set(leaves)) for name in surveys.NAMES}
        for name, missing in lacking.items():
            if missing == []:
                return Plan((name,), {}, None, None, {})
        near = {name: missing for name, missing in lacking.items() if missing is not None}
        if near:
            told = "; ".join(f"for alerts of {name} it lacks {', '.join(missing)}" for name, missing in near.items())
            raise ArchiveError(f"{path}: columns are missing: {told}")
    return _look_for_curves(path, names, hints)


def _lacking(survey: Survey, leaves: set[str]) -> list[str] | None:
    """Columns of a survey's alerts that are not among the leaves; None where none of its essential ones is."""
    if not leaves & set(survey.essential):
        return None
    needed = [*survey.essential, *survey.mandatory]
    for table in survey.measurements:
        if table.kind != "forced" or any(leaf.startswith(f"{table.path}.") for leaf in leaves):
            needed += [f"{table.path}.{column}" for column in (table.time, table.band, table.value, table.error)]
    return [column for column in dict.fromkeys(needed) if column not in leaves]


def _look_for_curves(path: Path, names: list[str], hints: Hints) -> Plan | None:
    columns, unit = _columns(names)
    if "mjd" not in columns or not columns.keys() & {"flux", "mag"}:
        return None
    missing = [name for name in ("object_id", "band") if name not in columns]
    brightness = "flux" if {"flux", "flux_err"} <= columns.keys() or "mag" not in columns else "mag"
    missing += [f"{brightness}_err"] if f"{brightness}_err" not in columns else []
    if missing:
        told = ", ".join(f"{name} (or {', '.join(NAMES[name][1:4])})" for name in missing)
        raise ArchiveError(f"{path}: light curves without a column {told}; it has {', '.join(names)}")
    other = ("mag", "mag_err", "is_negative") if brightness == "flux" else ("flux", "flux_err", "zero_point")
    columns = {ours: theirs for ours, theirs in columns.items() if ours not in other}
    unit, zero_point = hints.unit or unit, hints.zero_point
    if brightness == "flux" and unit is None and zero_point is None and "zero_point" not in columns:
        raise UsageError(
            f"{path}: nothing says in which unit its fluxes are: give --unit ({', '.join(UNITS)}) or --zero-point, the "
            "AB magnitude of flux 1; or add a column zero_point, or call the column flux_nJy"
        )
    if brightness == "mag" or "zero_point" in columns or zero_point is not None:
        unit = None
    if brightness == "mag" or "zero_point" in columns:
        zero_point = None
    bands = _bands(path, columns["band"], hints.bands)
    labels = {bands.get(label, label) for label in _labels(path, columns["band"])}
    is_ztf = [name.startswith("ztf") for name in labels]
    whose = ("ztf",) if all(is_ztf) else ("lsst", "ztf") if any(is_ztf) else ("lsst",)
    return Plan(tuple(f"{name}{surveys.CURVES}" for name in whose), columns, unit, zero_point, bands)


def _columns(names: list[str]) -> tuple[dict[str, str], str | None]:
    """Ours -> the table's name, and the unit that the name of the flux says (flux_nJy)."""
    by_lower = {name.lower(): name for name in reversed(names)}
    found = {}
    for ours, spellings in NAMES.items():
        if (spelling := next((s for s in spellings if s in by_lower), None)) is not None:
            found[ours] = by_lower[spelling]
    for unit in UNITS:
        flux, error = f"flux_{unit.lower()}", f"flux_err_{unit.lower()}"
        if "flux" not in found and flux in by_lower and error in by_lower:
            return found | {"flux": by_lower[flux], "flux_err": by_lower[error]}, unit
    return found, None


def _bands(path: Path, column: str, system: str | None) -> dict[str, str]:
    """The table's labels that are not ours -> ours. Raises UsageError where that is not clear."""
    strange = sorted(label for label in _labels(path, column) if label not in BANDS)
    if not strange:
        return {}
    chosen = system or system_of(set(strange))
    bands = {label: f"{chosen}-{label.replace('Y', 'y')}" for label in strange}
    if unknown := [label for label, name in bands.items() if name not in BANDS]:
        raise UsageError(
            f"{path}: band {', '.join(map(repr, unknown))} is none of {chosen}'s; say whose letters these are with "
            f"--bands ({', '.join(SYSTEMS)}), or use the names {', '.join(BANDS)}"
        )
    return bands


def _labels(path: Path, column: str) -> list[str]:
    """The distinct labels of the bands."""
    found = _opened(path, lambda: pc.unique(whole(path, {"band": column})["band"]))
    return [str(label) for label in found.to_pylist() if label is not None]


# --- files --------------------------------------------------------------------------------------------------------


def _names(path: Path) -> tuple[list[str], list[str]]:
    """Columns of a Parquet file, and the leaves below them."""
    with pq.ParquetFile(path) as file:
        return list(file.schema_arrow.names), list(leaves_of(file).values())


def leaves_of(file: pq.ParquetFile) -> dict[str, str]:
    """Parquet's path of every column -> ours, without the levels of lists."""
    paths = [file.schema.column(i).path for i in range(len(file.schema))]
    return {path: ".".join(part for part in path.split(".") if part not in _LISTS) for path in paths}


def whole(path: Path, columns: Mapping[str, str]) -> pa.Table:
    """These columns of a whole file, by our names. Names of objects and bands are text."""
    wanted, texts = list(columns.values()), [columns[name] for name in ("object_id", "band") if name in columns]
    if path.name.endswith(_CSV):
        options = pa.csv.ConvertOptions(include_columns=wanted, column_types=dict.fromkeys(texts, pa.string()))
        table = pa.csv.read_csv(path, convert_options=options)
    else:
        table = pq.read_table(path, columns=wanted, partitioning=None).select(wanted)
        for name in texts:
            if pa.types.is_integer(table.schema.field(name).type):
                table = table.set_column(wanted.index(name), name, table[name].cast(pa.string()))
    return table.rename_columns(list(columns))


def _opened(path: Path, read_it: Callable[[], Read]) -> Read:
    try:
        return read_it()
    except (OSError, pa.ArrowException) as error:
        raise ArchiveError(f"{path}: can't be read as a table ({str(error).splitlines()[0][:300]})") from error
