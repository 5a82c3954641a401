"""Generated alerts: random valid records of any schema that ships, as each survey sends them, and ways to spoil them.

The same seed gives the same bytes. Real samples are in samples.py; these cover the versions without one.
"""

import io
import json
import math
import random
import string
import zlib
from collections.abc import Callable
from functools import cache
from typing import Any, cast

import fastavro
from samples import SCHEMAS, whole

Record = dict[str, Any]
MAGIC = b"Obj\x01"
SYNC = bytes(range(16))
LABELS = {survey: sorted(p.stem for p in (SCHEMAS / survey).glob("*.avsc")) for survey in ("lsst", "ztf", "elasticc")}
# Lists of an alert: (detections, forced photometry), and its own source.
HISTORY = {
    "lsst": ("prvDiaSources", "prvDiaForcedSources", "diaSource"),
    "elasticc": ("prvDiaSources", "prvDiaForcedSources", "diaSource"),
    "ztf": ("prv_candidates", "fp_hists", "candidate"),
}


# --- records ------------------------------------------------------------------------------------------------------


@cache
def schema_of(survey: str, label: str) -> Record:
    """The layout with this file name, as JSON."""
    return cast(Record, json.loads((SCHEMAS / survey / f"{label}.avsc").read_text()))


def value(schema: Any, rng: random.Random, named: dict[str, Any]) -> Any:
    """A random valid value of any type. Records are kept in `named`; what may be null is null once in five."""
    schema = named.get(schema, schema) if isinstance(schema, str) else schema
    if isinstance(schema, list):
        branches = [branch for branch in schema if branch != "null"]
        is_null = "null" in schema and (not branches or rng.random() < 0.2)
        made = value(rng.choice(branches), rng, named) if branches else None  # made anyway: it may define a name
        return None if is_null else made
    if isinstance(schema, dict) and schema["type"] == "record":
        named[schema["name"]] = schema
        return {field["name"]: value(field["type"], rng, named) for field in schema["fields"]}
    if isinstance(schema, dict) and schema["type"] == "array":
        return [value(schema["items"], rng, named) for _ in range(rng.randint(1, 3))]
    kind = schema["type"] if isinstance(schema, dict) else schema
    simple: dict[str, Callable[[], Any]] = {
        "null": lambda: None,
        "boolean": lambda: rng.random() < 0.1,
        "int": lambda: rng.randint(0, 2**31 - 1),
        "long": lambda: rng.randint(0, 2**62),
        "float": lambda: single(rng.gauss(0, 100)),
        "double": lambda: rng.gauss(0, 100),
        "bytes": lambda: rng.randbytes(rng.randint(0, 60)),
        "string": lambda: "".join(rng.choices(string.ascii_letters, k=rng.randint(0, 8))),
    }
    return simple[kind]()


def single(number: float) -> float:
    """The number rounded to what a 32-bit float holds."""
    file = io.BytesIO()
    fastavro.schemaless_writer(file, "float", number)
    file.seek(0)
    return cast(float, fastavro.schemaless_reader(file, "float", None))


def alert(survey: str, label: str, seed: int, n_detections: int = 3, n_forced: int = 5) -> Record:
    """A valid alert with a plausible light curve: known bands, times within 30 days, fluxes of some hundred nJy.

    Forced points repeat the exposures of the detections and add some of their own, where the layout has them.
    """
    rng = random.Random(f"{survey} {label} {seed}")
    named: dict[str, Any] = {}
    made = cast(Record, value(schema_of(survey, label), rng, named))
    detections, forced, own = HISTORY[survey]
    types = {field["name"]: field["type"] for field in schema_of(survey, label)["fields"]}
    exposures = [exposure(i, rng) for i in range(max(n_detections, n_forced) + 1)]

    def points(name: str, wanted: list[tuple[float, int, int]]) -> list[Record]:
        kind = record_of(types[name], named)
        return [measured(value(kind, rng, named), survey, when, rng) for when in wanted]

    made[own] = points(own, exposures[-1:])[0]
    made[detections] = points(detections, exposures[:n_detections])
    if forced in types:
        made[forced] = points(forced, exposures[:n_forced])
    return with_ids(made, survey, rng)


