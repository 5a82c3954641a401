"""Exactly one record per alert over the output topics, whatever moment a kill hits."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from running import Alert, Outcome, Running, broker, headers, kill, read_outcome, send, topics_of, write_config
from samples import whole

from broker import checkpoint
from broker.embedded import EmbeddedKafka
from broker.leftovers import EndOffsets
from broker.topics import check_topics, read_all


def alerts(n: int) -> list[Alert]:
    """Sound and unsound alerts of ELAsTiCC, every tenth damaged, n of them."""
    sound = [s.data for s in whole("elasticc")]
    return [Alert(sound[i % len(sound)][: 40 if i % 10 == 0 else None], str(i).encode()) for i in range(n)]


def kill_all_of(job: Running) -> None:
    """SIGKILL for the driver, its JVM and the workers."""
    os.killpg(job.process.pid, signal.SIGKILL)
    kill(job.left())
    job.process.wait(10)


def workers_of(job: Running) -> list[int]:
    """The Python workers and what forks them."""
    listed = subprocess.run(["ps", "-A", "-o", "pid=,comm="], capture_output=True, text=True, check=True).stdout
    pythons = {int(line.split()[0]) for line in listed.splitlines() if "python" in line}
    return [pid for pid in job.left() if pid in pythons - {job.process.pid}]


# The job with a function of its own, in Python, that no alert pleases.
RAISING = """
from broker import service
from broker.cli import main

def refuse(batches):
    raise ValueError("no alert pleases it")
    yield

class Raising(service.Service):
    def frames(self, spark, source):
        rows = super().frames(spark, source)
        return rows.mapInArrow(refuse, rows.schema)

service.Service = Raising
if __name__ == "__main__":
    main()
"""
OUTLETS = """
[[outlet]]
name = "all"
kind = "json"
topic = "once-json"
[outlet.filter]
statuses = ["classified", "abstained"]
[[outlet]]
name = "some"
kind = "lasair"
topic = "anno_once"
[outlet.filter]
statuses = ["classified", "abstained"]
where = "source_id % 2 = 0"
"""


def assert_outlets(options: dict[str, str], outcome: Outcome, how: str) -> None:
    """No verdict twice on an outlet; in the end each on the one that takes all, those of even sources on the other."""
    answered = {f"night:{p.topic}:{p.partition}:{p.offset}": m[0] for p, m in outcome.classifications.items()}
    even = {place for place, message in answered.items() if int(message.key() or b"1") % 2 == 0}
    for topic, due in (("once-json", set(answered)), ("anno_once", even)):
        found = Counter(headers(message)["alert"].decode() for message in read_all(options, topic))
        assert set(found.values()) <= {1}, topic
        if how == "exactly":
            assert found.keys() <= due
            assert topic == "anno_once" or found.keys() == due


def test_a_kill_between_the_first_write_and_the_commit(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"once-in": 2})
    sent = send(kafka, "once-in", alerts(12_000), 2)
    names = topics_of("once")
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    check_topics(options, [*names.values(), "once-json", "anno_once"], create=True, partitions=2)
    source = {"name": "night", "survey": "elasticc", "topics": ["once-in"], "max_alerts_per_batch": 4000}
    # Three tries a task: Spark must not have one of them write again what another has written.
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], names)
    config.write_text(config.read_text().replace('"local[2]"', '"local[2,3]"') + OUTLETS)
    folder = tmp_path / "checkpoints" / "night"
    native = EndOffsets(options, [names["classifications"], names["dead_letters"]])
    outlet = EndOffsets(options, ["once-json"])

    def wait_for_a_write(job: Running, n_committed: int, asker: EndOffsets) -> list[int]:
        """Until the first write after so many commits; the workers as of before."""
        while len(checkpoint.committed_batches(folder)) < n_committed:
            assert job.process.poll() is None, job.text
            time.sleep(0.002)
        before = asker.now()
        workers = workers_of(job)
        while asker.now() == before:
            assert job.process.poll() is None, job.text
            time.sleep(0.002)
        return workers

    for n_committed in (0, 1):  # the second time the repeat of batch 0 comes first
        with Running(tmp_path / f"log{n_committed}", "run", "--config", config) as job:
            wait_for_a_write(job, n_committed, native)
            kill_all_of(job)
        assert len(checkpoint.committed_batches(folder)) == n_committed, job.text
        written = read_outcome(kafka.bootstrap_servers, names)
        assert written.repeats().keys() == {1}
        assert_outlets(options, written, "at most")
    with Running(tmp_path / "last", "run", "--config", config, "--once") as job:
        kill(wait_for_a_write(job, 2, outlet))  # which is written after the native topics
        assert job.end(180) == 0, job.text
    assert "night batch 2: a worker failed (1)" in job.text
    assert "night batch 2 was not finished: " in job.text
    outcome = read_outcome(kafka.bootstrap_servers, names)
    assert outcome.classifications.keys() | outcome.dead_letters.keys() == sent.keys()
    assert outcome.repeats() == {1: len(sent)}
    assert sum(row.already_written for row in outcome.ledger) > 0
    assert_outlets(options, outcome, "exactly")
    assert sum(row.outlets["all"]["already_written"] for row in outcome.ledger) > 0
    audit = broker("audit", "--config", config)
    assert audit.returncode == 0, audit.stdout
    assert "\nbalanced: " in audit.stdout
    assert f"outlet all (once-json): {len(outcome.classifications)} of " in audit.stdout


def test_workers_that_die_again_and_again_are_no_alerts_fault(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """Alert by alert none takes its worker with it, so the query starts again; also where Spark has lost its daemon."""
    kafka.create_topics({"dying-in": 2})
    sent = send(kafka, "dying-in", alerts(200), 2)
    source = {"name": "night", "survey": "elasticc", "topics": ["dying-in"]}
    names = topics_of("dying")
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], names | {"create_topics": True})
    with Running(tmp_path / "log", "run", "--config", config, "--once") as job:
        while not all(words in job.text for words in ("runs again alert by alert", "the query failed; restart ")):
            kill(workers_of(job))
            assert job.process.poll() is None, job.text
            time.sleep(0.2)
        assert job.end(180) == 0, job.text
    outcome = read_outcome(kafka.bootstrap_servers, names)
    assert outcome.classifications.keys() | outcome.dead_letters.keys() == sent.keys()
    assert outcome.repeats() == {1: len(sent)}


def test_an_error_of_a_function_ends_the_job_the_third_time(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """It would come again for ever, and restarts would only put off that somebody looks."""
    kafka.create_topics({"raising-in": 1})
    send(kafka, "raising-in", alerts(20))
    source = {"name": "night", "survey": "elasticc", "topics": ["raising-in"]}
    names = topics_of("raising")
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], names | {"create_topics": True})
    script = tmp_path / "raising.py"
    script.write_text(RAISING)
    command = [sys.executable, "-P", str(script)]
    with Running(tmp_path / "log", "run", "--config", config, "--once", command=command) as job:
        assert job.end(180) == 3, job.text
    assert "night batch 0: a worker failed (2)" in job.text
    assert "error: source 'night', batch 0: failed again, alert by alert: " in job.text
    assert "no alert pleases it" in job.text
    assert "restart 1 of" not in job.text
    outcome = read_outcome(kafka.bootstrap_servers, names)
    assert not outcome.classifications
    assert not outcome.dead_letters
