"""What the records on an output topic answer, by their headers alone."""

from __future__ import annotations

import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import cast

from confluent_kafka import Consumer, Message, TopicPartition

from broker.errors import KafkaError
from broker.outlets.dead_letter import ANSWERS
from broker.topics import TIMEOUT_S, Reach, end_of, offsets_at, open_consumer, reaches

CLOCKS_APART_MS = 600_000  # between the survey's time stamps and ours; a batch's records and its ledger row
FETCH = 10_000
Tell = Callable[[str, int], None]
_WAITING = b"schema_unavailable"


def _offsets() -> array[int]:
    return array("q")


@dataclass
class Collected:
    """What the records of one topic answer: offsets by (b"source:topic:partition", b"model"), 8 bytes a record.

    answers: those of them that answer a dead letter; waiting: those rejected for want of a schema.
    strays: offsets, by partition, of records without our headers.
    """

    offsets: defaultdict[tuple[bytes, bytes], array[int]] = field(default_factory=lambda: defaultdict(_offsets))
    answers: defaultdict[tuple[bytes, bytes], array[int]] = field(default_factory=lambda: defaultdict(_offsets))
    waiting: defaultdict[tuple[bytes, bytes], array[int]] = field(default_factory=lambda: defaultdict(_offsets))
    strays: defaultdict[int, array[int]] = field(default_factory=lambda: defaultdict(_offsets))
    n_records: int = 0


def collect(
    options: Mapping[str, str], topic: str, since_ms: int | None = None, tell: Tell = lambda topic, n: None
) -> Collected:
    """Headers of every record of an output topic, all partitions at once, up to their ends as of now."""
    found = Collected()
    with open_consumer(options, reset="earliest") as consumer:
        held = reaches(consumer, topic)
        starts = {partition: reach.first for partition, reach in held.items()}
        if since_ms is not None:
            starts = {p: max(offset, starts[p]) for p, offset in offsets_at(consumer, topic, held, since_ms).items()}
        waiting = {partition for partition, first in starts.items() if first < held[partition].last_exclusive}
        consumer.assign([TopicPartition(topic, partition, starts[partition]) for partition in sorted(waiting)])
        deadline = time.monotonic() + TIMEOUT_S
        while waiting:
            messages = consumer.consume(FETCH, timeout=0.2)
            waiting -= take(messages, found)
            waiting -= _at_end(consumer, topic, waiting, held)
            if messages:
                deadline = time.monotonic() + TIMEOUT_S
                tell(topic, found.n_records)
            if time.monotonic() > deadline:
                raise KafkaError(f"{topic}: can't be read within {TIMEOUT_S:g} s; partitions {sorted(waiting)} wait")
    return found


def take(messages: Iterable[Message], found: Collected) -> set[int]:
    """Add the records to what was found; partitions that have come to their end. One pass, nothing kept but offsets."""
    ended, offsets = set(), found.offsets
    for message in messages:
        if message.error() is not None:
            if end_of(message):
                ended.add(cast(int, message.partition()))
            continue
        found.n_records += 1
        try:
            named = cast("dict[str, bytes]", dict(message.headers()))  # type: ignore[arg-type]  # None is a stray
            prefix, digits = named["alert"].rsplit(b":", 1)
            offset, model = int(digits), named["model"]
            if model is None:
                raise ValueError("header without a value")
            offsets[prefix, model].append(offset)
            if len(named) > 2:
                if named.get("reason") == _WAITING:
                    found.waiting[prefix, model].append(offset)
                if ANSWERS in named:
                    found.answers[prefix, model].append(offset)
        except (TypeError, KeyError, AttributeError, ValueError, OverflowError):
            found.strays[cast(int, message.partition())].append(cast(int, message.offset()))
    return ended


def _at_end(consumer: Consumer, topic: str, waiting: set[int], held: Mapping[int, Reach]) -> set[int]:
    """Partitions read up to the end that they had at the start, while a job writes on."""
    places = consumer.position([TopicPartition(topic, partition) for partition in waiting]) if waiting else []
    return {place.partition for place in places if place.offset >= held[place.partition].last_exclusive}
