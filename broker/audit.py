"""`broker audit`: from the topics alone, whether every alert has exactly one verdict per model.

What was offered is a span of offsets per partition; what was answered stands in the headers of the records on the
output topics. The source is read only where the two differ, to tell alerts from holes.
"""

from __future__ import annotations

import time
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import NamedTuple, cast

import numpy as np
from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, Consumer, TopicPartition

from broker import checkpoint
from broker.collected import CLOCKS_APART_MS, Collected, Tell, collect
from broker.config import Config, Source, kafka_options
from broker.delivery import topics_of
from broker.errors import KafkaError, LedgerError
from broker.ledger import LedgerRow, Offsets
from broker.nights import each_night, is_done
from broker.outlet_books import OutletBooks, audit_outlets
from broker.outlet_nights import among, expand
from broker.published import Published
from broker.reconcile import Books, Outside, Place, Records, Window, look_up, outside, place_of, printable, reconcile
from broker.repeats import Again, find_repeats
from broker.topics import (
    TIMEOUT_S,
    Reach,
    end_of,
    find_holes,
    list_topics,
    offsets_at,
    open_consumer,
    reaches,
    read_all,
    require_topics,
    wait_for_kafka,
)

HOUR_MS = 3_600_000
MAX_HOURS = 10_000
FIRST_ANSWERED = "the first answered"


@dataclass(frozen=True)
class Audit:
    """What was found. elsewhere: records of sources and topics that were not audited, by name; strays by topic.

    again: alerts of sources that came before, None where nobody looked.
    """

    books: list[Books]
    windows: list[Window]
    outside: list[Outside]
    elsewhere: Mapping[str, int]
    strays: Mapping[str, Mapping[int, array[int]]]
    models: Mapping[str, int]
    notes: list[str]
    n_records: int
    seconds: float
    outlets: tuple[OutletBooks, ...] = ()
    again: list[Again] | None = None

    @property
    def is_balanced(self) -> bool:
        """Whether all books balance and no verdict is of an alert that never was."""
        sound = all(b.is_balanced for b in self.books) and all(o.is_balanced for o in self.outlets)
        return sound and not any(o.beyond.size for o in self.outside)


def audit(
    config: Config,
    names: Sequence[str] = (),
    since: datetime | None = None,
    until: datetime | None = None,
    by_hour: bool = False,
    tell: Tell = lambda topic, n: None,
    repeats: bool = False,
) -> Audit:
    """Audit the sources of these names (all if none are given). repeats: read the records for sources that came again.

    The ends come first: what a committed batch has answered was acknowledged before its commit, so that it is on the
    topics by the time they are read. Raises KafkaError where a topic is missing or can't be read.
    """
    started, options, output = time.monotonic(), kafka_options(config), config.output
    chosen = [source for source in config.sources if not names or source.name in names]
    wait_for_kafka(options, config.kafka.startup_timeout_s)
    since_ms, until_ms, notes = _ms(since), _ms(until), list[str]()
    parts_of = [part for source in chosen for part in each_night(source, options, datetime.now(UTC), notes)]
    require_topics(options, [*(topic for source in parts_of for topic in source.topics), *output.topics])
    read_from = None if since_ms is None else since_ms - CLOCKS_APART_MS
    with open_consumer(options) as asker:
        windows = [w for source in parts_of for w in windows_of(asker, source, since_ms, until_ms, notes)]
        # These two topics carry every verdict. An outlet with a filter does not: its records, collected like these,
        # have to be held against the counts of what it passed in the ledger's rows.
        collected = [collect(options, topic, read_from, tell) for topic in output.topics[:2]]
        tops = {topic: reaches(asker, topic) for topic in {w.place.topic for w in windows}}
        answers = _by_place(*collected)
        windows = [_begun(window, answers.get(window.place, Records())) for window in windows]
        parts = [part for w in windows for part in (w.split(hours_of(asker, w)) if by_hour else [w])]
        expired_before = _expired_before(asker, output.topics[:2], notes)
        ledger_is_whole = _is_whole(asker, output.ledger, notes)
        templates = topics_of(config.outlets, {s.name: s.survey for s in chosen})
        nights = among(templates, list_topics(options))
        further = expand(templates, nights)
        whole = expired_before is None and _expired_before(asker, further, notes) is None and ledger_is_whole
    rows = ledger_rows(options, output.ledger, read_from)
    books = [
        reconcile(w, answers.get(w.place, Records()), rows.get(w.place, ()), expired_before, ledger_is_whole)
        for w in parts
    ]
    outlets = []
    if whole and since is None and until is None:
        reader = lambda topic: collect(options, topic, None, tell).offsets  # noqa: E731  # it has no other use
        outlets = audit_outlets(config.outlets, chosen, windows, rows, reader, nights)
    elif further:
        notes.append("the outlets are audited only over all that was ever written: without --since, before retention")
    unclear = look_up(books)
    holes = find_holes(options, unclear) if unclear else []
    places = {window.place for window in windows}
    schema_of = Published(output.registry)
    again = find_repeats(options, output.classifications, read_from, tell, schema_of) if repeats else None
    return Audit(
        books=[one.with_holes(holes) for one in books],
        windows=windows,
        outside=[
            outside(
                w,
                answers.get(w.place, Records()),
                tops[w.place.topic][w.place.partition].last_exclusive,
                rows.get(w.place, ()),
            )
            for w in windows
        ],
        elsewhere=_elsewhere(collected, places),
        strays=dict(zip(output.topics[:2], (c.strays for c in collected), strict=True)),
        models=_models(answers, places),
        notes=notes,
        n_records=sum(c.n_records for c in collected),
        seconds=time.monotonic() - started,
        outlets=tuple(outlets),
        again=again,
    )


