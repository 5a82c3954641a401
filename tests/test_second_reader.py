"""The second reader: what it reads, what it refuses and in which words, and that small bytes stay small."""

import io
import json
import math
import random
import subprocess
import sys
import time
from typing import Any

import generate
import pytest
from decoding import MAX_ALERT_BYTES, struct_of
from samples import ROOT, damaged, whole

from broker import registry, surveys
from broker.container import Unreadable, read_header, records
from broker.observed import observed
from broker.second_reader import Read, Refusal, read, unpack
from broker.wire import MAX_SCHEMA_CHARS, frame


def refusal(value: bytes | None, survey: str = "ztf", max_alert_bytes: int = MAX_ALERT_BYTES) -> tuple[str, str]:
    """Reason and detail of an alert that must be refused."""
    found = read(value, surveys.find(survey), max_alert_bytes, struct_of(survey))
    assert isinstance(found, Refusal), found
    assert found.detail
    return found.reason, found.detail


def accepted(value: bytes, survey: str = "ztf", max_alert_bytes: int = MAX_ALERT_BYTES) -> Read:
    found = read(value, surveys.find(survey), max_alert_bytes, struct_of(survey))
    assert isinstance(found, Read), found
    assert found.alert.type == struct_of(survey)
    assert len(found.alert) == 1
    assert found.alert.null_count == 0
    return found


def ztf(layout: str = "4.01", seed: int = 0) -> tuple[generate.Record, Any]:
    return generate.alert("ztf", layout, seed), generate.schema_of("ztf", layout)


# --- what it reads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["null", "deflate", "snappy", "zstandard"])
def test_codecs(codec: str) -> None:
    record, schema = ztf()
    found = accepted(generate.container([record], schema, codec))
    assert found.alert[0]["candidate"]["candid"].as_py() == record["candid"]
    assert found.schema.startswith("ztf.alert")


def test_a_schema_that_nobody_knows_is_read_by_its_names() -> None:
    record, schema = ztf()
    later = schema | {"fields": [{"name": "first", "type": "string"}, *schema["fields"]], "version": "9.99"}
    found = accepted(generate.container([record | {"first": "x"}], later))
    assert found.alert[0]["objectId"].as_py() == record["objectId"]
    assert found.schema == "ztf.alert 9.99"


def test_wider_numbers_are_narrowed() -> None:
    record, schema = ztf()
    text = json.dumps(schema).replace('"float"', '"double"').replace('"int"', '"long"')
    wide = json.loads(text)
    found = accepted(generate.container([record], wide))
    assert found.alert[0]["candidate"]["magpsf"].as_py() == record["candidate"]["magpsf"]
    record["candidate"]["fid"] = 2**40
    assert refusal(generate.container([record], wide))[0] == "damaged"
    record["candidate"]["fid"] = 1
    record["candidate"]["magpsf"] = 1e300
    assert accepted(generate.container([record], wide)).alert[0]["candidate"]["magpsf"].as_py() == math.inf


@pytest.mark.parametrize("survey", ["lsst", "elasticc", "ztf"])
def test_samples(survey: str) -> None:
    for sample in whole(survey):
        found = accepted(sample.data, survey)
        if survey == "lsst":
            assert found.schema == sample.schema


def test_the_label_of_a_schema_is_text() -> None:
    record, schema = ztf()
    found = accepted(generate.container([record], schema | {"version": "\ud800" + "x" * 1000}))
    assert found.schema.encode()
    assert len(found.schema) <= 100


# --- what it refuses ----------------------------------------------------------------------------------------------


def test_empty() -> None:
    assert refusal(None) == ("empty", "null value")
    assert refusal(b"") == ("empty", "value of 0 bytes")
    assert refusal(generate.container([], ztf()[1])) == ("empty", "container without a record")


