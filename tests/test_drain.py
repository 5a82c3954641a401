"""A job that is asked to end: the batch under way is finished, no other is planned, and a second signal is obeyed."""

import signal
import sys
import time
from pathlib import Path

from running import Alert, Running, broker, read_outcome, send, topics_of, write_config
from samples import whole

from broker import checkpoint
from broker.embedded import EmbeddedKafka

# The job with a pause after each alert: a batch of 500 takes 10 s.
SLOW = """
from broker import service
from broker.cli import main

class Slow(service.Service):
    def frames(self, spark, source):
        pause = "java_method('java.lang.Thread', 'sleep', 20L)"
        return super().frames(spark, source).where(f"{pause} is null or offset >= 0")

service.Service = Slow
if __name__ == "__main__":
    main()
"""


class Slow(Running):
    """That job."""

    def __init__(self, config: Path, log: str) -> None:
        self.folder = config.parent / "checkpoints" / "slow"
        script = config.parent / "slow.py"
        script.write_text(SLOW)
        super().__init__(config.parent / log, "run", "--config", config, command=[sys.executable, "-P", str(script)])

    def wait_for_a_plan(self, batch: int) -> None:
        """Until this batch is planned."""
        deadline = time.monotonic() + 120
        while checkpoint.newest_planned(self.folder) != batch:
            assert self.process.poll() is None, self.text
            assert time.monotonic() < deadline, self.text
            time.sleep(0.01)


def newest(folder: Path) -> tuple[int | None, int]:
    """The newest entries in offsets/ and commits/."""
    return checkpoint.newest_planned(folder), max(checkpoint.committed_batches(folder), default=-1)


def test_the_batch_under_way_is_committed_and_a_second_signal_breaks_it_off(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    """Of three batches of 10 s the second one is drained within 30 s, the third broken off; all is answered once."""
    kafka.create_topics({"drain-in": 1})
    data = [s.data for s in whole("elasticc")]
    send(kafka, "drain-in", [Alert(data[i % len(data)], b"") for i in range(1500)])
    source = {"name": "slow", "survey": "elasticc", "topics": ["drain-in"], "max_alerts_per_batch": 500}
    names = topics_of("drain")
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], names | {"create_topics": True})
    with Slow(config, "once") as job:
        job.wait_for_a_plan(1)  # the first one also starts workers and compiles, which takes as long as it takes
        time.sleep(3)
        assert newest(job.folder) == (1, 0)
        job.process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        assert job.end(40) == 0, job.text
        assert 3 < time.monotonic() - asked < 30
        assert newest(job.folder) == (1, 1), job.text  # no other is planned
        assert "1000 alerts answered" in job.text
        assert "Traceback" not in job.text
        job.assert_nothing_left()
    drained = read_outcome(kafka.bootstrap_servers, names)
    assert (drained.repeats(), sum(row.already_written for row in drained.ledger)) == ({1: 1000}, 0)
    with Slow(config, "twice") as job:
        job.wait_for_a_plan(2)
        time.sleep(1)
        asked = time.monotonic()
        while job.process.poll() is None and time.monotonic() - asked < 5:  # two at once may be one for a stalled job
            job.process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        assert job.end(1) == 128 + signal.SIGTERM
        assert "asked a second time to end: leaving at once" in job.text
        assert newest(job.folder) == (2, 1)
        job.assert_nothing_left()
    last = broker("run", "--config", config, "--once", timeout_s=240)
    assert last.returncode == 0, last.stderr
    assert read_outcome(kafka.bootstrap_servers, names).repeats() == {1: 1500}
    audit = broker("audit", "--config", config)
    assert audit.returncode == 0, audit.stdout
