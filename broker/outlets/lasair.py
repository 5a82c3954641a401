"""Outlet `lasair`: annotations of objects, as Lasair's consumer of the topics `anno_NAME` takes them."""

from __future__ import annotations

import orjson

from broker.outlets.batch import Batch
from broker.outlets.columns import class_fields

START = "anno_"
NEEDS = ("object_id", "class_name")  # an annotation is one of an object, and its classification must not be empty


def encode(batch: Batch, topic: str) -> list[bytes]:
    """One annotation per verdict; the class that Lasair indexes is `abstained` where the answer should not be used."""
    columns, annotator = batch.columns, topic.removeprefix(START)
    names = list(class_fields(batch.card))
    chances = zip(*(columns.column(name).to_pylist() for name in class_fields(batch.card).values()), strict=True)
    picked = (
        columns.column(name).to_pylist()
        for name in ("object_id", "status", "reason", "class_name", "probability", "n_detections", "source_id")
    )
    found = []
    for values, (object_id, status, reason, class_name, probability, n, source_id) in zip(
        chances, zip(*picked, strict=True), strict=True
    ):
        is_classified = status == "classified"
        say = f"{class_name} with probability {probability:.2f} after {n} detections, source {source_id}"
        annotation = {
            "objectId": object_id,
            "topic": annotator,
            "version": batch.passport.model,
            "classification": class_name if is_classified else status,
            "explanation": say if is_classified else f"{reason}: {say}",
            "classdict": {name: round(value, 6) for name, value in zip(names, values, strict=True)},
            "url": "",
        }
        found.append(orjson.dumps(annotation))
    return found
