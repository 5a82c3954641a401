"""The ledger topic on a real Kafka: a committed batch's rows are all found, others are not."""

import time
from dataclasses import replace

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewPartitions
from running import wait_until

from broker.embedded import EmbeddedKafka
from broker.errors import KafkaError
from broker.ledger import LedgerRow, Span, compare
from broker.ledger_topic import LedgerTopic

ROW = LedgerRow("ztf", 3, 0, "night", 0, ((0, 9),), {"classified/ok": 10}, "t2b-1@1", "q1")


def options_of(kafka: EmbeddedKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def write(
    kafka: EmbeddedKafka, topic: str, *values: LedgerRow | bytes | None, time_ms: int = 0, partition: int | None = None
) -> None:
    producer = Producer(options_of(kafka) | {"enable.idempotence": True})
    for i, value in enumerate(values):
        raw = value.to_json() if isinstance(value, LedgerRow) else value
        producer.produce(topic, value=raw, partition=i % 2 if partition is None else partition, timestamp=time_ms)
    assert producer.flush(30) == 0


def test_rows_are_found_by_source_query_and_batch(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"ledger-find": 2})
    others = [replace(ROW, source="lsst"), replace(ROW, query="q0"), replace(ROW, batch=2), replace(ROW, batch=4)]
    write(kafka, "ledger-find", *others, ROW, replace(ROW, task=1, partition=1))
    with LedgerTopic(options_of(kafka), "ledger-find", ["ztf"]) as ledger:
        assert sorted(row.task for row in ledger.rows_of("ztf", 3, "q1")) == [0, 1]
        assert ledger.rows_of("ztf", 4, "q1") == [replace(ROW, batch=4)]
        assert ledger.rows_of("ztf", 2, "q1") == []  # forgotten
        assert ledger.rows_of("lsst", 3, "q1") == []  # nobody asked for that source at the start


def test_reading_goes_on_where_it_was(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"ledger-on": 2})
    with LedgerTopic(options_of(kafka), "ledger-on", ["ztf"]) as ledger:
        for batch in range(5):
            row = replace(ROW, batch=batch)
            write(kafka, "ledger-on", row, replace(row, task=1))
            assert len(ledger.rows_of("ztf", batch, "q1")) == 2
            assert len(ledger.rows_of("ztf", batch, "q1")) == 2


def test_repeats_after_a_crash_count_once(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"ledger-again": 2})
    write(kafka, "ledger-again", ROW, replace(ROW, time="2026-11-20T00:00:09+00:00"), ROW)
    with LedgerTopic(options_of(kafka), "ledger-again", ["ztf"]) as ledger:
        balance = compare([Span("night", 0, 0, 10)], ledger.rows_of("ztf", 3, "q1"))
    assert balance.is_balanced
    assert balance.repeated == 20


def test_what_others_write_is_passed_over_and_told(kafka: EmbeddedKafka, caplog: pytest.LogCaptureFixture) -> None:
    kafka.create_topics({"ledger-junk": 2})
    write(kafka, "ledger-junk", None, b"", b"hello", b'{"ledger": 9}', ROW)
    with LedgerTopic(options_of(kafka), "ledger-junk", ["ztf"]) as ledger:
        assert ledger.rows_of("ztf", 3, "q1") == [ROW]
    assert sum("passed over" in record.getMessage() for record in caplog.records) == 4


def test_old_rows_are_not_read_again(kafka: EmbeddedKafka, caplog: pytest.LogCaptureFixture) -> None:
    kafka.create_topics({"ledger-old": 2})
    now_ms = int(time.time() * 1000)
    write(kafka, "ledger-old", b"old junk", b"old junk", time_ms=now_ms - 86_400_000)
    write(kafka, "ledger-old", ROW, time_ms=now_ms - 3_700_000)  # its batch was planned by a clock an hour ahead
    with LedgerTopic(options_of(kafka), "ledger-old", ["ztf"], since_ms=now_ms) as ledger:
        assert ledger.rows_of("ztf", 3, "q1") == [ROW]
        write(kafka, "ledger-old", replace(ROW, task=1), partition=1)
        assert len(ledger.rows_of("ztf", 3, "q1")) == 2
    assert not caplog.records


def test_partitions_added_later_are_read(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"ledger-grown": 1})
    write(kafka, "ledger-grown", ROW, partition=0)
    with LedgerTopic(options_of(kafka), "ledger-grown", ["ztf"]) as ledger:
        assert len(ledger.rows_of("ztf", 3, "q1")) == 1
        admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
        for future in admin.create_partitions([NewPartitions("ledger-grown", 2)]).values():
            future.result(30)
        wait_until(lambda: len(admin.list_topics("ledger-grown", timeout=30).topics["ledger-grown"].partitions) == 2)
        write(kafka, "ledger-grown", replace(ROW, task=1), partition=1)
        assert len(ledger.rows_of("ztf", 3, "q1")) == 2


def test_a_missing_ledger_topic_is_named(kafka: EmbeddedKafka) -> None:
    with pytest.raises(KafkaError, match="ledger-nowhere"):
        LedgerTopic(options_of(kafka), "ledger-nowhere", ["ztf"])
