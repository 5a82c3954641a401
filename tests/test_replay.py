"""Archives back onto a real Kafka: bytes, keys and headers as they were, nothing lost silently."""

import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from running import BROKER, broker
from samples import ALERTS, whole

from broker.embedded import EmbeddedKafka, free_port
from broker.errors import ConfigError, KafkaError
from broker.replay import replay
from broker.topics import find_missing, watermarks


@dataclass(frozen=True)
class Frame:
    value: bytes | None
    key: bytes | None = None
    headers: list[tuple[str, bytes]] = field(default_factory=list)
    topic: str = "night.tar.gz/1.avro"
    offset: int = 0


def read(kafka: EmbeddedKafka, topic: str, n: int, partition: int = 0) -> list[Message]:
    consumer = Consumer(
        {"bootstrap.servers": kafka.bootstrap_servers, "group.id": "test", "fetch.message.max.bytes": 20_000_000}
    )
    try:
        consumer.assign([TopicPartition(topic, partition, 0)])
        n_held = consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=30)[1]
        messages = consumer.consume(min(n, n_held), timeout=30) if n_held else []
    finally:
        consumer.close()
    assert all(message.error() is None for message in messages)
    return messages


def test_alerts_arrive_as_they_were(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"replay-same": 1})
    frames = [
        Frame(b"\x00\x00\x00\x04\x4c body", b"key", [("producer_timestamp", b"1"), ("x", b""), ("x", b"twice")]),
        Frame(None, b"tombstone"),
        Frame(b"", None),
        *[Frame(b"%d" % i, offset=i) for i in range(500)],
    ]
    told: list[tuple[int, int]] = []
    result = replay(frames, kafka.bootstrap_servers, "replay-same", progress=lambda n, size: told.append((n, size)))
    messages = read(kafka, "replay-same", 503)
    got = [(message.value(), message.key(), message.headers() or []) for message in messages]
    assert got == [(frame.value, frame.key, frame.headers) for frame in frames]
    assert (result.n, result.n_bytes) == (503, sum(len(frame.value or b"") for frame in frames))
    assert told[-1] == (result.n, result.n_bytes)
    assert (result.last, result.was_interrupted) == ("night.tar.gz/1.avro:499", False)


def test_large_alerts_pass_and_push_back(kafka: EmbeddedKafka) -> None:
    """Three times what the producer's queue holds: the reading waits, nothing is dropped."""
    kafka.create_topics({"replay-large": 1}, config={"max.message.bytes": "17825792"})
    options = {"bootstrap.servers": kafka.bootstrap_servers, "queue.buffering.max.messages": "3"}
    result = replay([Frame(bytes(2_000_000)) for _ in range(10)], options, "replay-large")
    assert (result.n, result.n_bytes) == (10, 20_000_000)
    assert watermarks(options, ["replay-large"])["replay-large"][0].last_exclusive == 10


def test_pace_is_kept(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"replay-pace": 1})
    result = replay((Frame(b"x") for _ in range(40)), kafka.bootstrap_servers, "replay-pace", rate=40)
    assert 39 / 40 <= result.seconds < 5
    assert result.n == 40


@pytest.mark.parametrize("rate", [0.0, -1.0, float("inf"), float("nan")])
def test_rate_must_be_a_pace(rate: float) -> None:
    with pytest.raises(ConfigError, match="alerts per second"):
        replay([], "127.0.0.1:1", "replay-none", rate=rate)


def test_missing_topic_is_not_made(kafka: EmbeddedKafka) -> None:
    with pytest.raises(KafkaError, match="--create --topic replay-nowhere"):
        replay([Frame(b"x")], kafka.bootstrap_servers, "replay-nowhere")
    assert find_missing({"bootstrap.servers": kafka.bootstrap_servers}, ["replay-nowhere"]) == ["replay-nowhere"]


def test_what_kafka_refuses_is_counted_and_named(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"replay-small": 1}, config={"max.message.bytes": "50000"})
    frames = [
        Frame(b"x", offset=0),
        Frame(bytes(100_000), offset=1),
        Frame(bytes(30_000_000), offset=2),
        Frame(b"y", offset=3),
    ]
    with pytest.raises(KafkaError) as error:
        replay(frames, kafka.bootstrap_servers, "replay-small")
    text = str(error.value)
    assert "topic 'replay-small': 2 alerts delivered, 2 not" in text
    assert "night.tar.gz/1.avro:" in text
    assert "max.message.bytes" in text
    assert [message.value() for message in read(kafka, "replay-small", 2)] == [b"x", b"y"]


def test_small_alerts_pass_a_topic_with_a_small_limit(kafka: EmbeddedKafka) -> None:
    """Sent as one batch they would be above the limit, and refused all together."""
    kafka.create_topics({"replay-narrow": 1}, config={"max.message.bytes": "30000"})
    result = replay([Frame(bytes(20_000), offset=i) for i in range(50)], kafka.bootstrap_servers, "replay-narrow")
    assert result.n == 50


