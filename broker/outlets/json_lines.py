"""Outlet `json`: one flat JSON object per verdict, times in ISO 8601. Schema: schemas/output/verdict.schema.json."""

from __future__ import annotations

from datetime import UTC, datetime

import orjson
import pyarrow as pa
import pyarrow.compute as pc

from broker.outlets.batch import Batch
from broker.outlets.columns import shared
from broker.outlets.native import BROKER_NAME, TAXONOMY_VERSION


def encode(batch: Batch) -> list[bytes]:
    """The object of each verdict; a field without a value is null."""
    table = batch.columns
    names, parts = list(table.schema.names), []
    for column in table.columns:
        parts.append(_iso(column) if pa.types.is_timestamp(column.type) else column.to_pylist())
    always = dict(shared(batch.passport, TAXONOMY_VERSION, BROKER_NAME))
    always |= {"brokerIngestTimestamp": _time(batch.started_us), "brokerPublishTimestamp": _time(batch.finished_us)}
    end = b"," + orjson.dumps(always)[1:]
    return [orjson.dumps(dict(zip(names, row, strict=True)))[:-1] + end for row in zip(*parts, strict=True)]


def _iso(column: pa.Array) -> list[str | None]:
    found: list[str | None] = pc.strftime(column, "%Y-%m-%dT%H:%M:%SZ").to_pylist()
    return found


def _time(stamp_us: int) -> str:
    return datetime.fromtimestamp(stamp_us / 1e6, UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
