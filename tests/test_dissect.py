"""Alerts taken apart by hand: the values are fastavro's, a fault is found where it is, nothing is followed for ever."""

import io
import random
from typing import Any, cast

import fastavro
import generate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, whole

from broker import dissect as module
from broker import registry, surveys
from broker.dissect import dissect, wire_form
from broker.outlets import avro

SURVEYS = surveys.NAMES


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Values that are no records, lists or maps, by path."""
    if isinstance(value, dict):
        inside = [leaves(part, f"{path}.{name}".lstrip(".")) for name, part in value.items()]
    elif isinstance(value, list):
        inside = [leaves(part, f"{path}[{i}]") for i, part in enumerate(value)]
    else:
        return {path: value}
    return {name: part for found in inside for name, part in found.items()}


@pytest.mark.parametrize("survey", SURVEYS)
def test_every_value_is_fastavros(survey: str) -> None:
    label = generate.LABELS[survey][-1]
    record = generate.alert(survey, label, 5)
    found = dissect(generate.encode(survey, label, record), survey)
    assert (found.fault_at, found.fault) == (None, "")
    told = {value.path: value.text for value in found.values if not value.text.endswith(" items")}
    schema = generate.schema_of(survey, label)
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, record)
    body.seek(0)
    due = leaves(fastavro.schemaless_reader(body, cast(Any, schema), None))
    for path, value in due.items():
        if value is None:
            assert told[path] == "null"
        elif isinstance(value, bool):
            assert told[path] == str(value).lower()
        elif isinstance(value, bytes):
            assert told[path] == f"{len(value)} bytes"
        elif isinstance(value, float):
            assert told[path] == f"{value:.9g}"
        elif isinstance(value, int | str):
            assert told[path] == str(value)[:80]
    offsets = [value.offset for value in found.values if not value.text.endswith(" items")]
    assert offsets == sorted(offsets)


@pytest.mark.parametrize("survey", SURVEYS)
def test_samples_go_to_their_ends_and_cut_ones_to_the_cut(survey: str) -> None:
    rng = random.Random(survey)
    for sample in whole(survey)[:8]:
        found = dissect(sample.data, survey)
        assert found.fault_at is None, (sample, found.fault)
        start = found.values[0].offset
        cut = rng.randrange(start + 1, min(len(sample.data), start + 3000))
        short = dissect(sample.data[:cut], survey)
        assert short.fault
        assert short.fault_at is not None
        assert short.fault_at <= cut
        if survey != "elasticc":  # a bare body may go further by another layout
            n = len([value for value in short.values if value.offset < short.fault_at])
            assert [v for v in short.values[:n] if "items" not in v.text] == [
                v for v in found.values[:n] if "items" not in v.text
            ]
        more = dissect(sample.data + b"xyz", survey)
        assert "left over" in more.fault or "does not end with its sync marker" in more.fault


def test_forms_on_the_wire() -> None:
    assert [wire_form(value) for value in (None, b"", b"x", b"\0\0\0\x04\x4d", b"Obj\x01")] == [
        "null",
        "no bytes",
        "no frame",
        "schema id 1101",
        "container, header damaged",
    ]
    assert wire_form(whole("ztf")[0].data).startswith("container ztf.alert ")
    unknown = dissect(b"\0\0\0\xff\xff123", "lsst")
    assert (unknown.fault_at, unknown.fault) == (0, "nobody here knows the schema")
    assert dissect(b"??", None).fault == "nobody here knows the schema"
    assert dissect(None, "ztf").fault == "there are no bytes"


def test_damaged_samples_have_their_fault_named() -> None:
    found = {s.file.partition("/")[2]: dissect(s.data, s.survey or "lsst") for s in damaged()}
    assert all(parts.fault for parts in found.values())
    (cut,) = [parts for name, parts in found.items() if "cut-short" in name]
    assert cut.fault == "cutoutDifference: bytes of 34560 bytes, 13398 are left"
    assert cut.values[-1].path == "mpc_orbits.fitting_datetime"


def test_packed_blocks_are_unpacked() -> None:
    schema, record = generate.schema_of("ztf", "4.01"), generate.alert("ztf", "4.01", 3)
    found = dissect(generate.container([record], schema, "deflate"), "ztf")
    assert found.fault_at is None
    assert found.form.endswith("offsets are those of its unpacked block")
    assert found.values[0].offset == 0


def test_claims_cost_nothing() -> None:
    for value in (
        generate.huge_array("lsst", generate.LABELS["lsst"][-1]),
        generate.zero_byte_bomb(),
        generate.deflate_bomb(),
        generate.nested_schema(),
        generate.recursive(inside="3.3"),
    ):
        found = dissect(value, "lsst")
        assert found.fault
        assert len(found.values) <= module.MAX_VALUES


@given(st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_nothing_raises(data: st.DataObject) -> None:
    survey = data.draw(st.sampled_from(SURVEYS))
    value = bytearray(whole(survey)[data.draw(st.integers(0, 5))].data)
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, min(len(value) - 1, 25_000)))] = data.draw(st.integers(0, 255))
    dissect(bytes(value), survey)
    dissect(data.draw(st.binary(max_size=60)), survey)


def test_a_number_that_does_not_end() -> None:
    (writer,) = registry.writers("elasticc")[-1:]
    assert writer.label.startswith("elasticc")
    found = dissect(b"\xff" * 30, "elasticc")
    assert (found.fault_at, found.fault) == (0, "a number of more than 10 bytes")
    assert avro.varint(-1) == b"\x01"
