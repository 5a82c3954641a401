"""Rebuild examples/alerts from original alerts; the same input gives the same bytes.

    python examples/make_samples.py ALERTS ELASTICC

ALERTS is a folder of original alerts with a MANIFEST.csv (file, origin, origin_path, survey, licence); only files under
Apache-2.0, MIT or BSD-3 are taken, and only public ones (ZTF programid 1). ELASTICC is the Parquet file of ELAsTiCC
packets. What is kept byte for byte and what is re-encoded: examples/alerts/README.md.
"""

import argparse
import csv
import gzip
import hashlib
import io
import json
import shutil
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

import fastavro
import pyarrow.parquet as pq

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "examples" / "alerts"
LICENCES = ("Apache-2.0", "MIT", "BSD-3")
Record = dict[str, Any]


@dataclass(frozen=True)
class Sample:
    """One alert of the set: where it goes, its bytes, and where it came from."""

    file: str
    member: str
    survey: str
    schema: str
    data: bytes
    origin: str
    licence: str
    note: str


@dataclass(frozen=True)
class Source:
    """One permitted original file."""

    path: Path
    origin: str
    licence: str


def permitted(alerts: Path, prefix: str) -> list[Source]:
    """Files below `prefix` whose licence allows them here, in the order of their names."""
    with (alerts / "MANIFEST.csv").open(newline="") as lines:
        rows = [row for row in csv.DictReader(lines) if row["file"].startswith(prefix) and row["licence"] in LICENCES]
    rows.sort(key=lambda row: row["file"])
    return [Source(alerts / row["file"], f"{row['origin']}:{row['origin_path']}", row["licence"]) for row in rows]


def records(data: bytes) -> list[Record]:
    """Every record of an Avro container."""
    return cast(list[Record], list(fastavro.reader(io.BytesIO(data))))


