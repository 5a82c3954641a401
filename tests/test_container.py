"""Containers of many alerts become containers of one; bombs and damage are told apart from alerts."""

import io
import json
import random
from typing import Any

import fastavro
import generate
import pytest
import reference

from broker import container

CODECS = ("null", "deflate", "snappy", "zstandard")


def taken_apart(data: bytes) -> list[bytes]:
    header, end = container.read_header(data)
    return [header.wrap(record) for record in container.records(header, io.BytesIO(data[end:]))]


def refusal(data: bytes) -> str:
    with pytest.raises(container.Unreadable) as caught:
        taken_apart(data)
    return str(caught.value)


@pytest.mark.parametrize("codec", CODECS)
def test_records_keep_bytes_and_order(codec: str) -> None:
    schema = generate.schema_of("ztf", "4.01")
    alerts = [generate.alert("ztf", "4.01", seed) for seed in range(5)]
    parts = taken_apart(generate.container(alerts, schema, codec))
    assert [reference.decode(part) for part in parts] == alerts
    assert parts == [generate.container([alert], schema) for alert in alerts]


def test_blocks_as_fastavro_writes_them() -> None:
    file, schema = io.BytesIO(), generate.schema_of("lsst", "1101")
    alerts = [generate.alert("lsst", "1101", seed, n_detections=40) for seed in range(30)]
    fastavro.writer(file, fastavro.parse_schema(schema), alerts, codec="deflate", sync_interval=20_000)
    assert [reference.decode(part) for part in taken_apart(file.getvalue())] == alerts


def test_header_of_a_plain_container_is_kept() -> None:
    """The header's very bytes tell which known schema it is, so they must survive."""
    schema = generate.schema_of("ztf", "3.3")
    native, body = generate.native_headers()["3.3"], generate.body(generate.alert("ztf", "3.3", 0), schema)
    two = native + generate.SYNC + generate.block(body + body, 2)
    assert taken_apart(two) == [native + generate.SYNC + generate.block(body)] * 2


def test_one_plain_record_is_a_single() -> None:
    data = generate.encode("ztf", "3.1", generate.alert("ztf", "3.1", 0))
    header, end = container.read_header(data)
    assert container.is_single(header, data[end:])
    assert not container.is_single(header, data[end:-1])
    assert not container.is_single(header, data[end:] * 2)
    assert not container.is_single(header, b"")
    packed = generate.container([generate.alert("ztf", "3.1", 0)], generate.schema_of("ztf", "3.1"), "deflate")
    header, end = container.read_header(packed)
    assert not container.is_single(header, packed[end:])


def test_whole_records_before_a_cut_are_given() -> None:
    schema = generate.schema_of("elasticc", "0.9")
    body = generate.body(generate.alert("elasticc", "0.9", 0), schema)
    data = generate.header(schema) + generate.SYNC + generate.block(body) + generate.block(body)
    header, end = container.read_header(data)
    found = container.records(header, io.BytesIO(data[end:-5]))
    assert next(found) == body
    with pytest.raises(container.CutShort):
        next(found)


def test_a_wrong_sync_marker_is_damage() -> None:
    schema = generate.schema_of("elasticc", "0.9")
    body = generate.body(generate.alert("elasticc", "0.9", 0), schema)
    assert "sync marker" in refusal(generate.header(schema) + generate.SYNC + generate.block(body, sync=bytes(16)))


def test_counts_and_sizes_are_checked() -> None:
    schema = generate.schema_of("elasticc", "0.9")
    start = generate.header(schema) + generate.SYNC
    body = generate.body(generate.alert("elasticc", "0.9", 0), schema)
    assert "claims 1000000000 records" in refusal(start + generate.block(body, 10**9))
    assert "belong to no record" in refusal(start + generate.block(body + b"\x00", 1))
    assert "at most" in refusal(start + generate.long(1) + generate.long(2**40))
    assert "at most" in refusal(start + generate.long(1) + generate.long(-4))
    assert "more than 10 bytes" in refusal(start + b"\xff" * 12)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (generate.zero_byte_bomb(), "need no bytes"),
        (generate.zero_byte_bomb(inside="3.3"), "need no bytes"),
        (generate.recursive(), "recursive"),
        (generate.recursive(inside="4.01"), "recursive"),
        (generate.nested_schema(), "not valid Avro"),
        (generate.container([3], "int"), "not a record"),
        (generate.container([{}], {"type": "record", "name": "Nothing", "fields": []}), "claims 1 records in 0 bytes"),
        (generate.container([{}], {"type": "record", "name": "Odd", "fields": [], "codec": 1}, "null")[:-20], "ends"),
    ],
)
def test_bombs_are_refused(data: bytes, why: str) -> None:
    assert why in refusal(data)


def test_deflate_bomb_unpacks_no_further_than_a_block() -> None:
    assert "unpacks (deflate) to more than" in refusal(generate.deflate_bomb())


def test_zero_byte_items_behind_names_are_found() -> None:
    empty = {"type": "record", "name": "Empty", "namespace": "a", "fields": [{"name": "x", "type": "null"}]}
    fixed = {"type": "fixed", "name": "None", "size": 0}
    for first, items in ((empty, "a.Empty"), (fixed, "None")):
        fields = [{"name": "one", "type": first}, {"name": "all", "type": {"type": "array", "items": items}}]
        assert "need no bytes" in refusal(generate.container([], {"type": "record", "name": "R", "fields": fields}))


def test_an_unknown_codec_is_named() -> None:
    schema = generate.schema_of("elasticc", "0.9")
    data = generate.header(schema, "lzma") + generate.SYNC + generate.block(b"abc")
    assert "lzma" in refusal(data)


@pytest.mark.parametrize("codec", CODECS)
def test_damage_raises_unreadable_alone(codec: str) -> None:
    rng = random.Random(7)
    schema = generate.schema_of("elasticc", "0.9.1")
    data = generate.container([generate.alert("elasticc", "0.9.1", seed) for seed in range(3)], schema, codec)
    n_refused = 0
    for _ in range(1500):
        try:
            taken_apart(rng.choice(generate.DAMAGES)(data, rng))
        except container.Unreadable:
            n_refused += 1
    assert n_refused > 300


def test_a_body_fits_its_own_layout() -> None:
    text = json.dumps(generate.schema_of("elasticc", "0.9"))
    body = generate.body(generate.alert("elasticc", "0.9", 1), generate.schema_of("elasticc", "0.9"))
    assert container.fits(text, body)
    assert not container.fits(text, body + b"\x00")
    assert not container.fits(text, b"")


@pytest.mark.parametrize(
    "kind", ["float", "double", "bytes", "string", "long", {"type": "fixed", "name": "F", "size": 9}]
)
def test_a_record_whose_last_value_is_cut_short_is_none(kind: Any) -> None:
    """fastavro walks over missing bytes of a number or of text without a word."""
    value = {"float": 1.5, "double": 1.5, "bytes": b"123456789", "string": "123456789", "long": 2**40}
    schema = {"type": "record", "name": "One", "fields": [{"name": "x", "type": kind}]}
    body = generate.body({"x": value[kind] if isinstance(kind, str) else b"123456789"}, schema)
    text = json.dumps(schema)
    assert container.fits(text, body)
    assert not container.fits(text, body + b"\x00")
    for n in range(len(body)):
        assert not container.fits(text, body[:n]), n
        if n:
            value_of = generate.header(schema) + generate.SYNC + generate.block(body + body[:n], 2)
            header, end = container.read_header(value_of)
            with pytest.raises(container.Unreadable, match=r"record 1 of a block"):
                list(container.records(header, io.BytesIO(value_of[end:])))
