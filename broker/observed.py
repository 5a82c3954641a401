"""When an alert's own source was observed, out of its bytes and without reading the rest; and nights."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from io import BytesIO
from typing import Any, cast

import fastavro
import numpy as np
from fastavro.read import SchemaResolutionError

from broker import container, registry, surveys
from broker.decode import schema_pair
from broker.errors import SchemaError, UsageError
from broker.lightcurve import TAI_MINUS_UTC_S, mjd_tai_of_jd_utc
from broker.recognise import survey_of_schema
from broker.second_reader import Bounded
from broker.surveys import Survey
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, schema_id_of, schema_in_key

_MJD_OF_1970 = 40_587.0


@dataclass(frozen=True)
class Observed:
    """Whose alert it is, and the middle of its own source's exposure."""

    survey: str
    mjd_tai: float


@dataclass(frozen=True)
class _Reader:
    """How the time of one writer schema's alerts is read."""

    survey: Survey
    writer: Any
    reader: Any

    def read(self, body: bytes) -> Observed | None:
        """None for bytes that are no such alert."""
        table = next(m for m in self.survey.measurements if m.kind == "trigger")
        try:
            found = fastavro.schemaless_reader(Bounded(body), self.writer, self.reader)
            own = cast(dict[str, Any], found)[self.survey.trigger]
            time = float(own[table.time])
            if table.time_scale == "jd_utc_start":
                told = own[str(table.exposure_s)]
                exposure_s = self.survey.default_exposure_s if told is None else told
                time = float(mjd_tai_of_jd_utc(np.array(time), np.array(exposure_s)))
        except (*container.BAD_BYTES, SchemaResolutionError):  # the latter: a schema that has no number there
            return None
        low, high = self.survey.mandatory[f"{self.survey.trigger}.{table.time}"]
        is_plausible = low <= float(own[table.time]) <= high and math.isfinite(time)  # an exposure of NaN s is none
        return Observed(self.survey.name, time) if is_plausible else None


def observed(value: bytes | None, key: bytes | None = None) -> Observed | None:
    """Time of an alert in any of its forms; None where the bytes, and the key of their message, don't tell."""
    if not value:
        return None
    if (text := schema_in_key(key)) is not None:
        reader = _reader_of(text)
        return reader.read(value) if reader else None
    if value.startswith(CONTAINER_MAGIC):
        try:
            header, end = container.read_header(value)
            reader = _reader_of(header.schema)
            body = container.single(header, value[end:])
            if body is None:
                body = next(container.records(header, BytesIO(value[end:])), None)
        except container.Unreadable:
            return None
        return reader.read(body) if reader and body is not None else None
    schema_id = schema_id_of(value)
    if schema_id is not None and (known := registry.by_id(schema_id)):
        reader = _reader_of(known[1].text)
        return reader.read(value[FRAME_BYTES:]) if reader else None
    for name in surveys.NAMES:
        if surveys.find(name).framing == "bare":
            for writer in registry.writers(name):
                if container.fits(writer.text, value) and (reader := _reader_of(writer.text)):
                    return reader.read(value)
    return None


@lru_cache(maxsize=32)
def _reader_of(text: str) -> _Reader | None:
    """None where the schema is no survey's."""
    try:
        container.walkable(text)
        name = survey_of_schema(json.loads(text))
        if name is None:
            return None
        survey = surveys.find(name)
        table = next(m for m in survey.measurements if m.kind == "trigger")
        columns = [c for c in (table.time, table.exposure_s) if c is not None]
        only = replace(
            survey,
            fields={survey.trigger: dict.fromkeys(columns, "double")},
            essential=(f"{survey.trigger}.{table.time}",),
        )
        writer, reader = schema_pair(_up_to(json.loads(text), survey.trigger), only, widest=True)
        return _Reader(survey, fastavro.parse_schema(writer), fastavro.parse_schema(reader))
    except (container.Unreadable, SchemaError):
        return None


def _up_to(schema: registry.Schema, field: str) -> registry.Schema:
    """The schema without the fields behind this one: walking over a deep alert's history takes 11 ms."""
    fields = cast(list[dict[str, Any]], schema["fields"])
    last = next((i for i, f in enumerate(fields) if f["name"] == field), len(fields))
    return {**schema, "fields": fields[: last + 1]}


# --- moments and nights -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Moment:
    """A time, or a night: ZTF's are UTC dates, the others' begin at 12 h UTC of their date (Rubin's day_obs)."""

    mjd_tai: float
    is_night: bool = False

    def start(self, survey: str) -> float:
        """MJD TAI at which it begins."""
        return self.mjd_tai + (0.5 if self.is_night and survey != "ztf" else 0.0)

    def end(self, survey: str) -> float:
        """MJD TAI at which it is over: a time at once, a night a day after its begin."""
        return self.start(survey) + (1.0 if self.is_night else 0.0)


def moment(option: str, text: str | None) -> Moment | None:
    """A time with a zone, or a night as 2026-11-20 or 20261120. Raises UsageError for anything else."""
    if text is None:
        return None
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    is_night = when is not None and ("T" not in text and " " not in text)
    if when is None or (when.tzinfo is None and not is_night):
        raise UsageError(
            f"{option} {text!r}: needs a time with a zone, such as 2026-11-20T03:00:00Z, or a night, such as 2026-11-20"
        )
    since_1970: timedelta = when.replace(tzinfo=when.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    return Moment(_MJD_OF_1970 + (since_1970.total_seconds() + TAI_MINUS_UTC_S) / 86_400, is_night)
