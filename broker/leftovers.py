"""What a batch that was broken off has left on the output topics, and the notes that say from where to look."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin._listoffsets import OffsetSpec

from broker import bounds, checkpoint
from broker.collected import Collected, take
from broker.config import Source
from broker.errors import BrokerError, KafkaError
from broker.ledger import Span
from broker.lightcurve import Integers
from broker.reconcile import place_of
from broker.topics import (
    TIMEOUT_S,
    Reach,
    admin_of,
    end_of,
    find_missing,
    offsets_at,
    open_consumer,
    reaches,
    result_of,
)
from broker.written import Places, Written

_log = logging.getLogger(__name__)

QUIET_S = 5.0  # without a record of this source, before what is on the topics counts as all
NOTE_EVERY_S = 0.5
MARGIN_MS = 2 * 3_600_000  # between our clock and Kafka's, where there is no note and time stamps must do
Position = tuple[str, int]


class EndOffsets:
    """Asks for the ends of topics again and again, by one connection and one request a broker.

    Partitions are those that the topics have now. Raises KafkaError if a topic is missing. After a failure the next
    question goes by a new connection: the old one holds to the leaders' epochs of before an outage, for minutes.
    """

    def __init__(self, options: Mapping[str, str], topics: Iterable[str]) -> None:
        with open_consumer(options) as consumer:
            places = [TopicPartition(topic, p) for topic in topics for p in reaches(consumer, topic)]
        self._wanted = {place: OffsetSpec.latest() for place in places}  # type: ignore[no-untyped-call]
        self._options, self._admin = options, admin_of(options)

    def now(self, timeout_s: float = TIMEOUT_S) -> dict[str, dict[int, int]]:
        """End offset (of what is replicated) by topic and partition. Raises KafkaError."""
        ends: dict[str, dict[int, int]] = {}
        try:
            for place, future in self._admin.list_offsets(self._wanted, request_timeout=timeout_s).items():
                found = result_of(future, f"{place.topic}:{place.partition}: its end can't be read")
                ends.setdefault(place.topic, {})[place.partition] = int(found.offset)
        except KafkaError:
            self._admin = admin_of(self._options)
            raise
        return ends


class Notes:
    """Notes the ends of the output topics into checkpoints, twice a second, from a thread, until left.

    A note that can't be taken is only a longer search after the next crash. A checkpoint's first one can: `add` raises
    KafkaError.
    """

    def __init__(self, options: Mapping[str, str], outputs: Sequence[str]) -> None:
        self._options = options
        self.follow(outputs)
        self._checkpoints: set[Path] = set()
        self._writing = threading.Lock()
        self._left = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notes of end offsets", daemon=True)

    def follow(self, outputs: Sequence[str]) -> None:
        """Note the ends of these topics from now on. Raises KafkaError."""
        self._ends = EndOffsets(self._options, outputs)

    def add(self, folder: Path) -> None:
        """Note the ends into this checkpoint too, now and from now on. Raises KafkaError, OSError."""
        try:
            ends = self._ends.now()
        except KafkaError:  # Kafka was away, and is back by now
            ends = self._ends.now()
        with self._writing:
            bounds.write(folder, ends)
            self._checkpoints.add(folder)

    def remove(self, folder: Path) -> None:
        """No more notes into this checkpoint."""
        with self._writing:
            self._checkpoints.discard(folder)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._left.set()
        self._thread.join()

    def _run(self) -> None:
        was_told = False
        while not self._left.wait(NOTE_EVERY_S):
            if not self._checkpoints:
                continue
            try:
                ends = self._ends.now(timeout_s=5)  # the end of the job waits for this
                with self._writing:
                    for folder in self._checkpoints:
                        bounds.write(folder, ends)
                was_told = False
            except (KafkaError, OSError) as error:
                if not was_told:
                    _log.warning("the ends of the output topics can't be noted: %s", error)
                was_told = True


def count_partitions(options: Mapping[str, str], topics: Iterable[str]) -> dict[str, int]:
    """Number of partitions of each topic. Raises KafkaError if one is missing."""
    with open_consumer(options) as consumer:
        return {topic: len(reaches(consumer, topic)) for topic in topics}


def check_ends(options: Mapping[str, str], source: Source, outputs: Sequence[str]) -> None:
    """Raises BrokerError where an output topic ends before the place where the checkpoint's newest note saw it end.

    Ends only grow, unless a topic is deleted and made again or a cluster has lost records: with them went verdicts.
    """
    noted = bounds.find(source.checkpoint, sys.maxsize) or {}
    watched = [topic for topic in outputs if topic in noted]
    missing = set(find_missing(options, watched)) if watched else set()
    with open_consumer(options) as consumer:
        for topic in watched:
            held = {} if topic in missing else reaches(consumer, topic)
            for partition, end in noted[topic].items():
                now = held[partition].last_exclusive if partition in held else 0
                if now >= end:
                    continue
                raise BrokerError(  # no KafkaError: those are tried again
                    f"source {source.name!r}: output {topic}:{partition} ended at offset {end}, by the notes in "
                    f"{source.checkpoint / bounds.FOLDER}, and ends at {now} now: the topic was deleted and made "
                    "again, or Kafka has lost records, and with them verdicts. To answer all once more, start with a "
                    "new checkpoint, a 'start' and new output topics; to go on without them, remove that folder"
                )


def find_written(
    options: Mapping[str, str],
    source: Source,
    outputs: Sequence[str],
    model: str,
    stopping: threading.Event,
    quiet_s: float = QUIET_S,
) -> Written:
    """Records of the batch that was planned and not committed; nothing where there is none, or when told to stop.

    Reads the output topics from where they ended before that batch, and goes on until no record of the source has come
    for `quiet_s`: what wrote it may still be flushing. The first two outputs carry every verdict. Raises KafkaError.
    """
    planned = checkpoint.planned_spans(source.checkpoint)
    if planned is None:
        return Written()
    batch, spans = planned
    with open_consumer(options, reset="earliest") as consumer:
        held = {topic: reaches(consumer, topic) for topic in outputs}
        begins = _begins(consumer, source, batch, held)
        found = _read(options, consumer, source, begins, stopping, quiet_s)
    written = Written({topic: _of_batch(collected, source.name, model, spans) for topic, collected in found.items()})
    n_read = sum(collected.n_records for collected in found.values())
    _log.info(
        "%s batch %d was not finished: %d of its %d alerts are written already, by %d records read",
        source.name,
        batch,
        len(Written({topic: written.records[topic] for topic in outputs[:2]})),
        sum(span.last_exclusive - span.first for span in spans),
        n_read,
    )
    return written


def _begins(
    asker: Consumer, source: Source, batch: int, held: Mapping[str, Mapping[int, Reach]]
) -> dict[Position, int]:
    """From where each partition is read: the note's end, else by the time at which the batch was planned."""
    ends = bounds.find(source.checkpoint, batch)
    if ends is None:
        planned_ms = checkpoint.planned_at_ms(source.checkpoint, batch)
        _log.warning(
            "%s batch %d was not finished, and the checkpoint has no note of where the output topics ended before it: "
            "they are searched by time, from %d minutes before the batch was planned",
            source.name,
            batch,
            MARGIN_MS // 60_000,
        )
        ends = {topic: offsets_at(asker, topic, parts, planned_ms - MARGIN_MS) for topic, parts in held.items()}
    begins = {}
    for topic, parts in held.items():
        for partition, reach in parts.items():
            # A partition that the note lacks is new: all of it is younger.
            begin = ends.get(topic, {}).get(partition, 0)
            if begin > reach.last_exclusive or reach.first > begin:
                _log.warning(
                    "%s:%d ended at offset %d before batch %d of %s and holds %d to %d now: records of that batch may "
                    "be gone, and will be written again",
                    *(topic, partition, begin, batch, source.name, reach.first, reach.last_exclusive),
                )
            begins[topic, partition] = reach.first if begin > reach.last_exclusive else max(begin, reach.first)
    return begins