def record_of(schema: Any, named: dict[str, Any]) -> Any:
    """The record behind a name, a nullable union or an array."""
    if isinstance(schema, list):
        return record_of(next(branch for branch in schema if branch != "null"), named)
    if isinstance(schema, dict):
        return record_of(schema["items"], named) if schema["type"] == "array" else schema
    return named[schema]


def exposure(i: int, rng: random.Random) -> tuple[float, int, int]:
    """(MJD, number of the image, band number) of one exposure; later ones are later."""
    return 60_000.0 + 3.0 * i + rng.random(), 2_000_000_000_000 + 10 * i, rng.randint(1, 3)


def measured(record: Record, survey: str, when: tuple[float, int, int], rng: random.Random) -> Record:
    """The record with time, band, exposure and flux that make sense, and no flag that bars it."""
    mjd, image, band = when
    flux, label = single(rng.gauss(0, 400)), "ugr"[band - 1]
    fields: dict[str, Any] = {
        "lsst": {"midpointMjdTai": mjd, "visit": image, "detector": 42, "band": label, "psfFlux": flux}
        | {"psfFluxErr": single(rng.uniform(1, 30)), "timeWithdrawnMjdTai": None, "ssObjectId": None}
        | {"reliability": 0.875, "ra": 150.0, "dec": 2.0},
        "elasticc": {"midPointTai": mjd, "filterName": label, "psFlux": flux, "psFluxErr": single(rng.uniform(1, 30))}
        | {"ra": 150.0, "decl": 2.0},
        "ztf": {"jd": 2_400_000.5 + mjd, "pid": image, "fid": band, "programid": 1, "exptime": 30.0, "nbad": 0}
        | {"magpsf": single(rng.uniform(16, 20)), "sigmapsf": single(rng.uniform(0.01, 0.2)), "magzpsci": 26.0}
        | {"isdiffpos": rng.choice("tf10"), "forcediffimflux": flux, "forcediffimfluxunc": single(rng.uniform(1, 30))}
        | {"rb": 0.875, "drb": 0.875, "ssdistnr": -999.0, "ssmagnr": -999.0, "procstatus": "0"}
        | {"ra": 150.0, "dec": 2.0},
    }[survey]
    barring = ("is_dipole", "isDipole", "glint_trail", "psfFlux_flag")
    flags = {name: False for name in record if name in barring or name.startswith("pixelFlags")}
    return record | {name: given for name, given in (fields | flags).items() if name in record}


def with_ids(made: Record, survey: str, rng: random.Random) -> Record:
    """The alert with one source and one object, and no solar-system record."""
    source_id, object_id = rng.randint(1, 2**60), rng.randint(1, 2**60)
    if survey == "ztf":
        made |= {"objectId": f"ZTF26{''.join(rng.choices(string.ascii_lowercase, k=7))}", "candid": source_id}
        made["candidate"]["candid"] = source_id
        return made
    made |= {name: source_id for name in ("alertId", "diaSourceId") if name in made}
    made["diaSource"] |= {"diaSourceId": source_id, "diaObjectId": object_id}
    if made["diaObject"] is not None:
        made["diaObject"]["diaObjectId"] = object_id
    return made | {name: None for name in ("ssSource", "ssObject", "MPCORB", "mpc_orbits") if name in made}


# --- bytes --------------------------------------------------------------------------------------------------------


def long(number: int) -> bytes:
    """An Avro long."""
    file = io.BytesIO()
    fastavro.schemaless_writer(file, "long", number)
    return file.getvalue()


def body(record: Any, schema: Any) -> bytes:
    """One bare Avro datum."""
    file = io.BytesIO()
    fastavro.schemaless_writer(file, fastavro.parse_schema(schema), record)
    return file.getvalue()


def header(schema: Any, codec: str = "null") -> bytes:
    """A container's header up to the sync marker."""
    meta = {"avro.codec": codec.encode(), "avro.schema": json.dumps(schema).encode()}
    return MAGIC + body(meta, {"type": "map", "values": "bytes"})


def block(data: bytes, n_records: int = 1, sync: bytes = SYNC) -> bytes:
    """A container's block: number of records, size, (packed) records, sync marker."""
    return long(n_records) + long(len(data)) + data + sync


def container(records: list[Any], schema: Any, codec: str = "null") -> bytes:
    """A container of these records in one block (of none if there are none)."""
    data = b"".join(body(record, schema) for record in records)
    start = header(schema, codec) + SYNC
    return start + block(packed(data, codec), len(records)) if records else start