def test_a_hopeless_topic_ends_early(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"replay-hopeless": 1}, config={"max.message.bytes": "1000"})
    with pytest.raises(KafkaError, match=r"0 alerts delivered, .*gave up"):
        replay((Frame(bytes(20_000_000), offset=i) for i in range(10_000)), kafka.bootstrap_servers, "replay-hopeless")


def test_no_kafka_is_one_error() -> None:
    servers = f"127.0.0.1:{free_port()}"
    with pytest.raises(KafkaError, match=servers):
        replay([Frame(b"x")], {"bootstrap.servers": servers}, "replay-none")


@pytest.mark.parametrize("rate", [100, None])
def test_interrupt_says_where_it_was(kafka: EmbeddedKafka, rate: float | None) -> None:
    topic = f"replay-ctrl-c-{rate}"
    kafka.create_topics({topic: 1})

    started = threading.Event()

    def endless() -> Iterator[Frame]:
        started.set()
        for i in range(100_000_000):
            yield Frame(b"x", offset=i)

    def interrupt() -> None:
        if started.wait(60):
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGINT)

    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a Spark session before us leaves its own
    try:
        threading.Thread(target=interrupt).start()
        result = replay(endless(), kafka.bootstrap_servers, topic, rate)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert result.was_interrupted
    assert result.last == f"night.tar.gz/1.avro:{result.n - 1}"
    on_topic = watermarks({"bootstrap.servers": kafka.bootstrap_servers}, [topic])[topic][0]
    assert on_topic.last_exclusive == result.n > 0


# --- the command --------------------------------------------------------------------------------------------------


def test_a_replay_of_a_topic_keeps_keys_headers_and_order_of_time(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"replay-from": 3, "replay-onto": 1})
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    began_ms = int(time.time() * 1000) - 3_600_000  # retention deletes what is a week old
    for i in range(30):
        producer.produce(
            "replay-from", b"%d" % i, b"key %d" % i, i % 3, timestamp=began_ms + i, headers=[("n", b"%d" % i)]
        )
    assert producer.flush(30) == 0
    ended = broker("replay", f"{kafka.bootstrap_servers}/replay-from", "--to", f"{kafka.bootstrap_servers}/replay-onto")
    assert ended.returncode == 0, ended.stderr
    messages = read(kafka, "replay-onto", 30)
    assert [m.value() for m in messages] == [b"%d" % i for i in range(30)]
    assert [(m.key(), m.headers()) for m in messages] == [(b"key %d" % i, [("n", b"%d" % i)]) for i in range(30)]


def test_stopped_and_resumed_nothing_is_lost_or_repeated(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"replay-resumed": 2})
    to = f"{kafka.bootstrap_servers}/replay-resumed"
    archive, cache = ALERTS / "ztf.tar.gz", {"T2_BROKER_CACHE": str(tmp_path / "cache")}
    order = ("replay", archive, "--to", to, "--order", "observation")
    ended = broker(*order, "--resume", changes=cache)
    assert (ended.returncode, "has stopped half-way" in ended.stderr) == (2, True)
    environment = os.environ | cache
    with subprocess.Popen(
        [*BROKER, *map(str, order), "--rate", "3"], stdout=subprocess.PIPE, text=True, env=environment
    ) as running:
        deadline = time.monotonic() + 60
        while end_of(kafka, "replay-resumed") < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        second = broker(*order, changes=cache)
        assert (second.returncode, "another replay (process" in second.stderr) == (2, True)
        running.send_signal(signal.SIGINT)
        said, _ = running.communicate(timeout=60)
    assert running.returncode == 0
    assert "interrupted; sent" in said
    assert "--resume goes on behind it" in said
    n_first = end_of(kafka, "replay-resumed")
    assert 6 <= n_first < len(whole("ztf"))
    ended = broker(*order, "--resume", changes=cache)
    assert ended.returncode == 0, ended.stderr
    assert f"resumes behind alert {n_first}, " in ended.stderr
    assert f"sent {len(whole('ztf')) - n_first} alerts" in ended.stdout
    values = [m.value() or b"" for p in (0, 1) for m in read(kafka, "replay-resumed", 1000, p)]
    assert sorted(values) == sorted(s.data for s in whole("ztf"))
    assert broker(*order, "--resume", changes=cache).returncode == 2  # it ended whole


def end_of(kafka: EmbeddedKafka, topic: str) -> int:
    reaches = watermarks({"bootstrap.servers": kafka.bootstrap_servers}, [topic])[topic]
    return sum(reach.last_exclusive for reach in reaches.values())


def test_a_topic_is_made_where_asked_and_frames_are_changed(kafka: EmbeddedKafka) -> None:
    to = f"{kafka.bootstrap_servers}/replay-made"
    order = ("replay", ALERTS / "lsst", "--to", to, "--unframed", "--limit", "5")
    missing = broker(*order)
    assert (missing.returncode, "replay-made" in missing.stderr) == (3, True)
    ended = broker(*order, "--create", "1", "--visits", "1000")
    assert ended.returncode == 0, ended.stderr
    assert all((m.value() or b"").startswith(b"Obj\x01") for m in read(kafka, "replay-made", 5))
    for wrong in (("--rate", "1", "--speed", "2"), ("--framed", "1000")):
        assert broker(*order, *wrong).returncode == 2
