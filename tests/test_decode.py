"""Decoding by Spark and by the second reader, field by field against plain fastavro."""

import json
import random
from pathlib import Path
from typing import Any

import generate
import pyarrow as pa
import pytest
import reference
from decoding import Decoded, by_second_reader, by_spark, plain, pruned
from pyspark.sql import SparkSession
from pyspark.sql.avro.functions import from_avro
from pyspark.sql.types import StructType
from samples import damaged, originals, unpacked, whole

from broker import registry, surveys
from broker.decode import END, LIMITS, MAX_ITEMS, schema_pair
from broker.errors import SchemaError
from broker.second_reader import Read

VALUES_PER_CALL = 400  # some MB a call, so that driver and tests stay small


def assert_decoded(spark: SparkSession, survey: str, values: list[bytes], known: bool = True) -> None:
    """Spark (if it knows the layout) and the second reader give what fastavro gives, in the same struct."""
    fields = surveys.find(survey).fields
    for start in range(0, len(values), VALUES_PER_CALL):
        part = values[start : start + VALUES_PER_CALL]
        decoded = by_spark(spark, survey, list(part))
        expected = [plain(pruned(reference.decode(value), fields)) for value in part]
        if known:
            assert decoded.alerts.null_count == 0
            assert [plain(alert) for alert in decoded.alerts.to_pylist()] == expected
            assert None not in decoded.schemas
        for value, alert, label in zip(part, expected, decoded.schemas, strict=True):
            (found,) = by_second_reader(survey, [value], decoded.alerts.type)
            assert isinstance(found, Read), found
            assert plain(found.alert[0].as_py()) == alert
            assert label is None or label == found.schema or value.startswith(generate.MAGIC)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_samples(spark: SparkSession, survey: str) -> None:
    assert_decoded(spark, survey, [sample.data for sample in whole(survey)])


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_generated_records_of_every_layout(spark: SparkSession, survey: str) -> None:
    """In one call to Spark, which takes 2 s to compile its plan."""
    labels = generate.LABELS[survey]
    known = [label for label in labels if survey != "ztf" or label in generate.native_headers()]
    for is_known, part in ((True, known), (False, [label for label in labels if label not in known])):
        values = [value for label in part for value in generate.generated(survey, label, 25)]
        assert_decoded(spark, survey, values, is_known)


@pytest.mark.shared
@pytest.mark.parametrize("survey", surveys.NAMES)
def test_every_alert_of_the_shared_folder(spark: SparkSession, survey: str, shared_alerts: Path) -> None:
    values = [sample.data for sample in originals(shared_alerts, survey)]
    assert len(values) > 100
    assert_decoded(spark, survey, values)


@pytest.mark.shared
def test_elasticc_containers_of_the_shared_folder(spark: SparkSession, shared_alerts: Path) -> None:
    values = [unpacked(path) for path in sorted((shared_alerts / "elasticc").rglob("*.avro*"))]
    containers = [value for value in values if value.startswith(generate.MAGIC)]
    decoded = by_spark(spark, "elasticc", list(containers))
    sound = [value for value, alert in zip(containers, decoded.alerts, strict=True) if alert.is_valid]
    assert sound
    assert_decoded(spark, "elasticc", sound)


# --- schemas ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_all_writers_give_one_struct(spark: SparkSession, survey: str) -> None:
    table, structs = surveys.find(survey), set()
    for writer in registry.writers(survey):
        apart, reader = schema_pair(writer.schema, table)
        options = {"avroSchema": json.dumps(reader), "mode": "PERMISSIVE"}
        frame = spark.createDataFrame([(b"",)], "value binary").select(from_avro("value", json.dumps(apart), options))
        (field,) = frame.schema.fields
        assert isinstance(field.dataType, StructType)
        structs.add(field.dataType.simpleString())
    (struct,) = structs
    assert struct == _spark_type(table.fields)


def _spark_type(wanted: Any) -> str:
    if isinstance(wanted, str):
        return {"long": "bigint"}.get(wanted, wanted)
    if isinstance(wanted, list):
        return f"array<{_spark_type(wanted[0])}>"
    return f"struct<{','.join(f'{name}:{_spark_type(inner)}' for name, inner in wanted.items())}>"


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_essential_fields_are_demanded(survey: str) -> None:
    """A schema without one is another survey's; a schema without any other field is an older one of this survey."""
    table = surveys.find(survey)
    assert table.essential
    for path in table.essential:
        schema = registry.writers(survey)[-1].schema
        record, *_ = (_owner(schema, path.split(".")),)
        record["fields"] = [field for field in record["fields"] if field["name"] != path.split(".")[-1]]
        with pytest.raises(SchemaError, match=path):
            schema_pair(schema, table)


def _owner(schema: Any, path: list[str]) -> Any:
    """The record that holds the last field of a path."""
    if len(path) == 1:
        return schema
    kind = next(field["type"] for field in schema["fields"] if field["name"] == path[0])
    return _owner(next(k for k in kind if k != "null") if isinstance(kind, list) else kind, path[1:])


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_foreign_schemas_are_refused(survey: str) -> None:
    foreign = [writer.schema for other in surveys.NAMES if other != survey for writer in registry.writers(other)]
    foreign += [{"type": "record", "name": "Weather", "fields": [{"name": "rain", "type": "double"}]}]
    foreign += [{"type": "record", "name": "nothing", "fields": []}]
    for schema in foreign:
        with pytest.raises(SchemaError, match=f"not an alert of {survey}"):
            schema_pair(schema, surveys.find(survey))


