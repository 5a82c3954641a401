"""The audit's arithmetic: offsets that a source offered against the records on the output topics and the ledger's rows.

Sets of offsets are ascending int64 arrays without repeats; no Kafka here (`broker.audit` collects what is compared).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from broker.ledger import Gap, LedgerRow, Run, runs

Integers = npt.NDArray[np.int64]
NONE: Integers = np.empty(0, np.int64)
LOOK_AHEAD = 1_000  # offsets between two gaps of one partition that cost less to read than to seek over


class Place(NamedTuple):
    """A partition of a topic, as one source reads it."""

    source: str
    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.source}:{self.topic}:{self.partition}"


def place_of(prefix: bytes) -> Place | None:
    """Source, topic and partition of a header `alert` without its offset; None where it is none of ours."""
    with suppress(ValueError):
        source, topic, partition = prefix.decode().split(":")
        return Place(source, topic, int(partition))
    return None


def printable(text: str) -> str:
    """Text from a topic, for a terminal: what is no printable character is shown as its escape."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@dataclass(frozen=True)
class Window:
    """Offsets [first, last_exclusive) of a partition that are audited, of [begin, ...) that were asked for.

    What retention has deleted lies between `begin` and `first`. hour: the UTC hour of the alerts, None for all.
    """

    place: Place
    begin: int
    first: int
    last_exclusive: int
    begin_by: str = ""
    end_by: str = ""
    hour: str | None = None

    @property
    def offered(self) -> int:
        """Number of offsets."""
        return self.last_exclusive - self.first

    def split(self, cuts: Iterable[tuple[str, int]]) -> list[Window]:
        """A window for each (hour, its first offset); ascending, the first hour takes what lies before the second."""
        hours = list(cuts)
        if not hours:
            return [self]
        edges = [self.first, *(min(max(cut, self.first), self.last_exclusive) for _, cut in hours[1:])]
        edges.append(self.last_exclusive)
        parts = [
            replace(self, begin=first, first=first, last_exclusive=last, hour=hour)
            for (hour, _), (first, last) in zip(hours, pairwise(edges), strict=True)
            if last > first
        ]
        return [replace(parts[0], begin=self.begin), *parts[1:]] if parts else [self]


@dataclass(frozen=True)
class Records:
    """Offsets answered for one partition, by model, in the order of the records and with repeats.

    answers: of the classifications, those that answer a dead letter; waiting: letters for want of a schema.
    """

    classifications: Mapping[str, Integers] = field(default_factory=dict)
    dead_letters: Mapping[str, Integers] = field(default_factory=dict)
    answers: Mapping[str, Integers] = field(default_factory=dict)
    waiting: Mapping[str, Integers] = field(default_factory=dict)

    def of_model(self, model: str) -> Integers:
        """All records of one model."""
        return np.concatenate([kind.get(model, NONE) for kind in (self.classifications, self.dead_letters)])

    @property
    def models(self) -> list[str]:
        """Models that answered."""
        return sorted(self.classifications.keys() | self.dead_letters.keys())

    @property
    def answered(self) -> Integers:
        """Offsets with a record, whatever the model."""
        return _union([*self.classifications.values(), *self.dead_letters.values()])


@dataclass(frozen=True)
class Books:
    """Books of one window: offered = answered + missing + holes + expired.

    repeated: offsets that have more than one record of the same model, by `n_repeats` records too many.
    missing: no record; in_ledger: those of them that the ledger has a row for. not_in_ledger: a record, but no row.
    holes: offsets where the source holds no record. expired: in the ledger, from before what the outputs still hold.
    waiting: letters for want of a schema that have no classification. n_put_back: letters that were answered later.
    """

    window: Window
    n_classifications: int
    n_dead_letters: int
    answered: int
    n_repeats: int
    repeated: Integers
    missing: Integers
    in_ledger: Integers
    not_in_ledger: Integers
    expired: int
    waiting: Integers
    n_put_back: int
    holes: int = 0

    @property
    def is_balanced(self) -> bool:
        """Whether each alert has one record per model that answered it, and the ledger says the same."""
        return not (self.repeated.size or self.missing.size or self.not_in_ledger.size)

    def unexplained(self) -> Integers:
        """Missing offsets that only the source can tell from holes."""
        return np.setdiff1d(self.missing, self.in_ledger, assume_unique=True)

    def with_holes(self, holes: Iterable[Gap]) -> Books:
        """The same books after a look at the source."""
        place = self.window.place
        empty = [(g.first, g.last) for g in holes if (g.topic, g.partition) == (place.topic, place.partition)]
        found = np.intersect1d(self.unexplained(), expand(empty, self.window), assume_unique=True)
        return replace(
            self,
            holes=self.holes + found.size,
            missing=np.setdiff1d(self.missing, found, assume_unique=True),
        )


