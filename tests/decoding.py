"""Alerts decoded as the job decodes them: by a real Spark, and by the second reader."""

from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from broker import registry, surveys
from broker.config import Policy
from broker.decode import decode, implausible
from broker.gather import Settings
from broker.second_reader import Read, Refusal, read

MAX_ALERT_BYTES = 16_777_216


@dataclass(frozen=True)
class Decoded:
    """n values: alert structs (null where the JVM has none), labels of schemas, whether they are implausible."""

    alerts: pa.StructArray
    schemas: list[str | None]
    implausible: list[bool]


def frame_of(spark: SparkSession, values: list[bytes | None]) -> DataFrame:
    """A frame of rows with their number and value."""
    numbers = pa.array(range(len(values)), pa.int64())
    return spark.createDataFrame(pa.table({"row": numbers, "value": pa.array(values, pa.binary())}))


def by_spark(spark: SparkSession, survey: str, values: list[bytes | None]) -> Decoded:
    """All values by broker.decode, in their order."""
    table = surveys.find(survey)
    rows = decode(frame_of(spark, values), table, registry.writers(survey))
    found = rows.select("row", "alert", "schema", implausible(table).alias("implausible")).toArrow().sort_by("row")
    alerts = found["alert"].combine_chunks()
    assert len(alerts) == len(values)
    return Decoded(alerts, found["schema"].to_pylist(), found["implausible"].to_pylist())


def by_second_reader(
    survey: str, values: list[bytes | None], struct: pa.StructType, max_alert_bytes: int = MAX_ALERT_BYTES
) -> list[Read | Refusal]:
    """Each value by the second reader."""
    return [read(value, surveys.find(survey), max_alert_bytes, struct) for value in values]


def policy(**changes: Any) -> Settings:
    """The default quality floors and a source's defaults, with changes."""
    return Policy().model_dump() | {"zero_point": 31.4, "programids": (1,)} | changes
