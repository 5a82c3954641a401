"""A set of verdicts beside a copy with one thing changed: whatever field it is, the change is found and named."""

import json
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from decoding import assigned, hop
from hypothesis import given
from hypothesis import strategies as st
from samples import whole

from broker.classify import classify
from broker.compare import CLOCKS_AND_PLACES, _bits, _digest, compare
from broker.files import _save
from broker.outlets import native

Record = dict[str, Any]


@cache
def verdicts() -> tuple[Record, ...]:
    answer = classify(hop("ztf", [sample.data for sample in whole("ztf")[:12]]), assigned("ztf"))
    return tuple(native.read(value) for part in answer.rows for value in part.column("value").to_pylist())


FIELDS = tuple(str(field["name"]) for field in native.schema()["fields"])  # type: ignore[attr-defined]
COMPARED = tuple(name for name in FIELDS if name not in (*CLOCKS_AND_PLACES, "source_id"))


def saved(path: Path, records: list[Record]) -> str:
    _save(path.suffix, str(path), iter([records]))
    return str(path)


def changed(value: Any) -> Any:
    """The value with its smallest change: the last bit, one more, one letter, nothing in place of something."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, float):
        (bits,) = struct.unpack("<q", struct.pack("<d", value))
        return struct.unpack("<d", struct.pack("<q", bits ^ 1 << 29))[0]  # the last bit that a 32-bit float keeps
    if isinstance(value, int):
        return value + 1
    if isinstance(value, str):
        return value[:-1] + ("a" if value[-1:] != "a" else "b")
    if isinstance(value, dict):
        return {name: changed(part) for name, part in value.items()} or {"ztf-g": 1}
    if isinstance(value, list):
        return [*value[:-1], value[-1] | {"probability": changed(value[-1]["probability"])}] if value else value
    raise TypeError(type(value))


@pytest.mark.parametrize("field", COMPARED)
def test_one_changed_field_is_found_and_named(tmp_path: Path, field: str) -> None:
    records = list(verdicts())
    at = next((i for i, record in enumerate(records) if record[field] not in (None, [])), None)
    other: Any
    if at is None:  # a field of another survey
        at, other = 0, 5
    else:
        other = changed(records[at][field])
    copy = [*records[:at], records[at] | {field: other}, *records[at + 1 :]]
    found = compare(saved(tmp_path / "a.avro", records), saved(tmp_path / "b.avro", copy))
    assert not found.is_same
    assert (found.n_differ, found.n_same, found.n_only_here, found.n_only_there) == (1, len(records) - 1, 0, 0)
    assert found.first is not None
    name, differing = found.first
    assert name == f"source {records[at]['source_id']}"
    assert [what for what, _, _ in differing] == [field]
    is_verdict = field in ("status", "class_name")
    assert found.n_same_class == len(records) - is_verdict


@pytest.mark.parametrize("field", COMPARED)
def test_a_value_that_is_gone_is_found(tmp_path: Path, field: str) -> None:
    """In lines of JSON, which hold any record."""
    records = [record for record in verdicts() if record[field] is not None]
    records = records or [verdicts()[0] | {field: 1}]
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, first in zip(paths, (records[0], records[0] | {field: None}), strict=True):
        path.write_text("".join(json.dumps(r, default=str) + "\n" for r in (first, *records[1:])))
    found = compare(str(paths[0]), str(paths[1]))
    assert found.n_differ == 1
    assert found.first is not None
    assert found.first[1][0][2] is None


@pytest.mark.parametrize("field", CLOCKS_AND_PLACES)
def test_clocks_and_places_are_not_compared(tmp_path: Path, field: str) -> None:
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, value in zip(paths, (1, 2), strict=True):
        path.write_text(json.dumps({"source_id": 1, field: value}) + "\n")
    assert field in FIELDS
    assert compare(str(paths[0]), str(paths[1])).is_same


# --- bits -----------------------------------------------------------------------------------------------------------

leaves = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats() | st.text(max_size=5)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
)


@given(st.dictionaries(st.text(max_size=5), values, max_size=5), st.randoms())
def test_a_digest_does_not_hang_on_the_order_of_fields(record: Record, rng: Any) -> None:
    names = list(record)
    rng.shuffle(names)
    assert _digest({name: record[name] for name in names}) == _digest(record)


@given(st.floats(allow_nan=False), st.floats(allow_nan=False))
def test_numbers_are_the_same_where_their_bits_are(a: float, b: float) -> None:
    assert (_bits(a) == _bits(b)) is (struct.pack("<d", a) == struct.pack("<d", b))
    assert (_digest({"x": a}) == _digest({"x": b})) is (struct.pack("<d", a) == struct.pack("<d", b))


def test_zero_has_a_sign_and_nan_is_itself() -> None:
    assert _digest({"x": 0.0}) != _digest({"x": -0.0})
    assert _digest({"x": float("nan")}) == _digest({"x": float("nan")})
    assert _digest({"x": [0.0]}) != _digest({"x": [-0.0]})
    assert _digest({"x": {"y": 0.0}}) != _digest({"x": {"y": -0.0}})


def test_a_field_that_one_record_lacks_is_no_null() -> None:
    assert _digest({"x": None}) != _digest({})
    assert _digest({"x": []}) != _digest({"x": None})
    assert _digest({"x": "1"}) != _digest({"x": 1})
