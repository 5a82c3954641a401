"""The books: offsets that came in against offsets that were answered, batch by batch.

What came in is a span of offsets by Spark's own accounts (its checkpoint), never a count of the rows
that went through; what was answered is in the ledger rows that each task writes at its end. No Kafka and no Spark here:
`broker.topics` reads the ledger topic and looks up holes, `broker.checkpoint` reads the spans of a stopped job.
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from broker.errors import LedgerError

Run = tuple[int, int]  # first and last offset, both included


def runs(offsets: npt.NDArray[np.int64]) -> list[Run]:
    """Runs of consecutive offsets, ascending; order and repeats in `offsets` (n,) don't matter."""
    found = np.sort(np.asarray(offsets, dtype=np.int64), kind="stable")  # np.unique hashes: 1.2 us an offset
    if not found.size:
        return []
    found = found[np.concatenate(([True], found[1:] != found[:-1]))]
    breaks = np.flatnonzero(np.diff(found) != 1)
    firsts = found[np.concatenate(([0], breaks + 1))]
    lasts = found[np.concatenate((breaks, [found.size - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))


def runs_of_true(flags: npt.NDArray[np.bool_]) -> tuple[int, int, int]:
    """Lengths of runs of True in `flags` (n,): at the begin, the longest one, at the end."""
    edges = np.flatnonzero(np.diff(np.concatenate(([False], flags, [False]))))
    firsts, ends = edges[::2], edges[1::2]
    if not firsts.size:
        return 0, 0, 0
    lengths = ends - firsts
    at_begin, at_end = (firsts[0] == 0) * lengths[0], (ends[-1] == len(flags)) * lengths[-1]
    return int(at_begin), int(lengths.max()), int(at_end)


@dataclass(frozen=True)
class LedgerRow:
    """What one task answered of one topic partition in one batch: runs of offsets, and counts by "status/reason".

    `query` is the checkpoint's id (Spark's local property sql.streaming.queryId): batch numbers begin again with each
    new checkpoint, and without it an earlier run's row could stand in for one that is missing now. already_written: of
    the answered alerts, those whose record an earlier try of the batch had written, so that it was not written again.
    outlets: by outlet, how many of the alerts that were read are `written` there (of them `already_written` by an
    earlier try) and how many `filtered` away.
    rejected_runs: rejections in a row, by offset, that count towards the limits: at the begin, the longest, at the end.
    expired: offsets of the batch that the topic had deleted before they were read; in rows of the driver's, task -1.
    """

    source: str
    batch: int
    task: int
    topic: str
    partition: int
    answered: tuple[Run, ...]
    counts: Mapping[str, int]
    model: str
    query: str = ""
    time: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="milliseconds"))
    already_written: int = 0
    outlets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rejected_runs: tuple[int, int, int] = (0, 0, 0)
    expired: tuple[Run, ...] = ()

    @property
    def n(self) -> int:
        """Number of alerts answered."""
        return _size(self.answered)

    def to_json(self) -> bytes:
        """Value of the record on the ledger topic."""
        fields = {"ledger": 1, **asdict(self), "n": self.n, "counts": dict(self.counts)}
        return json.dumps(fields, separators=(",", ":")).encode()

    @staticmethod
    def from_json(value: bytes | str | None) -> "LedgerRow":
        """Read a record's value. Raises LedgerError if it is no ledger row or its own numbers contradict each other."""
        try:
            row = _ROW.validate_json(value or b"", strict=True)
            fields = json.loads(value or b"")
        except ValueError as error:
            raise LedgerError(f"not a ledger row: {value!r:.200}") from error
        if fields.get("ledger") != 1:
            raise LedgerError(f"ledger row of version {fields.get('ledger')!r}; this broker reads 1: upgrade it")
        counted = sum(row.counts.values())
        if not row.n == fields.get("n") == counted or _size(_join(row.answered)) != row.n:
            raise LedgerError(f"ledger row of batch {row.batch}: {row.n} offsets, {counted} counted: {value!r:.200}")
        if faults := _of_outlets(row.outlets, row.counts):
            raise LedgerError(f"ledger row of batch {row.batch}: {faults[0]}: {value!r:.200}")
        return row


_ROW = TypeAdapter(LedgerRow)


def _of_outlets(outlets: Mapping[str, Mapping[str, int]], counts: Mapping[str, int]) -> list[str]:
    """What is wrong with the outlets' counts: each verdict of an alert that was read is written there or filtered."""
    read = sum(n for key, n in counts.items() if not key.startswith("rejected/"))
    faults = []
    for name, sums in outlets.items():
        written, filtered = sums.get("written", 0), sums.get("filtered", 0)
        if written + filtered != read:
            faults.append(f"outlet {name}: {written} written and {filtered} filtered of {read} verdicts")
    return faults


class Span(NamedTuple):
    """Offsets of one partition in one batch: [first, last_exclusive).

    `is_new`: the partition appeared with this batch, so `first` is 0 by Spark's rule (a new partition is read from its
    beginning) and not a number from Spark's accounts.
    """

    topic: str
    partition: int
    first: int
    last_exclusive: int
    is_new: bool = False


