"""Whose alert is it? By its frame, its schema, or the layout that it fills."""

from __future__ import annotations

import json

from broker import container, registry, surveys
from broker.decode import schema_pair
from broker.errors import SchemaError
from broker.wire import CONTAINER_MAGIC, schema_id_of, schema_in_key


def survey_of_value(value: bytes, key: bytes | None = None) -> str | None:
    """lsst, ztf or elasticc; None where the bytes, and the key of their message, don't tell."""
    if (text := schema_in_key(key)) is not None:
        return survey_of_schema(json.loads(text))
    if value.startswith(CONTAINER_MAGIC):
        try:
            header, _ = container.read_header(value)
            container.walkable(header.schema)
        except container.Unreadable:
            return None
        return survey_of_schema(json.loads(header.schema))
    schema_id = schema_id_of(value)
    if schema_id is not None and (known := registry.by_id(schema_id)):
        return known[0]
    bodies = (name for name in surveys.NAMES if surveys.find(name).framing == "bare")
    for name in bodies:
        if any(container.fits(writer.text, value) for writer in registry.writers(name)):
            return name
    return None


def survey_of_schema(schema: registry.Schema) -> str | None:
    """The survey that a schema's name begins with, or whose essential fields it has (an alert that Spark re-wrote)."""
    name = str(schema.get("name", ""))
    first = (name if "." in name else str(schema.get("namespace", ""))).split(".")[0]
    if first in surveys.NAMES:
        return first
    for survey in surveys.NAMES:
        try:
            schema_pair(schema, surveys.find(survey))
        except SchemaError:
            continue
        return survey
    return None