def _read(
    options: Mapping[str, str],
    consumer: Consumer,
    source: Source,
    begins: Mapping[Position, int],
    stopping: threading.Event,
    quiet_s: float,
) -> dict[str, Collected]:
    """Headers of all records from there on, until none of the source has come for `quiet_s`."""
    found = {topic: Collected() for topic, _ in begins}
    at = dict(begins)
    consumer.assign([TopicPartition(topic, partition, offset) for (topic, partition), offset in at.items()])
    asker = EndOffsets(options, list(found))
    n_own, last_own = 0, time.monotonic()
    while not stopping.is_set():
        asked = time.monotonic()
        ends = asker.now()
        _read_to(consumer, ends, at, found, stopping)
        n_now = sum(_n_of(collected, source.name) for collected in found.values())
        if n_now > n_own:
            n_own, last_own = n_now, time.monotonic()
        elif asked - last_own >= quiet_s:
            break
        stopping.wait(0.2)
    return found


def _read_to(
    consumer: Consumer,
    ends: bounds.Ends,
    at: dict[Position, int],
    found: Mapping[str, Collected],
    stopping: threading.Event,
) -> None:
    """Read on until every partition is at these ends; `at` is how far each is read."""
    deadline = time.monotonic() + TIMEOUT_S
    while not stopping.is_set():
        waiting = [place for place, offset in at.items() if offset < ends[place[0]].get(place[1], 0)]
        if not waiting:
            return
        if time.monotonic() > deadline:
            raise KafkaError(f"{waiting}: can't be read within {TIMEOUT_S:g} s; nothing is known of what is written")
        for message in consumer.consume(1000, timeout=0.2):
            topic, partition, offset = message.topic(), message.partition(), message.offset()
            if topic is None or partition is None or offset is None:
                continue
            deadline = time.monotonic() + TIMEOUT_S
            if end_of(message):
                at[topic, partition] = max(at[topic, partition], offset)
                continue
            at[topic, partition] = offset + 1
            take([message], found[topic])


def _n_of(collected: Collected, source: str) -> int:
    start = f"{source}:".encode()
    return sum(len(offsets) for (prefix, _), offsets in collected.offsets.items() if prefix.startswith(start))


def _of_batch(collected: Collected, source: str, model: str, spans: Sequence[Span]) -> Places:
    """Offsets of the batch's alerts that have a record of this model."""
    limits = {(span.topic, span.partition): span for span in spans}
    places: dict[tuple[str, int], Integers] = {}
    for (prefix, by), found in collected.offsets.items():
        place = place_of(prefix)
        span = None if place is None else limits.get((place.topic, place.partition))
        if place is None or span is None or place.source != source or by != model.encode():
            continue
        offsets = np.unique(np.frombuffer(found, np.int64))
        inside = offsets[(offsets >= span.first) & (offsets < span.last_exclusive)]
        if inside.size:
            places[place.topic, place.partition] = inside
    return places