# --- the output topics --------------------------------------------------------------------------------------------


def _by_place(classifications: Collected, dead_letters: Collected) -> dict[Place, Records]:
    found: dict[Place, Records] = {}
    kinds = {
        "classifications": classifications.offsets,
        "dead_letters": dead_letters.offsets,
        "answers": classifications.answers,
        "waiting": dead_letters.waiting,
    }
    for kind, collected in kinds.items():
        for (prefix, model), offsets in collected.items():
            place = place_of(prefix)
            if place is not None:
                records = found.setdefault(place, Records({}, {}, {}, {}))
                of_kind = cast("dict[str, np.ndarray[tuple[int], np.dtype[np.int64]]]", getattr(records, kind))
                of_kind[model.decode(errors="replace")] = np.frombuffer(offsets, np.int64)
    return found


def _elsewhere(collected: Iterable[Collected], places: set[Place]) -> Counter[str]:
    found: Counter[str] = Counter()
    for one in collected:
        for (prefix, _), offsets in one.offsets.items():
            place = place_of(prefix)
            if place not in places:
                name = prefix.decode(errors="replace") if place is None else f"{place.source}:{place.topic}"
                found[printable(name)] += len(offsets)
    return found


def _models(answers: Mapping[Place, Records], places: set[Place]) -> Counter[str]:
    """Records of the audited partitions by model."""
    found: Counter[str] = Counter()
    for place in places & answers.keys():
        found.update({model: answers[place].of_model(model).size for model in answers[place].models})
    return found


def ledger_rows(options: Mapping[str, str], topic: str, since_ms: int | None) -> dict[Place, list[LedgerRow]]:
    """Rows of the ledger topic by place; what is no row is passed over, as the job does."""
    found: dict[Place, list[LedgerRow]] = defaultdict(list)
    for message in read_all(options, topic, since_ms):
        with suppress(LedgerError):
            row = LedgerRow.from_json(message.value())
            found[Place(row.source, row.topic, row.partition)].append(row)
    return found


def _expired_before(asker: Consumer, topics: Iterable[str], notes: list[str]) -> datetime | None:
    """Until when the outputs have lost records to retention: the youngest first record of a partition cut short."""
    latest: int | None = None
    for topic in topics:
        for partition, reach in reaches(asker, topic).items():
            if reach.first == 0:
                continue
            first = time_at(asker, topic, partition, reach.first) if reach.first < reach.last_exclusive else None
            began = int(time.time() * 1000) if first is None else first
            latest = began if latest is None else max(latest, began)
            notes.append(f"retention has deleted {reach.first} records of {topic}:{partition}, up to {_utc(began)}")
    return None if latest is None else datetime.fromtimestamp((latest + CLOCKS_APART_MS) / 1000, UTC)


def _is_whole(asker: Consumer, ledger: str, notes: list[str]) -> bool:
    deleted = {partition: reach.first for partition, reach in reaches(asker, ledger).items() if reach.first}
    notes += [f"retention has deleted {n} rows of {ledger}:{partition}" for partition, n in deleted.items()]
    return not deleted


# --- the sources: offsets only ------------------------------------------------------------------------------------


class _Marks(NamedTuple):
    """What a checkpoint says: where its query began, where its last committed batch ended."""

    begin: Offsets
    end: Offsets
    batch: int | None


