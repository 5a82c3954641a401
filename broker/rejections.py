"""The limits on rejections: from the ledger rows of each committed batch, whether a source rejects too much."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from broker import checkpoint
from broker.errors import LedgerError
from broker.ledger import LedgerRow
from broker.limits import Limits
from broker.verdict import EMPTY, REJECTED


@dataclass(frozen=True)
class Excess:
    """A limit that is exceeded, in words, and when the oldest batch that counts was planned (ms since 1970).

    place: topic and partition, where all that counts is one partition's.
    """

    words: str
    since_ms: int
    place: tuple[str, int] | None = None


@dataclass(frozen=True)
class _Batch:
    planned_at_ms: int
    n_alerts: int
    n_rejected: int


@dataclass
class _Run:
    """Rejections in a row at the end of what a partition has answered, and when the first one's batch was planned."""

    n: int = 0
    since_ms: int = 0


class Rejections:
    """What one source has rejected lately. Nothing is kept on disk: after a start the ledger's rows tell it again.

    uncounted: verdicts that are passed over (verdict.uncounted), the same as in the tasks.
    """

    def __init__(self, limits: Limits, uncounted: frozenset[str] = frozenset({EMPTY})) -> None:
        self._limits, self._uncounted = limits, uncounted
        self._batches: deque[_Batch] = deque()
        self._runs: defaultdict[tuple[str, int], _Run] = defaultdict(_Run)

    def add(self, rows: Iterable[LedgerRow], planned_at_ms: int) -> Excess | None:
        """Count a committed batch; the limit that is exceeded with it. Batches come in their order.

        rows: those that the batch's counts come from, none of an earlier try.
        """
        start = self._limits.count_from
        if start is not None and planned_at_ms < start.timestamp() * 1000:
            return None
        rows = sorted(rows, key=lambda row: (row.topic, row.partition, row.answered))
        excess = None
        for row in rows:
            excess = self._add_run(row, planned_at_ms) or excess
        counts = [(verdict, n) for row in rows for verdict, n in row.counts.items() if verdict not in self._uncounted]
        n_rejected = sum(n for verdict, n in counts if verdict.startswith(f"{REJECTED}/"))
        self._batches.append(_Batch(planned_at_ms, sum(n for _, n in counts), n_rejected))
        return self._ratio() or excess

    def _ratio(self) -> Excess | None:
        limits, n_alerts = self._limits, sum(batch.n_alerts for batch in self._batches)
        while n_alerts - self._batches[0].n_alerts >= limits.window_alerts:
            n_alerts -= self._batches.popleft().n_alerts
        n_rejected = sum(batch.n_rejected for batch in self._batches)
        if n_alerts < limits.min_alerts or n_rejected <= limits.max_rejected_ratio * n_alerts:
            return None
        return Excess(
            f"{n_rejected} of the last {n_alerts} alerts were rejected ({100 * n_rejected / n_alerts:.0f} %; "
            f"limits.max_rejected_ratio is {limits.max_rejected_ratio:g})",
            self._batches[0].planned_at_ms,
        )

    def _add_run(self, row: LedgerRow, planned_at_ms: int) -> Excess | None:
        """Carry a partition's run on into a row; the longest one that this shows, where it is too long."""
        at_begin, longest, at_end = row.rejected_runs
        n_counted = sum(n for verdict, n in row.counts.items() if verdict not in self._uncounted)
        run, place = self._runs[row.topic, row.partition], (row.topic, row.partition)
        joined, since_ms = run.n + at_begin, run.since_ms if run.n else planned_at_ms
        if at_begin == n_counted:  # nothing else in the row
            self._runs[place] = _Run(joined, since_ms)
        else:
            self._runs[place] = _Run(at_end, planned_at_ms)
        n, since_ms = max((joined, since_ms), (longest, planned_at_ms), key=lambda found: found[0])
        if n <= self._limits.max_rejected_run:
            return None
        words = f"{n} alerts in a row of {row.topic}:{row.partition} were rejected "
        return Excess(f"{words}(limits.max_rejected_run is {self._limits.max_rejected_run})", since_ms, place)


def recent(folder: Path, limits: Limits) -> list[checkpoint.Committed]:
    """The newest committed batches of a checkpoint, as many as the limits look back to (or Spark keeps), in order.

    Raises LedgerError where the newest can't be read.
    """
    found: list[checkpoint.Committed] = []
    n_alerts = 0
    for number in reversed(checkpoint.committed_batches(folder)):
        try:
            committed = checkpoint.committed_spans(folder, number)
        except LedgerError:
            if not found:
                raise
            break  # of the oldest that Spark keeps (about 100), the batch before is gone
        assert committed is not None
        found.insert(0, committed)
        n_alerts += sum(span.last_exclusive - span.first for span in committed.spans)
        if n_alerts >= max(limits.window_alerts, limits.max_rejected_run):
            break
    return found
