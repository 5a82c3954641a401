"""Frames and containers: which writer schema an alert names."""

import struct

import generate
import pytest
from decoding import frame_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession
from pyspark.sql import functions as F
from samples import whole

from broker import registry, surveys
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, frame, schema_id_of, schema_label


def labels_of(spark: SparkSession, survey: str, values: list[bytes | None]) -> list[str | None]:
    label = schema_label(surveys.find(survey), registry.writers(survey), F.col("value"))
    rows = frame_of(spark, values).select("row", label.alias("label")).toArrow().sort_by("row")
    found: list[str | None] = rows["label"].to_pylist()
    return found


@settings(derandomize=True, deadline=None, database=None)
@given(st.integers(0, 2**32 - 1), st.binary(max_size=20))
def test_a_frame_carries_its_id(schema_id: int, body: bytes) -> None:
    value = frame(schema_id, body)
    assert value == b"\x00" + struct.pack(">I", schema_id) + body
    assert schema_id_of(value) == schema_id
    assert value[FRAME_BYTES:] == body


@pytest.mark.parametrize("value", [b"", b"\x00", b"\x00\x00\x00\x04", b"\x01\x00\x00\x04\x4c", CONTAINER_MAGIC + b"x"])
def test_what_is_no_frame_has_no_id(value: bytes) -> None:
    assert schema_id_of(value) is None


def test_ids_are_big_endian() -> None:
    assert {schema_id_of(sample.data) for sample in whole("lsst")} == {int(s.schema) for s in whole("lsst")}
    assert schema_id_of(b"\x00\x00\x00\x04\x4d...") == 1101


def test_labels_of_frames(spark: SparkSession) -> None:
    values: list[bytes | None] = [frame(int(label), b"body") for label in generate.LABELS["lsst"]]
    strange = [None, b"", b"\x00", frame(54_321, b"x"), frame(1101, b""), b"\x01\x00\x00\x04\x4dxx", CONTAINER_MAGIC]
    found = labels_of(spark, "lsst", [*values, *strange])
    assert found == [*generate.LABELS["lsst"], None, None, None, None, "1101", None, None]


@pytest.mark.parametrize("survey", ["ztf", "elasticc"])
def test_labels_of_containers(spark: SparkSession, survey: str) -> None:
    """Each header that samples have is known; one other byte in it, and it is not."""
    natives = {sample.schema: sample.data for sample in whole("ztf")}
    spoilt = [data[:2000] + b"?" + data[2001:] for data in natives.values()]
    found = labels_of(spark, survey, [*natives.values(), *spoilt, None, b"", CONTAINER_MAGIC])
    names = found[: len(natives)]
    if survey == "ztf":
        assert None not in names
        assert dict(zip(natives, names, strict=True))["3.1"] == "ztf-3.1"
    else:
        assert set(names) == {None}
    assert set(found[len(natives) :]) == {None}
