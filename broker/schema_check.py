"""`broker schemas check`: whether the known writer schemas read alerts of files or of a topic."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from confluent_kafka import TopicPartition

from broker import registry, surveys
from broker.archive import find_files, read_frames
from broker.deadletter import struct_of
from broker.recognise import survey_of_value
from broker.second_reader import Refusal, read
from broker.topics import end_of, open_consumer, reaches, require_topics
from broker.wire import schema_id_of

MAX_ALERT_BYTES = 16_777_216
Finding = tuple[str, str, str]  # survey, schema, and "ok" or what is wrong


def of_files(paths: list[Path]) -> Iterator[bytes | None]:
    """Alerts of files, folders and archives. Raises ArchiveError."""
    for path in find_files(paths):
        for frame in read_frames(path, path.parent, MAX_ALERT_BYTES):
            yield frame.value


def of_topic(options: Mapping[str, str], topic: str, n_newest: int) -> Iterator[bytes | None]:
    """The newest alerts of each partition, at most n_newest over all. Raises KafkaError, UsageError."""
    require_topics(options, [topic])
    consumer = open_consumer(options)
    try:
        held = reaches(consumer, topic)
        each = max(1, n_newest // max(1, len(held)))
        for partition, reach in held.items():
            first = max(reach.first, reach.last_exclusive - each)
            if first >= reach.last_exclusive:
                continue
            consumer.assign([TopicPartition(topic, partition, first)])
            while True:
                message = consumer.poll(10)
                if message is None or end_of(message):
                    break
                yield message.value()
    finally:
        consumer.close()


def check(values: Iterable[bytes | None], survey: str | None = None) -> Counter[Finding]:
    """Alerts by survey, writer schema and what became of them. survey: whose they must be; None finds it out."""
    found: Counter[Finding] = Counter()
    for value in values:
        theirs = survey or (survey_of_value(value) if value else None)
        if theirs is None:
            schema_id = schema_id_of(value or b"")
            unknown = "-" if schema_id is None else str(schema_id)
            found["-", unknown, "no known schema" if value else "empty"] += 1
            continue
        table = surveys.find(theirs)
        answer = read(value, table, MAX_ALERT_BYTES, struct_of(table))
        if isinstance(answer, Refusal):
            found[theirs, "-", f"{answer.reason}: {answer.detail}"] += 1
        else:
            found[theirs, answer.schema, "ok"] += 1
    return found


def origin(writer: registry.Writer) -> str:
    """Where a known writer schema is from: package or registry."""
    return "registry" if writer in registry.learnt() else "package"
