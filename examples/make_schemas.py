"""Write the wire layouts in schemas/ from original schemas and alerts: names, types and order, nothing else.

    python examples/make_schemas.py ALERTS [--elasticc FOLDER]

ALERTS is a folder of original alerts: lsst/schemas/<version>/*.avsc (from the PyPI wheel lsst-alert-packet), ztf/ and
elasticc/ with Avro containers in any depth, bare, gzipped or in tar.gz. FOLDER is `alert_schema` of LSSTDESC/elasticc.
"""

import argparse
import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fastavro
from fastavro.schema import load_schema, to_parsing_canonical_form

SCHEMAS = Path(__file__).resolve().parent.parent / "schemas"
MAGIC = b"Obj\x01"
# Layouts that differ although the schema calls itself by the same version: sha256 of the canonical form -> file name.
NAMED_BY_HASH = {"d57fa07c": "0.9-early", "e8a1bbd8": "3.3-null-first"}


def canonical(schema: Any) -> str:
    """The parsing canonical form: full names, types and order; no docs, defaults, aliases or logical types."""
    return to_parsing_canonical_form(json.loads(json.dumps(schema)))


def write_lsst(folder: Path) -> None:
    """schemas/lsst/<100 * major + minor>.avsc of every version below `folder`."""
    for path in sorted(folder.glob("*/*.alert.avsc")):
        major, minor = (int(part) for part in path.parent.name.split("."))
        target = SCHEMAS / "lsst" / f"{100 * major + minor}.avsc"
        target.write_text(canonical(load_schema(str(path))) + "\n")


def containers(folder: Path) -> Iterator[bytes]:
    """The bytes of every Avro container below `folder`, out of gzip and tar.gz where they are packed."""
    for path in sorted(folder.rglob("*")):
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                yield from (file.read() for member in archive if (file := archive.extractfile(member)))
        elif path.is_file():
            data = path.read_bytes()
            yield gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data


def version_of(schema: dict[str, Any], layout: str) -> str:
    """The name of the layout's file: the version the schema states, or the one in its name (elasticc.v0_9.alert)."""
    by_hash = NAMED_BY_HASH.get(hashlib.sha256(layout.encode()).hexdigest()[:8])
    return by_hash or str(schema.get("version") or schema["name"].split(".")[1][1:].replace("_", "."))


def write_containers(folder: Path, survey: str) -> None:
    """schemas/<survey>/<version>.avsc per layout and headers.toml, from the containers as the survey wrote them."""
    files: dict[str, str] = {}  # layout -> file
    headers: dict[bytes, str] = {}  # header up to the sync marker -> file
    for data in containers(folder):
        if data[:4] != MAGIC:
            continue
        reader = fastavro.reader(io.BytesIO(data))
        schema = reader.writer_schema
        if not isinstance(schema, dict) or schema["name"].split(".")[0] != survey or reader.codec != "null":
            continue  # a re-written alert, not the survey's own bytes
        layout = canonical(json.loads(reader.metadata["avro.schema"]))
        file = files.setdefault(layout, version_of(schema, layout) + ".avsc")
        headers[data[: data.index(reader._header["sync"])]] = file
    for layout, file in files.items():
        (SCHEMAS / survey / file).write_text(layout + "\n")
    lines = ["# Container headers: every byte before the sync marker. See README.md.\n"]
    for header, file in sorted(headers.items(), key=lambda item: (item[1], len(item[0]), item[0])):
        digest = hashlib.sha256(header).hexdigest()
        start = header[:40].hex()
        lines.append(f'[[header]]\nlength = {len(header)}\nstart = "{start}"\nsha256 = "{digest}"\nschema = "{file}"\n')
    (SCHEMAS / survey / "headers.toml").write_text("\n".join(lines))


def main() -> None:
    """Read the arguments and write all three surveys."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("alerts", type=Path)
    arguments.add_argument("--elasticc", type=Path, help="alert_schema of LSSTDESC/elasticc, for version 0.9.1")
    given = arguments.parse_args()
    write_lsst(given.alerts / "lsst" / "schemas")
    write_containers(given.alerts / "ztf", "ztf")
    write_containers(given.alerts / "elasticc", "elasticc")
    if given.elasticc:
        schema = load_schema(str(given.elasticc / "elasticc.v0_9_1.alert.avsc"))
        (SCHEMAS / "elasticc" / "0.9.1.avsc").write_text(canonical(schema) + "\n")


if __name__ == "__main__":
    main()
