"""What an unfinished batch has left on the output topics of a real Kafka, and from where it is searched."""

import json
import logging
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import Producer

from broker import bounds
from broker.config import Source
from broker.embedded import EmbeddedKafka
from broker.errors import BrokerError, KafkaError
from broker.leftovers import Notes, check_ends, find_written
from broker.written import Written

MODEL = "t2b-1@1"
QUIET_S = 4.0
NOW_MS = int(time.time() * 1000)


def options_of(kafka: EmbeddedKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def source_in(folder: Path) -> Source:
    return Source(name="night", survey="ztf", topics=("in",), checkpoint=folder, start="earliest")


def plan(folder: Path, batch: int, end: int, is_committed: bool = False, time_ms: int = NOW_MS) -> None:
    """A batch of the offsets from the last one's end to this one, as Spark plans it."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources" / "0" / "0").write_text('\0v1\n{"in":{"0":0}}')
    metadata = json.dumps({"batchTimestampMs": time_ms})
    (folder / "offsets" / str(batch)).write_text(f'v1\n{metadata}\n{{"in":{{"0":{end}}}}}')
    if is_committed:
        (folder / "commits" / str(batch)).write_text("v1\n{}")


def write(kafka: EmbeddedKafka, topic: str, *alerts: str, model: str = MODEL, time_ms: int = 0) -> None:
    """Records with our headers, over two partitions in turn."""
    producer = Producer(options_of(kafka) | {"enable.idempotence": True})
    for i, alert in enumerate(alerts):
        headers: list[tuple[str, str | bytes | None]] = [("alert", alert.encode()), ("model", model.encode())]
        producer.produce(topic, value=b"x", headers=headers, partition=i % 2, timestamp=time_ms)
    assert producer.flush(30) == 0


def search(kafka: EmbeddedKafka, source: Source, name: str) -> Written:
    outputs = (f"{name}-out", f"{name}-dead")
    return find_written(options_of(kafka), source, outputs, MODEL, threading.Event(), QUIET_S)


def found(written: Written) -> dict[str, dict[tuple[str, int], list[int]]]:
    return {
        output: {place: offsets.tolist() for place, offsets in places.items()}
        for output, places in written.records.items()
    }


def test_the_batchs_records_are_found_and_no_others(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"left-out": 2, "left-dead": 2})
    source = source_in(tmp_path)
    plan(tmp_path, 0, 10, is_committed=True)
    write(kafka, "left-out", *[f"night:in:0:{n}" for n in (3, 10, 11)])  # before the note: of an older run, say
    notes = Notes(options_of(kafka), ("left-out", "left-dead"))
    notes.add(tmp_path)
    with notes:
        plan(tmp_path, 1, 20)
        write(kafka, "left-out", *[f"night:in:0:{n}" for n in (12, 13, 19, 12)])
        write(
            kafka, "left-out", "night:in:1:14", "night:other:0:14", "day:in:0:14", "night:in:0:9", "night:in:0:20", "x"
        )
        write(kafka, "left-out", "night:in:0:15", model="t2b-1@2")
        write(kafka, "left-dead", "night:in:0:16")
        time.sleep(1.2)  # notes go on, for later batches
    assert sorted(int(path.name) for path in (tmp_path / bounds.FOLDER).iterdir()) == [1, 2]
    written = search(kafka, source, "left")
    assert found(written) == {"left-out": {("in", 0): [12, 13, 19]}, "left-dead": {("in", 0): [16]}}
    assert len(written) == 4


def test_a_clean_checkpoint_reads_nothing(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    started = time.monotonic()
    assert len(search(kafka, source_in(tmp_path), "no-such-topic")) == 0
    plan(tmp_path, 0, 10, is_committed=True)
    assert len(search(kafka, source_in(tmp_path), "no-such-topic")) == 0
    assert time.monotonic() - started < QUIET_S


def test_records_that_still_come_are_waited_for(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"late-out": 2, "late-dead": 2})
    bounds.write(tmp_path, {"late-out": {0: 0, 1: 0}, "late-dead": {0: 0, 1: 0}})
    plan(tmp_path, 0, 10)
    started = time.monotonic()
    late = threading.Timer(0.8, write, (kafka, "late-out", "night:in:0:4"))
    others = threading.Timer(1.6, write, (kafka, "late-out", "day:in:0:4"))
    for timer in (late, others):
        timer.start()
    written = search(kafka, source_in(tmp_path), "late")
    assert found(written)["late-out"] == {("in", 0): [4]}
    assert time.monotonic() - started >= QUIET_S + 0.8


def test_without_a_note_time_stamps_must_do(
    kafka: EmbeddedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kafka.create_topics({"time-out": 2, "time-dead": 2})
    hour = 3_600_000
    write(kafka, "time-out", "night:in:0:1", "night:in:0:2", time_ms=NOW_MS - 3 * hour)  # older than any of the batch
    write(kafka, "time-out", "night:in:0:3", "night:in:0:4", time_ms=NOW_MS - hour)  # by a clock behind ours
    write(kafka, "time-out", "night:in:0:5", "night:in:0:6", time_ms=NOW_MS + hour)
    plan(tmp_path, 0, 10)
    with caplog.at_level(logging.WARNING):
        written = search(kafka, source_in(tmp_path), "time")
    assert found(written)["time-out"] == {("in", 0): [3, 4, 5, 6]}
    assert "night batch 0 was not finished, and the checkpoint has no note" in caplog.text


def test_a_topic_shorter_than_noted_is_read_whole_and_told(
    kafka: EmbeddedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kafka.create_topics({"anew-out": 2, "anew-dead": 2})
    bounds.write(tmp_path, {"anew-out": {0: 100, 1: 0}, "anew-dead": {0: 0}})
    plan(tmp_path, 0, 10)
    write(kafka, "anew-out", "night:in:0:1", "night:in:0:2")
    write(kafka, "anew-dead", "night:in:0:3", "night:in:0:4")  # partition 1 is not in the note: all of it is new
    with caplog.at_level(logging.WARNING):
        written = search(kafka, source_in(tmp_path), "anew")
    assert found(written) == {"anew-out": {("in", 0): [1, 2]}, "anew-dead": {("in", 0): [3, 4]}}
    assert "anew-out:0 ended at offset 100 before batch 0 of night and holds 0 to 1 now" in caplog.text


def test_an_output_that_ends_before_its_note_stops_the_job(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """Deleted and made again, by a start that makes missing topics, say."""
    kafka.create_topics({"cut-out": 2, "cut-dead": 1})
    outputs, source = ("cut-out", "cut-dead"), source_in(tmp_path)
    check_ends(options_of(kafka), source, outputs)  # no note yet
    write(kafka, "cut-out", "night:in:0:1")
    notes = Notes(options_of(kafka), outputs)
    notes.add(tmp_path)
    with notes:
        pass
    check_ends(options_of(kafka), source, (*outputs, "no-such-topic"))  # a new outlet is in no note
    bounds.write(tmp_path, {"cut-out": {0: 1, 1: 0}, "cut-dead": {0: 7}, "dropped": {0: 9}})
    with pytest.raises(BrokerError, match=r"cut-dead:0 ended at offset 7, .* ends at 0 now: .* deleted") as cut:
        check_ends(options_of(kafka), source, outputs)
    assert not isinstance(cut.value, KafkaError)  # which would be tried again


def test_a_search_ends_when_the_job_is_stopped(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"stop-out": 1})
    bounds.write(tmp_path, {"stop-out": {0: 0}})
    plan(tmp_path, 0, 10)
    stopping = threading.Event()
    stopping.set()
    started = time.monotonic()
    find_written(options_of(kafka), source_in(tmp_path), ("stop-out",), MODEL, stopping, 30)
    assert time.monotonic() - started < 10