def test_two_records_and_bytes_behind() -> None:
    record, schema = ztf()
    two = generate.container([record, record], schema)
    assert refusal(two) == ("damaged", "container holds 2 records; an alert is one")
    one = generate.container([record], schema)
    assert refusal(one + generate.block(generate.body(record, schema)))[0] == "damaged"
    assert refusal(one + b"\x00")[0] == "damaged"
    short = generate.container([record], schema).replace(generate.SYNC, b"another sync....", 1)
    assert "sync marker" in refusal(short)[1]


def test_unknown_codec_and_missing_schema() -> None:
    record, schema = ztf()
    assert refusal(generate.header(schema, "bzip2") + generate.SYNC + generate.block(b"x")) == (
        "damaged",
        "container codec 'bzip2'; null, deflate, snappy and zstandard are read",
    )
    meta = generate.body({"avro.codec": b"null"}, {"type": "map", "values": "bytes"})
    assert "avro.schema" in refusal(generate.MAGIC + meta + generate.SYNC)[1]
    del record


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_packed_data_that_does_not_unpack(codec: str) -> None:
    reason, detail = refusal(generate.header(ztf()[1], codec) + generate.SYNC + generate.block(b"\xff" * 100))
    assert reason in ("damaged", "too_large")
    assert codec in detail


def test_unknown_schema_id() -> None:
    reason, detail = refusal(frame(54_321, b"x" * 10), "lsst")
    assert (reason, detail) == ("schema_unavailable", "schema id 54321 is not known")


def test_alerts_of_another_survey() -> None:
    (lsst, *_), (native, *_), (bare, *_) = (whole(s) for s in ("lsst", "ztf", "elasticc"))
    assert refusal(native.data, "lsst")[0] == "wrong_survey"
    assert refusal(native.data, "elasticc")[0] == "wrong_survey"
    reason, detail = refusal(lsst.data, "ztf")
    assert (reason, f"schema id {lsst.schema}" in detail) == ("wrong_survey", True)
    assert refusal(bare.data, "lsst")[0] == "damaged"
    assert refusal(lsst.data, "elasticc")[0] == "damaged"
    foreign = {"type": "record", "name": "Weather", "fields": [{"name": "rain", "type": "double"}]}
    reason, detail = refusal(generate.container([{"rain": 1.0}], foreign))
    assert (reason, "objectId" in detail) == ("wrong_survey", True)
    assert refusal(generate.container(["x"], "string"))[0] == "wrong_survey"
    assert refusal(generate.container_within(native.data))[0] == "wrong_survey"


def test_cut_alerts_say_so() -> None:
    sound = frame(1101, generate.body(generate.alert("lsst", "1101", 1), generate.schema_of("lsst", "1101")))
    rng = random.Random(5)
    details = [refusal(sound[: rng.randrange(5, len(sound))], "lsst") for _ in range(200)]
    assert {reason for reason, _ in details} == {"damaged"}
    words = ("end", "union branch", "not UTF-8")
    assert all(any(word in detail for word in words) for _, detail in details)
    assert sum("end" in detail for _, detail in details) > 190
    assert refusal(sound + b"\x00", "lsst")[0] == "damaged"
    assert refusal(sound[:4], "lsst")[0] == "damaged"
    assert "header" in refusal(whole("ztf")[0].data[:3000])[1]
    assert "header" in refusal(b"Obj\x01")[1]


def test_a_union_branch_that_does_not_exist_is_named() -> None:
    schema = generate.schema_of("lsst", "1101")
    names = [field["name"] for field in schema["fields"]]
    start = generate.body(
        generate.alert("lsst", "1101", 1), schema | {"fields": schema["fields"][: names.index("prvDiaSources")]}
    )
    assert refusal(frame(1101, start + b"\x7e" * 50), "lsst") == ("damaged", "a union branch that the schema lacks")


@pytest.mark.parametrize("sample", damaged(), ids=repr)
def test_damaged_samples(sample: Any) -> None:
    for survey in surveys.NAMES:
        assert refusal(sample.data, survey)[0] in ("damaged", "schema_unavailable", "wrong_survey", "empty")


