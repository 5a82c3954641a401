"""The Spark session of a job: its jars, its limits, and the proof that the limits hold."""

from __future__ import annotations

import logging
import os
import signal
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

from pyspark.sql import SparkSession

from broker.decode import LIMITS
from broker.errors import UsageError
from broker.java import DATA, jars, java
from broker.signals import heard

# Arrow batches to Python: the default of 64 MB doubles the cost of large alerts.
ARROW_BATCH_BYTES = "8m"
ARROW_BATCH_ROWS = 256
# Ten times the JVM's own thresholds of its second compiler. Over 20,000 average LSST alerts the compilers take 91 us
# per alert in place of 200-213 and the whole job 465-472 in place of 558-584; over 80,000 alerts 408 in place of 490.
# Without that compiler (TieredStopAtLevel=1) deep alerts cost 45 % more.
COMPILE_LATER = (
    "-XX:Tier4InvocationThreshold=50000 -XX:Tier4MinInvocationThreshold=6000 "
    "-XX:Tier4CompileThreshold=150000 -XX:Tier4BackEdgeThreshold=400000"
)

LONGEST_FOLDER = 60  # characters: macOS takes 103 for the whole path of a socket, of which Spark adds 42

# Avro's fast reader keeps every schema that it has ever seen (AVRO-4253), and each batch parses its own: 0.6 MB a
# batch, which would fill a heap of 2 GB in a quarter of an hour at 100 alerts/s. forget_readers empties that memory in
# the driver; nothing can reach it in the executors of a cluster, so there the fast reader is off. That costs no more
# CPU on average LSST alerts (396 us against 401) and 43 % more on deep ones (3,025 against 2,118).
NO_FAST_READER = "-Dorg.apache.avro.fastread=false"


def start(name: str, master: str, driver_memory: str, extra: Mapping[str, str] | None = None) -> SparkSession:
    """A session with the connectors and the decoder's limits. Raises JavaError, UsageError."""
    java()
    logging.getLogger().addFilter(_not_py4js)
    os.environ["PYTHONSAFEPATH"] = "1"  # a folder `broker` where the job was started must not stand in for the package
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)  # else workers take whatever python3 is first in PATH
    os.environ.setdefault("PYSPARK_DRIVER_PYTHON", sys.executable)
    extra = dict(extra or {})
    limits = " ".join(f"-D{key}={value}" for key, value in LIMITS.items())
    quiet = f"-Dlog4j2.configurationFile={(DATA / 'log4j2.properties').as_uri()}"
    settings = {
        "spark.jars": ",".join(str(jar) for jar in jars("spark")),
        "spark.driver.memory": driver_memory,
        "spark.driver.host": "127.0.0.1" if master.startswith("local") else None,
        "spark.driver.bindAddress": "127.0.0.1" if master.startswith("local") else None,
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.session.timeZone": "UTC",
        "spark.sql.shuffle.partitions": "2",
        "spark.sql.execution.arrow.maxBytesPerBatch": ARROW_BATCH_BYTES,
        "spark.sql.execution.arrow.maxRecordsPerBatch": str(ARROW_BATCH_ROWS),
        "spark.sql.ui.explainMode": "simple",  # describing the plan took 6 % of the JVM's time at 100 alerts/s
        "spark.sql.maxPlanStringLength": "4096",  # ten 40 kB schemas in each exception otherwise
        # Spark's pages are off, yet it keeps 1,000 executed plans for them: 1.5 MB a batch stayed alive, now 0.6.
        "spark.sql.ui.retainedExecutions": "1",
        "spark.ui.retainedJobs": "1",
        "spark.ui.retainedStages": "1",
        "spark.ui.retainedTasks": "1",
        "spark.ui.liveUpdate.period": "-1",
        "spark.task.maxFailures": "1",
        "spark.speculation": "false",
        # Kafka's sink by Spark's first interface. By the second, each batch is planned once more, to describe it, and
        # gets a write node: 62 ms of CPU of the stream's thread in place of 54 (busy machine).
        "spark.sql.streaming.disabledV2Writers": "org.apache.spark.sql.kafka010.KafkaSourceProvider",
        # halves the forks of chmod that a pip-installed Spark makes for each checkpoint file
        "spark.hadoop.fs.AbstractFileSystem.file.impl": "org.apache.hadoop.fs.local.RawLocalFs",
    }
    # The whole heap from the start: else it grows no further than to a full collection each 14 s, of 0.2 s, at 100
    # alerts/s with 2 GB; with it none came within 115 s. Another size in `extra` may be less than that.
    from_start = "" if "spark.driver.memory" in extra else f"-Xms{driver_memory}"
    for side, more in (("driver", from_start), ("executor", NO_FAST_READER)):
        key = f"spark.{side}.extraJavaOptions"
        options = (limits, "-XX:+UseParallelGC", COMPILE_LATER, quiet, more, extra.pop(key, ""))
        settings[key] = " ".join(option for option in options if option)
    builder = SparkSession.builder.master(master).appName(name)
    for key, value in (settings | extra).items():
        if value is not None:
            builder = builder.config(key, value)
    with _signals_held_back():
        spark = builder.getOrCreate()
    spark.sparkContext.setLogLevel("OFF")
    check_limits(spark)
    return spark


