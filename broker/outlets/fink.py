"""Outlet `fink`: what fink-client reads. The key is the writer schema as JSON, the value a bare Avro body.

The fields on top are those without which `finkctl stream` stops: `diaSourceId` (LSST) or `objectId` and `candid` (ZTF)
to save, the nested ones to display. Everything else of ours is in the record `t2b`. Unions are written [type, "null"],
as Fink does. The client parses the schema for every message, so it is small.
"""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.model import Card
from broker.outlets import avro
from broker.outlets.batch import Batch
from broker.outlets.columns import class_fields

Field = dict[str, Any]
_NONE = b"\x02"  # branch 1 of [type, "null"]
_SOME = b"\x00"


def _field(name: str, kind: Any, is_optional: bool = False) -> Field:
    return {"name": name, "type": [kind, "null"] if is_optional else kind}


def _record(name: str, *fields: Field) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": list(fields)}


def _ours() -> Field:
    each = _record("p", _field("class", "string"), _field("class_id", "int"), _field("probability", "float"))
    answer = _record(
        "t2b",
        _field("status", "string"),
        _field("reason", "string"),
        _field("class", "string", True),
        _field("class_id", "int", True),
        _field("score", "float", True),
        _field("model_version", "string"),
        _field("n_detections", "int"),
        _field("classifications", {"type": "array", "items": each}),
    )
    return _field("t2b", answer)


@cache
def schema(survey: str) -> dict[str, Any]:
    """The record of a survey, `lsst` or `ztf`."""
    place = (_field("ra", "double", True), _field("dec", "double", True))
    if survey == "lsst":
        source = _record(
            "ds",
            _field("midpointMjdTai", "double"),
            _field("band", "string", True),
            _field("psfFlux", "float", True),
            _field("psfFluxErr", "float", True),
            *place,
        )
        whole = (
            _field("diaSourceId", "long"),
            _field("diaSource", source),
            _field("diaObject", _record("do", _field("diaObjectId", "long")), True),
            # where an alert has no object the client shows this designation; alerts are not decoded so far
            _field("mpc_orbits", _record("mo", _field("designation", "string", True)), True),
        )
    else:
        candidate = _record(
            "c", _field("jd", "double"), _field("magpsf", "float", True), _field("fid", "int", True), *place
        )
        whole = (
            _field("objectId", "string", True),
            _field("candid", "long"),
            _field("candidate", candidate),
            _field("cdsxmatch", "string", True),
        )
    return _record("topLevelRecord", *whole, _ours())


@cache
def key(survey: str) -> bytes:
    """Key of every record: the schema."""
    return json.dumps(schema(survey), separators=(",", ":")).encode()


def encode(batch: Batch) -> list[bytes]:
    """The body of each verdict."""
    first = _lsst(batch) if batch.survey.name == "lsst" else _ztf(batch)
    return avro.join([*first, *_answer(batch)], len(batch))


def _lsst(batch: Batch) -> list[avro.Encoded | bytes]:
    columns = batch.columns
    objects = [None if name is None else int(name) for name in columns.column("object_id").to_pylist()]
    return [
        avro.longs(columns.column("source_id").to_pylist()),
        _doubles(columns.column("mjd_tai")),
        _optional(avro.optional_texts(_without_survey(columns.column("band")))),
        *(_numbers(columns.column(name), "<f4") for name in ("flux", "flux_err")),
        *(_numbers(columns.column(name), "<f8") for name in ("ra", "dec")),
        [_NONE if name is None else _SOME + avro.varint(name) for name in objects],
        [_SOME + _NONE if name is None else _NONE for name in objects],
    ]


def _ztf(batch: Batch) -> list[avro.Encoded | bytes]:
    columns, survey = batch.columns, batch.survey
    own = next(table for table in survey.measurements if table.kind == "trigger")
    jd, magnitude, fid = (pc.struct_field(batch.alerts, [own.path, name]) for name in (own.time, own.value, own.band))
    return [
        _optional(avro.optional_texts(columns.column("object_id").to_pylist())),
        avro.longs(columns.column("source_id").to_pylist()),
        _doubles(jd),
        _numbers(magnitude, "<f4"),
        _optional(avro.optional_longs(fid.to_pylist())),
        *(_numbers(columns.column(name), "<f8") for name in ("ra", "dec")),
        _NONE,  # cdsxmatch: we match with no catalogue
    ]


def _answer(batch: Batch) -> list[avro.Encoded | bytes]:
    columns = batch.columns
    chances = [columns.column(name).to_numpy(zero_copy_only=False) for name in class_fields(batch.card).values()]
    return [
        avro.texts(columns.column("status").to_pylist()),
        avro.texts(columns.column("reason").to_pylist()),
        _optional(avro.optional_texts(columns.column("class_name").to_pylist())),
        _optional(avro.optional_longs(columns.column("class_id").to_pylist())),
        _numbers(columns.column("probability"), "<f4"),
        avro.text(batch.passport.model),
        avro.longs(columns.column("n_detections").to_pylist()),
        avro.arrays(_starts(batch.card), np.stack(chances, axis=1).astype(np.float32)),
    ]


def _starts(card: Card) -> list[bytes]:
    return [avro.text(c.name) + avro.varint(c.taxonomy_id) for c in card.classes]


def _without_survey(bands: pa.Array) -> list[str | None]:
    return [None if band is None else band.rpartition("-")[2] for band in bands.to_pylist()]


def _optional(values: avro.Encoded) -> avro.Encoded:
    """["null", type] made [type, "null"]."""
    return [_NONE if value == avro.NULL else _SOME + value[1:] for value in values]


def _numbers(column: pa.Array, kind: str) -> avro.Encoded:
    values = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return _optional(avro.optional_numbers(values, kind))


def _doubles(column: pa.Array) -> avro.Encoded:
    data = np.ascontiguousarray(column.to_numpy(zero_copy_only=False), "<f8").tobytes()
    return [data[i : i + 8] for i in range(0, len(data), 8)]
