"""Where alerts come from, as rows shaped like Spark's Kafka source."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession

from broker.tables import Plan

# In place of Kafka's own 64 kB: 332-337 us of JVM time per average LSST alert (127 kB) in place of 368.
RECEIVE_BUFFER_BYTES = 2**20
FRAME_COLUMNS = ("key", "value", "headers", "topic", "partition", "offset", "timestamp")


def kafka(
    spark: SparkSession,
    options: Mapping[str, str],
    topics: tuple[str, ...],
    start: str | datetime | None,
    max_alerts_per_batch: int,
    fails_on_loss: bool = True,
) -> DataFrame:
    """A stream of alerts from topics. start: earliest, latest or a time; counts only while the checkpoint is new.

    fails_on_loss: whether alerts that were deleted before they were read fail the query; else it goes on behind them.
    """
    reader = spark.readStream.format("kafka").option("kafka.receive.buffer.bytes", RECEIVE_BUFFER_BYTES)
    reader = reader.options(**options)
    reader = reader.option("subscribe", ",".join(topics)).option("includeHeaders", "true")
    reader = reader.option("maxOffsetsPerTrigger", max_alerts_per_batch).option("failOnDataLoss", fails_on_loss)
    if isinstance(start, datetime):
        reader = reader.option("startingTimestamp", int(start.timestamp() * 1000))
        reader = reader.option("startingOffsetsByTimestampStrategy", "latest")
    elif start is not None:
        reader = reader.option("startingOffsets", start)
    return reader.load().select(*FRAME_COLUMNS)


def archive(spark: SparkSession, paths: list[Path], root: Path, max_alert_bytes: int, errors: Path) -> DataFrame:
    """Alerts of files, as a batch; a file that can't be read leaves a line in the folder `errors`."""
    from broker.file_source import Archive

    spark.dataSource.register(Archive)
    reader = spark.read.format("archive").option("paths", json.dumps([str(p) for p in paths]))
    reader = reader.option("root", str(root)).option("max_alert_bytes", str(max_alert_bytes))
    return reader.option("errors", str(errors)).load().select(*FRAME_COLUMNS)


def tables(spark: SparkSession, plans: Mapping[Path, Plan], survey: str, root: Path, errors: Path) -> DataFrame:
    """Decoded alerts of tables, as rows for the hop; a table that can't be read leaves a line in `errors`."""
    from broker.file_source import Tables

    spark.dataSource.register(Tables)
    reader = spark.read.format("tables").option("paths", json.dumps([str(path) for path in plans]))
    reader = reader.option("plans", json.dumps([plan.to_json() for plan in plans.values()])).option("survey", survey)
    return reader.option("root", str(root)).option("errors", str(errors)).load()
