"""broker.fink as Fink's Spark runs it, on Fink's columns; prints counts and alerts/s as JSON.

usage: client_module.py SURVEY PARQUET

The table holds what concat_col makes (one list a column) and what the job said of the same alerts (`due_class`,
`due_score`, null where the model had no point). Nothing of the job's is installed here but the wheel itself.
"""

import json
import os
import sys
import time
from importlib.util import find_spec

os.environ["PYSPARK_PYTHON"] = sys.executable

import pyspark
from pyspark.sql import DataFrame, SparkSession

from broker.fink import RUBIN, ZTF, classify_rubin, classify_ztf

OURS = {"broker", *(f"broker.{name}" for name in ("fink", "lightcurve", "model", "classes", "errors"))}
AT_LEAST = 30_000  # rows over which the pace is taken
TOLERANCE = 1e-6


def paced(table: DataFrame) -> float:
    """Seconds until every row was answered and is back in the JVM."""
    started = time.monotonic()
    table.write.format("noop").mode("overwrite").save()
    return time.monotonic() - started


survey, path = sys.argv[1:]
assert pyspark.__version__ == "3.4.1", pyspark.__version__
loaded = {name for name in sys.modules if name.partition(".")[0] == "broker"}
assert loaded <= OURS, loaded - OURS
assert not [name for name in ("fastavro", "confluent_kafka", "pydantic", "polars") if find_spec(name)]
contract, function = {"ztf": (ZTF, classify_ztf), "lsst": (RUBIN, classify_rubin)}[survey]
spark = (
    SparkSession.builder.master("local[1]")
    .config("spark.ui.enabled", "false")
    .config("spark.driver.host", "127.0.0.1")
    .getOrCreate()
)
spark.sparkContext.setLogLevel("ERROR")
alerts = spark.read.parquet(path)
answers = alerts.withColumn("t2b", function(*contract.columns))
rows = answers.select("due_class", "due_score", "t2b.*").collect()
n_right = sum(
    row["class"] == row["due_class"]
    and (row["score"] is None) == (row["due_score"] is None)
    and (row["score"] is None or abs(row["score"] - row["due_score"]) <= TOLERANCE)
    for row in rows
)
times = -(-AT_LEAST // len(rows))
many = alerts.crossJoin(spark.range(times).coalesce(1)).coalesce(1).cache()
n = many.count()
many = many.withColumn("t2b", function(*contract.columns)).select("t2b")
paced(many)
seconds = min(paced(many) for _ in range(3))
spark.stop()
print(json.dumps({"same": n_right, "alerts": len(rows), "alerts_per_s": round(n / seconds)}))
