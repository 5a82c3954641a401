"""The job on one screen: sources -> wire -> decode -> lightcurve -> model -> classify -> outlets.

Live, replay and batch are this one composition over another source of frames.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F

from broker import __version__, registry, surveys
from broker import model as models
from broker.classify import Assignment, task
from broker.config import Config, Policy, Source
from broker.decode import decode, implausible, type_of
from broker.delivery import Outlet, outlets_of
from broker.errors import ConfigError
from broker.ledger import Gap
from broker.lightcurve import RULES_VERSION
from broker.outlet_nights import Nights, expand
from broker.outlets import ROWS_DDL, Passport, fastdb, filters
from broker.outlets.further import LARGEST_RECORD, Further
from broker.surveys import Survey
from broker.verdict import uncounted


def build(frames: DataFrame, survey: Survey, assignment: Assignment, alone: Iterable[Gap] = ()) -> DataFrame:
    """Finished rows (outlets.ROWS) of frames (sources.FRAME_COLUMNS): one Python node, one sink.

    alone: alerts to be answered one by one, each in a process of its own, since their batch killed its worker twice.
    Bytes, key and headers cross to Python only where the JVM has no sound alert: all others are done with them.
    """
    return before_hop(frames, survey, assignment, alone).mapInArrow(task(assignment), ROWS_DDL)


def build_from_alerts(alerts: DataFrame, assignment: Assignment) -> DataFrame:
    """Finished rows for alerts that came decoded (sources.tables): the same hop, behind the decoder."""
    return alerts.mapInArrow(task(assignment), ROWS_DDL)


def before_hop(frames: DataFrame, survey: Survey, assignment: Assignment, alone: Iterable[Gap] = ()) -> DataFrame:
    """What crosses to Python, one row per alert."""
    survey = surveys.widened(survey, assignment.extra)
    fits = F.length("value") <= assignment.max_alert_bytes
    decoded = decode(frames, survey, registry.writers(survey.name))
    decoded = decoded.select(
        *frames.columns, "schema", F.when(fits, F.col("alert")).alias("alert"), _within(alone).alias("alone")
    )
    sends_bytes = any(outlet.kind == "fastdb" for outlet in assignment.outlets)  # only then do good alerts' bytes cross
    doubtful = F.lit(sends_bytes) | F.col("alert").isNull() | F.col("alone") | implausible(survey)
    # A column, since each use of the expression would be planned again, batch after batch
    decoded = decoded.select("*", doubtful.alias("needs_bytes"))
    needs_bytes = F.col("needs_bytes")
    return decoded.select(
        "alert",
        "schema",
        F.when(needs_bytes, F.col("value")).alias("raw"),
        F.when(needs_bytes, F.col("key")).alias("key"),
        F.when(needs_bytes, F.col("headers")).alias("headers"),
        "topic",
        "partition",
        "offset",
        "timestamp",
        "alone",
    )


def assign(
    config: Config,
    source: Source,
    limits: Mapping[str, int],
    n_partitions: Mapping[str, int] | None = None,
    schema_id: int | None = None,
    nights: Nights | None = None,
) -> Assignment:
    """What the tasks of a source must know. limits: largest message of each output topic, bytes.

    n_partitions: of each outlet's topic; schema_id: of classifications (published.publish); nights: that have
    topics, by template. Raises ConfigError where a
    topic takes too little.
    """
    output = config.output
    outlets, extra, table = [], dict[str, str](), survey_of(source)
    check_size(output.classifications, limits)
    for outlet in outlets_of(config.outlets, source.name):
        topics = outlet.topics_of(source.survey)
        there = [set((nights or {}).get(topic, ())) for topic in topics.values()]
        mine = tuple(sorted(set.intersection(*there)))
        names = expand(topics.values(), dict.fromkeys(topics.values(), mine))
        for topic in names:
            check_size(topic, limits, largest_record(outlet, source))
        extra |= {path: type_of(table, path) for path in outlet.fields}
        settings = (outlet.public_only, outlet.class_name, outlet.filter)
        least = min((n_partitions or {})[topic] for topic in names)
        outlets.append(
            Further(
                outlet.name,
                outlet.kind,
                topics,
                least,
                *settings,
                mine,
                outlet.fields,
                min(limits[topic] for topic in names),
            )
        )
    made = assignment(
        source.name,
        source.survey,
        models.find(config.model.name),
        config.policy,
        source.zero_point,
        source.programids,
        output.topics,
        source.max_alert_bytes,
        limits[output.dead_letters],
    )
    known = uncounted(learns_schemas=bool(config.registry.url))
    return replace(made, outlets=tuple(outlets), uncounted=known, schema_id=schema_id, extra=tuple(extra.items()))


def assignment(
    name: str,
    survey: str,
    folder: Path,
    policy: Policy,
    zero_point: float,
    programids: tuple[int, ...],
    topics: tuple[str, str, str],
    max_alert_bytes: int,
    max_dead_letter_bytes: int,
) -> Assignment:
    """An assignment from plain values. Loads the model once here, so that a wrong folder stops the job at its start."""
    card = models.load(folder).card
    settings = policy.model_dump() | {"zero_point": zero_point, "programids": programids}
    others = tuple(f"{other}_" for other in surveys.NAMES if other != survey)
    params = json.dumps({key: value for key, value in settings.items() if not key.startswith(others)}, sort_keys=True)
    passport = Passport(card.name, card.version, card.sha256, RULES_VERSION, params, __version__)
    classifications, dead_letters, ledger = topics
    return Assignment(
        source=name,
        survey=survey,
        model=folder.absolute(),
        settings=settings,
        passport=passport,
        classifications=classifications,
        dead_letters=dead_letters,
        ledger=ledger,
        max_alert_bytes=max_alert_bytes,
        max_dead_letter_bytes=max_dead_letter_bytes,
        learnt=registry.learnt(),
    )


def check_outlets(config: Config) -> models.Card:
    """The model's card. Raises ConfigError unless it has the classes, and alerts the fields, that outlets ask for."""
    card = models.load(models.find(config.model.name)).card
    filters.check(config.outlets, card)
    for source in config.sources:
        for outlet in outlets_of(config.outlets, source.name):
            try:
                for path in outlet.fields:
                    type_of(survey_of(source), path)
            except ConfigError as error:
                raise ConfigError(f"outlet {outlet.name!r}, fields: {error}") from None
    return card


def largest_record(outlet: Outlet, source: Source) -> int:
    """Bytes that a record of an outlet may have at most."""
    return source.max_alert_bytes + fastdb.MORE_BYTES if outlet.kind == "fastdb" else LARGEST_RECORD


def check_size(topic: str, limits: Mapping[str, int], most: int = LARGEST_RECORD) -> None:
    """Raise ConfigError unless our records fit. limits: largest message of each topic, bytes."""
    if limits[topic] < most:
        why = "" if most == LARGEST_RECORD else ": the source's max_alert_bytes, our answer and the schema as key"
        size = f"messages of {limits[topic]} bytes (max.message.bytes)"
        raise ConfigError(f"topic {topic!r} takes {size}; records of {most} bytes must fit{why}")


def survey_of(source: Source) -> Survey:
    """The survey's table for a source."""
    return surveys.find(source.survey)


def _within(gaps: Iterable[Gap]) -> Column:
    inside = F.lit(False)
    for gap in gaps:
        same = (F.col("topic") == gap.topic) & (F.col("partition") == gap.partition)
        inside = inside | (same & F.col("offset").between(gap.first, gap.last))
    return inside
