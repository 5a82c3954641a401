"""Verdicts as columns: what the outlets write from and what filters are evaluated on, under the record's names.

The times of processing are not among them, so that a filter gives the same answer when a batch runs again.
"""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.lightcurve import AB_ZERO_POINT_NJY, BANDS, Floats, Singles
from broker.model import Card
from broker.outlets import Passport
from broker.verdict import Verdicts, points_hashes

CLASS_PREFIX = "p_"  # p_SNIa: probability of a class
_OF_SOURCE = {
    "source_id": pa.int64(),
    "object_id": pa.string(),
    "programid": pa.int32(),
    "ra": pa.float64(),
    "dec": pa.float64(),
}
_PLACE = {"visit": pa.int64(), "detector": pa.int32(), "field": pa.int32(), "rcid": pa.int32()}


def schema(card: Card) -> pa.Schema:
    """Names and types of the columns, for a model's classes."""
    singles = pa.float32()
    return pa.schema(
        {
            "survey": pa.string(),
            **_OF_SOURCE,
            "mjd_tai": pa.float64(),
            "band": pa.string(),
            "flux": singles,
            "flux_err": singles,
            "snr": singles,
            "magnitude": pa.float64(),
            "is_negative": pa.bool_(),
            "reliability": singles,
            **_PLACE,
            "status": pa.string(),
            "reason": pa.string(),
            "class_id": pa.int32(),
            "class_name": pa.string(),
            "probability": singles,
            **{CLASS_PREFIX + c.name: singles for c in card.classes},
            "n_points_offered": pa.int32(),
            "n_points_dropped": pa.int32(),
            "n_points_used": pa.int32(),
            "n_detections": pa.int32(),
            "n_positive_detections": pa.int32(),
            "n_nights": pa.int32(),
            "span_days": pa.float64(),
            "days_since_first_detection": pa.float64(),
            "age_days": pa.float64(),
            "points_hash": pa.string(),
            "alert_schema": pa.string(),
            "alert_topic": pa.string(),
            "alert_partition": pa.int32(),
            "alert_offset": pa.int64(),
            "alert_timestamp": pa.timestamp("us", "UTC"),
        }
    )


def table(verdicts: Verdicts, card: Card) -> pa.RecordBatch:
    """The columns of n verdicts; null where a value is missing or not finite."""
    n = len(verdicts)
    found = {"survey": pa.array([verdicts.survey.name] * n, pa.string())}
    found |= _of_source(verdicts) | _of_classes(verdicts, card) | _of_points(verdicts) | _of_alert(verdicts)
    wanted = schema(card)
    return pa.RecordBatch.from_arrays([found[field.name].cast(field.type) for field in wanted], schema=wanted)


def _finite(values: Floats | Singles, kind: pa.DataType) -> pa.Array:
    with np.errstate(over="ignore"):
        cells = np.asarray(values).astype(kind.to_pandas_dtype())
    return pa.array(cells, kind, mask=~np.isfinite(cells))


def _of_source(verdicts: Verdicts) -> dict[str, pa.Array]:
    g, columns = verdicts.gathered, verdicts.gathered.columns
    single, double = pa.float32(), pa.float64()
    with np.errstate(all="ignore"):
        snr, magnitude = g.flux / g.flux_err, AB_ZERO_POINT_NJY - 2.5 * np.log10(np.abs(g.flux))
    bands = pa.array([*BANDS, None], pa.string())
    return {
        **{name: columns[name] for name in (*_OF_SOURCE, *_PLACE, "reliability")},
        "mjd_tai": _finite(g.mjd_tai, double),
        "band": bands.take(pa.array(g.band.astype(np.int64) % len(bands))),
        "flux": _finite(g.flux, single),
        "flux_err": _finite(g.flux_err, single),
        "snr": _finite(snr, single),
        "magnitude": _finite(magnitude, double),
        "is_negative": pc.coalesce(columns["is_negative"], pa.array(g.flux < 0, pa.bool_(), mask=np.isnan(g.flux))),
    }


def _of_classes(verdicts: Verdicts, card: Card) -> dict[str, pa.Array]:
    p = verdicts.probabilities
    ran, best = ~np.isnan(p[:, 0]), p.argmax(axis=1)
    chosen = pa.array(best, mask=~ran)
    return {
        "status": pa.array(verdicts.statuses(), pa.string()),
        "reason": pa.array(verdicts.reasons(), pa.string()),
        "class_id": pa.array([c.taxonomy_id for c in card.classes], pa.int32()).take(chosen),
        "class_name": pa.array([c.name for c in card.classes], pa.string()).take(chosen),
        "probability": _finite(p.max(axis=1), pa.float32()),
        **{CLASS_PREFIX + c.name: _finite(p[:, i], pa.float32()) for i, c in enumerate(card.classes)},
    }


def _of_points(verdicts: Verdicts) -> dict[str, pa.Array]:
    s, c, mjd, double = verdicts.summary, verdicts.counts, verdicts.gathered.mjd_tai, pa.float64()
    first = verdicts.gathered.columns["first_mjd_tai"].cast(double).fill_null(np.nan).to_numpy(zero_copy_only=False)
    numbers = {
        "n_points_offered": c.offered,
        "n_points_dropped": c.dropped,
        "n_points_used": verdicts.used,
        "n_detections": s.n_detections,
        "n_positive_detections": s.n_positive,
        "n_nights": s.n_nights,
    }
    return {
        **{name: pa.array(values) for name, values in numbers.items()},
        "span_days": _finite(s.last_point - s.first_point, double),
        "days_since_first_detection": _finite(mjd - s.first_detection, double),
        "age_days": _finite(mjd - first, double),
        "points_hash": pa.array(points_hashes(verdicts.curves), pa.string()),
    }


def _of_alert(verdicts: Verdicts) -> dict[str, pa.Array]:
    c = verdicts.coordinates
    return {
        "alert_schema": verdicts.schemas,
        "alert_topic": c.topic,
        "alert_partition": c.partition,
        "alert_offset": c.offset,
        "alert_timestamp": c.timestamp,
    }


def class_fields(card: Card) -> dict[str, str]:
    """Column of each class's probability, by the class's name."""
    return {c.name: CLASS_PREFIX + c.name for c in card.classes}


def shared(passport: Passport, taxonomy_version: str, broker_name: str) -> dict[str, str | int]:
    """What all verdicts of a job have in common, under the record's names."""
    return {
        "taxonomy_version": taxonomy_version,
        "classifierName": passport.model,
        "classifierParams": json.dumps(json.loads(passport.params), sort_keys=True),
        "model_sha256": passport.sha256,
        "rules_version": passport.rules_version,
        "brokerName": broker_name,
        "brokerVersion": passport.broker_version,
    }
