"""The nights of a live source: one topic each, by its name, with a checkpoint of its own in the source's folder.

A night is opened once its topic is there, and done when it is over and nothing has been left to read for a while. One
that gets an alert later is opened again while it is among the last `nights`. No time is taken here: callers give it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import date, datetime, timedelta
from pathlib import Path

from broker import checkpoint
from broker.config import Source
from broker.errors import BrokerError, ConfigError, KafkaError
from broker.night_names import night_at, night_in, topic_of
from broker.supervise import Seldom
from broker.topics import Reach, find_missing, offsets_at, open_consumer, reaches

_log = logging.getLogger(__name__)

FILE = "nights.json"  # in the source's folder: where the nights begin that were there at its first start
DONE = "done.json"  # in a night's folder
LOOK_EVERY_S = 10.0
Held = Mapping[str, Mapping[int, Reach]]  # topics that are there; without partitions where one can't be read


class Nights:
    """What is to be read of one live source, by what Kafka holds at a time. `open`: topics with a query.

    look never waits; ask does, and raises KafkaError where Kafka doesn't answer.
    """

    def __init__(self, source: Source, options: Mapping[str, str]) -> None:
        self.source, self._options = source, options
        self.open: dict[str, datetime] = {}  # by topic: when there last was something to read, or the night went on
        self._begins: dict[str, dict[int, int]] | None = None
        self._answer: Future[Held] | None = None
        self._due: datetime | None = None
        self._seldom = Seldom(600.0)

    # --- what Kafka holds ---------------------------------------------------------------------------------------------

    def wanted(self, now: datetime) -> dict[str, date]:
        """Topics that are looked for: the newest first; the next night's too, since clocks differ."""
        known, current = known_nights(self.source), night_at(now, self.source.night_begins)
        first = current - timedelta(days=self.source.nights - 1)
        if known:
            first = min(first, max(known.values()) + timedelta(days=1))  # none is passed over after a long stop
        nights = (current - timedelta(days=n) for n in range(-1, (current - first).days + 1))
        names = {topic_of(name, night): night for night in nights for name in self.source.topics}
        return names | {topic: night for topic, night in known.items() if not self._is_done(topic)}

    def ask(self, now: datetime) -> Held:
        """What the topics hold that are there. Raises KafkaError."""
        wanted = self.wanted(now)
        gone = set(find_missing(self._options, wanted))
        held: dict[str, Mapping[int, Reach]] = {}
        with open_consumer(self._options) as consumer:
            for topic in (topic for topic in wanted if topic not in gone):
                try:
                    held[topic] = reaches(consumer, topic)
                except KafkaError as error:
                    held[topic] = {}
                    if self._seldom(topic):
                        _log.warning("%s: %s", self.source.name, error)
        return held

    def look(self, pool: ThreadPoolExecutor, now: datetime) -> Held | None:
        """What was asked for, once it is answered; asks again 10 s later."""
        if self._answer is None:
            if self._due is None or now >= self._due:
                self._due = now + timedelta(seconds=LOOK_EVERY_S)
                self._answer = pool.submit(self.ask, now)
            return None
        if not self._answer.done():
            return None
        answer, self._answer = self._answer, None
        try:
            return answer.result()
        except KafkaError as error:
            if self._seldom("away"):
                _log.warning("%s: can't look for nights now: %s", self.source.name, error)
            return None

    # --- what follows from it -----------------------------------------------------------------------------------------

    def begin(self, held: Held) -> None:
        """At the start of a job: know where nights begin, and that those which aren't done are still there.

        Raises ConfigError where the folder is not a live source's or a topic is none of its any more, BrokerError for
        a night that is gone.
        """
        file = self.source.checkpoint / FILE
        if not file.exists():
            self._write(file, held)
        self._begins = _read(file)
        known = known_nights(self.source)
        for topic in (topic for topic in nights_in(self.source.checkpoint) if not self._is_done(topic)):
            if topic not in known:
                raise ConfigError(
                    f"source {self.source.name!r}: the night {self._folder(topic)} is not done, and its topic is none "
                    "of 'topics' any more: name it again, or remove that folder, and what is unread stays so"
                )
            if topic not in held:
                self._give_up(topic)

    def unfinished(self) -> list[Source]:
        """Nights that an earlier job has begun with and not done."""
        return [self.night(topic) for topic in known_nights(self.source) if not self._is_done(topic)]

    def to_open(self, held: Held, now: datetime) -> list[Source]:
        """Nights that are to get a query, each as a source of its own; those of the past first."""
        found, known, current = [], known_nights(self.source), night_at(now, self.source.night_begins)
        for topic, night in sorted(self.wanted(now).items(), key=lambda item: item[1]):
            if topic not in held or topic in self.open:
                continue
            folder = self._folder(topic)
            n_unread = self._unread(topic, held[topic]) or 0
            if self._is_done(topic):
                if not n_unread:
                    continue
                _log.warning("%s: %d alerts came to %s after it was done", self.source.name, n_unread, topic)
                (folder / DONE).unlink()
            elif not (topic in known or n_unread or night >= current):
                continue
            folder.mkdir(exist_ok=True)
            self.open[topic] = now
            found.append(self.night(topic, held[topic]))
        return found

    def to_close(self, held: Held, now: datetime, quiet_s: float | None = None) -> list[str]:
        """Open nights that are over, with nothing left to read for quiet_s (the source's own if None)."""
        quiet = timedelta(seconds=self.source.night_quiet_s if quiet_s is None else quiet_s)
        found, known, current = [], known_nights(self.source), night_at(now, self.source.night_begins)
        for topic in self.open:
            is_over = known.get(topic, current) < current
            if not (is_over and self._unread(topic, held.get(topic, {})) == 0):
                self.open[topic] = now
            elif now - self.open[topic] >= quiet:
                found.append(topic)
        return found

    def next_topics(self, now: datetime) -> str:
        """What the night of a time would be called."""
        night = night_at(now, self.source.night_begins)
        return ", ".join(topic_of(name, night) for name in self.source.topics)

    def finish(self, topic: str, now: datetime) -> None:
        """Mark a night as done: it gets no query any more, unless alerts come."""
        (self._folder(topic) / DONE).write_text(json.dumps({"done": 1, "time": now.isoformat()}) + "\n")
        self.open.pop(topic, None)

    def night(self, topic: str, held: Mapping[int, Reach] | None = None) -> Source:
        """One night as a source of its own; it has the name of the whole, by which its alerts are known."""
        begins = (self._begins or {}).get(topic)
        start: object = "earliest"
        if begins is not None:
            # Spark wants all partitions named; -2 is the earliest.
            parts = {str(partition): begins.get(partition, -2) for partition in held or begins}
            start = json.dumps({topic: parts})
        changes = {"topics": (topic,), "checkpoint": self._folder(topic), "start": start}
        return self.source.model_copy(update=changes)

    def _unread(self, topic: str, held: Mapping[int, Reach]) -> int | None:
        """Alerts behind what is committed; None where that is not known."""
        if not held:
            return None
        read = checkpoint.next_offsets(self._folder(topic))
        begins = (self._begins or {}).get(topic, {})
        unread = 0
        for partition, reach in held.items():
            begin = max(begins.get(partition, 0), reach.first)
            if read is not None:
                begin = read.get((topic, partition), 0)
            unread += max(reach.last_exclusive - begin, 0)
        return unread

    def _give_up(self, topic: str) -> None:
        told = f"source {self.source.name!r}: the topic {topic} is gone, and its night was not done"
        if self.source.on_data_loss == "stop":
            raise BrokerError(
                f"{told}: what it held behind the checkpoint {self._folder(topic)} can't be answered any more. To go "
                'on without it, set on_data_loss = "go_on" for this source, or remove that folder'
            )
        _log.warning("%s; what was unread of it is lost", told)
        (self._folder(topic) / DONE).write_text(json.dumps({"done": 1, "gone": True}) + "\n")

    def _is_done(self, topic: str) -> bool:
        return is_done(self._folder(topic))

    def _folder(self, topic: str) -> Path:
        return self.source.checkpoint / topic

    def _write(self, file: Path, held: Held) -> None:
        """At the first start: where its nights begin, by `start`."""
        begins: dict[str, dict[int, int]] = {}
        if self.source.start == "latest":
            begins = {topic: {p: reach.last_exclusive for p, reach in parts.items()} for topic, parts in held.items()}
        elif isinstance(self.source.start, datetime):
            time_ms = int(self.source.start.timestamp() * 1000)
            with open_consumer(self._options) as consumer:
                begins = {t: offsets_at(consumer, t, parts, time_ms) for t, parts in held.items() if parts}
        file.parent.mkdir(parents=True, exist_ok=True)
        new = file.with_name(f".{FILE}.new")
        new.write_text(json.dumps({"nights": 1, "begins": begins}, indent=1) + "\n", encoding="utf-8")
        new.replace(file)


