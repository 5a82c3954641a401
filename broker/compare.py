"""Two sets of verdicts of the same alerts, record by record and to the bit: live and replayed, or of two models.

A set is a file that `broker classify` wrote or topics that the job wrote. A classification is known by its source id, a
dead letter by the sha256 of its bytes; times, places and the release that wrote a record are not compared.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import fastavro
import pyarrow.parquet as pq
from rich.console import Console

from broker.errors import ArchiveError, SchemaError, UsageError
from broker.outlets import native
from broker.outlets.native import SchemaOf, of_this_version
from broker.topics import read_all

CLOCKS_AND_PLACES = (
    "brokerIngestTimestamp",
    "brokerPublishTimestamp",
    "brokerVersion",
    "alert_schema",
    "alert_topic",
    "alert_partition",
    "alert_offset",
    "alert_timestamp",
    "repeats_alert",
)
_TOPICS = re.compile(r"([^/]+:\d{1,5})/([A-Za-z0-9._,-]+)")
_LETTER = ("reason", "detail")  # what is compared of a dead letter
Named = tuple[str, dict[str, Any]]  # name of a verdict and its compared fields


@dataclass(frozen=True)
class Entry:
    """One verdict in short."""

    digest: bytes
    status: str
    class_name: str | None


@dataclass(frozen=True)
class Comparison:
    """Records by what was found; first: name of the alert, and (field, here, there) of what differs."""

    n_here: int
    n_there: int
    n_same: int
    n_differ: int
    n_only_here: int
    n_only_there: int
    n_same_class: int
    first: tuple[str, list[tuple[str, Any, Any]]] | None

    @property
    def is_same(self) -> bool:
        """Whether every verdict of one set is in the other, bit for bit."""
        return self.n_here == self.n_same == self.n_there


def compare(
    here: str, there: str, options: Mapping[str, str] | None = None, schema_of: SchemaOf = of_this_version
) -> Comparison:
    """Compare two sets. options: librdkafka's, for topics; schema_of: schemas of Confluent frames.

    Raises UsageError, ArchiveError, KafkaError.
    """
    read = partial(records, options=options or {}, schema_of=schema_of)
    ours, theirs = (_entries(which, read(which)) for which in (here, there))
    counts: Counter[str] = Counter()
    first: str | None = None
    for name, entries in ours.items():
        differing, _ = _unmatched(entries, theirs.get(name, []))
        if differing:
            first = first or name
        pairs, others = len(entries) - len(differing), theirs.get(name, [])
        counts["same"] += pairs
        n_pairs = min(len(differing), len(others) - pairs)
        counts["differ"] += n_pairs
        counts["here"] += len(differing) - n_pairs
        counts["there"] += len(others) - pairs - n_pairs
        counts["class"] += sum(
            (a.status, a.class_name) == (b.status, b.class_name) for a, b in zip(entries, others, strict=False)
        )
    extra = [name for name in theirs if name not in ours]
    counts["there"] += sum(len(theirs[name]) for name in extra)
    surplus = next((n for n in theirs if len(theirs[n]) > len(ours.get(n, []))), None)
    first = first or surplus
    told = None if first is None else (first, _differences(first, read(here), read(there)))
    return Comparison(
        sum(map(len, ours.values())), sum(map(len, theirs.values())), counts["same"], counts["differ"],
        counts["here"], counts["there"], counts["class"], told,
    )  # fmt: skip


def _unmatched(entries: list[Entry], others: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """What is left of both when equal ones are paired."""
    left = Counter(entry.digest for entry in others)
    unmatched = []
    for entry in entries:
        if left[entry.digest] > 0:
            left[entry.digest] -= 1
        else:
            unmatched.append(entry)
    return unmatched, [entry for entry in others if left[entry.digest] > 0]


def _entries(which: str, verdicts: Iterable[Named]) -> dict[str, list[Entry]]:
    found: dict[str, list[Entry]] = {}
    for name, record in verdicts:
        entry = Entry(_digest(record), str(record.get("status", "rejected")), record.get("class_name"))
        found.setdefault(name, []).append(entry)
    if not found:
        raise ArchiveError(f"{which}: holds no verdict")
    return found


def _digest(record: Mapping[str, Any]) -> bytes:
    parts = repr([(name, _bits(value)) for name, value in sorted(record.items())])
    return hashlib.blake2b(parts.encode(), digest_size=16).digest()


def _bits(value: Any) -> Any:
    """The value with every number as its bits, so that -0.0 is not 0.0 and NaN equals itself."""
    if isinstance(value, float):
        return struct.pack("<d", value).hex()
    if isinstance(value, dict):
        return sorted((str(name), _bits(part)) for name, part in value.items())
    if isinstance(value, list | tuple):
        return [_bits(part) for part in value]
    return value


def _differences(name: str, here: Iterable[Named], there: Iterable[Named]) -> list[tuple[str, Any, Any]]:
    """The fields of the first pair of records of this name that are not the same; all where one is missing."""
    pairs = [[record for n, record in verdicts if n == name] for verdicts in (here, there)]
    ours, theirs = pairs
    for record in list(ours):
        if record in theirs and any(_digest(other) == _digest(record) for other in theirs):
            ours.remove(record)
            theirs.remove(record)
    if not ours or not theirs:
        return [("record", "there" if ours else "missing", "there" if theirs else "missing")]
    a, b = ours[0], theirs[0]
    return [(f, a.get(f), b.get(f)) for f in a | b if _bits(a.get(f)) != _bits(b.get(f))]


# --- reading ------------------------------------------------------------------------------------------------------


def records(which: str, options: Mapping[str, str], schema_of: SchemaOf = of_this_version) -> Iterator[Named]:
    """Name and compared fields of every verdict of a file or of topics (HOST:PORT/TOPIC,TOPIC)."""
    match = _TOPICS.fullmatch(which)
    if match is not None and not Path(which).exists():
        for topic in match[2].split(","):
            yield from _of_topic({**options, "bootstrap.servers": match[1]}, topic, schema_of)
        return
    for record in _of_file(Path(which)):
        if "source_id" not in record:
            raise ArchiveError(f"{which}: its records are no verdicts: no field source_id")
        yield f"source {record['source_id']}", _compared(record)


def _compared(record: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in record.items() if name not in CLOCKS_AND_PLACES}
    if isinstance(kept.get("n_points_per_band"), list):  # Parquet's maps
        kept["n_points_per_band"] = dict(kept["n_points_per_band"])
    return kept


def _of_topic(options: Mapping[str, str], topic: str, schema_of: SchemaOf) -> Iterator[Named]:
    for message in read_all(options, topic):
        headers = dict(cast("list[tuple[str, bytes]]", message.headers() or []))
        value = message.value() or b""
        if "reason" in headers:
            told = {name: headers.get(name, b"").decode(errors="replace") for name in _LETTER}
            yield f"bytes {hashlib.sha256(value).hexdigest()}", {"status": "rejected", **told}
            continue
        try:
            record = native.read(value, schema_of)
        except (EOFError, ValueError, IndexError, SchemaError) as error:
            place = f"{topic}:{message.partition()}:{message.offset()}"
            raise ArchiveError(f"{place}: neither a verdict nor a dead letter: is it an output topic?") from error
        yield f"source {record['source_id']}", _compared(record)


def _of_file(path: Path) -> Iterator[dict[str, Any]]:
    readers = {".parquet": _parquet, ".avro": _avro, ".jsonl": _json_lines}
    if path.suffix not in readers:
        raise UsageError(f"{path}: a set of verdicts is a file .parquet, .avro or .jsonl, or HOST:PORT/TOPIC,TOPIC")
    try:
        yield from readers[path.suffix](path)
    except (OSError, ValueError, EOFError) as error:  # pyarrow's, json's and fastavro's are ValueErrors
        raise ArchiveError(f"{path}: can't be read: {str(error).splitlines()[0]}") from error


def _parquet(path: Path) -> Iterator[dict[str, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(4096):
            yield from batch.to_pylist()


def _avro(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        yield from cast(Iterator[dict[str, Any]], fastavro.reader(file))


def _json_lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open() as lines:
        yield from map(json.loads, lines)


# --- telling ------------------------------------------------------------------------------------------------------


def show(found: Comparison, here: str, there: str, out: Console) -> None:
    """The counts, and the first difference field by field."""
    out.print(f"here:  {here}: {found.n_here} verdicts\nthere: {there}: {found.n_there}", markup=False, highlight=False)
    out.print(
        f"{found.n_same} the same to the bit, {found.n_differ} differ, {found.n_only_here} only here, "
        f"{found.n_only_there} only there; status and class agree in {found.n_same_class}",
        highlight=False,
    )
    if found.first is not None:
        name, fields = found.first
        out.print(f"the first difference: {name}", markup=False, highlight=False)
        for field, ours, theirs in fields:
            out.print(f"  {field}: {ours!r} here, {theirs!r} there", markup=False, highlight=False)