def windows_of(
    asker: Consumer, source: Source, since_ms: int | None, until_ms: int | None, notes: list[str]
) -> list[Window]:
    """What of each partition is audited, and by what; `notes` gets what a reader must know of it."""
    marks, windows = _marks(source, notes), []
    for topic in source.topics:
        held = reaches(asker, topic)
        begin, begin_by = _begins(asker, source, topic, held, marks, since_ms)
        end, end_by = {p: reach.last_exclusive for p, reach in held.items()}, "the topic's end"
        if marks is not None:
            end = {p: int(marks.end.get(topic, {}).get(str(p), begin[p])) for p in held}
            end_by = (
                "its begin (nothing committed)" if marks.batch is None else f"the end of committed batch {marks.batch}"
            )
            late = sum(reach.last_exclusive - end[p] for p, reach in held.items())
            if late and is_done(source.checkpoint):
                notes.append(f"{topic}: {late} alerts came after its night was done; the job reads the last nights on")
        if until_ms is not None:
            until = offsets_at(asker, topic, held, until_ms)
            end, end_by = {p: min(end[p], until[p]) for p in held}, f"--until or {end_by}"
        for partition, reach in held.items():
            last = max(end[partition], begin[partition])
            first = min(max(begin[partition], reach.first), last)
            place = Place(source.name, topic, partition)
            windows.append(Window(place, begin[partition], first, last, begin_by, end_by))
    return windows


def _marks(source: Source, notes: list[str]) -> _Marks | None:
    folder = source.checkpoint
    try:
        initial, committed = checkpoint.initial_offsets(folder), checkpoint.committed_spans(folder)
    except (LedgerError, OSError) as error:
        notes.append(f"{source.name}: the checkpoint can't be used, so each topic's end counts: {error}")
        return None
    if initial is None:
        notes.append(
            f"{source.name}: no checkpoint at {folder}, so each topic's end counts: alerts in flight count as missing"
        )
        return None
    if committed is None:
        return _Marks(initial, initial, None)
    end: dict[str, dict[str, int]] = defaultdict(dict)
    for span in committed.spans:
        end[span.topic][str(span.partition)] = span.last_exclusive
    return _Marks(initial, end, committed.batch)


def _begins(
    asker: Consumer, source: Source, topic: str, held: Mapping[int, Reach], marks: _Marks | None, since_ms: int | None
) -> tuple[dict[int, int], str]:
    """The first offset of each partition that this source was to answer, and by what that is known."""
    start = source.start
    if marks is not None:
        # A partition that the first batch did not know is read from its beginning, by Spark's rule.
        begin, begin_by = {p: int(marks.begin.get(topic, {}).get(str(p), 0)) for p in held}, "the checkpoint's begin"
    elif isinstance(start, datetime):
        begin, begin_by = offsets_at(asker, topic, held, cast(int, _ms(start))), "the start of the config"
    elif start == "latest" and since_ms is None:
        return dict.fromkeys(held, 0), FIRST_ANSWERED
    else:
        begin, begin_by = dict.fromkeys(held, 0), "the topic's begin"
    if since_ms is not None:
        since = offsets_at(asker, topic, held, since_ms)
        return {p: max(begin[p], since[p]) for p in held}, "--since"
    return begin, begin_by


def _begun(window: Window, records: Records) -> Window:
    """A job that began at the latest alert, and whose checkpoint is gone, began where its first verdict is."""
    if window.begin_by != FIRST_ANSWERED:
        return window
    answered = records.answered
    begin = min(int(answered[0]) if answered.size else window.last_exclusive, window.last_exclusive)
    return replace(window, begin=begin, first=max(begin, window.first))


def hours_of(asker: Consumer, window: Window) -> list[tuple[str, int]]:
    """(UTC hour, its first offset) of the alerts in a window, ascending; from Kafka's index and a record per hour."""
    topic, partition = window.place.topic, window.place.partition
    held = {partition: reaches(asker, topic)[partition]}
    cuts: list[tuple[str, int]] = []
    position, hour = window.first, -1
    while position < window.last_exclusive and len(cuts) < MAX_HOURS:
        stamp = time_at(asker, topic, partition, position)
        if stamp is None:
            break
        hour = max(hour + 1, stamp // HOUR_MS)
        cuts.append((_utc(hour * HOUR_MS), position))
        position = max(offsets_at(asker, topic, held, (hour + 1) * HOUR_MS)[partition], position)
    return cuts


def time_at(consumer: Consumer, topic: str, partition: int, offset: int) -> int | None:
    """Time stamp in ms of the first record from an offset on; None where there is none."""
    consumer.assign([TopicPartition(topic, partition, offset)])
    deadline = time.monotonic() + TIMEOUT_S
    try:
        while time.monotonic() < deadline:
            message = consumer.poll(0.5)
            if message is None:
                continue
            if end_of(message):
                return None
            kind, stamp = message.timestamp()
            return None if kind == TIMESTAMP_NOT_AVAILABLE else stamp
    finally:
        consumer.unassign()  # else it goes on fetching in the background
    raise KafkaError(f"{topic}:{partition}: can't be read within {TIMEOUT_S:g} s; at offset {offset}")


def _ms(when: datetime | None) -> int | None:
    return None if when is None else (when - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)


def _utc(stamp_ms: int) -> str:
    return datetime.fromtimestamp(stamp_ms / 1000, UTC).isoformat(timespec="minutes").replace("+00:00", "Z")
