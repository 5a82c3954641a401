"""The job against Kafka and the world: starts that must fail, signals, a kill, and a row that gets lost."""

import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import (
    Alert,
    Place,
    Running,
    broker,
    read_outcome,
    send,
    topics_of,
    write_config,
)
from samples import whole

from broker.embedded import EmbeddedKafka, free_port
from broker.topics import find_missing

END_S = 40.0  # a job that is asked to stop has done so by then
MODELS = Path(__file__).resolve().parent.parent / "models"


def one_source(topic: str) -> list[dict[str, object]]:
    return [{"name": "elasticc", "survey": "elasticc", "topics": [topic], "max_alerts_per_batch": 200}]


def alerts(n: int) -> list[Alert]:
    """Small sound alerts, n of them, repeated as needed."""
    data = [s.data for s in whole("elasticc")]
    return [Alert(data[i % len(data)], str(i).encode()) for i in range(n)]


# --- starts that must fail: one clear message, exit 2 or 3, before Spark is started -------------------------------


def test_kafka_down_is_waited_for_and_then_named(tmp_path: Path) -> None:
    servers = f"127.0.0.1:{free_port()}"
    config = write_config(tmp_path, servers, one_source("in"), rest="startup_timeout_s = 4.0")
    start = time.monotonic()
    run = broker("run", "--config", config)
    assert run.returncode == 3
    assert 4 <= time.monotonic() - start < 30
    lines = run.stderr.splitlines()
    attempts = [line for line in lines if f"Kafka at {servers}: attempt " in line]
    assert len(attempts) >= 2
    assert [line for line in lines if line not in attempts] == [lines[-1]]
    assert f"error: Kafka at {servers} doesn't answer within 4 s" in lines[-1]
    assert "kafka.startup_timeout_s" in lines[-1]


def test_missing_input_topic_is_named(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    config = write_config(tmp_path, kafka.bootstrap_servers, one_source("nowhere"), {"create_topics": True})
    run = broker("run", "--config", config)
    assert run.returncode == 3
    assert "lacks the topic nowhere" in run.stderr
    assert "Traceback" not in run.stderr
    assert find_missing({"bootstrap.servers": kafka.bootstrap_servers}, ["nowhere"]) == ["nowhere"]


def test_missing_output_topics_come_with_their_commands(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"commands-in": 1})
    output = topics_of("commands")
    config = write_config(tmp_path, kafka.bootstrap_servers, one_source("commands-in"), output | {"partitions": 3})
    run = broker("run", "--config", config)
    assert run.returncode == 3
    for topic in output.values():
        start = f"kafka-topics.sh --bootstrap-server {kafka.bootstrap_servers} --create"
        assert f"{start} --topic {topic} --partitions 3" in run.stderr
    assert "create_topics = true" in run.stderr


def test_new_checkpoint_needs_a_start(tmp_path: Path) -> None:
    source = one_source("in")[0] | {"start": None}
    run = broker("run", "--config", write_config(tmp_path, "127.0.0.1:9", [source]))
    assert run.returncode == 2
    assert f"the checkpoint {tmp_path / 'checkpoints' / 'elasticc'} is new, so 'start' must be given" in run.stderr


def test_model_that_is_not_the_cards_is_refused(tmp_path: Path) -> None:
    shutil.copytree(MODELS / "t2b-1", tmp_path / "model")
    with (tmp_path / "model" / "model.onnx").open("ab") as file:
        file.write(b"x")
    rest = '[model]\nname = "./model"'
    run = broker("run", "--config", write_config(tmp_path, "127.0.0.1:9", one_source("in"), rest=rest))
    assert run.returncode == 2
    assert "model.onnx: sha256 is " in run.stderr
    assert "the card says " in run.stderr
    assert len(run.stderr.splitlines()) == 1


def test_misspelt_key_is_refused(tmp_path: Path) -> None:
    source = one_source("in")[0] | {"max_alerts_per_bach": 5}
    run = broker("run", "--config", write_config(tmp_path, "127.0.0.1:9", [source]))
    assert run.returncode == 2
    assert "'max_alerts_per_bach': did you mean 'max_alerts_per_batch'?" in run.stderr
    assert len(run.stderr.splitlines()) == 1


# --- a row that gets lost -----------------------------------------------------------------------------------------

