"""A task's count of what it answered: the rows it sends to the ledger at the end of its input."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from broker.ledger import LedgerRow, runs, runs_of_true
from broker.lightcurve import Bools, Integers
from broker.verdict import EMPTY, REJECTED


@dataclass(frozen=True)
class Share:
    """What an outlet made of each alert of a batch: each bool (n,). An alert that was rejected is in none."""

    passed: Bools
    filtered: Bools
    already_written: Bools

    @classmethod
    def of(cls, n: int, index: Integers, passed: Bools, fresh: Bools) -> Share:
        """For a batch of n alerts, of which those at `index` were read; passed and fresh are theirs."""
        parts = []
        for part in (passed, ~passed, passed & ~fresh):
            whole = np.zeros(n, np.bool_)
            whole[index] = part
            parts.append(whole)
        return cls(*parts)

    def counts(self, rows: list[int]) -> Counter[str]:
        """Of these alerts, by what the ledger calls it."""
        parts = {"written": self.passed, "filtered": self.filtered, "already_written": self.already_written}
        return Counter({name: int(part[rows].sum()) for name, part in parts.items()})


@dataclass
class Tally:
    """Counts the alerts of one task as they are answered."""

    source: str
    query: str
    batch: int
    task: int
    model: str
    uncounted: frozenset[str] = frozenset({EMPTY})  # by the limits on rejections
    offsets: dict[tuple[str, int], list[Integers]] = field(default_factory=dict)
    verdicts: dict[tuple[str, int], list[str]] = field(default_factory=dict)
    already_written: Counter[tuple[str, int]] = field(default_factory=Counter)
    outlets: dict[tuple[str, int], dict[str, Counter[str]]] = field(default_factory=dict)

    def add(
        self,
        topics: pa.Array,
        partitions: pa.Array,
        offsets: pa.Array,
        verdicts: list[str],
        fresh: Bools,
        outlets: Mapping[str, Share] | None = None,
    ) -> None:
        """Count a batch: verdicts[i] is the "status/reason" of the alert at these coordinates.

        fresh (n,): its record goes out now; where not, it was written before. outlets: what each made of the batch.
        """
        names, numbers, where = topics.to_pylist(), partitions.to_pylist(), offsets.to_numpy(zero_copy_only=False)
        places = list(zip(names, numbers, strict=True))
        for place in set(places):
            mine = [i for i, p in enumerate(places) if p == place] if len(set(places)) > 1 else range(len(places))
            self.offsets.setdefault(place, []).append(where[list(mine)].astype(np.int64))
            self.verdicts.setdefault(place, []).extend(verdicts[i] for i in mine)
            self.already_written[place] += int((~fresh[list(mine)]).sum())
            sums = self.outlets.setdefault(place, {})
            for name, share in (outlets or {}).items():
                sums.setdefault(name, Counter()).update(share.counts(list(mine)))

    def rows(self) -> list[LedgerRow]:
        """One row per topic and partition."""
        found = []
        for place, parts in sorted(self.offsets.items()):
            offsets, verdicts = np.concatenate(parts), self.verdicts[place]
            in_order = [verdicts[i] for i in np.argsort(offsets, kind="stable")]
            rejected = [verdict.startswith(f"{REJECTED}/") for verdict in in_order if verdict not in self.uncounted]
            found.append(
                LedgerRow(
                    source=self.source,
                    batch=self.batch,
                    task=self.task,
                    topic=place[0],
                    partition=place[1],
                    answered=tuple(runs(offsets)),
                    counts=dict(sorted(Counter(verdicts).items())),
                    model=self.model,
                    query=self.query,
                    already_written=self.already_written[place],
                    outlets={name: dict(sums) for name, sums in sorted(self.outlets[place].items())},
                    rejected_runs=runs_of_true(np.array(rejected, np.bool_)),
                )
            )
        return found
