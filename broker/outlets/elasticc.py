"""Outlet `elasticc`: DESC's record elasticc.v0_9_1.brokerClassification, a bare Avro body without a schema."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from broker.outlets import avro
from broker.outlets.batch import Batch
from broker.outlets.columns import class_fields
from broker.outlets.native import BROKER_NAME

NEEDS = ("class_name",)


def encode(batch: Batch) -> list[bytes]:
    """The record of each verdict; alertId is the source's id, the publish time Kafka's time of the alert."""
    columns, passport, n = batch.columns, batch.passport, len(batch)
    ids = avro.longs(columns.column("source_id").to_pylist())
    started_ms = batch.started_us // 1000
    sent = columns.column("alert_timestamp").cast(pa.int64()).fill_null(batch.started_us).to_pylist()
    chances = [columns.column(name).to_numpy(zero_copy_only=False) for name in class_fields(batch.card).values()]
    starts = [avro.varint(c.taxonomy_id) for c in batch.card.classes]
    return avro.join(
        [
            ids,
            ids,
            avro.longs(stamp // 1000 for stamp in sent),
            avro.VALUE + avro.varint(started_ms),
            *(avro.text(part) for part in (BROKER_NAME, passport.broker_version, passport.model, passport.params)),
            avro.arrays(starts, np.stack(chances, axis=1).astype(np.float32)),
        ],
        n,
    )
