"""One source of a running job, or a night of one: its query, its batches, what becomes of it after a failure."""

from __future__ import annotations

import json
import time
from collections import Counter
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from pyspark.sql import DataFrame
from pyspark.sql.streaming.query import StreamingQuery

from broker import checkpoint
from broker.classify import Assignment
from broker.config import Source
from broker.health import SourceHealth
from broker.ledger import Gap
from broker.rejections import Rejections
from broker.supervise import Budget

REPORT_TRIES = 10


@dataclass
class Stream:
    """One source, its query and its books. recovery: what has to be done before its query starts again.

    label: what it is called in the log and the health file; the source's name, with the topic where that is a night's.
    """

    source: Source
    label: str
    limits: dict[str, int]
    assignment: Assignment
    budget: Budget
    rejections: Rejections
    query: StreamingQuery | None = None
    recovery: Future[None] | None = None
    alone: list[Gap] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)  # of workers, by batch
    checked: int = -1
    health: SourceHealth = field(default_factory=SourceHealth)

    def start(self, rows: DataFrame, options: dict[str, str], once: bool) -> None:
        """Start its query over finished rows. options: of the Kafka sink."""
        writer = rows.writeStream.format("kafka").options(**options, **_sink_options(self.limits))
        writer = writer.option("checkpointLocation", str(self.source.checkpoint)).queryName(self.label)
        self.query = (writer.trigger(availableNow=True) if once else writer).start()
        self.health.state = "running"

    def committed(self) -> checkpoint.Committed | None:
        """Its newest committed batch."""
        return checkpoint.committed_spans(self.source.checkpoint)

    def unchecked(self) -> list[checkpoint.Committed]:
        """Committed batches with alerts whose books were not looked at in this run."""
        folder = self.source.checkpoint
        late = [batch for batch in checkpoint.committed_batches(folder) if batch > self.checked]
        told = [c for c in (checkpoint.committed_spans(folder, batch) for batch in late) if c is not None]
        return [c for c in told if any(span.last_exclusive > span.first for span in c.spans)]

    def report(self, batch: int) -> tuple[dict[str, int], int | None]:
        """Spark's phases of a batch (ms) and the alerts behind it; nothing where a later report has taken its place.

        The report follows the commit.
        """
        for _ in range(REPORT_TRIES):
            report = None if self.query is None else self.query.lastProgress
            if report is not None and report.batchId >= batch:
                if report.batchId > batch:
                    break
                told = json.loads(report.json)
                return told["durationMs"], _lag(told["sources"][0])
            time.sleep(0.02)
        return {}, None


def _sink_options(limits: dict[str, int]) -> dict[str, str]:
    """Producer settings: as large as the largest topic takes, acknowledged by all replicas, short waits."""
    largest = max(limits.values())
    return {
        "kafka.max.request.size": str(largest + 65_536),
        "kafka.buffer.memory": str(max(33_554_432, 2 * largest)),
        "kafka.linger.ms": "5",
        "kafka.batch.size": "131072",
        "kafka.acks": "all",
    }


def _lag(place: dict[str, Any]) -> int | None:
    """Alerts that wait behind the batch, by the latest offsets that Spark saw."""
    latest, end = place.get("latestOffset"), place["endOffset"]
    if not latest:
        return None
    return sum(int(o) - int(end.get(t, {}).get(p, 0)) for t, ps in latest.items() for p, o in ps.items())
