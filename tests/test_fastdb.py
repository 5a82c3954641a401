"""Outlet `fastdb`: the alert's own fields and our answer, read by DESC's published schema and by the key."""

import json
from dataclasses import replace
from io import BytesIO
from typing import Any, cast

import fastavro
import generate
import pyarrow as pa
import pytest
from decoding import assigned, hop
from samples import SCHEMAS, whole

from broker import registry
from broker.classify import classify
from broker.delivery import Filter
from broker.outlets import fastdb, native
from broker.outlets.further import Further
from broker.wire import frame

OUTLET = Further("f", "fastdb", {"": "f"}, 5, True, None, Filter(statuses=("classified", "abstained")))
# The tail of share/avsc/fastdb.v10_0_0.BrokerMessage.avsc of github.com/LSSTDESC/FASTDB (LBNL BSD), names and types.
PUBLISHED_TAIL = """[
    {"name": "brokerName", "type": "string"},
    {"name": "classifierName", "type": "string"},
    {"name": "classifierVersion", "type": "string"},
    {"name": "classifications", "type": {"type": "array", "items": {
        "type": "record", "name": "classificationDict",
        "fields": [{"name": "classId", "type": "int"}, {"name": "probability", "type": "float"}]}}}
]"""
PUBLISHED_FIELDS = (  # of the same file: those of the alert, before the tail
    "diaSourceId", "observation_reason", "target_name", "diaSource", "prvDiaSources", "prvDiaForcedSources",
    "diaObject", "ssSource", "mpc_orbits", "cutoutDifference", "cutoutScience", "cutoutTemplate",
)  # fmt: skip


def read(data: bytes, schema: Any) -> dict[str, Any]:
    """To the last byte."""
    file = BytesIO(data)
    found = fastavro.schemaless_reader(file, schema, None)
    assert file.read() == b""
    return cast(dict[str, Any], found)


@pytest.mark.parametrize("by_hand", [False, True], ids=["JVM", "second reader"])
def test_body_and_tail_make_one_record(by_hand: bool) -> None:
    """Samples of every version, a container and what can't be read."""
    frames = [(s.data, s.schema) for s in whole("lsst")]
    frames += [(data, "1000") for data in generate.generated("lsst", "1000", 5, seed=3)]
    contained = generate.container([generate.alert("lsst", "1000", 77, 3, 3)], generate.schema_of("lsst", "1000"))
    values: list[bytes | None] = [*(data for data, _ in frames), contained, b"junk", None]
    answer = classify(hop("lsst", values, by_hand), replace(assigned("lsst"), outlets=(OUTLET,)))
    rows = [row for part in answer.rows for row in part.to_pylist()]
    natives = {offset_of(row): native.read(row["value"]) for row in rows if row["topic"] == "classifications"}
    sent = {offset_of(row): row for row in rows if row["topic"] == "f"}
    assert set(sent) == {at for at, record in natives.items() if record["class_name"] and at < len(frames)}
    assert int(answer.outlets["f"].passed.sum()) == len(sent)
    for at, row in sent.items():
        data, version = frames[at]
        ours, schema = natives[at], json.loads(row["key"])
        found = read(row["value"], fastavro.parse_schema(schema))
        tail = {name: found.pop(name) for name in ("brokerName", "classifierName", "classifierVersion")}
        chances = {c["classId"]: c["probability"] for c in found.pop("classifications")}
        assert chances == {c["classId"]: c["probability"] for c in ours["classifications"]}
        assert tail == {"brokerName": "t2-broker", "classifierName": "t2b-1", "classifierVersion": "1"}
        layout = json.loads((SCHEMAS / "lsst" / f"{version}.avsc").read_text())
        assert repr(found) == repr(read(data[5:], fastavro.parse_schema(layout)))  # NaN equals itself
    assert {json.loads(row["key"])["name"] for row in sent.values()} >= {"fastdb.v10_0_0.BrokerMessage"}
    assert len({row["partition"] for row in sent.values()}) > 1


def offset_of(row: dict[str, Any]) -> int:
    return int(next(h["value"] for h in row["headers"] if h["key"] == "alert").rpartition(b":")[2])


def test_the_published_schema() -> None:
    schema = json.loads(fastdb.key(1000))
    assert schema["name"] == "fastdb.v10_0_0.BrokerMessage"
    assert tuple(field["name"] for field in schema["fields"][:-4]) == PUBLISHED_FIELDS
    assert schema["fields"][-4:] == json.loads(PUBLISHED_TAIL)
    assert json.loads(fastdb.key(1101))["name"] == "fastdb.v11_1_0.BrokerMessage"
    assert fastdb.key(1101).startswith(b'{"type":"record"')  # by which `broker read` knows it
    assert max(len(fastdb.key(w.schema_id or 0)) for w in registry.packaged("lsst")) < fastdb.MORE_BYTES - 100_000
    with pytest.raises(KeyError):
        fastdb.key(4711)


def test_what_is_no_frame_has_no_form() -> None:
    values = [frame(1101, b"x"), frame(4711, b"x"), b"\x00\x00", b"", None, b"Obj\x01", b"\x01\x00\x00\x04\x4d"]
    assert fastdb.fits(pa.array(values, pa.binary())).tolist() == [True, *[False] * 6]