def packed(data: bytes, codec: str) -> bytes:
    """A block's data by a codec."""
    if codec == "deflate":
        return deflate(data)
    file = io.BytesIO()
    fastavro.writer(file, {"type": "fixed", "name": "Data", "size": len(data)}, [data], codec, sync_marker=SYNC)
    whole_file = file.getvalue()
    tail = whole_file[whole_file.index(SYNC) + 16 : -16]  # number of records, size, packed data
    rest = io.BytesIO(tail)
    for _ in range(2):
        fastavro.schemaless_reader(rest, "long", None)
    return rest.read()


def deflate(data: bytes) -> bytes:
    """Raw deflate, as Avro has it."""
    stream = zlib.compressobj(9, zlib.DEFLATED, -15)
    return stream.compress(data) + stream.flush()


def encode(survey: str, label: str, record: Record) -> bytes:
    """The record as its survey sends it: Confluent frame, container, bare body.

    A ZTF container has a real header where a sample alert has this layout, else one with the layout as its schema.
    """
    schema = schema_of(survey, label)
    if survey == "lsst":
        return b"\x00" + int(label).to_bytes(4) + body(record, schema)
    if survey == "elasticc":
        return body(record, schema)
    return native_headers().get(label, header(schema)) + SYNC + block(body(record, schema))


@cache
def native_headers() -> dict[str, bytes]:
    """One real header for each ZTF layout among the samples."""
    found = {}
    for sample in whole("ztf"):
        reader = fastavro.reader(io.BytesIO(sample.data))
        text = fastavro.schema.to_parsing_canonical_form(json.loads(reader.metadata["avro.schema"]))
        for label in LABELS["ztf"]:
            if label not in found and json.loads(text) == schema_of("ztf", label):
                found[label] = sample.data[: sample.data.index(reader._header["sync"])]
    return found


def generated(survey: str, label: str, n: int, seed: int = 0) -> list[bytes]:
    """n alerts of one layout, with histories of 0 to 8 detections and 0 to 12 forced points."""
    rng = random.Random(seed)
    sizes = [(rng.randint(0, 8), rng.randint(0, 12)) for _ in range(n)]
    return [encode(survey, label, alert(survey, label, 1000 * seed + i, *size)) for i, size in enumerate(sizes)]


# --- records that must be refused or not be classified ------------------------------------------------------------


def with_flux(record: Record, survey: str, flux: float) -> Record:
    """The alert's own source with this flux: NaN, infinity, -99999 (as a magnitude for ZTF)."""
    own, name = HISTORY[survey][2], {"lsst": "psfFlux", "ztf": "magpsf", "elasticc": "psFlux"}[survey]
    return record | {own: record[own] | {name: flux}}


def with_all_fluxes(record: Record, survey: str, flux: float = math.nan) -> Record:
    """Every point of the alert with this flux: nothing is left to classify."""
    names = ("psfFlux", "psFlux", "magpsf", "forcediffimflux")
    spoilt = with_flux(record, survey, flux)
    for history in HISTORY[survey][:2]:
        points = record.get(history) or []
        spoilt |= {history: [p | {n: flux for n in names if n in p} for p in points]} if history in record else {}
    return spoilt


def with_band(record: Record, survey: str, band: Any) -> Record:
    """The alert's own source with this band label (text; a number for ZTF)."""
    own, name = HISTORY[survey][2], {"lsst": "band", "ztf": "fid", "elasticc": "filterName"}[survey]
    return record | {own: record[own] | {name: band}}


def without_object(record: Record) -> Record:
    """An LSST or ELAsTiCC alert without its object."""
    return record | {"diaObject": None, "diaSource": record["diaSource"] | {"diaObjectId": None}}


def of_solar_system(record: Record) -> Record:
    """An LSST alert of a known solar-system object: no diaObject, no history."""
    own = record["diaSource"] | {"ssObjectId": 20_890_966_901_666_384, "diaObjectId": 0}
    return record | {"diaObject": None, "prvDiaSources": None, "prvDiaForcedSources": None, "diaSource": own}


# --- damage -------------------------------------------------------------------------------------------------------


