"""Outlet `native`: our Avro record, one container per verdict, keyed by the source id. Carries every verdict."""

from __future__ import annotations

import json
import time
from functools import cache
from importlib import resources
from io import BytesIO
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.lightcurve import BANDS
from broker.model import Card
from broker.outlets import Passport
from broker.registry import Schema
from broker.verdict import Verdicts, points_hashes

TAXONOMY_VERSION = "elasticc-1"  # DESC's numbering as of ELAsTiCC 2: SNIa 2222
BROKER_NAME = "t2-broker"
SYNC = bytes.fromhex("7432622d76657264696374732d2d2d31")


@cache
def schema() -> Schema:
    """The published schema of the record."""
    text = (resources.files("broker.schemas") / "output" / "classification.avsc").read_text()
    parsed: Schema = json.loads(text)
    return parsed


@cache
def _parsed() -> Schema:
    return fastavro.parse_schema(json.loads(json.dumps(schema())))  # type: ignore[return-value]


@cache
def _container_start() -> bytes:
    """Header of a container, without docs: it travels with every verdict."""
    bare = json.dumps(_without_docs(schema()), separators=(",", ":")).encode()
    meta = b"".join(_sized(part) for part in (b"avro.codec", b"null", b"avro.schema", bare))
    return b"Obj\x01" + varint(2) + meta + b"\x00" + SYNC + varint(1)


def _without_docs(part: object) -> object:
    if isinstance(part, dict):
        return {key: _without_docs(value) for key, value in part.items() if key != "doc"}
    return [_without_docs(p) for p in part] if isinstance(part, list) else part


def varint(number: int) -> bytes:
    """An Avro long: zigzag, seven bits a byte."""
    number = (number << 1) ^ (number >> 63)
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _sized(data: bytes) -> bytes:
    return varint(len(data)) + data


def container(body: bytes) -> bytes:
    """The record as a container of its own."""
    return b"".join((_container_start(), varint(len(body)), body, SYNC))


def body_of(value: bytes) -> bytes:
    """The record's bytes in a container that `container` made."""
    file = BytesIO(value[len(_container_start()) :])
    size = fastavro.schemaless_reader(file, "long", None)
    assert isinstance(size, int)
    return file.read(size)


def read(value: bytes) -> dict[str, Any]:
    """The record of one native verdict."""
    record = fastavro.schemaless_reader(BytesIO(body_of(value)), _parsed(), None)
    assert isinstance(record, dict)
    return record


def encode(verdicts: Verdicts, card: Card, passport: Passport, started_us: int) -> list[bytes]:
    """Container bytes of each verdict."""
    parsed, out = _parsed(), []
    for record in records(verdicts, card, passport, started_us):
        buffer = BytesIO()
        fastavro.schemaless_writer(buffer, parsed, record)
        out.append(container(buffer.getvalue()))
    return out


def records(verdicts: Verdicts, card: Card, passport: Passport, started_us: int) -> list[dict[str, object]]:
    """The records as dictionaries of the published schema."""
    constant = {
        "survey": verdicts.survey.name,
        "taxonomy_version": TAXONOMY_VERSION,
        "classifierName": passport.model,
        "classifierParams": passport.params,
        "model_sha256": passport.sha256,
        "rules_version": passport.rules_version,
        "brokerIngestTimestamp": started_us,
        "brokerPublishTimestamp": time.time_ns() // 1000,
        "brokerName": BROKER_NAME,
        "brokerVersion": passport.broker_version,
    }
    columns = _columns(verdicts) | _answers(verdicts, card)
    names = tuple(columns)
    return [dict(zip(names, row, strict=True), **constant) for row in zip(*columns.values(), strict=True)]


def _columns(verdicts: Verdicts) -> dict[str, list[object]]:
    """Everything but the classes, one list per field."""
    g, s, c = verdicts.gathered, verdicts.summary, verdicts.counts
    age = g.mjd_tai - g.columns["first_mjd_tai"].cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    is_negative = pc.coalesce(g.columns["is_negative"], _nullable(g.flux < 0, np.isnan(g.flux)))
    with np.errstate(all="ignore"):
        snr = g.flux / g.flux_err
    return {
        **{
            name: column.to_pylist()
            for name, column in g.columns.items()
            if name not in ("is_negative", "first_mjd_tai")
        },
        "is_negative": is_negative.to_pylist(),
        "mjd_tai": _finite(g.mjd_tai),
        "band": [BANDS[code] if code >= 0 else None for code in g.band],
        "flux": _finite(g.flux),
        "flux_err": _finite(g.flux_err),
        "snr": _finite(snr),
        "status": list(verdicts.statuses()),
        "reason": list(verdicts.reasons()),
        "n_points_offered": c.offered.tolist(),
        "n_points_dropped": c.dropped.tolist(),
        "n_points_used": verdicts.used.tolist(),
        "n_detections": s.n_detections.tolist(),
        "n_positive_detections": s.n_positive.tolist(),
        "n_nights": s.n_nights.tolist(),
        "n_points_per_band": [{BANDS[b]: int(row[b]) for b in np.flatnonzero(row)} for row in s.per_band],
        "span_days": _finite(s.last_point - s.first_point),
        "days_since_first_detection": _finite(g.mjd_tai - s.first_detection),
        "age_days": _finite(age),
        "points_hash": list(points_hashes(verdicts.curves)),
        "alert_schema": verdicts.schemas.to_pylist(),
        "alert_topic": verdicts.coordinates.topic.to_pylist(),
        "alert_partition": verdicts.coordinates.partition.to_pylist(),
        "alert_offset": verdicts.coordinates.offset.to_pylist(),
        "alert_timestamp": verdicts.coordinates.timestamp.cast(pa.int64()).to_pylist(),
    }


def _answers(verdicts: Verdicts, card: Card) -> dict[str, list[object]]:
    """Best class and all probabilities, where the model ran."""
    ids = [c.taxonomy_id for c in card.classes]
    names = [c.name for c in card.classes]
    answers: dict[str, list[object]] = {"class_id": [], "class_name": [], "probability": [], "classifications": []}
    for row, best in zip(verdicts.probabilities.tolist(), verdicts.probabilities.argmax(axis=1).tolist(), strict=True):
        ran = row[0] == row[0]  # NaN where it did not
        answers["class_id"].append(ids[best] if ran else None)
        answers["class_name"].append(names[best] if ran else None)
        answers["probability"].append(row[best] if ran else None)
        answers["classifications"].append(
            [{"classId": i, "className": n, "probability": p} for i, n, p in zip(ids, names, row, strict=True)]
            if ran
            else []
        )
    return answers


def _finite(values: np.ndarray[tuple[int], np.dtype[np.floating]]) -> list[object]:
    """Values as Python numbers, null where not finite. Magnitudes are capped to what a float holds."""
    with np.errstate(over="ignore"):
        ok = np.isfinite(values.astype(np.float32)) if values.dtype == np.float64 else np.isfinite(values)
    return [v if k else None for v, k in zip(values.tolist(), ok.tolist(), strict=True)]


def _nullable(
    values: np.ndarray[tuple[int], np.dtype[np.bool_]], null: np.ndarray[tuple[int], np.dtype[np.bool_]]
) -> pa.Array:
    return pa.array(values, pa.bool_(), mask=null)
