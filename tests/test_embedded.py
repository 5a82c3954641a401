"""The embedded Kafka: it serves, it says why it doesn't, and it never outlives its parent."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Producer

from broker.embedded import EmbeddedKafka, cluster_id, free_port
from broker.errors import KafkaError

LARGEST_ALERT = 16 * 1024 * 1024


def produce(kafka: EmbeddedKafka, topic: str, value: bytes) -> None:
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": LARGEST_ALERT + 2**20})
    failures: list[object] = []
    producer.produce(topic, value, on_delivery=lambda error, _: failures.append(error))
    assert producer.flush(30) == 0
    assert failures == [None]


def consume(kafka: EmbeddedKafka, topic: str) -> bytes | None:
    """The first value of a topic."""
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": topic, "auto.offset.reset": "earliest"}
    )
    try:
        consumer.subscribe([topic])
        record = consumer.poll(30)
        assert record is not None
        assert record.error() is None
        return record.value()
    finally:
        consumer.close()


def processes(mark: str) -> list[str]:
    """The running processes with a text in their command line: process id, command line."""
    listed = subprocess.run(["ps", "-ww", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in listed.splitlines() if mark in line]


def wait_until_gone(mark: str) -> None:
    deadline = time.monotonic() + 15
    while processes(mark):
        assert time.monotonic() < deadline, processes(mark)
        time.sleep(0.1)


def child(code: str, scratch: Path) -> subprocess.Popen[str]:
    """A Python process that runs code and keeps its temporary files, so also the embedded Kafka's, in a folder."""
    return subprocess.Popen(
        [sys.executable, "-P", "-c", code],
        env={**os.environ, "TMPDIR": str(scratch)},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_a_message_of_the_largest_size_goes_through(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"embedded-large": 1})
    value = os.urandom(1024) * (LARGEST_ALERT // 1024)
    produce(kafka, "embedded-large", value)
    assert consume(kafka, "embedded-large") == value


def test_topics_are_created_with_their_partitions_and_settings(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"embedded-a": 3, "embedded-b": 1}, {"message.timestamp.type": "LogAppendTime"})
    found = kafka._admin().list_topics(timeout=10).topics
    assert (len(found["embedded-a"].partitions), len(found["embedded-b"].partitions)) == (3, 1)
    with pytest.raises(KafkaError, match=r"can't create topic 'embedded-a'.*already exists.*its log: /"):
        kafka.create_topics({"embedded-a": 3})
    with pytest.raises(KafkaError, match="embedded-c"):
        kafka.create_topics({"embedded-c": 1}, {"no.such.setting": "1"})


def test_two_at_once_do_not_meet(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"embedded-alone": 1})
    with EmbeddedKafka() as other:
        assert other.bootstrap_servers != kafka.bootstrap_servers
        assert "embedded-alone" not in other._admin().list_topics(timeout=10).topics
    assert not other.running
    assert kafka.running


def test_data_in_a_folder_outlive_a_run(tmp_path: Path) -> None:
    port = free_port()
    with EmbeddedKafka(port, tmp_path / "data") as kafka:
        assert kafka.bootstrap_servers == f"127.0.0.1:{port}"
        kafka.create_topics({"kept": 1})
        produce(kafka, "kept", b"value")
    with EmbeddedKafka(folder=tmp_path / "data") as kafka:
        assert consume(kafka, "kept") == b"value"
    wait_until_gone(str(tmp_path))


def test_an_exception_in_the_block_stops_it() -> None:
    kafka = EmbeddedKafka()

    def fail() -> None:
        with kafka:
            assert kafka.running
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert not kafka.running
    kafka.stop()  # a second time is harmless


def test_free_ports_are_none_that_clients_get() -> None:
    found = {free_port() for _ in range(50)}
    assert len(found) > 40
    assert max(found) < 32_768  # where the ports of Linux's clients begin; elsewhere they do at 49152


def test_a_port_in_use_is_named() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(KafkaError, match=f"can't listen on port {port} of 127.0.0.1.*choose another port"):
            EmbeddedKafka(port).start()


def test_a_start_that_fails_names_reason_and_log(tmp_path: Path) -> None:
    kafka = EmbeddedKafka(folder=tmp_path, properties={"log.retention.hours": "never"})
    with pytest.raises(KafkaError, match=r"did not start: .*never.*log\.retention\.hours.*its log: ") as caught:
        kafka.start()
    log = Path(str(caught.value).rpartition("its log: ")[2])
    assert "ConfigException" in log.read_text()
    wait_until_gone(str(tmp_path))


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(KafkaError, match=r"can't write the folder of the embedded Kafka: .*file"):
        EmbeddedKafka(folder=tmp_path / "file").start()


def test_a_killed_parent_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import time\nfrom broker.embedded import EmbeddedKafka\n"
        "with EmbeddedKafka():\n print('up', flush=True)\n time.sleep(600)"
    )
    with child(code, tmp_path) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        assert len(processes(str(tmp_path))) == 2  # watchdog and JVM
        parent.kill()
    wait_until_gone(str(tmp_path))
    assert list(tmp_path.glob("t2-broker-kafka-*")) == []


def test_a_parent_killed_during_the_start_leaves_nothing(tmp_path: Path) -> None:
    with child("from broker.embedded import EmbeddedKafka\nEmbeddedKafka().start()", tmp_path) as parent:
        while not processes(f"-c {tmp_path}") and parent.poll() is None:
            time.sleep(0.02)
        parent.kill()
    wait_until_gone(str(tmp_path))
    assert list(tmp_path.glob("t2-broker-kafka-*")) == []


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
def test_serve_ends_on_a_signal(tmp_path: Path, signal_number: signal.Signals) -> None:
    with child("from broker.embedded import serve\nserve(None, None)", tmp_path) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline().startswith("Kafka listens on 127.0.0.1:")
        assert Path(parent.stdout.readline().removeprefix("log: ").strip()).is_file()
        os.killpg(parent.pid, signal_number)  # as a terminal does
        assert parent.wait(30) == 0
    assert processes(str(tmp_path)) == []
    assert list(tmp_path.glob("t2-broker-kafka-*")) == []


def test_serve_says_when_kafka_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "from broker.embedded import serve\nfrom broker.errors import KafkaError\n"
        "try:\n serve(None, None)\nexcept KafkaError as error:\n print(error)"
    )
    with child(code, tmp_path) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        parent.stdout.readline()
        (jvm,) = processes(f"kafka.Kafka {tmp_path}")
        os.kill(int(jvm.split()[0]), signal.SIGKILL)
        assert parent.stdout.readline().startswith("the embedded Kafka ended by itself; its log: /")
    wait_until_gone(str(tmp_path))


def test_cluster_ids_are_never_taken_for_options() -> None:
    ids = {cluster_id() for _ in range(2000)}  # one in 64 began with '-' before that was looked at
    assert len(ids) == 2000
    assert all(len(text) == 22 and not text.startswith("-") for text in ids)
