"""The lock of a checkpoint: against a second job, and against what an earlier one has left running."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from pyspark.sql import SparkSession

from broker.errors import BrokerError, UsageError
from broker.lock import FILE, Lock

HOLD = """
import sys, fcntl, os
from pathlib import Path
from broker.lock import Lock
if sys.argv[2] == "driver":
    lock = Lock(Path(sys.argv[1]))
else:
    file = os.open(Path(sys.argv[1]) / "lock", os.O_RDWR)
    fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 1)
print("held", flush=True)
sys.stdin.read()
"""


def holder(folder: Path, part: str) -> subprocess.Popen[str]:
    """Another process that holds a part of the lock until its input ends."""
    command = [sys.executable, "-P", "-c", HOLD, str(folder), part]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def test_a_second_job_is_refused_until_the_first_is_gone(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "checkpoint"
    with holder(folder, "driver") as other:
        with pytest.raises(UsageError, match="another job runs on it"):
            Lock(folder)
        other.kill()
        other.wait(10)
        with Lock(folder):
            pass


def test_a_jvm_left_by_a_killed_driver_is_waited_for(tmp_path: Path) -> None:
    with Lock(tmp_path) as lock:
        lock.wait_for_jvm(0)
        with holder(tmp_path, "jvm") as other:
            with pytest.raises(BrokerError, match=r"its JVM still runs after 0\.3 s and may write"):
                lock.wait_for_jvm(0.3)
            other.kill()
            started = time.monotonic()
            lock.wait_for_jvm(10)
            assert time.monotonic() - started < 5


def test_the_jvm_holds_its_part_until_told(spark: SparkSession, tmp_path: Path) -> None:
    with Lock(tmp_path) as lock:
        lock.hold_in_jvm(spark.sparkContext._jvm)
        with pytest.raises(BrokerError, match=r"driver \d+, JVM \d+, on "):
            lock.wait_for_jvm(0)
        lock.release_in_jvm()
        lock.wait_for_jvm(0)


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't be written: Not a directory; correct 'checkpoint'"):
        Lock(tmp_path / "file" / "checkpoint")
    assert not (tmp_path / FILE).exists()
