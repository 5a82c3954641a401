"""Topics on a real Kafka: waiting, logins, missing ones, size limits, and offsets that hold no record."""

import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer, TopicPartition

from broker import config
from broker.config import kafka_options, spark_kafka_options
from broker.embedded import EmbeddedKafka, free_port
from broker.errors import ConfigError, KafkaError
from broker.ledger import Gap
from broker.topics import (
    Reach,
    check_topics,
    find_holes,
    find_missing,
    offsets_at,
    open_consumer,
    reaches,
    require_topics,
    wait_for_kafka,
    watermarks,
)

PASSWORD = "a \"b\" \\c\\ 'd' ; = {e} ü"


def options_of(kafka: EmbeddedKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def send(kafka: EmbeddedKafka, topic: str, n: int) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    for i in range(n):
        producer.produce(topic, value=b"alert %d" % i, partition=0)
    assert producer.flush(30) == 0


def test_wait_returns_at_once_where_kafka_runs(kafka: EmbeddedKafka, caplog: pytest.LogCaptureFixture) -> None:
    wait_for_kafka(options_of(kafka), 10)
    assert not caplog.records


def test_wait_tells_each_attempt_and_then_the_servers(caplog: pytest.LogCaptureFixture) -> None:
    servers = f"127.0.0.1:{free_port()}"
    with (
        caplog.at_level(logging.WARNING),
        pytest.raises(KafkaError, match=rf"Kafka at {servers} doesn't answer within 3 s: .*startup_timeout_s"),
    ):
        wait_for_kafka({"bootstrap.servers": servers}, 3)
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) >= 2
    assert all(line.startswith(f"Kafka at {servers}: attempt {i}: ") for i, line in enumerate(lines, 1))


def test_setting_that_librdkafka_refuses_is_a_config_error(kafka: EmbeddedKafka) -> None:
    with pytest.raises(ConfigError, match=r"fetch\.mx\.bytes"):
        wait_for_kafka(options_of(kafka) | {"fetch.mx.bytes": "1"}, 1)
    with pytest.raises(ConfigError, match=r"fetch\.mx\.bytes"):
        watermarks(options_of(kafka) | {"fetch.mx.bytes": "1"}, [])


def test_missing_topics_come_with_their_commands(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-there": 1})
    with pytest.raises(KafkaError) as error:
        check_topics(options_of(kafka), ["topics-there", "topics-a", "topics-b"], False, 3, 2_000_000, {"topics-b": 5})
    command = f"kafka-topics.sh --bootstrap-server {kafka.bootstrap_servers} --create --topic"
    assert str(error.value).splitlines()[1:] == [
        f"  {command} topics-a --partitions 3 --config max.message.bytes=2000000",
        f"  {command} topics-b --partitions 3 --config max.message.bytes=2000000 --config retention.ms=5",
    ]
    assert "output.create_topics = true" in str(error.value)
    assert find_missing(options_of(kafka), ["topics-a", "topics-there", "topics-a"]) == ["topics-a"]


def test_an_input_topic_is_never_offered_to_be_made_by_us(kafka: EmbeddedKafka) -> None:
    with pytest.raises(KafkaError, match=re.escape("lacks the topic topics-input")) as error:
        require_topics(options_of(kafka), ["topics-input"])
    assert "create_topics" not in str(error.value)
    assert find_missing(options_of(kafka), ["topics-input"]) == ["topics-input"]


def test_create_makes_what_is_missing_and_reads_the_limits(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-small": 1}, config={"max.message.bytes": "70000"})
    names = ["topics-small", "topics-new"]
    assert check_topics(options_of(kafka), names, True, 3, 5_000_000) == {
        "topics-small": 70_000,
        "topics-new": 5_000_000,
    }
    assert set(watermarks(options_of(kafka), ["topics-new"])["topics-new"]) == {0, 1, 2}
    assert check_topics(options_of(kafka), names)["topics-new"] == 5_000_000


def test_watermarks_tell_what_a_topic_holds(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-marks": 2})
    send(kafka, "topics-marks", 5)
    assert watermarks(options_of(kafka), ["topics-marks"]) == {"topics-marks": {0: Reach(0, 5), 1: Reach(0, 0)}}
    with pytest.raises(KafkaError, match="topics-nowhere"):
        watermarks(options_of(kafka), ["topics-nowhere"])
    assert find_missing(options_of(kafka), ["topics-nowhere"]) == ["topics-nowhere"]  # looking made none


def test_transaction_markers_are_holes_and_records_are_not(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-holes": 1})
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "topics-holes"})
    producer.init_transactions(30)
    for commits in (True, False, True):
        producer.begin_transaction()
        for i in range(3):
            producer.produce("topics-holes", value=b"%d" % i, partition=0)
        producer.flush(30)
        if commits:
            producer.commit_transaction(30)
        else:
            producer.abort_transaction(30)
    send(kafka, "topics-holes", 2)
    # 0-2, marker 3, 4-6 aborted (Spark reads them), marker 7, 8-10, marker 11, 12-13
    whole = [Gap("topics-holes", 0, 0, 13)]
    assert [gap.first for gap in find_holes(options_of(kafka), whole)] == [3, 7, 11]
    assert all(gap.first == gap.last for gap in find_holes(options_of(kafka), whole))
    some = [Gap("topics-holes", 0, 3, 3), Gap("topics-holes", 0, 5, 5), Gap("topics-holes", 0, 10, 12)]
    assert find_holes(options_of(kafka), some) == [Gap("topics-holes", 0, 3, 3), Gap("topics-holes", 0, 11, 11)]
    committed = options_of(kafka) | {"isolation.level": "read_committed"}
    assert find_holes(committed, whole) == [
        Gap("topics-holes", 0, 3, 7),
        Gap("topics-holes", 0, 11, 11),
    ]


def test_a_marker_at_the_very_end_is_a_hole(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-end": 1})
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "topics-end"})
    producer.init_transactions(30)
    producer.begin_transaction()
    producer.produce("topics-end", value=b"x", partition=0)
    producer.commit_transaction(30)
    assert find_holes(options_of(kafka), [Gap("topics-end", 0, 0, 1)]) == [Gap("topics-end", 0, 1, 1)]


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[EmbeddedKafka, str]]:
    """A Kafka with a second listener that asks for a login; user and password are quoted for Java by our own rule."""
    port, secure, controller = free_port(), free_port(), free_port()
    entry = config._quote(PASSWORD).replace("\\", "\\\\")  # once more for Java's properties file
    module = "org.apache.kafka.common.security.plain.PlainLoginModule"
    properties: dict[str, str | int] = {
        "controller.quorum.voters": f"1@127.0.0.1:{controller}",
        "listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{secure},CONTROLLER://127.0.0.1:{controller}",
        "advertised.listeners": f"PLAINTEXT://127.0.0.1:{port},SASL_PLAINTEXT://127.0.0.1:{secure}",
        "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,SASL_PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT",
        "sasl.enabled.mechanisms": "PLAIN",
        "listener.name.sasl_plaintext.plain.sasl.jaas.config": f"{module} required user_bob={_escape(entry)};",
    }
    with EmbeddedKafka(port=port, properties=properties) as running:
        yield running, f"127.0.0.1:{secure}"