def test_fields_of_another_kind_are_refused() -> None:
    schema: Any = registry.writers("ztf")[-1].schema
    for field in schema["fields"]:
        if field["name"] == "prv_candidates":
            field["type"] = "string"
    with pytest.raises(SchemaError, match="prv_candidates is not an array"):
        schema_pair(schema, surveys.find("ztf"))


# --- damage -------------------------------------------------------------------------------------------------------


def spoilt(survey: str, n: int) -> list[bytes]:
    """Variants of real and generated alerts, each damaged in one way."""
    rng = random.Random(f"spoilt {survey}")
    sound = [sample.data for sample in rng.sample(whole(survey), 8)]
    for label in generate.LABELS[survey]:
        sound += generate.generated(survey, label, 2, seed=9)
    return [rng.choice(generate.DAMAGES)(rng.choice(sound), rng) for _ in range(n)]


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_damage_never_raises_and_both_readers_agree(spark: SparkSession, survey: str) -> None:
    """What Spark reads, the second reader reads; where both do, the numbers are the same.

    Two differences are known and harmless: Java takes text that is no UTF-8, and fastavro takes a number written in
    more bytes than it needs, which a changed byte in the middle of a number looks like.
    """
    values = spoilt(survey, 400)
    decoded = by_spark(spark, survey, list(values))
    seconds = by_second_reader(survey, list(values), decoded.alerts.type)
    alerts = zip(decoded.alerts, seconds, decoded.schemas, strict=True)
    jvm_only, second_only, n_both = [], 0, 0
    for alert, second, label in alerts:
        if isinstance(second, Read):
            n_both += alert.is_valid
            second_only += not alert.is_valid and label is not None
            if alert.is_valid:
                assert numbers(alert.as_py()) == numbers(second.alert[0].as_py())
        elif alert.is_valid:
            jvm_only.append(second.detail)
    assert n_both > 30
    assert all("UTF-8" in detail for detail in jvm_only)
    assert second_only <= len(values) / 50


def numbers(record: Any) -> Any:
    """All but text and flags: a damaged flag may be neither 0 nor 1, and the readers take it for either."""
    if isinstance(record, dict):
        return {name: numbers(part) for name, part in record.items()}
    if isinstance(record, list):
        return [numbers(part) for part in record]
    return None if isinstance(record, bool) else plain(record)


def all_null(decoded: Decoded) -> bool:
    return bool(decoded.alerts.null_count == len(decoded.alerts))


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_what_is_no_alert_is_null(spark: SparkSession, survey: str) -> None:
    values: list[bytes | None] = [None, b"", b"\x00", b"Obj\x01", b"hello", b"\x00\x00\x00\x04\x4d", END]
    values += [sample.data for sample in damaged()]
    values += [generate.huge_array(survey, label, n) for label in generate.LABELS[survey] for n in (2**31 - 9, 2**62)]
    values += [generate.huge_array(survey, label, -(2**40)) for label in generate.LABELS[survey]]
    values += [generate.zero_byte_bomb(), generate.container_within(whole("ztf")[0].data)]
    decoded = by_spark(spark, survey, values)
    assert all_null(decoded)
    assert all(decoded.implausible)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_one_byte_less_or_more_is_no_alert(spark: SparkSession, survey: str) -> None:
    """Also where the cut falls into a field that is not read."""
    sound = [sample.data for sample in whole(survey)[:5]]
    cuts: list[bytes | None] = []
    for value in sound:
        cuts += [value[:-1], value[: -len(END)], value[: len(value) // 2], value + b"\x00", value + bytes(40)]
    assert all_null(by_spark(spark, survey, cuts))


def test_two_records_are_no_alert(spark: SparkSession) -> None:
    values: list[bytes | None] = []
    for label, header in generate.native_headers().items():
        body = generate.body(generate.alert("ztf", label, 0), generate.schema_of("ztf", label))
        once, twice = generate.block(body), generate.block(body + body, 2)
        none, other = generate.block(b"", 0), generate.block(body, 1, b"another sync....")
        values += [header + generate.SYNC + blocks for blocks in (once, once + once, twice, none, other)]
    n_headers = len(values) // 5
    assert n_headers > 3
    found = by_spark(spark, "ztf", values).alerts.is_valid().to_pylist()
    assert found == [True, False, False, False, False] * n_headers


def test_items_are_limited_alike(spark: SparkSession) -> None:
    record = generate.alert("elasticc", "0.9.1", 1, n_detections=1, n_forced=1)
    point, schema = record["prvDiaForcedSources"], generate.schema_of("elasticc", "0.9.1")
    bodies = [
        generate.body(record | {"prvDiaForcedSources": point * n}, schema) for n in (MAX_ITEMS - 1, MAX_ITEMS + 1)
    ]
    decoded = by_spark(spark, "elasticc", list(bodies))
    assert decoded.alerts.is_valid().to_pylist() == [True, False]
    assert len(decoded.alerts[0]["prvDiaForcedSources"]) == MAX_ITEMS - 1
    assert LIMITS["org.apache.avro.limits.collectionItems.maxLength"] == MAX_ITEMS


def test_a_struct_of_nulls_is_no_alert(spark: SparkSession) -> None:
    """Spark's permissive mode gives one for bytes that it cannot read."""
    (sample, *_) = whole("lsst")
    decoded = by_spark(spark, "lsst", [sample.data[:5] + b"\x7e" * 200, sample.data])
    assert decoded.alerts.is_valid().to_pylist() == [False, True]
    assert decoded.schemas == [sample.schema, sample.schema]
    assert isinstance(decoded.alerts, pa.StructArray)
