"""Outlet `fink-ai`: results of an AI model as fink-client (from 12.3 on) reads them from the topics `fink_ai_NAME`."""

from __future__ import annotations

import orjson

from broker.outlets.batch import Batch
from broker.outlets.columns import CLASS_PREFIX

NEEDS = ("class_name",)


def encode(batch: Batch, class_name: str) -> list[bytes]:
    """One JSON object per verdict: the probability of the class; `candid` is the source's id in every survey."""
    ids = batch.columns.column("source_id").to_pylist()
    chances = batch.columns.column(CLASS_PREFIX + class_name).to_pylist()
    model = batch.passport.model
    return [
        orjson.dumps({"result": {"predictions": [chance]}, "source": {"candid": i}, "bridge": model})
        for i, chance in zip(ids, chances, strict=True)
    ]
