"""Outlet `native`: our Avro record, keyed by the source id; one container or Confluent frame a verdict, of all of them.

A frame holds the id that the registry of [output] has given the schema; a container holds the schema itself.
"""

from __future__ import annotations

import json
import struct
import time
from collections.abc import Callable
from functools import cache, lru_cache
from importlib import resources
from io import BytesIO
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.lightcurve import BANDS, Floats, Integers
from broker.model import Card
from broker.outlets import Passport, avro
from broker.registry import Schema
from broker.verdict import Verdicts, points_hashes

TAXONOMY_VERSION = "elasticc-1"  # DESC's numbering as of ELAsTiCC 2: SNIa 2222
BROKER_NAME = "t2-broker"
SYNC = bytes.fromhex("7432622d76657264696374732d2d2d31")
FRAME = struct.Struct(">BI")  # 0 and the schema id
SchemaOf = Callable[[int], str]  # text of the schema that an id in a frame stands for


@cache
def schema() -> Schema:
    """The published schema of the record."""
    parsed: Schema = json.loads(schema_text())
    return parsed


@cache
def schema_text() -> str:
    """Its text, on one line."""
    return json.dumps(json.loads((resources.files("broker.schemas") / "output" / "classification.avsc").read_text()))


def of_this_version(_: int) -> str:
    """Whatever the id, the schema of this version: right as long as no other one has written frames to the topic."""
    return schema_text()


@lru_cache(maxsize=16)
def _parsed(text: str) -> Schema:
    return fastavro.parse_schema(json.loads(text))  # type: ignore[return-value]


@cache
def _container_start() -> bytes:
    """Header of a container, without docs: it travels with every verdict."""
    bare = json.dumps(_without_docs(schema()), separators=(",", ":")).encode()
    meta = b"".join(avro.varint(len(part)) + part for part in (b"avro.codec", b"null", b"avro.schema", bare))
    return b"Obj\x01" + avro.varint(2) + meta + b"\x00" + SYNC + avro.varint(1)


def _without_docs(part: object) -> object:
    if isinstance(part, dict):
        return {key: _without_docs(value) for key, value in part.items() if key != "doc"}
    return [_without_docs(p) for p in part] if isinstance(part, list) else part


def container(body: bytes) -> bytes:
    """The record as a container of its own."""
    return b"".join((_container_start(), avro.varint(len(body)), body, SYNC))


def frame(schema_id: int, body: bytes) -> bytes:
    """The record as a Confluent frame."""
    return FRAME.pack(0, schema_id) + body


def read(value: bytes, schema_of: SchemaOf = of_this_version) -> dict[str, Any]:
    """The record of one native verdict, container or frame. Raises ValueError or EOFError for anything else."""
    if value.startswith(_container_start()):  # its schema need not be parsed again
        file = BytesIO(value[len(_container_start()) :])
        fastavro.schemaless_reader(file, "long", None)
        record = fastavro.schemaless_reader(file, _parsed(schema_text()), None)
    elif value.startswith(b"\x00"):
        schema_id, file = schema_id_of(value), BytesIO(value[FRAME.size :])
        record = fastavro.schemaless_reader(file, _parsed(schema_of(schema_id)), None)
        if file.read(1):
            raise ValueError(f"a frame of schema {schema_id}, which is not the one that it was read by")
    else:
        (record,) = fastavro.reader(BytesIO(value))
    if not isinstance(record, dict):
        raise ValueError("no record")
    return record


def schema_id_of(value: bytes) -> int:
    """The id in a frame. Raises ValueError where it is cut short."""
    if len(value) < FRAME.size:
        raise ValueError("a frame that is cut short")
    return int(FRAME.unpack_from(value)[1])


def encode(verdicts: Verdicts, card: Card, passport: Passport, started_us: int) -> list[bytes]:
    """The record of each verdict, without container or frame."""
    columns: dict[str, avro.Encoded | bytes] = {
        **_of_source(verdicts),
        **_of_points(verdicts),
        **_of_classes(verdicts, card),
        **_of_alert(verdicts),
        **_shared(verdicts, passport, started_us),
    }
    fields = [str(field["name"]) for field in schema()["fields"]]  # type: ignore[attr-defined]
    return avro.join([columns[name] for name in fields], len(verdicts))


