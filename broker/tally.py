"""A task's count of what it answered: the row it sends to the ledger. No Kafka, no Spark: it runs in the workers."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from broker.lightcurve import Integers


class LedgerRow(BaseModel):
    """One task's alerts of one topic and partition, as it stands on the ledger topic (JSON).

    answered: runs [first, last] of offsets; counts: verdicts by "status/reason"; batch -1: not a stream.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    ledger: int = 1
    source: str
    batch: int
    task: int
    topic: str
    partition: int
    answered: list[tuple[int, int]]
    n: int
    counts: dict[str, int]
    model: str
    time: datetime = Field(default_factory=lambda: datetime.now(UTC))

    def to_json(self) -> bytes:
        """Bytes for the ledger topic."""
        return self.model_dump_json().encode()

    @classmethod
    def from_json(cls, data: bytes) -> LedgerRow:
        """The row of these bytes; pydantic's ValidationError where they are none."""
        return cls.model_validate_json(data)


def runs(offsets: Integers) -> list[tuple[int, int]]:
    """Runs (first, last) of consecutive numbers in a set of offsets given in any order."""
    ordered = np.unique(offsets)
    if not len(ordered):
        return []
    gaps = np.flatnonzero(np.diff(ordered) != 1)
    firsts, lasts = np.append(0, gaps + 1), np.append(gaps, len(ordered) - 1)
    return list(zip(ordered[firsts].tolist(), ordered[lasts].tolist(), strict=True))


@dataclass
class Tally:
    """Counts the alerts of one task as they are answered."""

    source: str
    batch: int
    task: int
    model: str
    offsets: dict[tuple[str, int], list[Integers]] = field(default_factory=dict)
    counts: dict[tuple[str, int], Counter[str]] = field(default_factory=dict)

    def add(self, topics: pa.Array, partitions: pa.Array, offsets: pa.Array, verdicts: list[str]) -> None:
        """Count a batch: verdicts[i] is the "status/reason" of the alert at these coordinates."""
        names, numbers, where = topics.to_pylist(), partitions.to_pylist(), offsets.to_numpy(zero_copy_only=False)
        places = list(zip(names, numbers, strict=True))
        for place in set(places):
            mine = [i for i, p in enumerate(places) if p == place] if len(set(places)) > 1 else range(len(places))
            self.offsets.setdefault(place, []).append(where[list(mine)].astype(np.int64))
            self.counts.setdefault(place, Counter()).update(verdicts[i] for i in mine)

    def rows(self) -> list[LedgerRow]:
        """One row per topic and partition."""
        found = []
        for place, parts in sorted(self.offsets.items()):
            offsets = np.concatenate(parts)
            found.append(
                LedgerRow(
                    source=self.source,
                    batch=self.batch,
                    task=self.task,
                    topic=place[0],
                    partition=place[1],
                    answered=runs(offsets),
                    n=len(offsets),
                    counts=dict(sorted(self.counts[place].items())),
                    model=self.model,
                )
            )
        return found
