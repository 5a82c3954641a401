"""Alerts decoded as the job decodes them: by a real Spark, and by the second reader."""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
from pyspark.sql import DataFrame, SparkSession

from broker import model as models
from broker import registry, surveys
from broker.classify import Assignment
from broker.config import Policy
from broker.decode import decode, implausible
from broker.gather import Settings
from broker.job import assignment
from broker.outlets import HEADERS_TYPE
from broker.second_reader import Read, Refusal, read

MAX_ALERT_BYTES = 16_777_216
SENT = datetime(2026, 11, 20, 3, 4, 5, 678901, UTC)  # Kafka's time of every alert in `hop`


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


def assigned(survey: str, max_dead_letter_bytes: int = 1_048_576) -> Assignment:
    """What a task must know, with the released model and the default policy."""
    folder, topics = models.find("t2b-1"), ("classifications", "dead-letters", "ledger")
    return assignment("night", survey, folder, Policy(), 31.4, (1,), topics, MAX_ALERT_BYTES, max_dead_letter_bytes)


def policy(**changes: Any) -> Settings:
    """The default quality floors and a source's defaults, with changes."""
    return Policy().model_dump() | {"zero_point": 31.4, "programids": (1,)} | changes


def struct_of(survey: str) -> pa.StructType:
    """The pruned struct, as Spark gives it to Arrow."""

    def kind(wanted: Any) -> pa.DataType:
        if isinstance(wanted, str):
            simple = {"long": pa.int64(), "int": pa.int32(), "float": pa.float32(), "double": pa.float64()}
            return (simple | {"string": pa.string(), "boolean": pa.bool_()})[wanted]
        if isinstance(wanted, list):
            return pa.list_(kind(wanted[0]))
        return pa.struct([(name, kind(inner)) for name, inner in wanted.items()])

    return kind(surveys.find(survey).fields)


def pruned(record: Any, fields: Any) -> Any:
    """The survey's fields out of a whole record; null where the record has none."""
    if record is None or isinstance(fields, str):
        return record
    if isinstance(fields, list):
        return [pruned(item, fields[0]) for item in record]
    return {name: pruned(record.get(name), wanted) for name, wanted in fields.items()}


def plain(value: Any) -> Any:
    """NaN equal to itself."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    return "NaN" if isinstance(value, float) and math.isnan(value) else value


def alerts_of(survey: str, records: list[Any]) -> pa.StructArray:
    """Whole records as the pruned structs that decoding gives."""
    fields = surveys.find(survey).fields
    return pa.array([pruned(record, fields) for record in records], struct_of(survey))


def hop(survey: str, values: list[bytes | None], by_hand: bool = False, first: int = 0) -> pa.RecordBatch:
    """What the Python hop gets for these values, from partition 3 of the topic `alerts`, from this offset on.

    by_hand: all of them go to the second reader; else those that it can read come decoded, as from Spark.
    """
    struct, n = struct_of(survey), len(values)
    found = by_second_reader(survey, values, struct)
    known = [None if by_hand or not isinstance(read, Read) else read for read in found]
    return pa.RecordBatch.from_pydict(
        {
            "alert": pa.array([None if read is None else read.alert[0].as_py() for read in known], struct),
            "schema": pa.array([None if read is None else read.schema for read in known], pa.string()),
            "raw": pa.array(values, pa.binary()),
            "key": pa.array([f"key {first + i}".encode() for i in range(n)], pa.binary()),
            "headers": pa.array([[{"key": "night", "value": b"20261120"}]] * n, HEADERS_TYPE),
            "topic": pa.array(["alerts"] * n, pa.string()),
            "partition": pa.array([3] * n, pa.int32()),
            "offset": pa.array(range(first, first + n), pa.int64()),
            "timestamp": pa.array([SENT] * n, pa.timestamp("us", "UTC")),
            "alone": pa.array([False] * n, pa.bool_()),
        }
    )
