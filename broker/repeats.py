"""`broker audit --repeats`: sources that a survey has sent more than once, by source id and hash of points.

The records themselves must be read for it, which takes several times as long as their headers.
"""

from __future__ import annotations

import json
from array import array
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import fastavro
import numpy as np
from fastavro.read import SchemaResolutionError
from fastavro.schema import SchemaParseException, UnknownType

from broker.container import Unreadable, read_header
from broker.errors import SchemaError
from broker.outlets.native import FRAME, SchemaOf, of_this_version, schema_id_of
from broker.reconcile import Integers, Place, place_of
from broker.topics import read_all

TELL_EVERY = 10_000
_WANTED = ("source_id", "points_hash", "alert_timestamp")

# What fastavro and json say of bytes that are no record of ours.
_NO_RECORD = (
    Unreadable,
    SchemaParseException,
    SchemaResolutionError,
    UnknownType,
    RecursionError,
    OverflowError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    SchemaError,
)


@dataclass(frozen=True)
class Again:
    """An alert whose source had an alert before, and that one. is_same: whether both have the same points."""

    source_id: int
    place: Place
    offset: int
    earlier: str
    is_same: bool


@dataclass
class Columns:
    """Answered alerts of one source (of the config), a row each; place: index into `places`; hash: of the points."""

    source_id: array[int] = field(default_factory=lambda: array("q"))
    time: array[int] = field(default_factory=lambda: array("q"))
    place: array[int] = field(default_factory=lambda: array("q"))
    offset: array[int] = field(default_factory=lambda: array("q"))
    hash: array[int] = field(default_factory=lambda: array("Q"))


def find_repeats(
    options: Mapping[str, str],
    topic: str,
    since_ms: int | None,
    tell: Callable[[str, int], None],
    schema_of: SchemaOf = of_this_version,
) -> list[Again]:
    """Of all classifications (from a time on): each alert but the first of every source id, within one source's alerts.

    By the survey's order: Kafka's time of the alert, then its partition and offset. Raises KafkaError.
    """
    columns: dict[str, Columns] = {}
    places: dict[bytes, int] = {}
    for n, message in enumerate(read_all(options, topic, since_ms), 1):
        if n % TELL_EVERY == 0:
            tell(topic, n)
        marks = cast("dict[str, bytes]", dict(message.headers() or ()))
        prefix, _, offset = (marks.get("alert") or b"").rpartition(b":")
        place, read = place_of(prefix), read_record(message.value() or b"", schema_of)
        if place is None or read is None or not offset.isdigit():
            continue
        mine = columns.setdefault(place.source, Columns())
        mine.source_id.append(read[0])
        mine.hash.append(read[1])
        mine.time.append(read[2])
        mine.place.append(places.setdefault(prefix, len(places)))
        mine.offset.append(int(offset))
    names = [cast(Place, place_of(prefix)) for prefix in places]
    return [again for mine in columns.values() for again in again_in(mine, names)]


def again_in(columns: Columns, places: list[Place]) -> list[Again]:
    """Each alert but the first of every source id, beside the one before it."""
    ids, time, place, offset = (
        np.array(getattr(columns, c), np.int64) for c in ("source_id", "time", "place", "offset")
    )
    hashes = np.array(columns.hash, np.uint64)
    order = np.lexsort((offset, place, time, ids))
    follows = np.flatnonzero(ids[order][1:] == ids[order][:-1])
    found = []
    for i in follows.tolist():
        before, this = int(order[i]), int(order[i + 1])
        if place[before] == place[this] and offset[before] == offset[this]:
            continue  # another model's record of the same alert, or one that is there twice: not the survey's doing
        earlier = f"{places[int(place[before])]}:{offset[before]}"
        is_same = bool(hashes[before] == hashes[this])
        found.append(Again(int(ids[this]), places[int(place[this])], int(offset[this]), earlier, is_same))
    return found


def inside(found: list[Again], place: Place, first: int, last_exclusive: int) -> tuple[Integers, Integers]:
    """Offsets, within a window, of alerts that came again: with the same points, and with others."""
    mine = [a for a in found if a.place == place and first <= a.offset < last_exclusive]
    same = np.array(sorted(a.offset for a in mine if a.is_same), np.int64)
    return same, np.array(sorted(a.offset for a in mine if not a.is_same), np.int64)


def read_record(value: bytes, schema_of: SchemaOf = of_this_version) -> tuple[int, int, int] | None:
    """Source id, hash of points, time of the alert (us, 0 where it had none); None where it is no record of ours.

    By the schema in the record's own container, or by that of its frame, whatever version wrote it.
    """
    try:
        if value.startswith(b"\x00"):
            schema, file = schema_of(schema_id_of(value)), BytesIO(value[FRAME.size :])
        else:
            end = value.find(b"\x00", value.find(b"avro.schema") + 11)
            schema, at = _header(value[: end + 17])
            file = BytesIO(value[at:])
            fastavro.schemaless_reader(file, "long", None)
            fastavro.schemaless_reader(file, "long", None)
        record = cast("dict[str, Any]", fastavro.schemaless_reader(file, *_schemas(schema)))
        points = int(record["points_hash"], 16)
        return (int(record["source_id"]), points, int(record["alert_timestamp"] or 0)) if points < 2**64 else None
    except _NO_RECORD:
        return None


@lru_cache(maxsize=64)
def _header(head: bytes) -> tuple[str, int]:
    header, end = read_header(head)
    if header.codec != "null":
        raise Unreadable("packed")
    return header.schema, end


@lru_cache(maxsize=64)
def _schemas(text: str) -> tuple[Any, Any]:
    """The writer's schema, and what is wanted of it; times stay numbers."""
    schema = json.loads(text)
    fields = [f for f in schema["fields"] if f["name"] in _WANTED]
    for one in schema["fields"]:
        if one["name"] == "alert_timestamp":
            one["type"] = ["null", "long"]
    return fastavro.parse_schema(schema), fastavro.parse_schema({**json.loads(text), "fields": fields})