def truncate(data: bytes, rng: random.Random) -> bytes:
    """A part of the beginning, at least one byte short."""
    return data[: rng.randrange(len(data))]


def flip(data: bytes, rng: random.Random, n_bits: int = 1) -> bytes:
    """Some bits turned over."""
    spoilt = bytearray(data)
    for _ in range(n_bits):
        spoilt[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    return bytes(spoilt)


def insert(data: bytes, rng: random.Random, n_bytes: int = 3) -> bytes:
    """Some bytes put in between."""
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(n_bytes) + data[at:]


DAMAGES: tuple[Callable[[bytes, random.Random], bytes], ...] = (truncate, flip, insert)


def huge_array(survey: str, label: str, n_items: int = 2**31 - 9) -> bytes:
    """An alert that ends where its history begins, with the claim of n_items to come."""
    schema, name = schema_of(survey, label), HISTORY[survey][0]
    place = [field["name"] for field in schema["fields"]].index(name)
    start = body(alert(survey, label, 0), schema | {"fields": schema["fields"][:place]})
    union = schema["fields"][place]["type"]
    is_array = [isinstance(branch, dict) for branch in union].index(True)
    data = start + long(is_array) + long(n_items)
    if survey == "ztf":
        return native_headers().get(label, header(schema)) + SYNC + block(data)
    return (b"\x00" + int(label).to_bytes(4) if survey == "lsst" else b"") + data


def zero_byte_bomb(n_items: int = 10**9, inside: str | None = None) -> bytes:
    """A container of a few bytes whose one record holds n_items nulls; inside: as an extra field of a ZTF alert."""
    nulls = {"type": "array", "items": "null"}
    if inside is None:
        schema: Any = {"type": "record", "name": "Bomb", "fields": [{"name": "items", "type": nulls}]}
        return header(schema) + SYNC + block(long(n_items) + long(0))
    whole_alert = schema_of("ztf", inside)
    schema = whole_alert | {"fields": [*whole_alert["fields"], {"name": "items", "type": nulls}]}
    data = body(alert("ztf", inside, 0), whole_alert) + long(n_items) + long(0)
    return header(schema) + SYNC + block(data)


@cache
def deflate_bomb(n_bytes: int = 480_000_000) -> bytes:
    """A deflate container of about n_bytes / 1000 whose one record is n_bytes of zeros."""
    schema = {"type": "record", "name": "Bomb", "fields": [{"name": "payload", "type": "bytes"}]}
    stream, zeros = zlib.compressobj(9, zlib.DEFLATED, -15), bytes(2**20)
    parts = [stream.compress(long(n_bytes))]
    parts += [stream.compress(zeros[: min(2**20, n_bytes - done)]) for done in range(0, n_bytes, 2**20)]
    return header(schema, "deflate") + SYNC + block(b"".join([*parts, stream.flush()]))


def container_within(data: bytes) -> bytes:
    """A container whose one record is another container's bytes."""
    schema = {"type": "record", "name": "Wrapped", "fields": [{"name": "payload", "type": "bytes"}]}
    return container([{"payload": data}], schema)


def recursive(depth: int = 200_000, inside: str | None = None) -> bytes:
    """A container whose record nests itself: it overflows the C stack of a decoder that does not count.

    inside: as an extra field of a ZTF alert of this layout, so that the schema looks like the survey's.
    """
    node = {"name": "next", "type": ["null", "Node"]}
    chain: Record = {"type": "record", "name": "Node", "fields": [node]}
    data = b"\x02" * depth + b"\x00"
    if inside is None:
        return header(chain) + SYNC + block(data)
    whole_alert = schema_of("ztf", inside)
    nested = {"name": "deep", "type": {"type": "record", "name": "Node", "namespace": "ztf.alert", "fields": [node]}}
    schema = whole_alert | {"fields": [nested, *whole_alert["fields"]]}
    return header(schema) + SYNC + block(data + body(alert("ztf", inside, 0), whole_alert))


def nested_schema(depth: int = 20_000) -> bytes:
    """A container whose schema text nests arrays: it exhausts a parser that recurses."""
    text = '{"type":"array","items":' * depth + '"int"' + "}" * depth
    meta = {"avro.codec": b"null", "avro.schema": text.encode()}
    return MAGIC + body(meta, {"type": "map", "values": "bytes"}) + SYNC + block(b"\x00")