def nights_in(folder: Path) -> list[str]:
    """Topics that have a night's checkpoint in a source's folder."""
    return sorted(path.parent.name for path in folder.glob("*/imprint.json"))


def is_done(folder: Path) -> bool:
    """Whether a night's checkpoint is that of one that is over and read."""
    return (folder / DONE).exists()


def known_nights(source: Source) -> dict[str, date]:
    """Those that are this source's, with their nights."""
    pairs = ((topic, night_in(name, topic)) for topic in nights_in(source.checkpoint) for name in source.topics)
    return {topic: night for topic, night in pairs if night is not None}


def check_start(source: Source) -> None:
    """Refuse a checkpoint of the other kind, and a new one without `start`. Raises ConfigError."""
    folder = source.checkpoint
    is_old, is_live = checkpoint.has_offsets(folder), (folder / FILE).exists()
    if is_old if source.is_live else is_live:
        kinds = ("a list of topics", "a topic per night")
        was, now = kinds if source.is_live else kinds[::-1]
        raise ConfigError(
            f"source {source.name!r}: the checkpoint {folder} was written for {was}, and this is {now}: give it a new "
            "checkpoint and a 'start'"
        )
    if source.start is None and not (is_old or is_live):
        raise ConfigError(
            f"source {source.name!r}: the checkpoint {folder} is new, so 'start' must be given: 'earliest', "
            "'latest' or a time such as 2026-11-20T00:00:00Z (Spark would silently begin at the latest alert)"
        )


