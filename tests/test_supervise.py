"""What a job does about a fault: it goes on by itself where that may help, and else says at once what to do."""

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType
from running import Alert, Running, broker, read_outcome, send, topics_of, write_config
from samples import whole

from broker import checkpoint
from broker.embedded import EmbeddedKafka, free_port
from broker.leftovers import EndOffsets
from broker.supervise import Budget, Seldom, judge

AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
# A producer of Spark's gives up after 15 s in place of 2 minutes, so that 20 s without Kafka fail the query.
IMPATIENT = '[kafka.options]\n"request.timeout.ms" = "10000"\n"delivery.timeout.ms" = "15000"'


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedKafka]:
    """A Kafka that may be killed and comes back where it was, with its data; it knows ACLs."""
    folder = tmp_path_factory.mktemp("mortal")
    with EmbeddedKafka(free_port(), folder, AUTHORIZER) as kafka:
        yield kafka


def alerts(n: int) -> list[Alert]:
    data = [s.data for s in whole("elasticc")]
    return [Alert(data[i % len(data)], str(i).encode()) for i in range(n)]


def kill(kafka: EmbeddedKafka) -> None:
    """SIGKILL for the JVM of this Kafka: its settings file, the last word of its command, names the port."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,args="], capture_output=True, text=True, check=True).stdout
    jvms = [line.split() for line in listed.splitlines() if " kafka.Kafka " in line]
    for words in jvms:
        with suppress(FileNotFoundError, ProcessLookupError):  # another test's, which has just ended
            if f"{kafka.bootstrap_servers}," in Path(words[-1]).read_text():
                os.kill(int(words[0]), signal.SIGKILL)
    kafka.stop()


def wait_for_a_write(job: Running, folder: Path, asker: EndOffsets) -> None:
    """Until a batch after the first one has begun to write."""
    while not checkpoint.committed_batches(folder):
        assert job.process.poll() is None, job.text
        time.sleep(0.005)
    before = asker.now()  # all that the first one wrote
    while asker.now() == before:
        assert job.process.poll() is None, job.text
        time.sleep(0.005)


def denied(topic: str) -> AclBinding:
    return AclBinding(
        ResourceType.TOPIC,
        topic,
        ResourcePatternType.LITERAL,
        "User:ANONYMOUS",
        "*",
        AclOperation.WRITE,
        AclPermissionType.DENY,
    )


def test_kafka_goes_and_comes_back_and_then_refuses_writes(mortal: EmbeddedKafka, tmp_path: Path) -> None:
    mortal.create_topics({"away-in": 2})
    sent = send(mortal, "away-in", alerts(6000), 2)
    names, folder = topics_of("away"), tmp_path / "checkpoints" / "away"
    source = {"name": "away", "survey": "elasticc", "topics": ["away-in"], "max_alerts_per_batch": 3000}
    output = names | {"create_topics": True, "partitions": 2}
    config = write_config(tmp_path, mortal.bootstrap_servers, [source], output, IMPATIENT)
    config.write_text(config.read_text() + '[service]\nhealth_file = "health.json"\n')
    admin = AdminClient({"bootstrap.servers": mortal.bootstrap_servers, "log_level": 0})
    with Running(tmp_path / "log", "run", "--config", config) as job:
        job.wait_for("running: ")
        wait_for_a_write(
            job, folder, EndOffsets({"bootstrap.servers": mortal.bootstrap_servers}, [names["classifications"]])
        )
        kill(mortal)
        time.sleep(20)
        job.wait_for("away: waits for Kafka")  # a second after it failed; that took 60 s on a busy machine
        unready = broker("health", "--config", config, "--ready")
        alive = broker("health", "--config", config)
        mortal.start()
        job.wait_for("away batch 1: ")
        assert job.text.count("away: the query failed; restart 1 of 10 within 600 s follows in 1 s: ") == 1, job.text
        assert "restart 2" not in job.text
        assert job.text.count("Connection refused") < 10
        assert (alive.returncode, unready.returncode) == (0, 3), job.text
        assert "not ready: away restarting" in unready.stderr
        assert broker("health", "--config", config, "--ready").returncode == 0

        admin.create_acls([denied(names["classifications"])])[denied(names["classifications"])].result(10)
        sent |= send(mortal, "away-in", alerts(1000), 2)
        assert job.end(120) == 3, job.text
        last = job.text.splitlines()[-1]
        assert last.startswith("error: source 'away': the query failed: ")
        assert "TopicAuthorizationException" in last
        assert "Grant the login that right" in last
        job.assert_nothing_left()
    failed = broker("health", "--config", config)
    assert failed.returncode == 3
    assert "the job has failed: source 'away': the query failed" in failed.stderr

    found = AclBindingFilter(
        ResourceType.TOPIC,
        names["classifications"],
        ResourcePatternType.LITERAL,
        "User:ANONYMOUS",
        "*",
        AclOperation.ANY,
        AclPermissionType.ANY,
    )
    (lifted,) = admin.delete_acls([found]).values()
    assert len(lifted.result(10)) == 1
    again = broker("run", "--config", config, "--once", timeout_s=240)
    assert again.returncode == 0, again.stderr
    outcome = read_outcome(mortal.bootstrap_servers, names)
    assert outcome.classifications.keys() == sent.keys()
    assert outcome.repeats() == {1: len(sent)}
    audit = broker("audit", "--config", config)
    assert audit.returncode == 0, audit.stdout


def test_a_jvm_that_dies_and_an_output_topic_that_is_deleted_are_named(mortal: EmbeddedKafka, tmp_path: Path) -> None:
    mortal.create_topics({"gone-in": 1})
    names = topics_of("gone")
    source = {"name": "gone", "survey": "elasticc", "topics": ["gone-in"]}
    output = names | {"create_topics": True}
    config = write_config(tmp_path, mortal.bootstrap_servers, [source], output, IMPATIENT)
    with Running(tmp_path / "jvm", "run", "--config", config) as job:
        job.wait_for("running: ")
        listed = subprocess.run(["ps", "-A", "-o", "pid=,comm="], capture_output=True, text=True, check=True).stdout
        jvms = {int(line.split()[0]) for line in listed.splitlines() if line.endswith("java")}
        (jvm,) = jvms & set(job.left())
        os.kill(jvm, signal.SIGKILL)
        assert job.end(90) == 3, job.text
        assert job.text.splitlines()[-1].startswith("error: Spark's JVM is gone: killed, or out of memory"), job.text
        assert "Traceback" not in job.text
        job.assert_nothing_left()
    with Running(tmp_path / "log", "run", "--config", config) as job:
        send(mortal, "gone-in", alerts(100))
        job.wait_for("gone batch ")
        admin = AdminClient({"bootstrap.servers": mortal.bootstrap_servers})
        admin.delete_topics([names["classifications"]])[names["classifications"]].result(10)
        send(mortal, "gone-in", alerts(100))
        assert job.end(240) == 3, job.text  # a producer may wait a minute for the topic before it gives up
        assert "Traceback" not in job.text
        assert "Kafka lacks the topic gone-classifications" in job.text.splitlines()[-1]
        assert "a new checkpoint, a 'start' and new output topics" in job.text.splitlines()[-1]
        job.assert_nothing_left()
    again = broker("run", "--config", config)  # as a supervisor does
    assert again.returncode == 3
    assert "output gone-classifications:0 ended at offset" in again.stderr
    assert "and ends at 0 now: the topic was deleted" in again.stderr


# --- without Kafka ------------------------------------------------------------------------------------------------


def test_a_budget_is_counted_within_its_window() -> None:
    times = iter([0, 10, 20, 30, 90, 105, 106])
    budget = Budget(3, 100, lambda: float(next(times)))
    assert [budget.spend() for _ in range(5)] == [1, 2, 4, None, None]
    assert str(budget) == "3 of 3 within 100 s"
    assert [budget.spend() for _ in range(2)] == [4, None]  # the first is more than 100 s ago
    assert Budget(0, 100).spend() is None


def test_waits_grow_to_a_minute() -> None:
    budget = Budget(9, 1e9)
    assert [budget.spend() for _ in range(9)] == [1, 2, 4, 8, 16, 32, 60, 60, 60]


def test_the_same_is_told_once_a_minute() -> None:
    times = iter([0, 1, 2, 59, 60])
    may = Seldom(60, lambda: float(next(times)))
    assert [may(key) for key in ("a", "b", "a", "a", "a")] == [True, True, False, False, True]


@pytest.mark.parametrize(
    ("text", "kind", "word"),
    [
        (
            "x\nCaused by: org.apache.kafka.common.errors.TimeoutException: Expiring 3 record(s)\n",
            "passing",
            "Expiring",
        ),
        ("Python worker exited unexpectedly (crashed)", "worker", "crashed"),
        ("PythonException: Traceback\n  broker.errors.ModelError: m: sha256 is 1\nend", "lasting", "sha256 is 1"),
        ("a\nCaused by: org.apache.kafka.common.errors.RecordTooLargeException: 9 bytes\nb", "lasting", "9 bytes"),
        ("topic 'x': Broker: Topic authorization failed", "lasting", "Broker: Topic"),
        ("java.io.IOException: No space left on device", "lasting", "No space"),
        ("", "passing", "no reason given"),
    ],
)
def test_faults_are_told_apart(text: str, kind: str, word: str) -> None:
    fault = judge(text)
    assert (fault.kind, bool(fault.advice)) == (kind, kind == "lasting")
    assert word in fault.cause
