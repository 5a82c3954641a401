"""Rows of tables behind the decoder: alerts from a survey's own columns, and light curves in the shape of alerts.

Of alerts only the columns of light curves are read, never the cutouts. Of light curves (one row per point) every object
becomes one row, as `surveys.curves` says. Coordinates: file, 0, number of the row or of the object in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from broker import surveys
from broker.classifier import Scale, are_lsst, encoded, points_of_objects
from broker.errors import ArchiveError, UsageError
from broker.lightcurve import AB_ZERO_POINT_NJY, BANDS, Bools, Floats, Integers, Points
from broker.surveys import Fields, Survey
from broker.tables import Plan, leaves_of, whole

ALERTS_LABEL, CURVES_LABEL = "parquet", "light-curves"  # what a record calls the schema of its alert
ROWS = 256

_SCALARS = {
    "long": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "float": pa.float32(),
    "string": pa.string(),
    "boolean": pa.bool_(),
}
_SQL = {"long": "bigint", "int": "int", "double": "double", "float": "float", "string": "string", "boolean": "boolean"}


# --- alerts -------------------------------------------------------------------------------------------------------


def ddl(survey: Survey) -> str:
    """The rows of the hop for a survey, as Spark's text: what `job.before_hop` gives for alerts from bytes."""
    header = "array<struct<key: string, value: binary>>"
    return (
        f"alert {_sql(survey.fields)}, schema string, raw binary, key binary, headers {header}, topic string, "
        "partition int, offset bigint, timestamp timestamp, alone boolean"
    )


def _sql(wanted: str | Fields | list[Fields]) -> str:
    if isinstance(wanted, str):
        return _SQL[wanted]
    if isinstance(wanted, list):
        return f"array<{_sql(wanted[0])}>"
    return f"struct<{', '.join(f'{name}: {_sql(inner)}' for name, inner in wanted.items())}>"


def read(path: Path, topic: str, plan: Plan, survey_name: str) -> Iterator[pa.RecordBatch]:
    """The rows of a table that are of this survey. Raises ArchiveError: it can't be read, or a column is of no use."""
    alerts = _curves(path, plan, survey_name) if plan.columns else _alerts(path, surveys.find(survey_name))
    label = CURVES_LABEL if plan.columns else ALERTS_LABEL
    while True:
        try:
            found = next(alerts, None)
        except (OSError, pa.ArrowException, UsageError) as error:
            raise ArchiveError(f"{path}: {str(error).splitlines()[0]}") from error
        if found is None:
            return
        yield _rows(*found, topic, label)


def _rows(alerts: pa.StructArray, offsets: Integers, topic: str, label: str) -> pa.RecordBatch:
    n = len(alerts)
    header = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
    columns = {
        "alert": alerts,
        "schema": pa.array([label] * n, pa.string()),
        "raw": pa.nulls(n, pa.binary()),
        "key": pa.nulls(n, pa.binary()),
        "headers": pa.nulls(n, header),
        "topic": pa.array([topic] * n, pa.string()),
        "partition": pa.array(np.zeros(n, np.int32)),
        "offset": pa.array(offsets),
        "timestamp": pa.nulls(n, pa.timestamp("us", "UTC")),
        "alone": pa.array(np.zeros(n, np.bool_)),
    }
    return pa.RecordBatch.from_pydict(columns)


def _alerts(path: Path, survey: Survey) -> Iterator[tuple[pa.StructArray, Integers]]:
    wanted = set(_paths(survey.fields))
    with pq.ParquetFile(path) as file:
        columns = [theirs for theirs, ours in leaves_of(file).items() if ours in wanted]
        start = 0
        for batch in file.iter_batches(ROWS, columns=columns):
            whole = pa.StructArray.from_arrays(batch.columns, names=batch.schema.names)
            yield conform(whole, survey.fields), np.arange(start, start + len(batch))
            start += len(batch)


def _paths(fields: Fields, start: str = "") -> Iterator[str]:
    for name, wanted in fields.items():
        inner = wanted[0] if isinstance(wanted, list) else wanted
        if isinstance(inner, dict):
            yield from _paths(inner, f"{start}{name}.")
        else:
            yield f"{start}{name}"


def conform(found: pa.Array, wanted: str | Fields | list[Fields]) -> pa.Array:
    """The array as our type: fields in our order, what is missing is null. Raises ArrowInvalid for what can't be."""
    kind = arrow_type(wanted)
    if pa.types.is_null(found.type):
        return pa.nulls(len(found), kind)
    if isinstance(wanted, str):
        if pa.types.is_floating(found.type) and pa.types.is_integer(kind):
            found = pc.if_else(pc.is_nan(found), None, found)  # pandas' null
        return found.cast(kind, safe=pa.types.is_integer(kind))
    if isinstance(wanted, list):
        lengths = pc.fill_null(pc.list_value_length(found), 0).to_numpy(zero_copy_only=False)
        offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32))
        values = conform(pc.list_flatten(found), wanted[0])
        return pa.ListArray.from_arrays(offsets, values, type=kind, mask=found.is_null())
    if not pa.types.is_struct(found.type):
        raise pa.ArrowInvalid(f"a column holds {found.type}, expected a struct of {', '.join(wanted)}")
    have = {field.name for field in found.type}
    parts = [
        conform(pc.struct_field(found, name), inner) if name in have else pa.nulls(len(found), arrow_type(inner))
        for name, inner in wanted.items()
    ]
    return pa.StructArray.from_arrays(parts, fields=list(kind), mask=found.is_null())


