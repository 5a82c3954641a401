"""Outlet `json`: one flat JSON object per verdict, times in ISO 8601. Schema: schemas/output/verdict.schema.json."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from broker.lightcurve import Integers
from broker.outlets.batch import Batch
from broker.outlets.columns import shared
from broker.outlets.native import BROKER_NAME, TAXONOMY_VERSION


def encode(batch: Batch, fields: Sequence[str] = ()) -> list[bytes]:
    """The object of each verdict; a field without a value is null.

    fields: of the alert, under `alert`, bytes as base64.
    """
    table = batch.columns
    names, parts = list(table.schema.names), []
    for column in table.columns:
        parts.append(_iso(column) if pa.types.is_timestamp(column.type) else column.to_pylist())
    always = dict(shared(batch.passport, TAXONOMY_VERSION, BROKER_NAME))
    always |= {"brokerIngestTimestamp": _time(batch.started_us), "brokerPublishTimestamp": _time(batch.finished_us)}
    if fields:
        carried = zip(*(_plain(_field(batch.alerts, path)) for path in fields), strict=True)
        names.append("alert")
        parts.append([dict(zip(fields, values, strict=True)) for values in carried])
    end = b"," + orjson.dumps(always)[1:]
    return [orjson.dumps(dict(zip(names, row, strict=True)))[:-1] + end for row in zip(*parts, strict=True)]


def bytes_of(alerts: pa.StructArray, fields: Sequence[str]) -> Integers:
    """Bytes that these fields of n alerts take at most: (n,). A character may become six (\\u0000)."""
    n = np.full(len(alerts), sum(len(path) + 32 for path in fields), np.int64)
    for path in fields:
        found = _field(alerts, path)
        if pa.types.is_binary(found.type) or pa.types.is_string(found.type):
            most = 2 if pa.types.is_binary(found.type) else 6
            n += most * pc.binary_length(found).fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
    return n


def _field(alerts: pa.StructArray, path: str) -> pa.Array:
    return pc.struct_field(alerts, path.split("."))


def _plain(column: pa.Array) -> list[Any]:
    if pa.types.is_binary(column.type):
        return [None if value is None else b64encode(value).decode() for value in column.to_pylist()]
    if pa.types.is_string(column.type):  # a flipped bit: the JVM lets bytes pass that are no UTF-8
        raw = column.cast(pa.binary()).to_pylist()
        return [None if value is None else value.decode(errors="replace") for value in raw]
    return list(column.to_pylist())


def _iso(column: pa.Array) -> list[str | None]:
    found: list[str | None] = pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ").to_pylist()
    return found


def _time(stamp_us: int) -> str:
    return datetime.fromtimestamp(stamp_us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
