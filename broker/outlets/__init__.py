"""Outlets: the forms in which verdicts leave. One small file each; an outlet turns a batch into finished rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

HEADERS_TYPE = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
ROWS = pa.schema(
    [
        ("topic", pa.string()),
        ("partition", pa.int32()),  # null: by the key
        ("key", pa.binary()),
        ("value", pa.binary()),
        ("headers", HEADERS_TYPE),
    ]
)
ROWS_DDL = "topic string, partition int, key binary, value binary, headers array<struct<key: string, value: binary>>"
Headers = list[tuple[str, bytes | None]]


@dataclass(frozen=True)
class Passport:
    """What every record says of the model and the code behind it."""

    name: str
    version: str
    sha256: str
    rules_version: int
    params: str
    broker_version: str

    @property
    def model(self) -> str:
        """name@version, the header `model` of every record."""
        return f"{self.name}@{self.version}"


def rows(topic: str, keys: list[bytes | None], values: list[bytes | None], headers: list[Headers]) -> pa.RecordBatch:
    """Finished rows for one topic."""
    return _rows(topic, keys, values, pa.array([[{"key": k, "value": v} for k, v in h] for h in headers], HEADERS_TYPE))


def records(
    topic: str,
    keys: Sequence[bytes],
    values: Sequence[bytes] | pa.Array,
    alerts: Sequence[bytes],
    model: bytes,
    more: Sequence[tuple[str, bytes]] = (),
    partitions: pa.Array | None = None,
) -> pa.RecordBatch:
    """Rows of n verdicts for one topic: headers `alert` (one of `alerts` each), `model` and `more`."""
    n, names = len(keys), ["alert", "model", *(name for name, _ in more)]
    rest = [model, *(value for _, value in more)]
    data = [part for alert in alerts for part in (alert, *rest)]
    pairs = pa.StructArray.from_arrays(
        [pa.array(names * n, pa.string()), pa.array(data, pa.binary())], ["key", "value"]
    )
    ends = pa.array(np.arange(n + 1) * len(names), pa.int32())
    return _rows(topic, keys, values, pa.ListArray.from_arrays(ends, pairs).cast(HEADERS_TYPE), partitions)


def _rows(
    topic: str,
    keys: Sequence[bytes | None],
    values: Sequence[bytes | None] | pa.Array,
    headers: pa.Array,
    partitions: pa.Array | None = None,
) -> pa.RecordBatch:
    n = len(keys)
    columns = [
        pa.array([topic] * n, pa.string()),
        pa.nulls(n, pa.int32()) if partitions is None else partitions,
        pa.array(keys, pa.binary()),
        values if isinstance(values, pa.Array) else pa.array(values, pa.binary()),
        headers,
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)
