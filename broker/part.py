"""`broker repeat`: the job over a part of its topics once more, with output topics and checkpoints of its own.

A bounded stream: the same queries as live, which start at the first offsets, leave out what lies behind the last ones,
and end once all before them is committed and its books balance. The live job's topics and checkpoints are not touched.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F

from broker import checkpoint
from broker.config import Config, Source, kafka_options
from broker.errors import UsageError
from broker.ledger import Balance, Span
from broker.ledger_topic import LedgerTopic
from broker.nights import each_night
from broker.service import Service
from broker.stream import Stream
from broker.topics import Reach, offsets_at, open_consumer, reaches

_log = logging.getLogger(__name__)

FILE = "part.json"
Offsets = dict[str, dict[str, int]]  # topic -> partition -> offset, as Spark writes them


class Part(Service):
    """The streams of a config up to `ends` (offsets, exclusive)."""

    def __init__(self, config: Config, ends: Mapping[str, Offsets]) -> None:
        super().__init__(config)
        self.ends = ends  # by source

    def frames(self, spark: SparkSession, source: Source) -> DataFrame:
        """Rows before the ends; the batch that reaches them reads on behind them, and drops that."""
        rows = super().frames(spark, source)
        wanted = F.lit(False)
        for topic, partitions in self.ends[source.name].items():
            for partition, end in partitions.items():
                same = (F.col("topic") == topic) & (F.col("partition") == int(partition))
                wanted = wanted | (same & (F.col("offset") < end))
        return rows.where(wanted)

    def _balance(self, stream: Stream, batch: int, batch_spans: list[Span], ledger: LedgerTopic) -> Balance:
        """The books of what of a batch lies before the ends."""
        ends = self.ends[stream.source.name]
        cut = [s._replace(last_exclusive=min(s.last_exclusive, _end(ends, s))) for s in batch_spans]
        cut = [span._replace(first=min(span.first, span.last_exclusive)) for span in cut]
        balance = super()._balance(stream, batch, cut, ledger)
        if all(is_done(source.checkpoint, self.ends[source.name]) for source in self.config.sources):
            self.stopping.set()
        return balance


def _end(ends: Offsets, span: Span) -> int:
    return ends.get(span.topic, {}).get(str(span.partition), 0)


def is_done(folder: Path, ends: Offsets) -> bool:
    """Whether a checkpoint has committed everything before the ends."""
    last = checkpoint.committed_spans(folder)
    if last is None:
        return False
    reached = {(span.topic, str(span.partition)): span.last_exclusive for span in last.spans}
    return all(reached.get((t, p), 0) >= end for t, partitions in ends.items() for p, end in partitions.items())


def prepare(
    config: Config, into: str, folder: Path, names: tuple[str, ...], since: str | None, until: str | None
) -> tuple[Config, dict[str, Offsets]]:
    """The config of a part (output topics INTO-..., checkpoints in a folder), and the ends of each source.

    since, until: a time with a zone (Kafka's time stamps), or offsets as Spark writes them; None: all. What a first try
    has noted in the folder holds for the next ones. Raises UsageError for what can't be, KafkaError.
    """
    sources = [source for source in config.sources if not names or source.name in names]
    if unknown := sorted(set(names) - {source.name for source in sources}):
        raise UsageError(f"--source {unknown[0]}: its sources are {', '.join(s.name for s in config.sources)}")
    outputs = {name: f"{into}-{name.replace('_', '-')}" for name in ("classifications", "dead_letters", "ledger")}
    if taken := set(outputs.values()) & {*config.output.topics, *(t for s in config.sources for t in s.topics)}:
        raise UsageError(f"--into {into!r}: {sorted(taken)[0]} is a topic of the live job; choose another name")
    starts, ends = {}, {}
    for source in sources:
        note = folder / source.name / FILE
        if note.is_file():
            starts[source.name], ends[source.name] = json.loads(note.read_text())
            _log.info("%s: goes on with the part that was begun in %s", source.name, note.parent)
            continue
        starts[source.name], ends[source.name] = _offsets(config, _whole(config, source), since, until)
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps([starts[source.name], ends[source.name]]))
    if all(starts[name] == ends[name] for name in starts):
        raise UsageError(f"--since {since}, --until {until}: no alerts of {', '.join(starts)} lie there")
    moved = [
        source.model_copy(
            update={
                "topics": tuple(starts[source.name]),
                "checkpoint": folder / source.name,
                "start": json.dumps(starts[source.name]),
            }
        )
        for source in sources
    ]
    output = config.output.model_copy(update=outputs)
    upkeep = config.service.model_copy(update={"health_file": None})  # that one tells of the live job
    # Further outlets are the live job's: their consumers must not get a verdict twice.
    changes = {"sources": tuple(moved), "output": output, "service": upkeep, "outlets": ()}
    return config.model_copy(update=changes), ends


def _whole(config: Config, source: Source) -> Source:
    """A live source with the topics of its nights, which one query can read once they are all there."""
    nights = each_night(source, kafka_options(config), datetime.now(UTC), notes := list[str]())
    for note in notes:
        _log.warning("%s", note)
    return source.model_copy(update={"topics": tuple(topic for night in nights for topic in night.topics)})


def _offsets(config: Config, source: Source, since: str | None, until: str | None) -> tuple[Offsets, Offsets]:
    starts: Offsets = {}
    ends: Offsets = {}
    for topic in source.topics:
        with open_consumer(kafka_options(config)) as consumer:
            held = reaches(consumer, topic)
            first = {partition: reach.first for partition, reach in held.items()}
            last = {partition: reach.last_exclusive for partition, reach in held.items()}
            for option, text, found in (("--since", since, first), ("--until", until, last)):
                if text is None:
                    continue
                if text.lstrip().startswith("{"):
                    found.update(_given(option, text, topic, held))
                else:
                    found.update(offsets_at(consumer, topic, held, _milliseconds(option, text)))
        starts[topic] = {str(p): min(first[p], max(last[p], held[p].first)) for p in held}
        ends[topic] = {str(p): max(last[p], starts[topic][str(p)]) for p in held}
    return starts, ends


def _given(option: str, text: str, topic: str, held: Mapping[int, Reach]) -> dict[int, int]:
    try:
        offsets = {int(p): int(offset) for p, offset in json.loads(text).get(topic, {}).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise UsageError(f'{option} {text!r}: needs offsets such as {{"{topic}": {{"0": 1200, "1": 1180}}}}') from error
    for partition, offset in offsets.items():
        reach = held.get(partition)
        if reach is None or not reach.first <= offset <= reach.last_exclusive:
            holds = f"holds {reach.first} to {reach.last_exclusive}" if reach else "is not there"
            raise UsageError(f"{option}: {topic}:{partition} {holds}; {offset} was asked for")
    return offsets


def _milliseconds(option: str, text: str) -> int:
    try:
        when = datetime.fromisoformat(text)
    except ValueError:
        when = None
    if when is None or when.tzinfo is None:
        raise UsageError(f"{option} {text!r}: needs a time with a zone, such as 2026-11-20T00:00:00Z, or offsets")
    return int(when.timestamp() * 1000)