def test_text_that_is_no_text() -> None:
    record, schema = ztf()
    spoilt = generate.container([record], schema).replace(record["objectId"].encode(), b"\xff" * 12)
    reason, detail = refusal(spoilt)
    assert (reason, detail.startswith("text that is not UTF-8")) == ("damaged", True)


@pytest.mark.parametrize("text", ["{", "[]", '"string"', "null", '{"type":"record"}', '{"type":"record","name":"x"}'])
def test_schemas_that_are_none(text: str) -> None:
    meta = {"avro.codec": b"null", "avro.schema": text.encode()}
    start = generate.MAGIC + generate.body(meta, {"type": "map", "values": "bytes"}) + generate.SYNC
    assert refusal(start + generate.block(b"x"))[0] in ("damaged", "wrong_survey")


# --- limits -------------------------------------------------------------------------------------------------------


def test_size_limit_is_exact() -> None:
    record, schema = ztf()
    sound = generate.container([record], schema)
    accepted(sound, max_alert_bytes=len(sound))
    reason, detail = refusal(sound, max_alert_bytes=len(sound) - 1)
    assert reason == "too_large"
    assert str(len(sound)) in detail


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_unpacked_size_limit(codec: str) -> None:
    data = generate.packed(bytes(100_000), codec)
    assert unpack(data, codec, 100_000) == bytes(100_000)
    with pytest.raises(Refusal) as refused:
        unpack(data, codec, 99_999)
    assert refused.value.reason == "too_large"
    assert "99999" in refused.value.detail


