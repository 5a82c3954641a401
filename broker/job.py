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
from broker.decode import decode, implausible
from broker.delivery import outlets_of
from broker.errors import ConfigError
from broker.ledger import Gap
from broker.lightcurve import RULES_VERSION
from broker.outlets import ROWS_DDL, Passport
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
    fits = F.length("value") <= assignment.max_alert_bytes
    decoded = decode(frames, survey, registry.writers(survey.name))
    decoded = decoded.select(
        *frames.columns, "schema", F.when(fits, F.col("alert")).alias("alert"), _within(alone).alias("alone")
    )
    # A column, since each use of the expression would be planned again, batch after batch
    decoded = decoded.select("*", (F.col("alert").isNull() | F.col("alone") | implausible(survey)).alias("needs_bytes"))
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
    config: Config, source: Source, limits: Mapping[str, int], n_partitions: Mapping[str, int] | None = None
) -> Assignment:
    """What the tasks of a source must know. limits: largest message of each output topic, bytes.

    n_partitions: of each outlet's topic. Raises ConfigError where an outlet's topic takes too little.
    """
    output = config.output
    outlets = []
    for outlet in outlets_of(config.outlets, source.name):
        topics = outlet.topics_of(source.survey)
        for topic in topics.values():
            if limits[topic] >= LARGEST_RECORD:
                continue
            raise ConfigError(
                f"outlet {outlet.name!r}: topic {topic!r} takes messages of {limits[topic]} bytes (max.message.bytes); "
                f"records of {LARGEST_RECORD} bytes must fit"
            )
        settings = (outlet.public_only, outlet.class_name, outlet.filter)
        least = min((n_partitions or {})[topic] for topic in topics.values())
        outlets.append(Further(outlet.name, outlet.kind, topics, least, *settings))
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
    return replace(made, outlets=tuple(outlets), uncounted=known)


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


def survey_of(source: Source) -> Survey:
    """The survey's table for a source."""
    return surveys.find(source.survey)


def _within(gaps: Iterable[Gap]) -> Column:
    inside = F.lit(False)
    for gap in gaps:
        same = (F.col("topic") == gap.topic) & (F.col("partition") == gap.partition)
        inside = inside | (same & F.col("offset").between(gap.first, gap.last))
    return inside
