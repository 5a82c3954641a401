"""`broker dead-letters replay`: rejected alerts through the present code; what it can answer goes out, marked so.

A letter is answered once: the classifications are searched for its alert first, whatever the model. What is rejected
again stays the letter that it is.
"""

from __future__ import annotations

import fcntl
import logging
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from broker import job, surveys
from broker.classify import Answer, Assignment, classify, classify_alone
from broker.collected import CLOCKS_APART_MS, collect
from broker.config import Config, Source, kafka_options
from broker.deadletter import Rejected, Selection, letters, original_of, read_letters, struct_of
from broker.errors import UsageError
from broker.learning import Learner
from broker.outlets import HEADERS_TYPE
from broker.outlets.dead_letter import ANSWERS
from broker.published import publish
from broker.reconcile import place_of
from broker.replay import replay
from broker.topics import check_topics
from broker.verdict import REJECTED

_log = logging.getLogger(__name__)

BATCH_ALERTS, BATCH_BYTES = 256, 8_388_608  # as the job's own Arrow batches
NOT_OURS, NO_SOURCE = "without our headers", "of a source that is not in this config"
GONE = "cut, and the source does not hold the whole alert any more"
Tell = Callable[[int], None]


@dataclass
class PutBack:
    """What became of the letters. answered and again (rejected again): by "status/reason"; left: not tried, by why."""

    n_letters: int = 0
    before: int = 0
    answered: Counter[str] = field(default_factory=Counter)
    again: Counter[str] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True)
class Record:
    """A classification on its way out (see replay.Alert); topic and offset are those of the letter."""

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    topic: str
    offset: int


def put_back(config: Config, selection: Selection, dry_run: bool = False, tell: Tell = lambda n: None) -> PutBack:
    """Answer what can be answered now of the letters that are meant.

    Raises UsageError where another replay of these letters runs, KafkaError.
    """
    done, options, output = PutBack(), kafka_options(config), config.output
    with ExitStack() as stack:
        for source in config.sources:
            if selection.source in (None, source.name):
                stack.enter_context(_alone_on(source.checkpoint))
        if config.registry.url:
            Learner(config).begin()
        newest = _newest(letters(config, selection), done)
        if not newest:
            return done
        since_ms = min(letter.time_ms for letter in newest.values()) - CLOCKS_APART_MS
        answered = _answered(options, output.classifications, newest, max(since_ms, 0))
        done.before = len(answered)
        places = {letter.place for alert, letter in newest.items() if alert not in answered}
        meant = (letter for letter in read_letters(options, output.dead_letters, selection) if letter.place in places)
        limits = check_topics(options, output.topics)
        found = _records(meant, config, limits, options, done, tell)
        if dry_run:
            for _ in found:
                pass
        else:
            replay(found, options, output.classifications)
    return done


@dataclass(frozen=True)
class _Place:
    """A letter without its bytes."""

    place: str
    time_ms: int


def _newest(found: Iterable[Rejected], done: PutBack) -> dict[str, _Place]:
    """The newest letter of each alert."""
    newest: dict[str, _Place] = {}
    for letter in found:
        alert = letter.text("alert")
        if not letter.source or not alert.rpartition(":")[2].isdecimal():
            done.left[NOT_OURS] += 1
        elif alert not in newest or letter.time_ms >= newest[alert].time_ms:
            newest[alert] = _Place(letter.place, letter.time_ms)
    done.n_letters = len(newest)
    return newest


def _answered(options: Mapping[str, str], topic: str, alerts: Iterable[str], since_ms: int) -> set[str]:
    """Those of the alerts that have a classification."""
    wanted: dict[str, list[int]] = defaultdict(list)
    for alert in alerts:
        place, _, offset = alert.rpartition(":")
        wanted[place].append(int(offset))
    found: set[str] = set()
    for (prefix, _), offsets in collect(options, topic, since_ms).offsets.items():
        place = prefix.decode(errors="replace")
        inside = np.intersect1d(np.frombuffer(offsets, np.int64), np.array(wanted.get(place, ()), np.int64))
        found.update(f"{place}:{offset}" for offset in inside.tolist())
    return found