def test_schema_text_has_a_limit() -> None:
    record, schema = ztf()
    accepted(generate.container([record], schema | {"doc": "x" * (MAX_SCHEMA_CHARS // 2)}))
    assert refusal(generate.container([record], schema | {"doc": "x" * MAX_SCHEMA_CHARS}))[0] == "too_large"


def zero_byte_types() -> dict[str, tuple[list[Any], Any]]:
    """Fields that come before, and items that take no bytes."""
    empty = {"type": "record", "name": "E", "fields": []}
    inner = {"type": "record", "name": "N", "fields": [{"name": "n", "type": "null"}, {"name": "e", "type": empty}]}
    fixed = {"type": "fixed", "name": "Z", "size": 0}
    return {
        "null": ([], "null"),
        "empty record": ([], empty),
        "by name": ([{"name": "e", "type": empty}], "E"),
        "by full name": ([{"name": "e", "type": empty}], "ztf.E"),
        "by a name with its space": ([{"name": "e", "type": empty | {"namespace": "some.space"}}], "some.space.E"),
        "by a dotted name": ([{"name": "e", "type": empty | {"name": "some.space.E"}}], "some.space.E"),
        "fixed(0)": ([], fixed),
        "fixed(0) by name": ([{"name": "z", "type": fixed}], "Z"),
        "record of nulls": ([], inner),
        "wrapped": ([], {"type": "null"}),
        "wrapped twice": ([], {"type": {"type": "record", "name": "E", "fields": []}}),
        "array of arrays": ([], {"type": "array", "items": "null"}),
    }


@pytest.mark.parametrize("case", zero_byte_types())
def test_seven_bytes_do_not_make_a_billion_items(case: str) -> None:
    before, items = zero_byte_types()[case]
    record, schema = ztf()
    bomb = {"name": "items", "type": {"type": "array", "items": items}}
    extended = schema | {"namespace": "ztf", "fields": [*before, bomb, *schema["fields"]]}
    value = {"e": {}, "z": b"", "items": []}
    data = generate.body(value, {"type": "record", "name": "Start", "fields": before})
    data += generate.long(10**9) + generate.long(0) + generate.body(record, schema)
    reason, detail = refusal(generate.header(extended) + generate.SYNC + generate.block(data))
    assert reason == "too_large"
    assert "need no bytes" in detail


@pytest.mark.parametrize("items", ["float", "boolean", {"type": "fixed", "name": "Four", "size": 4}], ids=str)
def test_numbers_that_are_claimed_and_not_there_cost_nothing(items: Any) -> None:
    """fastavro walks on behind the end of the bytes: 80 s of it here, for ever with 2**62."""
    record, schema = ztf()
    extended = schema | {"fields": [*schema["fields"], {"name": "items", "type": {"type": "array", "items": items}}]}
    data = generate.body(record, schema) + generate.long(10**9)
    value = generate.header(extended) + generate.SYNC + generate.block(data)
    started = time.process_time()
    assert refusal(value)[0] == "damaged"
    assert observed(value) is not None  # what is wrong lies behind the time
    header, end = read_header(value)
    with pytest.raises(Unreadable, match="EOFError"):
        list(records(header, io.BytesIO(value[end:])))
    assert time.process_time() - started < 10


def test_arrays_that_need_bytes_stay_allowed() -> None:
    record, schema = ztf()
    items = {"type": "array", "items": ["null", {"type": "record", "name": "E", "fields": []}]}
    extended = schema | {"fields": [*schema["fields"], {"name": "extra", "type": items}]}
    accepted(generate.container([record | {"extra": [None, None]}], extended))


BOMBS = """
import random, resource, sys
import generate
from decoding import struct_of, MAX_ALERT_BYTES
from broker import second_reader, surveys
generate.deflate_bomb()
values = [("ztf", generate.deflate_bomb()), ("ztf", generate.zero_byte_bomb()), ("ztf", generate.nested_schema())]
values += [("ztf", generate.zero_byte_bomb(inside="3.3"))]
for survey, labels in generate.LABELS.items():
    values += [(survey, generate.huge_array(survey, label, n)) for label in labels for n in (2**31 - 9, 2**62, -2**40)]
schema = generate.schema_of("ztf", "3.3")
items = {"name": "b", "type": {"type": "array", "items": "boolean"}}
wide = schema | {"fields": [items, *schema["fields"]]}
start = generate.long(12_000_000) + bytes(12_000_000) + b"\\0"
ending = generate.body(generate.alert("ztf", "3.3", 1), schema)
values += [("ztf", generate.header(wide) + generate.SYNC + generate.block(start + ending))]
history = generate.schema_of("elasticc", "0.9.1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for survey, value in values:
    found = second_reader.read(value, surveys.find(survey), MAX_ALERT_BYTES, struct_of(survey))
    if isinstance(found, second_reader.Refusal):
        print(found.reason, found.detail)
print("grown", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, resource.getrlimit(resource.RLIMIT_AS))
"""


def test_bombs_stay_small() -> None:
    script = f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r})\n{BOMBS}"
    command = [sys.executable, "-P", "-c", script]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    *answers, last = run.stdout.splitlines()
    assert sum(len(labels) for labels in generate.LABELS.values()) * 3 + 4 <= len(answers)
    assert all(answer.split()[0] in ("damaged", "too_large", "wrong_survey") for answer in answers)
    grown_kb = int(last.split()[1])
    assert grown_kb < 300_000
    assert last.endswith("(-1, -1)"), "the limit was not lifted again"


def test_more_items_than_the_jvm_takes() -> None:
    schema = generate.schema_of("elasticc", "0.9.1")
    record = generate.alert("elasticc", "0.9.1", 1, n_detections=1, n_forced=1)
    many = record | {"prvDiaForcedSources": record["prvDiaForcedSources"] * 100_001}
    reason, detail = refusal(generate.body(many, schema), "elasticc")
    assert reason == "too_large"
    assert "100001" in detail or "memory" in detail


def test_every_layout_has_the_same_struct() -> None:
    for survey in surveys.NAMES:
        for label in generate.LABELS[survey]:
            for value in generate.generated(survey, label, 3):
                accepted(value, survey)
        assert len(registry.writers(survey)) == len(generate.LABELS[survey])
