"""The load: alerts of five kinds made from the repository's own samples, by a stated seed.

Nothing in them is invented but the source ids, which are new so that no two alerts are equal. The average LSST alert
is a deep one whose history is cut to its newest 1-80 points, mean 18; its cutouts stay.
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import math
import struct
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import numpy as np

SAMPLES = Path(__file__).resolve().parent.parent / "examples" / "alerts"
SCHEMAS = SAMPLES.parent.parent / "schemas"
SEED = 20_261_120
SHALLOW_POINTS, DEEP_POINTS = 10, 300
AVERAGE_POINTS, MAX_AVERAGE_POINTS = 18.0, 80
AVERAGE_VARIANTS = 500  # distinct histories
# Ids from here on take nine bytes as an Avro long, as real ones do: one can be put in place of another.
FIRST_ID = 1_200_000_000_000_000_000

Record = dict[str, Any]


@dataclass(frozen=True)
class Template:
    """One alert's bytes with the places of its source id; points: in its light curve before any rule."""

    value: bytes
    id_bytes: bytes
    points: int

    def with_id(self, source_id: int) -> bytes:
        """The alert under another source id (of FIRST_ID or more)."""
        return self.value.replace(self.id_bytes, _long(source_id))


@dataclass(frozen=True)
class Load:
    """A kind of alert: the survey whose source reads it, and what it is."""

    name: str
    survey: str
    about: str


LOADS = {
    load.name: load
    for load in (
        Load("ztf", "ztf", "ZTF, containers of schemas 1.8-4.02, with cutouts"),
        Load("lsst-shallow", "lsst", f"LSST, at most {SHALLOW_POINTS} points, with cutouts"),
        Load("lsst-average", "lsst", "LSST, newest 1-80 points (mean 18) of a deep alert, with its cutouts"),
        Load("lsst-deep", "lsst", f"LSST, {DEEP_POINTS} points or more, with cutouts"),
        Load("elasticc", "elasticc", "ELAsTiCC 0.9, no cutouts"),
    )
}


def build(load: str, n: int, seed: int = SEED) -> Iterator[tuple[int, bytes]]:
    """n alerts of a load: source id and bytes as they come from Kafka, one at a time."""
    rng = np.random.default_rng([seed, sorted(LOADS).index(load)])
    kinds = templates(load)
    order = itertools.chain.from_iterable(rng.permutation(len(kinds)).tolist() for _ in itertools.count())
    for source_id, kind in zip(range(FIRST_ID, FIRST_ID + n), order, strict=False):
        yield source_id, kinds[kind].with_id(source_id)


@cache
def templates(load: str) -> tuple[Template, ...]:
    """The distinct alerts that a load repeats."""
    if load == "ztf":
        return tuple(_ztf())
    if load == "elasticc":
        return tuple(_elasticc())
    made = {"lsst-shallow": _shallow, "lsst-average": _average, "lsst-deep": _deep}[load]()
    return tuple(_lsst(schema_id, record) for schema_id, record in made)


def point_counts(n: int) -> list[int]:
    """n numbers of points, 1-80 with mean 18: quantiles of an exponential that is cut off at both ends."""
    points = np.arange(1, MAX_AVERAGE_POINTS + 1)

    def weights(scale: float) -> np.ndarray[Any, Any]:
        found: np.ndarray[Any, Any] = np.exp(-points / scale)
        found /= found.sum()
        return found

    low, high = 1.0, 1000.0
    while high - low > 1e-6:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if (points * weights(middle)).sum() < AVERAGE_POINTS else (low, middle)
    at = np.searchsorted(np.cumsum(weights(low)), (np.arange(n) + 0.5) / n)
    return [int(p) for p in points[np.minimum(at, len(points) - 1)]]


def _shallow() -> list[tuple[int, Record]]:
    return [(s, r) for s, r in _lsst_samples() if _n_points(r) <= SHALLOW_POINTS and r.get("cutoutDifference")]


def _deep() -> list[tuple[int, Record]]:
    return [(s, r) for s, r in _lsst_samples() if _n_points(r) >= DEEP_POINTS]