@contextmanager
def worker_sockets(master: str) -> Iterator[dict[str, str]]:
    """`extra` by which JVM and Python workers talk over Unix domain sockets, in a folder that nobody else may enter.

    Over TCP the last bytes of a small batch wait for an acknowledgement that the other side holds back for 40 ms: a
    task's first alerts reached Python 41 ms after its start, so 17 (100 alerts/s). Not for a session that reads files:
    Spark plans a Python data source in workers of its own daemon, whose traceback at each end worker_daemon can't
    silence. Nor on a cluster, out of reach of restart_daemons.
    """
    if not master.startswith("local"):
        yield {}
        return
    on = {"spark.python.unix.domain.socket.enabled": "true", "spark.python.daemon.module": "broker.worker_daemon"}
    with tempfile.TemporaryDirectory(prefix="t2-broker-", ignore_cleanup_errors=True) as folder:
        yield on | {"spark.python.unix.domain.socket.dir": folder} if len(folder) <= LONGEST_FOLDER else {}


def restart_daemons(spark: SparkSession, failure: str) -> None:
    """Have Spark start what forks its workers anew, where a query's failure says that it has lost it.

    One that is killed while it starts, and whose waiting task is interrupted as well, leaves Spark 4.1 without the name
    of its socket (PythonWorkerFactory.startDaemon: what is interrupted is the clearing up). Over TCP the next task
    starts another, over Unix sockets each further one fails.
    """
    if not all(sign in failure for sign in ("NullPointerException", "PythonWorkerFactory.createWorker")):
        return
    assert spark.sparkContext._jvm is not None
    env = spark.sparkContext._jvm.org.apache.spark.SparkEnv.get()
    held = env.getClass().getDeclaredField("pythonWorkers")
    held.setAccessible(True)
    factories = held.get(env).valuesIterator()
    while factories.hasNext():
        factories.next().stop()


def forget_readers(spark: SparkSession) -> None:
    """Have Avro begin a new memory of readers in the driver; to be called again and again, between batches.

    A reader in use stays as it is.
    """
    assert spark.sparkContext._jvm is not None
    avro = spark.sparkContext._jvm.org.apache.avro.generic.GenericData.get()
    memory = avro.getClass().getDeclaredField("fastReaderBuilder")
    memory.setAccessible(True)
    memory.set(avro, None)


def _not_py4js(record: logging.LogRecord) -> bool:
    """py4j logs on the root logger, with a stack trace, what it raises as an exception anyway: that the JVM is gone."""
    return "py4j" not in record.pathname


@contextmanager
def _signals_held_back() -> Iterator[None]:
    """SIGINT and SIGTERM wait until the JVM is up, then do what they did before.

    pyspark interrupted while it launches the JVM removes the file that the JVM is about to answer by, and a JVM
    to which nobody is connected runs for ever. It also leaves a SIGINT handler of its own behind: that goes here too.
    """
    came: list[int] = []
    with heard(came.append):
        yield
    for late in came:
        signal.raise_signal(late)


def check_limits(spark: SparkSession) -> None:
    """Read the decoder's limits back from driver and executors. Raises UsageError where one is missing.

    Under spark-submit in client mode they must stand on the command line: set in code they come too late.
    """
    assert spark.sparkContext._jvm is not None
    system = spark.sparkContext._jvm.java.lang.System
    asked = [f"java_method('java.lang.System', 'getProperty', '{key}')" for key in LIMITS]
    slots = max(1, spark.sparkContext.defaultParallelism)
    rows = spark.range(0, slots, 1, slots).selectExpr(*asked).distinct().collect()
    found = {"driver": [cast("str | None", system.getProperty(key)) for key in LIMITS]}
    found |= {f"executor {i}": list(row) for i, row in enumerate(rows)}
    for where, values in found.items():
        for (key, limit), value in zip(LIMITS.items(), values, strict=True):
            if value != str(limit):
                options = " ".join(f"-D{k}={v}" for k, v in LIMITS.items())
                raise UsageError(
                    f"{where}: JVM limit {key} is {value}, must be {limit}: without it one corrupt alert of 20 bytes "
                    f"kills the JVM. Start the JVMs with '{options}' (spark.driver.extraJavaOptions and "
                    "spark.executor.extraJavaOptions, on the command line of spark-submit)"
                )