def reconcile(
    window: Window,
    records: Records,
    rows: Sequence[LedgerRow],
    expired_before: datetime | None = None,
    ledger_is_whole: bool = True,
) -> Books:
    """Books of a window from its records and ledger rows (of its place; other rows are passed over).

    expired_before: the outputs have lost records written before; a verdict of a ledger row as old is not missing.
    ledger_is_whole: False where retention has deleted rows, so that a record without one says nothing.
    """
    inside = Records(*({m: _within(o, window) for m, o in kind.items()} for kind in _kinds(records)))
    answered = inside.answered
    classified, letters = _union(inside.classifications.values()), _union(inside.dead_letters.values())
    repeated, n_repeats = _repeats(inside)
    mine = [row for row in rows if (row.source, row.topic, row.partition) == window.place]
    ledger = expand((run for row in mine for run in row.answered), window)
    old = [row for row in mine if expired_before is not None and _time(row) <= expired_before]
    without = np.setdiff1d(np.arange(window.first, window.last_exclusive), answered, assume_unique=True)
    expired = np.intersect1d(without, expand((run for row in old for run in row.answered), window), assume_unique=True)
    missing = np.setdiff1d(without, expired, assume_unique=True)
    return Books(
        window=window,
        n_classifications=classified.size,
        n_dead_letters=letters.size,
        answered=answered.size,
        n_repeats=n_repeats,
        repeated=repeated,
        missing=missing,
        in_ledger=np.intersect1d(missing, ledger, assume_unique=True),
        not_in_ledger=np.setdiff1d(answered, ledger, assume_unique=True) if ledger_is_whole else NONE,
        expired=expired.size,
        waiting=np.setdiff1d(_union(inside.waiting.values()), classified, assume_unique=True),
        n_put_back=np.intersect1d(_union(inside.answers.values()), letters, assume_unique=True).size,
    )


@dataclass(frozen=True)
class Outside:
    """Answered offsets that no window holds. beyond: the source has never had them."""

    place: Place
    earlier: int
    in_flight: int
    beyond: Integers
    deleted_unanswered: Integers  # between `begin` and `first`: nobody can tell any more
    expired: int = 0  # of those, how many the ledger says were deleted before they were read


def outside(window: Window, records: Records, top: int, rows: Sequence[LedgerRow] = ()) -> Outside:
    """What lies outside a partition's whole window; top: the end of the source's partition, after the outputs' end."""
    answered = records.answered
    deleted = np.arange(window.begin, window.first) if window.first > window.begin else NONE
    unanswered = np.setdiff1d(deleted, answered, assume_unique=True)
    told = expand((run for row in rows for run in row.expired), replace(window, first=window.begin))
    return Outside(
        window.place,
        earlier=int(np.searchsorted(answered, window.first)),
        in_flight=int(np.count_nonzero((answered >= window.last_exclusive) & (answered < top))),
        beyond=answered[answered >= top],
        deleted_unanswered=unanswered,
        expired=np.intersect1d(unanswered, told, assume_unique=True).size,
    )


def look_up(books: Iterable[Books]) -> list[Gap]:
    """Spans of the sources to be read for holes: unexplained offsets, those that lie close together in one span."""
    gaps: dict[tuple[str, int], list[Run]] = {}
    for one in books:
        place = one.window.place
        gaps.setdefault((place.topic, place.partition), []).extend(runs(one.unexplained()))
    wanted = []
    for (topic, partition), found in gaps.items():
        joined: list[Run] = []
        for first, last in sorted(found):
            if joined and first - joined[-1][1] <= LOOK_AHEAD:
                joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
            else:
                joined.append((first, last))
        wanted += [Gap(topic, partition, *run) for run in joined]
    return wanted


def expand(run_list: Iterable[Run], window: Window) -> Integers:
    """Offsets of runs, those inside the window."""
    clipped = ((max(first, window.first), min(last, window.last_exclusive - 1)) for first, last in run_list)
    parts = [np.arange(first, last + 1) for first, last in clipped if first <= last]
    return _union(parts)


def _kinds(records: Records) -> tuple[Mapping[str, Integers], ...]:
    return records.classifications, records.dead_letters, records.answers, records.waiting


def _within(offsets: Integers, window: Window) -> Integers:
    return offsets[(offsets >= window.first) & (offsets < window.last_exclusive)]


def _union(parts: Iterable[Integers]) -> Integers:
    """Ascending, each once. Offsets come almost in order, which a stable sort is quick with; np.unique hashes them."""
    arrays = list(parts)
    found = np.sort(np.concatenate(arrays), kind="stable") if arrays else NONE
    return found[np.concatenate(([True], found[1:] != found[:-1]))] if found.size else NONE


def _repeats(records: Records) -> tuple[Integers, int]:
    """Offsets that one model answered more than once, and the number of records too many.

    A letter and the one classification that answers it are one answer.
    """
    found, n = [], 0
    for model in records.models:
        offsets, counts = np.unique(records.of_model(model), return_counts=True)
        answered = np.intersect1d(records.answers.get(model, NONE), records.dead_letters.get(model, NONE))
        too_many = counts - 1 - np.isin(offsets, answered, assume_unique=True)
        found.append(offsets[too_many > 0])
        n += int(too_many.sum())
    return _union(found), n


def _time(row: LedgerRow) -> datetime:
    """When a row was written; what is no time is new."""
    try:
        time = datetime.fromisoformat(row.time)
    except ValueError:
        return datetime.max.replace(tzinfo=UTC)
    return time if time.tzinfo else time.replace(tzinfo=UTC)