def each_night(source: Source, options: Mapping[str, str], now: datetime, notes: list[str]) -> list[Source]:
    """The nights of a live source whose topics are there, for what looks at them from outside; else the source itself.

    Those that the job has begun; without its folder those of the last `nights`. `notes` gets what is left out. Raises
    KafkaError where no topic is there.
    """
    if not source.is_live:
        return [source]
    nights, known = Nights(source, options), known_nights(source)
    names = list(known | nights.wanted(now))
    gone = set(find_missing(options, names))
    there = sorted(set(names) - gone)
    if not there:
        told = f"{', '.join(source.topics)}: {len(names)} nights from {min(names)} to {max(names)} were looked for"
        raise KafkaError(f"source {source.name!r}: no topic is there by {told}")
    if not (source.checkpoint / FILE).exists():
        return [source.model_copy(update={"topics": (t,), "checkpoint": source.checkpoint / t}) for t in there]
    nights._begins = _read(source.checkpoint / FILE)
    notes += list(_left_out(source, known, gone, there))
    return [nights.night(topic) for topic in there if topic in known]


def _left_out(source: Source, known: Mapping[str, date], gone: set[str], there: list[str]) -> Iterator[str]:
    lost = sorted(known.keys() & gone)
    if lost:
        told = lost[0] if len(lost) == 1 else f"{lost[0]} to {lost[-1]}"
        yield f"{source.name}: the topics of {len(lost)} nights are gone, which can't be looked at: {told}"
    for topic in there:
        if topic not in known:
            yield f"{source.name}: {topic} is there, and the job has not begun with it"


def _read(file: Path) -> dict[str, dict[int, int]]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["nights"] != 1:
            raise ValueError(f"version {found['nights']!r}")
        return {topic: {int(p): int(offset) for p, offset in parts.items()} for topic, parts in found["begins"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{file}: can't be read: {error!r}; put it back as it was, or start a new checkpoint with a 'start'"
        ) from error
