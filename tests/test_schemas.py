"""The wire layouts that ship: each is its own canonical form and reads real alerts like the original schema."""

import csv
import hashlib
import io
import json
import tomllib
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import pytest
from fastavro.schema import load_schema, to_parsing_canonical_form
from samples import ALERTS, SCHEMAS, originals, whole

LAYOUTS = sorted(path for survey in ("lsst", "ztf", "elasticc") for path in (SCHEMAS / survey).glob("*.avsc"))
LSST_IDS = (700, 701, 702, 703, 704, 800, 900, 1000, 1100, 1101)


@cache
def layout(survey: str, name: str) -> Any:
    return fastavro.parse_schema(json.loads((SCHEMAS / survey / f"{name}.avsc").read_text()))


def read(data: bytes, schema: Any) -> Any:
    """One record that fills the bytes."""
    file = io.BytesIO(data)
    record = fastavro.schemaless_reader(file, schema, None)
    assert file.tell() == len(data)
    return record


def plain(value: Any) -> Any:
    """Times as whole microseconds, which is what a layout without logical types reads; NaN equal to itself."""
    if isinstance(value, dict):
        return {name: plain(part) for name, part in value.items()}
    if isinstance(value, list):
        return [plain(part) for part in value]
    if isinstance(value, datetime):
        return round(value.timestamp() * 1e6)
    return "NaN" if isinstance(value, float) and value != value else value


def header_of(data: bytes) -> tuple[bytes, bytes, str]:
    """Header of a container up to the sync marker, the one record behind it, and the schema text of the header."""
    reader = fastavro.reader(io.BytesIO(data))
    sync = reader._header["sync"]
    start = data.index(sync)
    file = io.BytesIO(data[start + 16 :])
    count, size = read_long(file), read_long(file)
    assert count == 1
    record = file.read(size)
    assert file.read() == sync
    return data[:start], record, reader.metadata["avro.schema"]


def read_long(file: io.BytesIO) -> int:
    number = fastavro.schemaless_reader(file, "long", None)
    assert isinstance(number, int)
    return number


def headers(survey: str) -> dict[str, dict[str, Any]]:
    table = tomllib.loads((SCHEMAS / survey / "headers.toml").read_text())["header"]
    return {entry["sha256"]: entry for entry in table}


def test_all_versions_ship() -> None:
    assert {path.stem for path in (SCHEMAS / "lsst").glob("*.avsc")} == {str(i) for i in LSST_IDS}
    assert {path.stem for path in (SCHEMAS / "ztf").glob("*.avsc")} == {
        "1.8", "3.0", "3.1", "3.3", "3.3-null-first", "4.01",
    }  # fmt: skip
    assert {path.stem for path in (SCHEMAS / "elasticc").glob("*.avsc")} == {"0.9", "0.9-early", "0.9.1"}


@pytest.mark.parametrize("path", LAYOUTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_layout_is_canonical(path: Path) -> None:
    text = path.read_text()
    schema = json.loads(text)
    assert to_parsing_canonical_form(fastavro.parse_schema(schema)) + "\n" == text
    assert schema["type"] == "record"
    assert "doc" not in text


@pytest.mark.parametrize("schema_id", LSST_IDS)
def test_lsst_id_is_the_version_in_the_name(schema_id: int) -> None:
    major, minor = divmod(schema_id, 100)
    assert layout("lsst", str(schema_id))["name"] == f"lsst.v{major}_{minor}.alert"


def test_lsst_samples_fill_their_layout() -> None:
    for sample in whole("lsst"):
        assert sample.data[0] == 0
        assert int.from_bytes(sample.data[1:5]) == int(sample.schema)
        alert = read(sample.data[5:], layout("lsst", sample.schema))
        assert str(alert["diaSource"]["diaSourceId"]) in sample.file


def test_elasticc_samples_fill_one_layout_only() -> None:
    names = [path.stem for path in LAYOUTS if path.parent.name == "elasticc"]
    for sample in whole("elasticc"):
        fits = [name for name in names if fits_layout(sample.data, layout("elasticc", name))]
        assert fits == ["0.9"]


def fits_layout(data: bytes, schema: Any) -> bool:
    try:
        read(data, schema)
    except (EOFError, ValueError, IndexError, AssertionError):
        return False
    return True


def test_ztf_samples_have_known_headers_and_read_like_their_own_schema() -> None:
    assert_containers_known([sample.data for sample in whole("ztf")], 10)


def assert_containers_known(containers: list[bytes], n_headers: int) -> None:
    """Each header is listed, and the layout it names gives what the embedded schema gives."""
    known, met = headers("ztf"), {}
    originals_by_text: dict[str, Any] = {}
    for data in containers:
        header, record, text = header_of(data)
        digest = hashlib.sha256(header).hexdigest()
        entry = known[digest]
        assert entry["length"] == len(header)
        assert entry["start"] == header[:40].hex()
        original = originals_by_text.setdefault(text, fastavro.parse_schema(json.loads(text)))
        schema = layout("ztf", Path(entry["schema"]).stem)
        assert plain(read(record, schema)) == plain(read(record, original))
        met[digest] = True
    assert len(met) == n_headers


@pytest.mark.parametrize("survey", ["ztf", "elasticc"])
def test_headers_are_told_apart_by_their_first_bytes(survey: str) -> None:
    known = headers(survey)
    assert len({entry["start"] for entry in known.values()}) == len(known)
    assert {entry["schema"] for entry in known.values()} <= {path.name for path in (SCHEMAS / survey).glob("*.avsc")}


def test_manifest_matches_the_samples() -> None:
    with (ALERTS / "MANIFEST.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert {row["licence"] for row in rows} <= {"Apache-2.0", "MIT", "BSD-3"}
    listed = {(row["file"], row["member"]): (int(row["bytes"]), row["sha256"]) for row in rows}
    assert len(listed) == len(rows)
    for sample in whole():
        assert listed[sample.file, sample.member] == (len(sample.data), hashlib.sha256(sample.data).hexdigest())
    counts = {survey: len(whole(survey)) for survey in ("ztf", "lsst", "elasticc")}
    assert counts == {"ztf": 150, "lsst": 41, "elasticc": 100}
    assert sum(path.stat().st_size for path in ALERTS.rglob("*") if path.is_file()) < 14e6


@pytest.mark.shared
def test_layouts_read_like_the_original_lsst_schemas(shared_alerts: Path) -> None:
    original = {}
    for path in (shared_alerts / "lsst" / "schemas").glob("*/*.alert.avsc"):
        major, minor = path.parent.name.split(".")
        original[100 * int(major) + int(minor)] = load_schema(str(path))
    assert set(original) == set(LSST_IDS)
    for sample in originals(shared_alerts, "lsst"):
        body, schema_id = sample.data[5:], int(sample.schema)
        assert plain(read(body, layout("lsst", sample.schema))) == plain(read(body, original[schema_id]))


@pytest.mark.shared
def test_every_native_ztf_header_is_known(shared_alerts: Path) -> None:
    assert_containers_known([sample.data for sample in originals(shared_alerts, "ztf")], 11)
