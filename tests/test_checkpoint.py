"""Checkpoints as a real Spark query leaves them, and as they look after an accident."""

import json
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from confluent_kafka import Producer
from pyspark.errors import StreamingQueryException
from pyspark.sql import SparkSession

from broker import session
from broker.checkpoint import committed_spans, has_offsets, initial_offsets, planned_spans, query_id
from broker.embedded import EmbeddedKafka
from broker.errors import LedgerError
from broker.ledger import Span, spans


@pytest.fixture(scope="module")
def spark() -> Iterator[SparkSession]:
    started = session.start("test-checkpoint", "local[1]", "1g")
    yield started
    started.stop()


def send(kafka: EmbeddedKafka, topic: str, n: int, partition: int) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    for i in range(n):
        producer.produce(topic, value=b"alert %d" % i, partition=partition)
    assert producer.flush(30) == 0


def fail(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    for batch in batches:
        if batch.num_rows:
            raise RuntimeError(f"no answer for {batch.num_rows} alerts")
        yield batch


def run(
    spark: SparkSession, kafka: EmbeddedKafka, topics: str, folder: Path, fails: bool = False
) -> list[dict[str, Any]]:
    """Read what the topics hold, 8 alerts a batch; the progress events."""
    reader = spark.readStream.format("kafka").option("kafka.bootstrap.servers", kafka.bootstrap_servers)
    reader = reader.option("subscribe", topics).option("startingOffsets", "earliest").option("maxOffsetsPerTrigger", 8)
    rows = reader.load().select("value")
    rows = rows.mapInArrow(fail, "value binary") if fails else rows
    writer = rows.writeStream.format("noop").option("checkpointLocation", str(folder)).trigger(availableNow=True)
    query = writer.start()
    query.awaitTermination(120)
    return [json.loads(event.json) for event in query.recentProgress]


def test_committed_batches_are_read_as_spark_counts_them(
    spark: SparkSession, kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    kafka.create_topics({"checkpoint-a": 2, "checkpoint-b": 1})
    send(kafka, "checkpoint-a", 9, partition=0)
    send(kafka, "checkpoint-a", 3, partition=1)
    events = run(spark, kafka, "checkpoint-a", tmp_path)
    assert initial_offsets(tmp_path) == {"checkpoint-a": {"0": 0, "1": 0}}
    last = committed_spans(tmp_path)
    assert last is not None
    assert (last.batch, last.planned, last.query) == (1, None, events[0]["id"])
    assert sum(span.last_exclusive - span.first for span in last.spans) == 12 - 8
    assert [(span.partition, span.last_exclusive) for span in last.spans] == [(0, 9), (1, 3)]
    # the progress events say the same, and the first needs the initial offsets
    place = events[0]["sources"][0]
    assert place["startOffset"] is None
    first = spans(place["startOffset"], place["endOffset"], initial_offsets(tmp_path))
    assert sum(span.last_exclusive - span.first for span in first) == 8
    assert spans(events[1]["sources"][0]["startOffset"], events[1]["sources"][0]["endOffset"]) == last.spans

    send(kafka, "checkpoint-b", 2, partition=0)
    run(spark, kafka, "checkpoint-a,checkpoint-b", tmp_path)  # a topic added to a checkpoint: from its beginning
    last = committed_spans(tmp_path)
    assert last is not None
    assert last.spans == [
        Span("checkpoint-a", 0, 9, 9),
        Span("checkpoint-a", 1, 3, 3),
        Span("checkpoint-b", 0, 0, 2, is_new=True),
    ]
    assert planned_spans(tmp_path) is None


def test_planned_batch_is_not_committed(spark: SparkSession, kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"checkpoint-failing": 1})
    send(kafka, "checkpoint-failing", 5, partition=0)
    with pytest.raises(StreamingQueryException):
        run(spark, kafka, "checkpoint-failing", tmp_path, fails=True)
    assert committed_spans(tmp_path) is None
    assert has_offsets(tmp_path)
    assert planned_spans(tmp_path) == (0, [Span("checkpoint-failing", 0, 0, 5)])
    run(spark, kafka, "checkpoint-failing", tmp_path)
    send(kafka, "checkpoint-failing", 1, partition=0)
    with pytest.raises(StreamingQueryException):
        run(spark, kafka, "checkpoint-failing", tmp_path, fails=True)
    last = committed_spans(tmp_path)
    assert last is not None
    assert (last.batch, last.planned) == (0, 1)
    assert planned_spans(tmp_path) == (1, [Span("checkpoint-failing", 0, 5, 6)])


def test_empty_topic_makes_an_empty_batch(spark: SparkSession, kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"checkpoint-empty": 1})
    run(spark, kafka, "checkpoint-empty", tmp_path)
    last = committed_spans(tmp_path)
    assert last is not None
    assert last.spans == [Span("checkpoint-empty", 0, 0, 0)]


def test_accidents_are_named(spark: SparkSession, kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"checkpoint-broken": 1})
    send(kafka, "checkpoint-broken", 20, partition=0)
    whole = tmp_path / "whole"
    run(spark, kafka, "checkpoint-broken", whole)
    accidents = {
        "offsets/1": "offsets/1: can't be read",
        "offsets/2": "offsets/2: can't be read",
        "metadata": "metadata: no query id",
    }
    for lost, message in accidents.items():
        folder = tmp_path / "lost" / lost.replace("/", "-")
        shutil.copytree(whole, folder)
        (folder / lost).unlink()
        with pytest.raises(LedgerError, match=message):
            committed_spans(folder)
    texts = {"": "not with 'v1'", "v2\n{}\n{}": "another Spark version", "v1\n{}\n{": "not JSON", "v1\n{}": "0 sources"}
    for text, message in texts.items():
        (whole / "offsets" / "2").write_text(text)
        with pytest.raises(LedgerError, match=message):
            committed_spans(whole)


def test_no_folder_and_a_new_folder_hold_nothing(tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tmp_path):
        assert committed_spans(folder) is None
        assert planned_spans(folder) is None
        assert initial_offsets(folder) is None
        assert not has_offsets(folder)
    with pytest.raises(LedgerError, match="no query id"):
        query_id(tmp_path)
