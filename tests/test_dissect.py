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


@pytest.mark.parametrize(
    "schema",
    [
        5,
        None,
        True,
        {"type": "array", "items": 7},
        {"type": "map", "values": None},
        {"type": "enum", "name": "E", "symbols": "abc"},
        {"type": "enum", "name": "E", "symbols": 5},
        {"type": "record", "name": "R", "fields": 5},
        {"type": "record", "name": "R", "fields": [5]},
        {"type": "record", "name": "R", "fields": [{"name": "x"}]},
        {"type": "fixed", "name": "F", "size": "x"},
        {"type": "fixed", "name": "F"},
        {"type": []},
        {},
    ],
)
def test_a_container_whose_schema_is_none_is_told_and_not_followed(schema: object) -> None:
    found = dissect(generate.header(schema) + generate.SYNC + generate.block(b"\x02\x02\x00"), "ztf")
    assert "the schema can't be followed here" in found.fault or "of a union of 0" in found.fault
    assert found.values == []


def nested_records(depth: int) -> dict[str, Any]:
    """Each holds the one before it twice, the innermost nothing: no bytes, and 2**depth records."""
    schema: dict[str, Any] = {"type": "record", "name": "R0", "fields": []}
    for i in range(1, depth):
        fields = [{"name": "a", "type": schema}, {"name": "b", "type": f"R{i - 1}"}]
        schema = {"type": "record", "name": f"R{i}", "fields": fields}
    return schema


def test_a_schema_that_needs_no_bytes_is_not_followed_for_ever() -> None:
    """Some kB of it would take years."""
    laughs = generate.header(nested_records(30)) + generate.SYNC + generate.block(b"")
    empty = {"type": "record", "name": "Empty", "fields": []}
    claims = generate.long(4_000) * 3_000 + b"\x00"
    items = generate.header({"type": "array", "items": empty}) + generate.SYNC + generate.block(claims)
    for value in (laughs, items):
        assert len(value) < 8_000
        assert dissect(value, "ztf").fault == f"not followed further than {module.MAX_STEPS} steps"


def test_the_largest_alerts_are_followed_to_their_ends() -> None:
    alert = generate.alert("lsst", "1101", 1, 800, 800)
    found = dissect(generate.encode("lsst", "1101", alert), "lsst")
    assert found.fault_at is None
    assert 80_000 < len(found.values) < module.MAX_VALUES


# --- prefixes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", SURVEYS)
def test_every_prefix_of_a_sample_breaks_off_within_itself(survey: str) -> None:
    """Where a value is cut, the fault lies at most where the bytes end, and what was told before lies before it."""
    data = min((sample.data for sample in whole(survey)), key=len)
    start = dissect(data, survey).values[0].offset
    for n in [*range(1, 60), *range(start + 1, start + 400), *range(len(data) - 60, len(data))]:
        found = dissect(data[:n], survey)
        assert found.fault, n
        assert found.fault_at is not None
        assert 0 <= found.fault_at <= n
        assert all(0 <= value.offset <= n for value in found.values)  # a null takes no bytes: it may lie at the end
        assert all(len(value.text) <= 80 for value in found.values)
        assert found.data == data[:n]


@given(
    st.binary(max_size=300), st.sampled_from([*SURVEYS, None]), st.sampled_from([b"", b"Obj\x01", b"\0\0\0\x04\x4d"])
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_any_bytes_are_either_followed_to_their_end_or_have_a_fault(
    rest: bytes, survey: str | None, start: bytes
) -> None:
    found = dissect(start + rest, survey)
    assert found.form == wire_form(start + rest) or found.form.startswith(f"{wire_form(start + rest)}, read as ")
    assert (found.fault == "") == (found.fault_at is None) or not start + rest
    if found.fault_at is None and start + rest:
        assert max(value.offset for value in found.values) <= len(start + rest)
    assert [v.offset for v in found.values if not v.text.endswith(" items")] == sorted(
        v.offset for v in found.values if not v.text.endswith(" items")
    )


@given(
    st.integers(-(2**63), 2**63 - 1),
    st.text(max_size=90),
    st.sampled_from(["a", "b"]),
    st.binary(min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_every_kind_of_value_is_told_in_words(number: int, text: str, symbol: str, fixed: bytes) -> None:
    schema = {
        "type": "record",
        "name": "All",
        "fields": [
            {"name": "long", "type": "long"},
            {"name": "text", "type": "string"},
            {"name": "enum", "type": {"type": "enum", "name": "E", "symbols": ["a", "b"]}},
            {"name": "again", "type": ["null", "E"]},
            {"name": "fixed", "type": {"type": "fixed", "name": "F", "size": 3}},
            {"name": "map", "type": {"type": "map", "values": "int"}},
        ],
    }
    record = {"long": number, "text": text, "enum": symbol, "again": symbol, "fixed": fixed, "map": {"k": 7}}
    found = dissect(generate.container([record], schema), None)
    assert found.fault_at is None, found.fault
    told = {value.path: value.text for value in found.values}
    assert told.pop("text") == text.encode()[:80].decode(errors="backslashreplace")[:80]
    assert told == {
        "long": str(number),
        "enum": symbol,
        "again": symbol,
        "fixed": fixed.hex(" "),
        "map[k]": "7",
        "map": "1 items",
    }


def test_a_block_that_is_not_one_alert_is_told() -> None:
    schema = {"type": "record", "name": "One", "fields": [{"name": "x", "type": "int"}]}
    start = generate.header(schema) + generate.SYNC
    two = dissect(start + generate.block(b"\x02\x04", 2), None)
    assert "it claims 2 records, an alert is one" in two.form
    assert (two.fault_at, two.fault) == (len(start) + 3, "the alert ends here, 1 bytes are left over")
    short = dissect(start + b"\x02\x14\x02", None)
    assert "; its block claims 10 bytes, " in short.form
    ended = dissect(start + generate.block(b"\x02") + b"more", None)
    assert ended.fault == "the block does not end with its sync marker and the value"
    assert ended.values == [("x", len(start) + 2, "1")]


def test_a_number_that_does_not_end() -> None:
    (writer,) = registry.writers("elasticc")[-1:]
    assert writer.label.startswith("elasticc")
    found = dissect(b"\xff" * 30, "elasticc")
    assert (found.fault_at, found.fault) == (0, "a number of more than 10 bytes")
    assert avro.varint(-1) == b"\x01"
