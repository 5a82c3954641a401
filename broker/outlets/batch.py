"""What an outlet writes from: verdicts that have passed its filter."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pyarrow as pa

from broker.lightcurve import Integers
from broker.model import Card
from broker.outlets import Passport
from broker.surveys import Survey


@dataclass(frozen=True)
class Batch:
    """n verdicts of one survey.

    columns: `columns.table`; alerts: the decoded structs (n,), of the survey's pruned fields; bodies: bare
    records of the native outlet; places: values of the header `alert`; started_us, finished_us: of the processing,
    microseconds; raws: the alerts' own bytes, null but for sources with an outlet that sends them.
    """

    survey: Survey
    card: Card
    passport: Passport
    columns: pa.RecordBatch
    alerts: pa.StructArray
    bodies: list[bytes]
    places: list[bytes]
    started_us: int
    finished_us: int
    raws: pa.Array

    def __len__(self) -> int:
        return len(self.bodies)

    def take(self, rows: Integers) -> Batch:
        """Those rows alone, in that order."""
        if len(rows) == len(self):
            return self
        where, picked = pa.array(rows), rows.tolist()
        return replace(
            self,
            columns=self.columns.take(where),
            alerts=self.alerts.take(where),
            bodies=[self.bodies[i] for i in picked],
            places=[self.places[i] for i in picked],
            raws=self.raws.take(where),
        )

    def objects(self) -> list[bytes]:
        """Object id of each verdict, its source id where it has none (all asteroids share object 0)."""
        names, ids = self.columns.column("object_id").to_pylist(), self.columns.column("source_id").to_pylist()
        return [(name or str(i)).encode() for name, i in zip(names, ids, strict=True)]
