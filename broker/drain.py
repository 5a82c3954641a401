"""The end of a query between two batches.

`StreamingQuery.stop()` cancels the batch under way: planned, not committed. Waiting for a commit and stopping then is a
race with the next batch's plan. So the query is told as Spark's own `AvailableNow` trigger tells it, from inside, that
all is done: its state becomes TERMINATED, which its thread reads before it plans a batch and nowhere in between.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping

from pyspark.sql import SparkSession
from pyspark.sql.streaming.query import StreamingQuery

_log = logging.getLogger(__name__)

DRAIN_S = 25.0  # the job has ended within 30


def drain(spark: SparkSession, queries: Mapping[str, StreamingQuery], timeout_s: float = DRAIN_S) -> bool:
    """Whether all queries (by source) ended with their batch committed, none planning another, within `timeout_s`.

    What takes longer is broken off, as by a crash: the next start leaves out what it has written.
    """
    assert spark._jvm is not None
    runtime = spark._jvm.org.apache.spark.sql.execution.streaming.runtime
    terminated = getattr(getattr(runtime, "TERMINATED$"), "MODULE$")
    threads = {}
    for name, query in queries.items():
        inside = query._jsq.streamingQuery()
        inside.state().set(terminated)
        threads[name] = inside.queryExecutionThread()
    deadline = time.monotonic() + timeout_s
    while any(thread.isAlive() for thread in threads.values()) and time.monotonic() < deadline:
        time.sleep(0.02)
    is_clean = True
    for name, query in queries.items():
        if threads[name].isAlive():
            _log.warning("%s: its batch is not done after %g s and is broken off", name, timeout_s)
            query.stop()
            is_clean = False
        elif query.exception() is not None:
            _log.warning("%s: its last batch failed; the next start does it again", name)
            is_clean = False
    return is_clean