def spread(items: list[Any], n: int) -> list[Any]:
    """n of the items at even distances, all of them if there are fewer."""
    return items if len(items) <= n else [items[i * len(items) // n] for i in range(n)]


# --- ZTF: native containers, byte for byte ------------------------------------------------------------------------


def ztf_samples(alerts: Path) -> Iterator[Sample]:
    """About 150 native containers: all of the rare versions, an even choice of the common ones."""
    wanted = {"ztf/v1.8": 11, "ztf/v3.3-fink-broker": 16, "ztf/v3.3-kowalski": 8, "ztf/fink-client": 2}
    wanted |= {"ztf/v4.01": 13, "ztf/v4.02": 9, "ztf/archive-tar": 23, "ztf/v3.2": 68}
    for prefix, n in sorted(wanted.items()):
        found = [item for source in permitted(alerts, prefix) for item in unpacked(source)]
        for source, data in spread(found, n):
            (alert,) = records(data)
            schema = cast(Record, fastavro.reader(io.BytesIO(data)).writer_schema)
            points = (alert["prv_candidates"] or []) + (alert.get("fp_hists") or [])
            if any(point["programid"] != 1 for point in [alert["candidate"], *points]):
                continue
            version, member = str(schema["version"]), f"{alert['candid']}.avro"
            yield Sample("ztf.tar.gz", member, "ztf", version, data, source.origin, source.licence, ztf_note(alert))


def unpacked(source: Source) -> Iterator[tuple[Source, bytes]]:
    """The containers of a file, out of the archive if it is one."""
    if source.path.suffix != ".gz":
        yield source, source.path.read_bytes()
        return
    with tarfile.open(source.path) as archive:
        for member in sorted(archive.getmembers(), key=lambda member: member.name):
            if file := archive.extractfile(member):
                yield Source(source.path, f"{source.origin}/{member.name}", source.licence), file.read()


def ztf_note(alert: Record) -> str:
    """What the alert holds: detections, upper limits and forced points of its history, asteroid or not."""
    history = alert["prv_candidates"] or []
    detections = sum(point["magpsf"] is not None for point in history)
    note = f"history {detections} detections {len(history) - detections} limits"
    note += f" {len(alert['fp_hists'] or [])} forced" if "fp_hists" in alert else ""
    distance = alert["candidate"]["ssdistnr"]
    return note + ("; known asteroid within 5 arcsec" if distance is not None and 0 <= distance < 5 else "")


# --- LSST: Confluent frames of the alert's own version ------------------------------------------------------------


def conform(value: Any, schema: Any, named: dict[str, Any]) -> Any:
    """A row as Spark stored it, as a record of the writer schema. Nothing is invented.

    A record of nulls, which Spark makes of a null record, becomes null; times become whole microseconds; columns that
    the schema lacks (Fink's own) are left out. Errors: KeyError, or fastavro's when written, where a field is missing.
    """
    schema = named.get(schema, schema) if isinstance(schema, str) else schema
    if isinstance(schema, list):
        if value is None or (isinstance(value, dict) and all(part is None for part in value.values())):
            return None
        return conform(value, next(branch for branch in schema if branch != "null"), named)
    if isinstance(schema, dict) and schema["type"] == "record":
        return {field["name"]: conform(value[field["name"]], field["type"], named) for field in schema["fields"]}
    if isinstance(schema, dict) and schema["type"] == "array":
        return [conform(item, schema["items"], named) for item in value]
    return round(value.timestamp() * 1e6) if isinstance(value, datetime) else value


def named_records(schema: Any) -> dict[str, Any]:
    """Every record defined inside a canonical schema by its full name."""
    if isinstance(schema, list):
        return {name: record for branch in schema for name, record in named_records(branch).items()}
    if not isinstance(schema, dict):
        return {}
    inner = [schema.get("items"), *(field["type"] for field in schema.get("fields", []))]
    own = {schema["name"]: schema} if schema["type"] == "record" else {}
    return own | named_records(inner)


def lsst_frame(row: Record, schema_id: int) -> bytes:
    """The row as a Confluent frame: zero byte, schema id (big-endian), body."""
    schema = json.loads((ROOT / "schemas" / "lsst" / f"{schema_id}.avsc").read_text())
    body = io.BytesIO()
    fastavro.schemaless_writer(body, schema, conform(row, schema, named_records(schema)))
    return struct.pack(">bI", 0, schema_id) + body.getvalue()


def lsst_rows(alerts: Path) -> Iterator[tuple[Source, int, Record]]:
    """The chosen rows that are re-encoded, each with the id of its own schema."""
    for source in spread(permitted(alerts, "lsst/fink-reencoded-v7.4"), 10):
        yield source, 704, records(source.path.read_bytes())[0]
    stored = permitted(alerts, "lsst/fink-reencoded-v9.0")
    old = [(source, row) for source in stored for row in records(source.path.read_bytes())]
    rare = [item for item in old if item[1]["diaSource"]["ssObjectId"] or item[1].get("cdsxmatch") == "AGN"]
    rest = [item for item in old if item not in rare]
    for source, row in rare + spread(rest, 12 - len(rare)):
        yield source, 900, row
    deep = permitted(alerts, "lsst/fink-distributed-v10")[0]
    for row in records(deep.path.read_bytes()):
        yield deep, 1000, row
    new = [(s, row) for s in permitted(alerts, "lsst_fink_parquet") for row in pq.read_table(s.path).to_pylist()]
    new.sort(key=lambda item: (history(item[1]), item[1]["diaSource"]["diaSourceId"]))
    for source, row in spread(list({history(row): (source, row) for source, row in new}.values()), 7):
        yield source, 1000, row


def history(row: Record) -> tuple[int, int]:
    """Detections and forced points of an LSST row's history."""
    return len(row["prvDiaSources"] or []), len(row["prvDiaForcedSources"] or [])


def lsst_samples(alerts: Path) -> Iterator[Sample]:
    """Frames as they were sent, then re-encoded ones."""
    for prefix in ("lsst/wire-real", "lsst/synthetic-wire"):
        made = "hand-made by its authors; " if "synthetic" in prefix else ""
        for source in permitted(alerts, prefix):
            data = source.path.read_bytes()
            schema_id = struct.unpack(">I", data[1:5])[0]
            schema = json.loads((ROOT / "schemas" / "lsst" / f"{schema_id}.avsc").read_text())
            row = cast(Record, fastavro.schemaless_reader(io.BytesIO(data[5:]), schema, None))
            yield lsst_sample(row, schema_id, data, source, made + "bytes as published; ")
    for source, schema_id, row in lsst_rows(alerts):
        yield lsst_sample(row, schema_id, lsst_frame(row, schema_id), source, "")


def lsst_sample(row: Record, schema_id: int, data: bytes, source: Source, note: str) -> Sample:
    """One gzip per alert, named like the survey's archive; the note says what is in it."""
    n_detections, n_forced = history(row)
    note += f"history {n_detections} detections {n_forced} forced"
    if row["diaSource"].get("ssObjectId"):
        note += "; solar system"
    elif not row["prvDiaSources"]:
        note += "; first detection"
    matched = row.get("xm") or {}
    otype = str(matched.get("simbad_otype") or row.get("cdsxmatch") or "")
    note += f"; Simbad type {otype}" if otype not in ("", "nan", "Unknown", "Fail") else ""
    name = f"lsst/{row['diaSource']['diaSourceId']}-{schema_id}.avro.gz"
    return Sample(name, "", "lsst", str(schema_id), data, source.origin, source.licence, note)


# --- ELAsTiCC: bare bodies ----------------------------------------------------------------------------------------


def elasticc_samples(parquet: Path) -> Iterator[Sample]:
    """100 packets: 15 first detections, the 10 longest histories, the rest at even distances."""
    schema = json.loads((ROOT / "schemas" / "elasticc" / "0.9.avsc").read_text())
    named = named_records(schema)
    origin = "astrolabsoftware/fink-tutorials@d0346f4:desc_elasticc/ftransfer_elasticc_2023-02-08_902820"
    rows = pq.read_table(parquet).to_pylist()
    rows.sort(key=lambda row: (history(row), row["alertId"]))
    new = [row for row in rows if not row["prvDiaSources"]]
    middle = rows[len(new) : -10]
    for row in spread(new, 15) + spread(middle, 75) + rows[-10:]:
        row |= {"prvDiaNondetectionLimits": None, "cutoutDifference": None, "cutoutTemplate": None}
        body = io.BytesIO()
        fastavro.schemaless_writer(body, schema, conform(row, schema, named))
        note = "history {} detections {} forced".format(*history(row))
        member = f"{row['alertId']}.avro"
        yield Sample("elasticc.tar.gz", member, "elasticc", "0.9", body.getvalue(), origin, "Apache-2.0", note)


# --- damaged, and the files ---------------------------------------------------------------------------------------


def damaged_samples(alerts: Path, lsst: list[Sample]) -> Iterator[Sample]:
    """Three alerts that must be refused, each in its own way."""
    crlf = permitted(alerts, "malformed/ztf-crlf")[0]
    file = f"damaged/{crlf.path.stem}-line-ends.avro"
    data = crlf.path.read_bytes()
    yield Sample(file, "", "ztf", "", data, crlf.origin, crlf.licence, "line ends converted by git; as published")
    unknown = permitted(alerts, "malformed/lsst-wire-unknown")[-1]
    file, data = "damaged/unknown-schema-12345.avro", unknown.path.read_bytes()
    yield Sample(file, "", "lsst", "12345", data, unknown.origin, unknown.licence, "schema id that no registry has")
    whole = min((s for s in lsst if s.schema == "1000"), key=lambda s: len(s.data))
    name = Path(whole.file).name.removesuffix(".avro.gz")
    file, data = f"damaged/{name}-cut-short.avro", whole.data[:20_000]
    yield Sample(file, "", "lsst", "1000", data, whole.origin, whole.licence, "first 20,000 bytes of a frame")


def write(samples: list[Sample]) -> None:
    """The files and their manifest. Times and owners are fixed, so that equal alerts give equal files."""
    for name in ("ztf.tar.gz", "elasticc.tar.gz"):
        packed = io.BytesIO()
        with tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as archive:
            for sample in (sample for sample in samples if sample.file == name):
                member = tarfile.TarInfo(sample.member)
                member.size = len(sample.data)
                archive.addfile(member, io.BytesIO(sample.data))
        (SAMPLES / name).write_bytes(gzip.compress(packed.getvalue(), 9, mtime=0))
    for sample in (sample for sample in samples if not sample.member):
        packs = sample.file.endswith(".gz")
        (SAMPLES / sample.file).write_bytes(gzip.compress(sample.data, 9, mtime=0) if packs else sample.data)
    with (SAMPLES / "MANIFEST.csv").open("w", newline="") as lines:
        table = csv.writer(lines, lineterminator="\n")
        table.writerow(("file", "member", "survey", "schema", "bytes", "sha256", "origin", "licence", "note"))
        for s in samples:
            digest = hashlib.sha256(s.data).hexdigest()
            table.writerow((s.file, s.member, s.survey, s.schema, len(s.data), digest, s.origin, s.licence, s.note))


def main() -> None:
    """Read the arguments, clear the old files, write the new ones."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("alerts", type=Path)
    arguments.add_argument("elasticc", type=Path)
    given = arguments.parse_args()
    for folder in ("lsst", "damaged"):
        shutil.rmtree(SAMPLES / folder, ignore_errors=True)
        (SAMPLES / folder).mkdir(parents=True)
    ztf = sorted(ztf_samples(given.alerts), key=lambda sample: sample.member)
    lsst = sorted(lsst_samples(given.alerts), key=lambda sample: sample.file)
    write([*ztf, *lsst, *elasticc_samples(given.elasticc), *damaged_samples(given.alerts, lsst)])


if __name__ == "__main__":
    main()
