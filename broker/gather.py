"""Arrow struct arrays of decoded alerts to points and columns, as a survey's table says; no loop over alerts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.lightcurve import (
    AB_ZERO_POINT_NJY,
    BANDS,
    DETECTION,
    FORCED,
    MAGNITUDE_TO_RELATIVE_ERROR,
    TRIGGER,
    Bools,
    Codes,
    Floats,
    Integers,
    Points,
    flux_of_magnitude,
    mjd_tai_of_jd_utc,
)
from broker.surveys import LONGEST_TEXT, Floor, Measurements, Survey, Test

Settings = Mapping[str, Any]  # the policy's thresholds plus zero_point and programids of the source
_KINDS = {"forced": FORCED, "trigger": TRIGGER, "detection": DETECTION}
_COLUMN_TYPES: dict[str, pa.DataType] = {
    "source_id": pa.int64(),
    "object_id": pa.string(),
    "programid": pa.int32(),
    "ra": pa.float64(),
    "dec": pa.float64(),
    "is_negative": pa.bool_(),
    "reliability": pa.float32(),
    "visit": pa.int64(),
    "detector": pa.int32(),
    "field": pa.int32(),
    "rcid": pa.int32(),
    "first_mjd_tai": pa.float64(),
}


def _numpy(array: pa.Array) -> Any:
    """Without a copy where there is one: types are the caller's word."""
    return array.to_numpy(zero_copy_only=False)


class Columns:
    """Fields of an Arrow struct array as numpy arrays; a path may go through nested structs."""

    def __init__(self, records: pa.StructArray) -> None:
        self.records = records

    def __len__(self) -> int:
        return len(self.records)

    def array(self, path: str) -> pa.Array:
        """The field, null where any struct on the way is null."""
        return pc.struct_field(self.records, path.split("."))

    def number(self, path: str, null: float = np.nan) -> Floats:
        """As float64, null filled."""
        found: Floats = _numpy(self.array(path).cast(pa.float64(), safe=False).fill_null(null))
        return found

    def integer(self, path: str, null: int = -1) -> Integers:
        """As int64, null filled."""
        found: Integers = _numpy(self.array(path).cast(pa.int64()).fill_null(null))
        return found

    def valid(self, path: str) -> Bools:
        """Whether the field is there."""
        found: Bools = _numpy(self.array(path).is_valid())
        return found

    def meets(self, path: str, test: Test, limit: Any = None) -> Bools:
        """Whether a floor's condition holds; a missing value meets none but `outside`."""
        if test == "set":
            return self.valid(path)
        if test == "true":
            flags: Bools = _numpy(self.array(path).fill_null(False))
            return flags
        if test == "outside":
            return ~np.isin(self.integer(path), np.asarray(limit))
        value = self.number(path)
        if test == "positive":
            return value > 0
        if test == "not_negative":
            return value >= 0
        met: Bools = value > limit if test == "above" else value < limit
        return met


@dataclass(frozen=True)
class Gathered:
    """A batch of n alerts: all their points, the columns of their records, and the first floor each one meets.

    columns: our name -> Arrow array (n,); mjd_tai, band, flux, flux_err (n,) of the alert's own source (NaN, -1 where
    it has none); floor int64 (n,): index into the survey's floors, -1 where none is met.
    """

    points: Points
    columns: dict[str, pa.Array]
    mjd_tai: Floats
    band: Codes
    flux: Floats
    flux_err: Floats
    floor: Integers


def gather(alerts: pa.StructArray, survey: Survey, settings: Settings) -> Gathered:
    """Points and columns of n decoded alerts (n,), none of them null."""
    whole = Columns(alerts)
    parts = [_points(whole, table, survey, settings) for table in survey.measurements]
    own = parts[[table.kind for table in survey.measurements].index("trigger")]
    return Gathered(
        Points.concatenate(parts),
        {name: _column(whole, name, survey) for name in _COLUMN_TYPES},
        own.mjd_tai,
        own.band,
        own.flux,
        own.flux_err,
        _first_floor(whole, survey, settings),
    )