Offsets = Mapping[str, Mapping[str, int]]


def spans(start: Offsets | str | None, end: Offsets | str, initial: Offsets | str | None = None) -> list[Span]:
    """Spans of a batch from its start and end offsets, as Spark writes them: {"topic": {"0": 123}}, parsed or as JSON.

    `start` is None in the first batch's progress event: then `initial`, the offsets that Spark resolved from
    `startingOffsets` (`checkpoint.initial_offsets`), is the start. Empty spans are kept. Raises LedgerError when
    offsets run backwards, or when a first batch comes without `initial`.
    """
    begin = _parse(start) if start is not None else _parse(initial)
    if begin is None:
        raise LedgerError("first batch without the offsets it started from; pass the checkpoint's initial offsets")
    result = []
    for topic, partitions in (_parse(end) or {}).items():
        for partition, last in partitions.items():
            first = begin.get(topic, {}).get(partition)
            span = Span(topic, int(partition), first or 0, int(last), is_new=first is None)
            if span.last_exclusive < span.first:
                raise LedgerError(
                    f"{topic}:{partition}: a batch from offset {span.first} back to {span.last_exclusive}; "
                    "the topic was deleted and made again: start with a new checkpoint"
                )
            result.append(span)
    return sorted(result)


class Gap(NamedTuple):
    """Offsets first to last, both included, of one partition."""

    topic: str
    partition: int
    first: int
    last: int

    def __str__(self) -> str:
        offsets = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.topic}:{self.partition}:{offsets}"


@dataclass(frozen=True)
class Balance:
    """One batch's books. `expected` = `answered` + `holes` + `expired` + the size of `missing`.

    holes: offsets without a record (transaction markers, compaction). foreign: answered, but not in the batch.
    repeated: alerts that a second ledger row answered again (a batch run twice). counts: by "status/reason".
    already_written: alerts whose record the last try did not write again. rows: those that the counts come from.
    expired: deleted before they were read. outlets: sums over the rows, by outlet.
    """

    expected: int
    answered: int
    missing: tuple[Gap, ...] = ()
    foreign: tuple[Gap, ...] = ()
    holes: int = 0
    repeated: int = 0
    counts: Mapping[str, int] = field(default_factory=dict)
    already_written: int = 0
    rows: tuple[LedgerRow, ...] = ()
    expired: int = 0
    outlets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)

    @property
    def is_balanced(self) -> bool:
        """Whether every offset is answered once or a hole, and the counts, the outlets' too, say the same number."""
        settled = not self.missing and not self.foreign and self.expected == self.answered + self.holes + self.expired
        return settled and sum(self.counts.values()) == self.answered and not _of_outlets(self.outlets, self.counts)

    def by_status(self) -> dict[str, dict[str, int]]:
        """Counts as {status: {reason: n}}, the largest first."""
        result: dict[str, dict[str, int]] = {"classified": {}, "abstained": {}, "rejected": {}}
        for key, n in sorted(self.counts.items(), key=lambda item: (-item[1], item[0])):
            status, _, reason = key.partition("/")
            result.setdefault(status, {})[reason] = n
        return result

    def with_holes(self, holes: Iterable[Gap]) -> "Balance":
        """The same books after a look at the source: these missing offsets hold no record."""
        missing, n = self._without(holes)
        return replace(self, missing=missing, holes=self.holes + n)

    def with_expired(self, gaps: Iterable[Gap]) -> "Balance":
        """The same books where these missing offsets were deleted before they were read."""
        missing, n = self._without(gaps)
        return replace(self, missing=missing, expired=self.expired + n)

    def _without(self, gaps: Iterable[Gap]) -> tuple[tuple[Gap, ...], int]:
        """What is missing beside these offsets, and how many of them were missing."""
        excused, missing, n = _by_partition(gaps), [], 0
        for (topic, partition), found in _by_partition(self.missing).items():
            left = _minus(found, excused.get((topic, partition), []))
            n += _size(found) - _size(left)
            missing += [Gap(topic, partition, first, last) for first, last in left]
        return tuple(missing), n

    def check(self, source: str, batch: int) -> None:
        """Raise LedgerError unless balanced: which batch, which offsets, what to do."""
        if self.is_balanced:
            return
        n_missing = _size([(gap.first, gap.last) for gap in self.missing])
        faults = []
        if self.missing:
            faults.append(f"{n_missing} without a verdict: {_list(self.missing)}")
        if self.foreign:
            faults.append(f"answered, but not in the batch: {_list(self.foreign)}")
        counted = sum(self.counts.values())
        if counted != self.answered:
            faults.append(f"verdicts of {counted} in the counts, {self.answered} by their offsets")
        faults += _of_outlets(self.outlets, self.counts)
        raise LedgerError(
            f"source {source!r}, batch {batch}: the books do not balance: {self.expected} alerts in, {self.answered} "
            f"answered, {self.holes} holes; {'; '.join(faults)}. The job stopped so that nothing is lost unseen. "
            "To have these alerts classified, run this source with a new checkpoint and a start before them (repeats "
            "carry the same 'alert' header). If only the ledger's rows are gone, by its topic's retention, do the same"
        )