LOSING = """
from broker import service
from broker.cli import main

class Losing(service.Service):
    def frames(self, spark, source):
        return super().frames(spark, source).where("offset != 7")

service.Service = Losing
if __name__ == "__main__":
    main()
"""


def test_a_lost_alert_stops_the_job_and_the_next_start(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"lost-in": 1})
    send(kafka, "lost-in", alerts(20))
    config = write_config(
        tmp_path, kafka.bootstrap_servers, one_source("lost-in"), topics_of("lost") | {"create_topics": True}
    )
    script = tmp_path / "losing.py"
    script.write_text(LOSING)
    with Running(tmp_path / "log", "run", "--config", config, command=[sys.executable, "-P", str(script)]) as job:
        assert job.end(120) == 3, job.text
        assert "the books do not balance: 20 alerts in, 19 answered, 0 holes" in job.text
        assert "lost-in:0:7." in job.text
        assert "Traceback" not in job.text
        job.assert_nothing_left()
    again = broker("run", "--config", config, "--once", timeout_s=120)
    assert again.returncode == 3
    assert "1 without a verdict: lost-in:0:7." in again.stderr
    assert "Traceback" not in again.stderr


# --- signals ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "Ctrl-C"])
def test_an_idle_job_ends_when_asked(kafka: EmbeddedKafka, tmp_path: Path, number: signal.Signals) -> None:
    name = f"idle-{number}"
    kafka.create_topics({name: 1})
    output = topics_of(name) | {"create_topics": True}
    config = write_config(tmp_path, kafka.bootstrap_servers, one_source(name), output)
    with Running(tmp_path / "log", "run", "--config", config) as job:
        job.wait_for("running: elasticc")
        time.sleep(2)
        ask(job, number)
        assert job.end(END_S) == 0, job.text
        assert "0 alerts answered: none" in job.text
        assert "Traceback" not in job.text
        job.assert_nothing_left()


def ask(job: Running, number: signal.Signals) -> None:
    """As a terminal does it: Ctrl-C reaches the whole foreground group, SIGTERM the process alone."""
    if number is signal.SIGINT:
        os.killpg(job.process.pid, number)
    else:
        job.process.send_signal(number)


class Feed:
    """Alerts at a steady pace, from a thread."""

    def __init__(self, kafka: EmbeddedKafka, topic: str, per_s: float = 30) -> None:
        self.kafka, self.topic, self.per_s = kafka, topic, per_s
        self.sent: dict[Place, Alert] = {}
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        stock = alerts(20)
        while not self.stopping.wait(len(stock) / self.per_s):
            self.sent |= send(self.kafka, self.topic, stock, 2)

    @contextmanager
    def running(self) -> Iterator[None]:
        self.thread.start()
        try:
            yield
        finally:
            self.stopping.set()
            self.thread.join()


def test_nothing_is_lost_over_stops_and_a_kill_in_mid_stream(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"stream-in": 2})
    names = topics_of("stream")
    config = write_config(
        tmp_path, kafka.bootstrap_servers, one_source("stream-in"), names | {"create_topics": True, "partitions": 2}
    )
    feed = Feed(kafka, "stream-in")
    with feed.running():
        for number in (signal.SIGTERM, signal.SIGINT):
            with Running(tmp_path / number.name, "run", "--config", config) as job:
                job.wait_for(" alerts in, ", count=3)
                ask(job, number)
                assert job.end(END_S) == 0, job.text
                assert "Traceback" not in job.text
                job.assert_nothing_left()
        asked = read_outcome(kafka.bootstrap_servers, names)
        with Running(tmp_path / "SIGKILL", "run", "--config", config) as job:
            job.wait_for(" alerts in, ", count=2)
            time.sleep(0.6)  # into the next batch
            job.process.kill()
            job.end(END_S)
            job.assert_nothing_left()
    last = broker("run", "--config", config, "--once", timeout_s=180)
    assert last.returncode == 0, last.stderr
    outcome = read_outcome(kafka.bootstrap_servers, names)
    assert set(feed.sent) == set(outcome.classifications)
    assert asked.repeats().keys() == {1}  # a job that is asked to stop repeats nothing
    assert outcome.repeats().keys() == {1}  # and a batch that a kill broke off leaves out what it has written
