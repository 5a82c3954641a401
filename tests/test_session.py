"""The Spark session: the limits are in force, and without them there is none."""

import subprocess
import sys

from pyspark.sql import SparkSession

from broker.decode import LIMITS
from broker.session import check_limits, start

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


def test_a_session_made_before_without_limits_is_refused() -> None:
    command = [sys.executable, "-P", "-c", UNLIMITED]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2, ended.stderr
    (line,) = [line for line in ended.stdout.splitlines() if line]
    assert line.startswith("driver: JVM limit org.apache.avro.limits.collectionItems.maxLength is None, must be 100000")
    for key, value in LIMITS.items():
        assert f"-D{key}={value}" in line


def test_settings_that_the_job_relies_on(spark: SparkSession) -> None:
    conf = spark.conf
    assert conf.get("spark.sql.execution.arrow.maxBytesPerBatch") == "8m"
    assert conf.get("spark.sql.session.timeZone") == "UTC"
    assert spark.sparkContext.getConf().get("spark.task.maxFailures") == "1"