def _records(
    meant: Iterable[Rejected],
    config: Config,
    limits: dict[str, int],
    options: Mapping[str, str],
    done: PutBack,
    tell: Tell,
) -> Iterator[Record]:
    """Classifications of the letters that can be answered now; `done` counts on the way."""
    sources = {source.name: source for source in config.sources}
    schema_id = publish(config.output)
    # Further outlets are left out: their forms have no way to say that this answers a letter.
    alone = config.model_copy(update={"outlets": ()})
    assignments = {name: job.assign(alone, source, limits, None, schema_id) for name, source in sources.items()}
    waiting: dict[str, list[Rejected]] = defaultdict(list)
    n = 0
    for letter in meant:
        n += 1
        tell(n)
        if letter.source not in sources:
            done.left[NO_SOURCE] += 1
            continue
        whole = original_of(options, letter) if letter.is_cut else letter
        if whole is None:
            done.left[GONE] += 1
            continue
        mine = waiting[letter.source]
        mine.append(whole)
        if len(mine) >= BATCH_ALERTS or sum(w.n_bytes for w in mine) >= BATCH_BYTES:
            yield from _judged(waiting.pop(letter.source), sources[letter.source], assignments[letter.source], done)
    for name, mine in waiting.items():
        yield from _judged(mine, sources[name], assignments[name], done)


def _judged(found: list[Rejected], source: Source, assignment: Assignment, done: PutBack) -> Iterator[Record]:
    """By the job's own function. What has killed its reader is read in a process of its own again."""
    deadly = [letter for letter in found if letter.text("reason") == "kills_reader"]
    others = [letter for letter in found if letter.text("reason") != "kills_reader"]
    for each in ([letter] for letter in deadly):
        yield from _told(each, classify_alone(frame(each, source.survey), assignment), assignment, done)
    if others:
        yield from _told(others, classify(frame(others, source.survey), assignment), assignment, done)


def _told(found: list[Rejected], answer: Answer, assignment: Assignment, done: PutBack) -> Iterator[Record]:
    for verdict in answer.verdicts:
        (done.again if verdict.startswith(f"{REJECTED}/") else done.answered)[verdict] += 1
    letter_of = {letter.text("alert"): letter for letter in found}
    for row in (row for part in answer.rows for row in part.to_pylist()):
        if row["topic"] != assignment.classifications:
            continue
        headers = [(h["key"], h["value"]) for h in row["headers"]]
        letter = letter_of[dict(headers)["alert"].decode()]
        topic, _, offset = letter.place.rpartition(":")
        yield Record(row["key"], row["value"], [*headers, (ANSWERS, letter.place.encode())], topic, int(offset))


def frame(found: list[Rejected], survey: str) -> pa.RecordBatch:
    """Letters of one source as the hop gets alerts that the JVM has not decoded."""
    struct, n = struct_of(surveys.find(survey)), len(found)
    alerts = [letter.text("alert").rpartition(":") for letter in found]
    places = [place_of(place.encode()) for place, _, _ in alerts]
    assert all(places)
    theirs = [
        [(k.removeprefix("original."), v) for k, v in x.headers.items() if k.startswith("original.")] for x in found
    ]
    return pa.RecordBatch.from_pydict(
        {
            "alert": pa.nulls(n, struct),
            "schema": pa.nulls(n, pa.string()),
            "raw": pa.array([letter.value for letter in found], pa.binary()),
            "key": pa.array([letter.key for letter in found], pa.binary()),
            "headers": pa.array([[{"key": k, "value": v} for k, v in h] for h in theirs], HEADERS_TYPE),
            "topic": pa.array([place.topic for place in places if place], pa.string()),
            "partition": pa.array([place.partition for place in places if place], pa.int32()),
            "offset": pa.array([int(offset) for _, _, offset in alerts], pa.int64()),
            "timestamp": pa.array([_time(letter) for letter in found], pa.timestamp("us", "UTC")),
            "alone": pa.array([False] * n, pa.bool_()),
        }
    )


def _time(letter: Rejected) -> datetime | None:
    told = letter.text("timestamp_us")
    stamp = int(told) if told.isascii() and told.isdecimal() else 0
    return datetime.fromtimestamp(stamp / 1e6, UTC) if 0 < stamp < 2**55 else None


@contextmanager
def _alone_on(checkpoint: Path) -> Iterator[None]:
    """One replay at a time, by a lock beside the source's checkpoint; none where that is not on this machine."""
    if not checkpoint.is_dir():
        yield
        return
    with (checkpoint / "replay-lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UsageError(f"another replay of dead letters runs ({file.name} is held): wait for its end") from None
        except OSError as error:
            _log.warning("%s: this file system has no locks (%s)", file.name, error.strerror)
        yield
