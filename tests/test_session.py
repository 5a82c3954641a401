"""The Spark session: the limits are in force, and without them there is none."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from decoding import by_spark
from pyspark.sql import SparkSession
from running import STARTUP_S, Running
from samples import whole

from broker.decode import LIMITS
from broker.session import check_limits, forget_readers, start

UNLIMITED = """
import os, sys
from pyspark.sql import SparkSession
from broker import session
from broker.errors import BrokerError

os.environ["PYSPARK_PYTHON"] = sys.executable
builder = SparkSession.builder.master("local[1]").config("spark.driver.host", "127.0.0.1")
builder = builder.config("spark.ui.enabled", "false")
spark = builder.getOrCreate()
try:
    session.start("late", "local[1]", "1g")
except BrokerError as error:
    print(error)
    code = error.exit_code
else:
    code = 0
spark.stop()
sys.exit(code)
"""


def test_limits_are_read_back_from_driver_and_executors(spark: SparkSession) -> None:
    check_limits(spark)
    for key, limit in LIMITS.items():
        asked = f"java_method('java.lang.System', 'getProperty', '{key}') AS found"
        assert {row.found for row in spark.range(0, 4, 1, 2).selectExpr(asked).collect()} == {str(limit)}


def test_a_session_is_taken_up_again(spark: SparkSession) -> None:
    assert start("again", "local[2]", "2g").sparkContext is spark.sparkContext


HEAP = """
import sys
from broker import session

spark = session.start("heap", "local[1]", "1g", dict(pair.split("=") for pair in sys.argv[1:]))
runtime = spark.sparkContext._jvm.java.lang.Runtime.getRuntime()
print("heap:", runtime.totalMemory() // 2**20, runtime.maxMemory() // 2**20)
spark.stop()
"""


@pytest.mark.parametrize(("extra", "least", "most"), [((), 900, 1024), (("spark.driver.memory=600m",), 1, 600)])
def test_the_heap_is_whole_from_the_start_unless_it_has_another_size(
    extra: tuple[str, ...], least: int, most: int
) -> None:
    command = [sys.executable, "-P", "-c", HEAP, *extra]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 0, ended.stderr
    (told,) = [line for line in ended.stdout.splitlines() if line.startswith("heap: ")]
    at_start, largest = map(int, told.split()[1:])
    assert least <= at_start <= largest <= most


SOCKETS = """
import os, stat, sys
from broker import session

with session.worker_sockets("local[1]") as extra:
    spark = session.start("sockets", "local[1]", "1g", extra)
    assert spark.range(3).mapInArrow(lambda batches: batches, "id long").count() == 3
    folder = spark.sparkContext.getConf().get("spark.python.unix.domain.socket.dir")
    if folder:
        assert stat.S_IMODE(os.stat(folder).st_mode) == 0o700
        assert any(stat.S_ISSOCK(entry.stat().st_mode) for entry in os.scandir(folder))
    print("folder:", folder)
    spark.stop()
"""


@pytest.mark.parametrize("length", [1, 70])
def test_sockets_lie_in_a_folder_of_its_own_which_goes_with_it(length: int) -> None:
    """Where the folder for temporary files has too long a name for sockets, it is TCP as ever."""
    with tempfile.TemporaryDirectory() as short:
        temporary = Path(short, "t" * length)
        temporary.mkdir()
        environment = {**os.environ, "TMPDIR": str(temporary)}
        command = [sys.executable, "-P", "-c", SOCKETS]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False, env=environment)
        assert ended.returncode == 0, ended.stderr
        (told,) = [line for line in ended.stdout.splitlines() if line.startswith("folder:")]
        assert told.startswith(f"folder: {temporary}/t2-broker-") == (length == 1)
        assert not list(temporary.glob("t2-broker-*"))
        assert "Traceback" not in ended.stderr


LOST = """
from broker import session


def field(of, name):
    found = of.getClass().getDeclaredField(name)
    found.setAccessible(True)
    return found


def count():
    return spark.range(3).mapInArrow(lambda batches: batches, "id long").count()


with session.worker_sockets("local[1]") as extra:
    spark = session.start("lost", "local[1]", "1g", extra)
    assert count() == 3
    env = spark.sparkContext._jvm.org.apache.spark.SparkEnv.get()
    factory = field(env, "pythonWorkers").get(env).valuesIterator().next()
    field(factory, "daemonSockPath").set(factory, None)
    field(factory, "idleWorkers").get(factory).clear()
    failures = []
    for _ in range(2):
        try:
            count()
        except Exception as error:
            failures.append(str(error))
    session.restart_daemons(spark, "java.lang.NullPointerException: another one")
    for failure in failures:
        session.restart_daemons(spark, failure)
    print("failed:", len(failures), "then:", count())
    spark.stop()
"""


def test_a_daemon_of_workers_that_spark_has_lost_is_started_anew() -> None:
    """The state is made: it comes where a daemon is killed while it starts (see restart_daemons)."""
    command = [sys.executable, "-P", "-c", LOST]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert "failed: 2 then: 3" in ended.stdout, ended.stderr


def test_a_session_made_before_without_limits_is_refused() -> None:
    command = [sys.executable, "-P", "-c", UNLIMITED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line]
    assert line.startswith("driver: JVM limit org.apache.avro.limits.collectionItems.maxLength is None, must be 100000")
    for key, value in LIMITS.items():
        assert f"-D{key}={value}" in line


def test_readers_of_past_batches_are_forgotten(spark: SparkSession) -> None:
    """Avro would keep them for ever: 0.6 MB a batch."""
    assert spark.sparkContext._jvm is not None
    avro = spark.sparkContext._jvm.org.apache.avro.generic.GenericData.get()
    alerts: list[bytes | None] = [sample.data for sample in whole("lsst")[:4]]

    def n_readers() -> int:
        builder = avro.getFastReaderBuilder()
        cache = builder.getClass().getDeclaredField("readerCache")
        cache.setAccessible(True)
        return len(cache.get(builder))

    for _ in range(2):
        first = by_spark(spark, "lsst", alerts)
        assert n_readers() > 0
        forget_readers(spark)
        assert n_readers() == 0
        assert by_spark(spark, "lsst", alerts) == first


def test_settings_that_the_job_relies_on(spark: SparkSession) -> None:
    conf = spark.conf
    assert conf.get("spark.sql.execution.arrow.maxBytesPerBatch") == "8m"
    assert conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.sparkContext.getConf().get("spark.task.maxFailures") == "1"


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, -signal.SIGTERM)])
def test_a_stop_while_the_jvm_is_launched_leaves_none_behind(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    samples = Path(__file__).parent.parent / "examples" / "alerts" / "elasticc.tar.gz"
    with Running(tmp_path / "log", "classify", samples) as command:
        deadline = time.monotonic() + 60
        while len(command.left()) < 2:  # the JVM has just been started and can't answer yet
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(0.3)
        command.process.send_signal(sent)
        assert command.end(STARTUP_S) == code, command.text
        command.assert_nothing_left()
        assert "Traceback" not in command.text


def test_an_interrupted_demo_says_so(tmp_path: Path) -> None:
    samples = Path(__file__).parent.parent / "examples" / "alerts"
    with Running(tmp_path / "log", "demo", "--alerts", samples, "--output", tmp_path / "out") as demo:
        demo.wait_for("running:")
        demo.process.send_signal(signal.SIGINT)
        assert demo.end(60) == 130, demo.text
        demo.assert_nothing_left()
    assert "of 294 alerts were answered" in demo.text
    assert "BALANCED" not in demo.text
    assert "Traceback" not in demo.text
