"""Outlets: the forms in which verdicts leave. One small file each; an outlet turns a batch into finished rows."""

from __future__ import annotations

from dataclasses import dataclass

import pyarrow as pa

HEADERS_TYPE = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
ROWS = pa.schema([("topic", pa.string()), ("key", pa.binary()), ("value", pa.binary()), ("headers", HEADERS_TYPE)])
ROWS_DDL = "topic string, key binary, value binary, headers array<struct<key: string, value: binary>>"
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
    return pa.RecordBatch.from_arrays(
        [
            pa.array([topic] * len(keys), pa.string()),
            pa.array(keys, pa.binary()),
            pa.array(values, pa.binary()),
            pa.array([[{"key": k, "value": v} for k, v in h] for h in headers], HEADERS_TYPE),
        ],
        schema=ROWS,
    )
