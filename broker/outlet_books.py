"""The audit of the further outlets: the records on each topic against what the ledger says was written there."""

from __future__ import annotations

from array import array
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from broker.config import Source
from broker.delivery import Outlet, outlets_of
from broker.ledger import LedgerRow, compare
from broker.outlet_nights import NIGHT, Nights, expand
from broker.reconcile import Place, Window, place_of

Offsets = Mapping[tuple[bytes, bytes], "array[int]"]  # of alerts, by (b"source:topic:partition", b"model")


@dataclass(frozen=True)
class OutletBooks:
    """Books of one outlet's topics for a survey, over the windows of the audit.

    written: verdicts that the ledger says are there; found: alerts with a record by a model; n_repeats: records too
    many; filtered: verdicts that its filter held back. Topics of past nights may have been deleted (`is_by_night`).
    """

    outlet: str
    topic: str
    written: int
    filtered: int
    found: int
    n_repeats: int
    is_by_night: bool = False

    @property
    def is_balanced(self) -> bool:
        """Whether each verdict that was let through has one record, as far as topics can tell."""
        is_there = self.written == self.found or (self.is_by_night and self.found < self.written)
        return is_there and not self.n_repeats


def audit_outlets(
    outlets: Sequence[Outlet],
    sources: Iterable[Source],
    windows: Iterable[Window],
    rows: Mapping[Place, Sequence[LedgerRow]],
    read: Callable[[str], Offsets],
    nights: Nights | None = None,
) -> list[OutletBooks]:
    """Books of each outlet that these sources write to, one per survey; `read` gives what a topic holds.

    nights: that have topics, by template.
    """
    within = {window.place: window for window in windows}
    found: list[OutletBooks] = []
    collected: dict[str, Offsets] = {}
    for source in sources:
        for outlet in outlets_of(outlets, source.name):
            names = sorted(outlet.topics_of(source.survey).values())
            topics = expand(names, nights or {})
            for topic in topics:
                collected[topic] = collected.get(topic) or read(topic)
            mine = {place: window for place, window in within.items() if place.source == source.name}
            sums = _told(outlet.name, mine, rows)
            n, n_repeats = (sum(part) for part in zip(*(_held(collected[t], mine) for t in topics), strict=True))
            found.append(OutletBooks(outlet.name, ", ".join(names), sums["written"], sums["filtered"], n, n_repeats))
    return _joined(found)


def _told(name: str, windows: Mapping[Place, Window], rows: Mapping[Place, Sequence[LedgerRow]]) -> Counter[str]:
    """The ledger's sums for an outlet, each batch once, whatever its tries."""
    batches: dict[tuple[str, int], list[LedgerRow]] = defaultdict(list)
    for place, window in windows.items():
        for row in rows.get(place, ()):
            if row.answered and row.answered[0][0] >= window.first and row.answered[-1][1] < window.last_exclusive:
                batches[row.query, row.batch].append(row)
    sums: Counter[str] = Counter()
    for tries in batches.values():
        sums.update(compare((), tries).outlets.get(name, {}))
    return sums


def _held(collected: Offsets, windows: Mapping[Place, Window]) -> tuple[int, int]:
    """Alerts of the windows with a record, by model, and the records too many."""
    n = n_repeats = 0
    for (prefix, _), offsets in collected.items():
        place = place_of(prefix)
        window = None if place is None else windows.get(place)
        if window is not None:
            there = np.frombuffer(offsets, np.int64)
            there = there[(there >= window.first) & (there < window.last_exclusive)]
            distinct = np.unique(there).size
            n, n_repeats = n + distinct, n_repeats + there.size - distinct
    return n, n_repeats


def _joined(books: Iterable[OutletBooks]) -> list[OutletBooks]:
    """One line per outlet and its topics, sources of one survey added up."""
    sums: dict[tuple[str, str], list[int]] = {}
    for one in books:
        parts = (one.written, one.filtered, one.found, one.n_repeats)
        known = sums.setdefault((one.outlet, one.topic), [0, 0, 0, 0])
        sums[one.outlet, one.topic] = [a + b for a, b in zip(known, parts, strict=True)]
    return [
        OutletBooks(*names, *numbers, is_by_night=NIGHT in names[1])  # type: ignore[misc, arg-type]
        for names, numbers in sums.items()
    ]