def _shared(verdicts: Verdicts, passport: Passport, started_us: int) -> dict[str, bytes]:
    """Fields that all verdicts of a batch share."""
    return {
        "survey": avro.text(verdicts.survey.name),
        "taxonomy_version": avro.text(TAXONOMY_VERSION),
        "classifierName": avro.text(passport.model),
        "classifierParams": avro.text(passport.params),
        "model_sha256": avro.text(passport.sha256),
        "rules_version": avro.varint(passport.rules_version),
        "brokerIngestTimestamp": avro.varint(started_us),
        "brokerPublishTimestamp": avro.varint(time.time_ns() // 1000),
        "brokerName": avro.text(BROKER_NAME),
        "brokerVersion": avro.text(passport.broker_version),
    }


def _of_source(verdicts: Verdicts) -> dict[str, avro.Encoded]:
    """The alert's own source."""
    g, columns = verdicts.gathered, verdicts.gathered.columns
    is_negative = pc.coalesce(columns["is_negative"], pa.array(g.flux < 0, pa.bool_(), mask=np.isnan(g.flux)))
    with np.errstate(all="ignore"):
        snr = g.flux / g.flux_err
    return {
        "source_id": avro.longs(columns["source_id"].to_pylist()),
        "object_id": avro.optional_texts(columns["object_id"].to_pylist()),
        "ra": avro.optional_numbers(_numbers(columns["ra"]), "<f8"),
        "dec": avro.optional_numbers(_numbers(columns["dec"]), "<f8"),
        "mjd_tai": avro.optional_numbers(g.mjd_tai, "<f8"),
        "band": avro.optional_texts(BANDS[code] if code >= 0 else None for code in g.band.tolist()),
        "flux": avro.optional_numbers(g.flux, "<f4"),
        "flux_err": avro.optional_numbers(g.flux_err, "<f4"),
        "snr": avro.optional_numbers(snr, "<f4"),
        "is_negative": avro.optional_flags(is_negative.to_pylist()),
        "reliability": avro.optional_numbers(_numbers(columns["reliability"]), "<f4"),
        **{
            name: avro.optional_longs(columns[name].to_pylist())
            for name in ("programid", "visit", "detector", "field", "rcid")
        },
    }


def _of_points(verdicts: Verdicts) -> dict[str, avro.Encoded]:
    """Numbers and spans of points."""
    s, c, mjd = verdicts.summary, verdicts.counts, verdicts.gathered.mjd_tai
    return {
        "n_points_offered": avro.longs(c.offered.tolist()),
        "n_points_dropped": avro.longs(c.dropped.tolist()),
        "n_points_used": avro.longs(verdicts.used.tolist()),
        "n_detections": avro.longs(s.n_detections.tolist()),
        "n_positive_detections": avro.longs(s.n_positive.tolist()),
        "n_nights": avro.longs(s.n_nights.tolist()),
        "n_points_per_band": avro.maps(_per_band(s.per_band)),
        "span_days": avro.optional_numbers(s.last_point - s.first_point, "<f8"),
        "days_since_first_detection": avro.optional_numbers(mjd - s.first_detection, "<f8"),
        "age_days": avro.optional_numbers(mjd - _numbers(verdicts.gathered.columns["first_mjd_tai"]), "<f8"),
        "points_hash": avro.texts(points_hashes(verdicts.curves)),
    }


def _per_band(counts: Integers) -> list[dict[str, int]]:
    found: list[dict[str, int]] = [{} for _ in range(len(counts))]
    for row, band in np.argwhere(counts).tolist():
        found[row][BANDS[band]] = int(counts[row, band])
    return found


def _of_classes(verdicts: Verdicts, card: Card) -> dict[str, avro.Encoded]:
    """Status, reason, best class and all probabilities (where the model ran)."""
    p = verdicts.probabilities
    ran, best = ~np.isnan(p[:, 0]), p.argmax(axis=1)
    chosen = [card.classes[b] if r else None for b, r in zip(best.tolist(), ran.tolist(), strict=True)]
    return {
        "status": avro.texts(verdicts.statuses()),
        "reason": avro.texts(verdicts.reasons()),
        "class_id": avro.optional_longs(c and c.taxonomy_id for c in chosen),
        "class_name": avro.optional_texts(c and c.name for c in chosen),
        "probability": avro.optional_numbers(p.max(axis=1), "<f4"),
        "classifications": avro.arrays([avro.varint(c.taxonomy_id) + avro.text(c.name) for c in card.classes], p),
    }


def _of_alert(verdicts: Verdicts) -> dict[str, avro.Encoded]:
    """Where the alert came from."""
    c = verdicts.coordinates
    return {
        "alert_schema": avro.optional_texts(verdicts.schemas.to_pylist()),
        "alert_topic": avro.texts(c.topic.to_pylist()),
        "alert_partition": avro.longs(c.partition.to_pylist()),
        "alert_offset": avro.longs(c.offset.to_pylist()),
        "repeats_alert": avro.optional_texts(verdicts.repeats or [None] * len(verdicts)),
        "alert_timestamp": avro.optional_longs(c.timestamp.cast(pa.int64()).to_pylist()),
    }


def _numbers(column: pa.Array) -> Floats:
    found: Floats = column.cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return found