def implausible(alerts: pa.StructArray, survey: Survey) -> list[tuple[Bools, str]]:
    """For each mandatory field: which alerts (n,) lack a value in its plausible range, and that range in words.

    Texts that go into records have a longest length: without it an alert could ask for a record that no topic takes.
    """
    whole = Columns(alerts)
    checks = []
    for path, (low, high) in survey.mandatory.items():
        value = whole.number(path)
        with np.errstate(invalid="ignore"):
            checks.append((~((value >= low) & (value <= high)), f"{path} is not between {low:g} and {high:g}"))
    for path in survey.texts:
        length = pc.binary_length(whole.array(path)).fill_null(0)
        checks.append((_numpy(pc.greater(length, LONGEST_TEXT)), f"{path} has more than {LONGEST_TEXT} bytes"))
    return checks


def _column(whole: Columns, name: str, survey: Survey) -> pa.Array:
    """One column of the record; an id of 0 means that there is none."""
    kind = _COLUMN_TYPES[name]
    found = [whole.array(path) for path in survey.columns.get(name, ())]
    if not found:
        return pa.nulls(len(whole), kind)
    if name.endswith("_id") and name != "source_id":
        found = [pc.if_else(pc.equal(a, 0), None, a) if pa.types.is_integer(a.type) else a for a in found]
    if name == "first_mjd_tai" and any(m.time_scale == "jd_utc_start" for m in survey.measurements):
        start = found[0].cast(pa.float64())
        return pc.add(start, mjd_tai_of_jd_utc(np.zeros(1), np.array([survey.default_exposure_s]))[0])
    return _utf8(pc.coalesce(*(a.cast(kind) for a in found)))


def _utf8(array: pa.Array) -> pa.Array:
    """The column; bytes that are no UTF-8 (a flipped bit: the JVM lets them pass) become replacement marks."""
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:
        raw = array.cast(pa.binary()).to_pylist()
        return pa.array([None if text is None else text.decode(errors="replace") for text in raw], array.type)
    return array


def _points(whole: Columns, table: Measurements, survey: Survey, settings: Settings) -> Points:
    """The points of one record or list of records, one per non-null entry."""
    if table.kind == "trigger":
        alert, columns = np.arange(len(whole)), Columns(whole.array(table.path))
    else:
        lists = whole.array(table.path)
        alert = pc.list_parent_indices(lists).to_numpy(zero_copy_only=False)
        columns = Columns(lists.flatten())
    flux, flux_err = _photometry(columns, table, survey, settings)
    measured = ~np.isnan(flux) | (table.kind == "trigger") | ~_is_limit(columns, table)
    withdrawn = columns.valid(table.withdrawn) if table.withdrawn else np.zeros(len(columns), np.bool_)
    usable = ~withdrawn
    if table.programid:
        usable &= ~columns.meets(table.programid, "outside", settings["programids"])
    detected = np.zeros(len(columns), np.bool_)
    if table.detected:
        detected = columns.meets(table.detected, "true")
    elif table.kind != "forced":
        detected = ~_misses_floor(columns, survey, settings)
    points = Points(
        alert.astype(np.int64, copy=False),
        _times(columns, table, survey),
        _bands(columns.array(table.band), survey),
        flux,
        flux_err,
        np.full(len(columns), _KINDS[table.kind], np.int8),
        detected,
        _exposures(columns, table),
        usable,
    )
    if measured.all():
        return points
    return Points(*(getattr(points, name)[measured] for name in Points.__dataclass_fields__))


def _is_limit(columns: Columns, table: Measurements) -> Bools:
    """Entries that are upper limits: no magnitude, hence no point."""
    if table.photometry != "magnitude":
        return np.zeros(len(columns), np.bool_)
    return ~columns.valid(table.value)


