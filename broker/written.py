"""What an unfinished batch has written already: the records that its repeat leaves out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from broker.lightcurve import Bools, Integers

Places = Mapping[tuple[str, int], Integers]  # (topic, partition) of alerts: their offsets


@dataclass(frozen=True)
class Written:
    """Alerts that have a record by this source and model, by the output topic that holds it; at most one batch's."""

    records: Mapping[str, Places] = field(default_factory=dict)

    def __len__(self) -> int:
        return sum(offsets.size for places in self.records.values() for offsets in places.values())

    def holds(self, outputs: Iterable[str], topics: pa.Array, partitions: pa.Array, offsets: pa.Array) -> Bools:
        """Which of n alerts (Arrow columns of their coordinates) have a record on one of these output topics: (n,)."""
        held = np.zeros(len(offsets), np.bool_)
        wanted = [self.records[output] for output in outputs if self.records.get(output)]
        if not wanted:  # always, but for the repeat of a batch that was broken off
            return held
        where = offsets.to_numpy(zero_copy_only=False)
        places = list(zip(topics.to_pylist(), partitions.to_pylist(), strict=True))
        for place in set(places):
            here = np.fromiter((p == place for p in places), np.bool_, len(places))
            for records in wanted:
                if place in records:
                    held |= here & np.isin(where, records[place])
        return held
