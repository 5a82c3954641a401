"""`broker read`: the records of any topic that this broker writes, whatever their form, as plain dictionaries."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator, Mapping
from datetime import date, datetime
from functools import cache, lru_cache
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, cast

import fastavro
from confluent_kafka import Message, TopicPartition

from broker.errors import KafkaError, SchemaError, UsageError
from broker.outlets.native import SchemaOf, of_this_version
from broker.outlets.native import read as read_native
from broker.topics import end_of, open_consumer, reaches

CHUNK = 1000  # records that a condition is evaluated on at a time
Record = dict[str, Any]


def records(
    options: Mapping[str, str], topic: str, follow: bool = False, schema_of: SchemaOf = of_this_version
) -> Iterator[Record | None]:
    """Each record of a topic; None each time nothing more has come for a moment. Ends at the topic's end, or never.

    schema_of: schemas of Confluent frames. Raises KafkaError where the topic is missing, or holds what this broker
    doesn't write.
    """
    with open_consumer(options, reset="earliest") as consumer:
        held = reaches(consumer, topic)
        waiting = {p for p, reach in held.items() if reach.first < reach.last_exclusive}
        consumer.assign([TopicPartition(topic, p, reach.first) for p, reach in held.items()])
        while waiting or follow:
            found = consumer.consume(CHUNK, timeout=0.5)
            for message in found:
                if end_of(message):
                    waiting.discard(message.partition() or 0)
                else:
                    yield decode(message, schema_of)
            yield None


def decode(message: Message, schema_of: SchemaOf = of_this_version) -> Record:
    """The record, by the form that key, value and headers show. Raises KafkaError for one that it knows nothing of."""
    key, value = message.key() or b"", message.value() or b""
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    headers = {name: data or b"" for name, data in pairs}
    if "reason" in headers:  # a dead letter: its bytes are the alert's own
        told = {name: data.decode(errors="replace") for name, data in headers.items()}
        return {**told, "n_bytes": int(told.get("n_bytes", len(value)))}
    record: Any
    try:
        if key.startswith(b'{"type":"record"'):
            record = fastavro.schemaless_reader(io.BytesIO(value), _by_key(key), None)
        elif value.startswith((b"Obj\x01", b"\x00")):
            record = read_native(value, schema_of)
        elif value.startswith(b"{"):
            record = json.loads(value)
        else:
            record = fastavro.schemaless_reader(io.BytesIO(value), _elasticc(), None)
    except (SchemaError, ValueError, EOFError, IndexError) as error:
        where = f"{message.topic()}:{message.partition()}:{message.offset()}"
        raise KafkaError(
            f"{where}: none of the forms that this broker writes ({type(error).__name__}: {error})"
        ) from error
    assert isinstance(record, dict)
    return record


def pick(found: Iterable[Record | None], where: str | None) -> Iterator[Record]:
    """Those that meet an SQL condition over their fields. Raises UsageError where it can't be evaluated."""
    pending: list[Record] = []
    for record in found:
        if record is not None:
            pending.append(record)
        if pending and (record is None or len(pending) >= CHUNK):
            yield from _meeting(pending, where)
            pending = []
    yield from _meeting(pending, where)


def save(found: Iterable[Record], file: Path, limit: int | None) -> int:
    """Write the records to a Parquet file, all in memory before; their number. Raises UsageError."""
    import polars as pl

    whole = list(islice(found, limit))
    try:
        pl.from_dicts(whole, infer_schema_length=None).write_parquet(file) if whole else None
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UsageError(f"--output {file}: can't be written: {error}") from error
    return len(whole)


def line(record: Record) -> str:
    """One record as a line of JSON, times in ISO 8601."""
    return json.dumps(record, default=_plain)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat().replace("+00:00", "Z")
    return value.isoformat() if isinstance(value, date) else repr(value)


def _meeting(pending: list[Record], where: str | None) -> Iterator[Record]:
    if where is None or not pending:
        yield from pending
        return
    import polars as pl

    try:
        frame = pl.from_dicts(pending, infer_schema_length=None)
        met = frame.select(pl.sql_expr(where).fill_null(False).alias("met"))["met"]
    except pl.exceptions.PolarsError as error:
        raise UsageError(f"--where {where!r}: {str(error).splitlines()[0]}") from error
    if met.dtype != pl.Boolean or len(met) != len(pending):
        raise UsageError(f"--where {where!r}: gives {met.dtype}, not true or false for each record")
    yield from (record for record, is_met in zip(pending, met, strict=True) if is_met)


@lru_cache(maxsize=16)
def _by_key(key: bytes) -> Any:
    return fastavro.parse_schema(json.loads(key))


@cache
def _elasticc() -> Any:
    text = (resources.files("broker.schemas") / "output" / "elasticc.brokerClassification.avsc").read_text()
    return fastavro.parse_schema(json.loads(text))