def _escape(text: str) -> str:
    return "".join(letter if ord(letter) < 128 else f"\\u{ord(letter):04x}" for letter in text)


def settings(folder: Path, servers: str) -> config.Config:
    path = folder / "login.toml"
    path.write_text(
        f"""
        [kafka]
        bootstrap_servers = "{servers}"
        username_env = "T2_TEST_USER"
        password_env = "T2_TEST_PASSWORD"
        options = {{ "sasl.mechanism" = "PLAIN", "security.protocol" = "SASL_PLAINTEXT" }}
        [[source]]
        name = "ztf"
        survey = "ztf"
        topics = ["night"]
        checkpoint = "checkpoint"
        """
    )
    return config.load(path)


def test_login_from_the_environment_is_taken_and_survives_javas_quoting(
    guarded: tuple[EmbeddedKafka, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2_TEST_USER", "bob")
    monkeypatch.setenv("T2_TEST_PASSWORD", PASSWORD)
    checked = settings(tmp_path, guarded[1])
    wait_for_kafka(kafka_options(checked), 20)
    # The server parsed the entry that spark_kafka_options would hand to Java, and found the same password in it.
    assert config._quote(PASSWORD) in spark_kafka_options(checked)["kafka.sasl.jaas.config"]
    with pytest.raises(KafkaError, match=r"--command-config client\.properties --create --topic none"):
        require_topics(kafka_options(checked), ["none"])


def test_refused_login_is_not_waited_for(
    guarded: tuple[EmbeddedKafka, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("T2_TEST_USER", "bob")
    monkeypatch.setenv("T2_TEST_PASSWORD", "wrong")
    with pytest.raises(KafkaError, match="refuses the login of 'bob'") as error:
        wait_for_kafka(kafka_options(settings(tmp_path, guarded[1])), 60)
    assert "wrong" not in str(error.value).replace("wrong usage", "")


def test_reading_joins_no_group(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"topics-passive": 1})
    send(kafka, "topics-passive", 1)
    find_holes(options_of(kafka) | {"group.id": "passive"}, [Gap("topics-passive", 0, 0, 0)])
    consumer = Consumer(options_of(kafka) | {"group.id": "passive"})
    try:
        assert consumer.committed([TopicPartition("topics-passive", 0)], timeout=30)[0].offset < 0
    finally:
        consumer.close()


def test_offsets_by_time_of_a_partition_that_does_not_answer_are_no_offsets(kafka: EmbeddedKafka) -> None:
    """The client hands back the time that was asked for, as if it were an offset, and the error beside it."""
    kafka.create_topics({"by-time": 1})
    send(kafka, "by-time", 3)
    with open_consumer(options_of(kafka)) as consumer:
        held = reaches(consumer, "by-time")
        assert offsets_at(consumer, "by-time", held, 1000) == {0: 0}
        assert offsets_at(consumer, "by-time", held, 4_000_000_000_000) == {0: 3}
        with pytest.raises(KafkaError, match="by-time:7 can't be searched by time"):
            offsets_at(consumer, "by-time", {**held, 7: Reach(0, 1)}, 1000)