def arrow_type(wanted: str | Fields | list[Fields]) -> pa.DataType:
    """Arrow type of a survey's field, as Spark names the parts."""
    if isinstance(wanted, str):
        return _SCALARS[wanted]
    if isinstance(wanted, list):
        return pa.list_(pa.field("element", arrow_type(wanted[0])))
    return pa.struct([pa.field(name, arrow_type(inner)) for name, inner in wanted.items()])


# --- light curves -------------------------------------------------------------------------------------------------


def _curves(path: Path, plan: Plan, survey_name: str) -> Iterator[tuple[pa.StructArray, Integers]]:
    """Objects of a table as alerts; where it serves two surveys' thresholds, those of this one."""
    table = whole(path, plan.columns)
    object_id, points = points_of_objects(table, Scale(plan.unit, plan.zero_point, plan.bands))
    if "zero_point" in plan.columns:
        zero_point = conform(table["zero_point"].combine_chunks(), "double").to_numpy(zero_copy_only=False)
        scale = 10 ** (0.4 * (AB_ZERO_POINT_NJY - zero_point))
        points = Points(**{**vars(points), "flux": points.flux * scale, "flux_err": points.flux_err * scale})
    usable = (points.band >= 0) & np.isfinite(points.mjd_tai) & np.isfinite(points.flux) & (points.flux_err > 0)
    is_lsst = are_lsst(points.band[usable], points.alert[usable], len(object_id))
    chosen = np.flatnonzero(is_lsst == survey_name.startswith("lsst"))
    row, _ = encoded(table, "object_id")
    first = np.unique(row, return_index=True)[1]
    places = {name: _place(table, name)[first] for name in ("ra", "dec")}
    newest = _newest(points, usable)
    alerts = _as_alerts(object_id, points, newest, places, surveys.find(survey_name))
    for start in range(0, len(chosen), ROWS):
        part = chosen[start : start + ROWS]
        yield alerts.take(pa.array(part)), part


def _place(table: pa.Table, name: str) -> Floats:
    if name not in table.column_names:
        return np.full(len(table), np.nan)
    found: Floats = table[name].cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return found


def _newest(points: Points, usable: Bools) -> Integers:
    """Index of the newest usable point of each object, of equals the first."""
    time = np.where(np.isnan(points.mjd_tai), -np.inf, points.mjd_tai)
    order = np.lexsort((-np.arange(len(time)), time, usable, points.alert))
    return order[np.flatnonzero(np.append(np.diff(points.alert[order]) != 0, True))].astype(np.int64)


def _as_alerts(
    object_id: np.ndarray[Any, Any],
    points: Points,
    newest: Integers,
    places: Mapping[str, Floats],
    survey: Survey,
) -> pa.StructArray:
    """One struct per object: its newest point with its name and place, and the list of the others."""
    labels = pa.array([*BANDS, None], pa.string())

    def structs(chosen: Integers) -> dict[str, pa.Array]:
        return {
            "mjd": pa.array(points.mjd_tai[chosen]),
            "band": labels.take(pa.array(np.where(points.band < 0, len(BANDS), points.band)[chosen])),
            "flux": pa.array(points.flux[chosen]),
            "flux_err": pa.array(points.flux_err[chosen]),
            "detected": pa.array(points.detected[chosen]),
        }

    kind = arrow_type(survey.fields)
    own = structs(newest) | {
        "source_id": pa.array(np.arange(len(object_id))),
        "object_id": pa.array([str(name) for name in object_id.tolist()], pa.string()),
        **{name: pa.array(values, from_pandas=True) for name, values in places.items()},
    }
    own_type = kind.field("newest").type
    trigger = pa.StructArray.from_arrays([own[field.name] for field in own_type], fields=list(own_type))
    is_other = np.ones(len(points.alert), np.bool_)
    is_other[newest] = False
    others = np.flatnonzero(is_other)
    others = others[np.argsort(points.alert[others], kind="stable")]
    counts = np.bincount(points.alert[others], minlength=len(object_id))
    point_type = kind.field("points").type.value_type
    values = pa.StructArray.from_arrays(list(structs(others).values()), fields=list(point_type))
    offsets = pa.array(np.concatenate([[0], np.cumsum(counts)]).astype(np.int32))
    lists = pa.ListArray.from_arrays(offsets, values, type=kind.field("points").type)
    return pa.StructArray.from_arrays([trigger, lists], fields=list(kind))