def _photometry(columns: Columns, table: Measurements, survey: Survey, settings: Settings) -> tuple[Floats, Floats]:
    """Flux and error in nJy, float64 (p,) each; NaN where not measured."""
    value, error = columns.number(table.value), columns.number(table.error)
    with np.errstate(all="ignore"):
        if table.photometry == "magnitude":
            assert table.positive is not None
            positive = pc.is_in(columns.array(table.positive), value_set=pa.array(survey.true_labels))
            flux = flux_of_magnitude(value, positive.to_numpy(zero_copy_only=False))
            return flux, MAGNITUDE_TO_RELATIVE_ERROR * error * np.abs(flux)
        if survey.missing_value is not None:
            value = np.where(value == survey.missing_value, np.nan, value)
            error = np.where(error == survey.missing_value, np.nan, error)
        if table.photometry == "counts":
            assert table.zero_point is not None
            scale = 10 ** (0.4 * (AB_ZERO_POINT_NJY - columns.number(table.zero_point)))
        else:
            scale = np.asarray(10 ** (0.4 * (AB_ZERO_POINT_NJY - float(settings["zero_point"]))))
        return value * scale, error * scale


def _times(columns: Columns, table: Measurements, survey: Survey) -> Floats:
    """Mid-exposure times, MJD TAI, float64 (p,)."""
    time = columns.number(table.time)
    if table.time_scale == "mjd_tai":
        return time
    assert table.exposure_s is not None
    return mjd_tai_of_jd_utc(time, columns.number(table.exposure_s, survey.default_exposure_s))


def _bands(labels: pa.Array, survey: Survey) -> Codes:
    """Indices into BANDS, -1 where the label is null or unknown, int8 (p,)."""
    known = pa.array(list(survey.bands), labels.type)
    codes = np.array([BANDS.index(name) for name in survey.bands.values()] + [-1], np.int8)
    found: Codes = codes[_numpy(pc.index_in(labels, value_set=known).fill_null(len(codes) - 1))]
    return found


def _exposures(columns: Columns, table: Measurements) -> Integers:
    """Exact keys of exposures, int64 (p,): visit and detector, image id, or the bits of the time."""
    first = table.exposure[0]
    if first == table.time:
        return np.ascontiguousarray(columns.number(first)).view(np.int64)
    key = columns.integer(first)
    if len(table.exposure) == 1:
        return key
    second = table.exposure[1]
    if second == table.time:  # no image id: the exposure's start time instead
        return np.where(columns.valid(first), key, np.ascontiguousarray(columns.number(second)).view(np.int64))
    return key * 1000 + columns.integer(second)  # visits have 13 digits, detectors 3: no two exposures collide


def _misses_floor(columns: Columns, survey: Survey, settings: Settings) -> Bools:
    """Detections (p,) that don't count as such, by the floors that look at history too."""
    missed = np.zeros(len(columns), np.bool_)
    for floor in survey.floors:
        if floor.history:
            missed |= _meets_floor(columns, floor, settings, prefix=f"{survey.trigger}.")
    return missed


def _first_floor(whole: Columns, survey: Survey, settings: Settings) -> Integers:
    """Index of the first floor that each alert meets, -1 for none, int64 (n,)."""
    first = np.full(len(whole), -1, np.int64)
    for index, floor in enumerate(survey.floors):
        first[(first < 0) & _meets_floor(whole, floor, settings)] = index
    return first


def _meets_floor(columns: Columns, floor: Floor, settings: Settings, prefix: str = "") -> Bools:
    """Whether records meet a floor; prefix is cut off its paths where the records are the sources themselves."""
    if floor.switch is not None and not settings[floor.switch]:
        return np.zeros(len(columns), np.bool_)
    met = columns.meets(floor.column.removeprefix(prefix), floor.test, settings[floor.policy] if floor.policy else None)
    for path, test in floor.all_of:
        met &= columns.meets(path.removeprefix(prefix), test)
    if floor.unless is not None:
        met &= ~columns.valid(floor.unless.removeprefix(prefix))
    return met