def _average() -> Iterator[tuple[int, Record]]:
    """Deep alerts in turn, their histories cut; the longest curves are not always of the same alert."""
    deep = itertools.cycle(_deep())
    for n in point_counts(AVERAGE_VARIANTS):
        schema_id, record = next(deep)
        yield schema_id, _cut(record, n)


def _cut(record: Record, n: int) -> Record:
    """The alert with its newest n points; measurements of one exposure count once."""
    own = record["diaSource"]["midpointMjdTai"]
    times = sorted({p["midpointMjdTai"] for p in _history(record)} - {own}, reverse=True)[: n - 1]
    since = min(times, default=own)
    kept = {
        name: [p for p in record[name] or () if p["midpointMjdTai"] >= since]
        for name in ("prvDiaSources", "prvDiaForcedSources")
    }
    return record | kept


def _history(record: Record) -> list[Record]:
    return [*(record["prvDiaSources"] or ()), *(record["prvDiaForcedSources"] or ())]


def _n_points(record: Record) -> int:
    return len({p["midpointMjdTai"] for p in _history(record)} | {record["diaSource"]["midpointMjdTai"]})


@cache
def _lsst_samples() -> list[tuple[int, Record]]:
    """Every LSST sample: schema id and record."""
    found = []
    for path in sorted((SAMPLES / "lsst").glob("*.avro.gz")):
        data = gzip.decompress(path.read_bytes())
        schema_id = int(struct.unpack_from(">I", data, 1)[0])
        record = fastavro.schemaless_reader(io.BytesIO(data[5:]), _schema(f"lsst/{schema_id}"), None)
        assert isinstance(record, dict)
        found.append((schema_id, record))
    return found


@cache
def _schema(name: str) -> Any:
    return fastavro.parse_schema(json.loads((SCHEMAS / f"{name}.avsc").read_text()))


def _lsst(schema_id: int, record: Record) -> Template:
    return Template(lsst_frame(schema_id, record, FIRST_ID), _long(FIRST_ID), _n_points(record))


def lsst_frame(schema_id: int, record: Record, source_id: int) -> bytes:
    """An LSST alert under another source id, as it comes from Kafka."""
    record = record | {"diaSource": record["diaSource"] | {"diaSourceId": source_id}}
    record |= {name: source_id for name in ("diaSourceId", "alertId") if name in record}
    return struct.pack(">BI", 0, schema_id) + _encoded(_schema(f"lsst/{schema_id}"), record)


def lsst_sample(deep: bool) -> tuple[int, Record]:
    """Schema id and record of one shallow or deep LSST alert."""
    return (_deep() if deep else _shallow())[0]


def _ztf() -> Iterator[Template]:
    """ZTF keeps its own bytes: the id is patched in the container, whose lengths stay as they are."""
    for data in _members("ztf.tar.gz"):
        (record,) = fastavro.reader(io.BytesIO(data))
        assert isinstance(record, dict)
        if record.get("cutoutDifference"):
            history = [p for p in record["prv_candidates"] or () if p["magpsf"] is not None]
            points = 1 + len(history) + len(record.get("fp_hists") or ())
            yield Template(data, _long(record["candid"]), points)


def _elasticc() -> Iterator[Template]:
    for data in _members("elasticc.tar.gz"):
        record = fastavro.schemaless_reader(io.BytesIO(data), _schema("elasticc/0.9"), None)
        assert isinstance(record, dict)
        record["alertId"] = record["diaSource"]["diaSourceId"] = FIRST_ID
        points = 1 + len(record["prvDiaSources"] or ()) + len(record["prvDiaForcedSources"] or ())
        yield Template(_encoded(_schema("elasticc/0.9"), record), _long(FIRST_ID), points)


def _members(file: str) -> Iterator[bytes]:
    with tarfile.open(SAMPLES / file, "r|*") as archive:
        for member in archive:
            content = archive.extractfile(member)
            if content is not None:
                yield content.read()


def _encoded(schema: Any, record: Record) -> bytes:
    buffer = io.BytesIO()
    fastavro.schemaless_writer(buffer, schema, record)
    return buffer.getvalue()


def _long(number: int) -> bytes:
    return _encoded("long", number)  # type: ignore[arg-type]
