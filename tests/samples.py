"""The sample alerts of the repository, and original alerts of a folder, as bytes with what is known about them."""

import csv
import gzip
import importlib.util
import io
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import fastavro
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
ALERTS = ROOT / "examples" / "alerts"
SCHEMAS = ROOT / "schemas"


@dataclass(frozen=True)
class Sample:
    """One alert: its bytes as they come from Kafka; schema is the id (LSST) or version, "" where there is none."""

    survey: str
    schema: str
    data: bytes
    file: str
    member: str
    note: str

    def __repr__(self) -> str:
        return f"{self.file}{'/' if self.member else ''}{self.member}"


@cache
def everything() -> tuple[Sample, ...]:
    """All samples in the order of MANIFEST.csv, damaged ones last."""
    with (ALERTS / "MANIFEST.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    members = {file: _members(ALERTS / file) for file in {row["file"] for row in rows if row["member"]}}
    return tuple(
        Sample(
            row["survey"],
            row["schema"],
            members[row["file"]][row["member"]] if row["member"] else unpacked(ALERTS / row["file"]),
            row["file"],
            row["member"],
            row["note"],
        )
        for row in rows
    )


def whole(survey: str | None = None) -> list[Sample]:
    """The undamaged samples, of one survey or of all."""
    return [s for s in everything() if not s.file.startswith("damaged/") and survey in (None, s.survey)]


def damaged() -> list[Sample]:
    """The samples that must be refused."""
    return [s for s in everything() if s.file.startswith("damaged/")]


def unpacked(path: Path) -> bytes:
    """The bytes of a file, out of gzip if it is packed."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix == ".gz" else data


def _members(path: Path) -> dict[str, bytes]:
    with tarfile.open(path, "r|*") as archive:
        return {member.name: file.read() for member in archive if (file := archive.extractfile(member))}


@cache
def make_samples() -> ModuleType:
    """examples/make_samples.py, which is a script and not a package."""
    spec = importlib.util.spec_from_file_location("make_samples", ROOT / "examples" / "make_samples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["make_samples"] = module
    spec.loader.exec_module(module)
    return module


def originals(folder: Path, survey: str) -> Iterator[Sample]:
    """Every alert of a survey below a folder of original alerts (see make_samples.py), as it came over Kafka.

    ZTF: native containers of one record. LSST: frames, and rows that were re-written by Fink put back into frames.
    ELAsTiCC: the bare body of every record.
    """
    read = {"ztf": _original_ztf, "lsst": _original_lsst, "elasticc": _original_elasticc}[survey]
    yield from read(folder)


def _original_ztf(folder: Path) -> Iterator[Sample]:
    for path in sorted((folder / "ztf").rglob("*.avro*")) + sorted((folder / "ztf").rglob("*.tar.gz")):
        found = _members(path) if path.name.endswith(".tar.gz") else {"": path.read_bytes()}
        for member, data in found.items():
            reader = fastavro.reader(io.BytesIO(data))
            schema = cast(dict[str, Any], reader.writer_schema)
            if schema["name"] == "ztf.alert" and reader.codec == "null":
                yield Sample("ztf", schema["version"], data, str(path.relative_to(folder)), member, "")


def _original_lsst(folder: Path) -> Iterator[Sample]:
    make = make_samples()
    for path in sorted((folder / "lsst").glob("*-wire/*")) + sorted((folder / "lsst").glob("wire-*/*")):
        data = path.read_bytes()
        yield Sample("lsst", str(int.from_bytes(data[1:5])), data, str(path.relative_to(folder)), "", "")
    rewritten = {"lsst/fink-reencoded-v7.4": 704, "lsst/fink-reencoded-v9.0": 900, "lsst/fink-distributed-v10": 1000}
    for name, schema_id in (rewritten | {"lsst_fink_parquet": 1000}).items():
        for path in sorted((folder / name).iterdir()):
            is_table = path.suffix == ".parquet"
            rows = pq.read_table(path).to_pylist() if is_table else make.records(path.read_bytes())
            for row in rows:
                data = make.lsst_frame(row, schema_id)
                yield Sample("lsst", str(schema_id), data, str(path.relative_to(folder)), "", "")


def _original_elasticc(folder: Path) -> Iterator[Sample]:
    for path in sorted((folder / "elasticc").rglob("*.avro*")):
        reader = fastavro.reader(io.BytesIO(unpacked(path)))
        schema = cast(dict[str, Any], reader.writer_schema)
        for record in reader:
            body = io.BytesIO()
            fastavro.schemaless_writer(body, schema, record)
            yield Sample("elasticc", "0.9", body.getvalue(), str(path.relative_to(folder)), "", "")