def compare(batch_spans: Sequence[Span], rows: Iterable[LedgerRow]) -> Balance:
    """Books of one batch from its spans and its ledger rows (one source, query and batch).

    Newest row first: after a crash the batch runs again, and the rows of the earlier try are repeats of the last one.
    """
    answered: dict[tuple[str, int], list[Run]] = defaultdict(list)
    counts: Counter[str] = Counter()
    outlets: dict[str, Counter[str]] = defaultdict(Counter)
    counted: list[LedgerRow] = []
    repeated = 0
    for row in sorted(rows, key=lambda row: row.time, reverse=True):
        known = answered[row.topic, row.partition]
        fresh = _minus(row.answered, known)
        repeated += row.n - _size(fresh)
        if _size(fresh) == row.n:
            counts.update(row.counts)
            counted.append(row)
            for name, sums in row.outlets.items():
                outlets[name].update(sums)
        answered[row.topic, row.partition] = _join([*known, *fresh])
    expected = {(span.topic, span.partition): [(span.first, span.last_exclusive - 1)] for span in batch_spans}
    expected = {key: span for key, span in expected.items() if _size(span)}
    missing, foreign = [], []
    for topic, partition in sorted(expected.keys() | answered.keys()):
        want, have = expected.get((topic, partition), []), answered.get((topic, partition), [])
        missing += [Gap(topic, partition, *run) for run in _minus(want, have)]
        foreign += [Gap(topic, partition, *run) for run in _minus(have, want)]
    return Balance(
        expected=sum(map(_size, expected.values())),
        answered=sum(map(_size, answered.values())),
        missing=tuple(missing),
        foreign=tuple(foreign),
        repeated=repeated,
        counts=dict(counts),
        already_written=sum(row.already_written for row in counted),
        rows=tuple(counted),
        outlets={name: dict(sums) for name, sums in outlets.items()},
    )


def log_line(source: str, batch: int, balance: Balance, durations_ms: Mapping[str, int], lag: int | None = None) -> str:
    """One line per micro-batch. `durations_ms`: Spark's phases, "triggerExecution" the whole of them; lag in alerts."""
    parts = [f"{balance.expected} alerts in"]
    for status, reasons in balance.by_status().items():
        named = ", ".join(f"{reason} {n}" for reason, n in reasons.items() if reason != "ok")
        parts.append(f"{sum(reasons.values())} {status}" + (f" ({named})" if named else ""))
    told = [(balance.holes, "holes"), (balance.expired, "expired")]
    told += [(balance.repeated, "run twice"), (balance.already_written, "already written")]
    for n, what in told:
        if n:
            parts.append(f"{what} {n}")
    parts += [f"{sums['written']} to {name}" for name, sums in sorted(balance.outlets.items())]
    total_ms = durations_ms.get("triggerExecution", 0)
    phases = sorted(
        ((ms, name) for name, ms in durations_ms.items() if name != "triggerExecution" and ms), reverse=True
    )
    if total_ms > 0:
        parts.append(f"{1000 * balance.expected / total_ms:.0f} alerts/s")
    parts.append(f"lag {'unknown' if lag is None else lag}")
    named = ", ".join(f"{name} {ms}" for ms, name in phases if ms)
    return f"{source} batch {batch}: {', '.join(parts)}, {total_ms} ms" + (f" ({named})" if named else "")


def _parse(offsets: Offsets | str | None) -> Offsets | None:
    parsed: Offsets | None = json.loads(offsets) if isinstance(offsets, str) else offsets
    return parsed


def _size(run_list: Iterable[Run]) -> int:
    return sum(last - first + 1 for first, last in run_list)


def _join(run_list: Iterable[Run]) -> list[Run]:
    """Ascending runs, touching and overlapping ones made one."""
    joined: list[Run] = []
    for first, last in sorted(run_list):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = (joined[-1][0], max(last, joined[-1][1]))
        else:
            joined.append((first, last))
    return joined


def _minus(run_list: Iterable[Run], taken: Iterable[Run]) -> list[Run]:
    """Offsets of `run_list` that are not in `taken`; one pass over both in order."""
    cuts, result, i = _join(taken), [], 0
    for first, last in _join(run_list):
        while i < len(cuts) and cuts[i][1] < first:
            i += 1
        j = i
        while j < len(cuts) and cuts[j][0] <= last:
            if cuts[j][0] > first:
                result.append((first, cuts[j][0] - 1))
            first = cuts[j][1] + 1
            j += 1
        if first <= last:
            result.append((first, last))
    return result


def _by_partition(gaps: Iterable[Gap]) -> dict[tuple[str, int], list[Run]]:
    result: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for gap in gaps:
        result[gap.topic, gap.partition].append((gap.first, gap.last))
    return result


def _list(gaps: Sequence[Gap], limit: int = 10) -> str:
    more = f" and {len(gaps) - limit} more runs" if len(gaps) > limit else ""
    return ", ".join(map(str, gaps[:limit])) + more
