"""`broker dead-letters`: what was rejected and why, and what the present code says of it. No record is written here."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import cast

import pyarrow as pa
from confluent_kafka import Message

from broker import surveys
from broker.config import Config, kafka_options
from broker.dissect import wire_form
from broker.errors import UsageError
from broker.gather import implausible
from broker.ledger import Gap
from broker.recognise import survey_of_value
from broker.reconcile import place_of
from broker.second_reader import Refusal, read
from broker.surveys import Fields, Survey
from broker.topics import find_missing, messages_in, open_consumer, reaches, read_all, require_topics, wait_for_kafka

_TYPES = {
    "boolean": pa.bool_(),
    "int": pa.int32(),
    "long": pa.int64(),
    "float": pa.float32(),
    "double": pa.float64(),
    "string": pa.string(),
    "bytes": pa.binary(),
}


@dataclass(frozen=True)
class Rejected:
    """One dead letter as it lies on its topic. n_bytes: of the whole value, also where the letter is cut."""

    place: str  # of the letter itself: topic:partition:offset
    time_ms: int  # when it was written
    key: bytes | None
    value: bytes | None
    headers: Mapping[str, bytes]

    def text(self, name: str) -> str:
        """A header as text; "" where there is none."""
        return self.headers.get(name, b"").decode(errors="replace")

    @property
    def source(self) -> str:
        """Name of the source that the alert came by; "" where the letter is none of ours."""
        place = place_of(self.headers.get("alert", b"").rpartition(b":")[0])
        return "" if place is None else place.source

    @property
    def is_cut(self) -> bool:
        """Whether `value` is only the beginning."""
        return self.headers.get("cut") == b"true"

    @property
    def n_bytes(self) -> int:
        """Length of the alert, bytes."""
        told = self.text("n_bytes")
        return int(told) if self.is_cut and told.isascii() and told.isdecimal() else len(self.value or b"")


@dataclass(frozen=True)
class Selection:
    """Which letters are meant; what is None does not matter. schema: a part of the form on the wire, such as 1101."""

    source: str | None = None
    reason: str | None = None
    schema: str | None = None
    since: datetime | None = None

    @property
    def since_ms(self) -> int | None:
        """`since` in ms since 1970."""
        return None if self.since is None else int(self.since.timestamp() * 1000)

    def takes(self, letter: Rejected) -> bool:
        """Whether a letter is meant."""
        return (
            self.source in (None, letter.source)
            and self.reason in (None, letter.text("reason"))
            and (self.schema is None or self.schema in wire_form(letter.value, letter.key))
            and letter.time_ms >= (self.since_ms or 0)
        )


def letters(config: Config, selection: Selection = Selection()) -> Iterator[Rejected]:
    """Letters that the topic holds, in the order of its partitions. Raises KafkaError."""
    options, topic = kafka_options(config), config.output.dead_letters
    wait_for_kafka(options, config.kafka.startup_timeout_s)
    require_topics(options, [topic])
    return read_letters(options, topic, selection)


def read_letters(options: Mapping[str, str], topic: str, selection: Selection) -> Iterator[Rejected]:
    """The same of a topic that is known to be there."""
    for message in read_all(options, topic, selection.since_ms):
        letter = letter_of(message)
        if selection.takes(letter):
            yield letter


def letter_of(message: Message) -> Rejected:
    """The letter of a record, also of one that is none of ours."""
    place = f"{message.topic()}:{message.partition()}:{message.offset()}"
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    named = {name: value or b"" for name, value in pairs}
    return Rejected(place, max(0, message.timestamp()[1]), _bytes(message.key()), _bytes(message.value()), named)


def pick(found: Iterable[Rejected], limit: int) -> tuple[list[Rejected], int]:
    """The newest `limit` letters, oldest first, and how many there are in all; holds no more than those."""
    newest: list[tuple[int, int, Rejected]] = []
    n = 0
    for letter in found:
        n += 1
        heapq.heappush(newest, (letter.time_ms, n, letter))
        if len(newest) > limit:
            heapq.heappop(newest)
    return [letter for _, _, letter in sorted(newest)], n


def find(config: Config, alert: str) -> list[Rejected]:
    """All letters of an alert (source:topic:partition:offset), oldest first. Raises UsageError where there is none."""
    if place_of(alert.encode().rpartition(b":")[0]) is None or not alert.rpartition(":")[2].isdecimal():
        raise UsageError(
            f"alert {alert!r}: needs source:topic:partition:offset, as `broker dead-letters list` shows it"
        )
    found = sorted((letter for letter in letters(config) if letter.text("alert") == alert), key=lambda x: x.time_ms)
    if not found:
        raise UsageError(
            f"no dead letter of alert {alert!r} on topic {config.output.dead_letters!r}; "
            "`broker dead-letters list` shows which there are; retention may have deleted it"
        )
    return found


def original_of(options: Mapping[str, str], letter: Rejected) -> Rejected | None:
    """A cut letter with the whole alert in it, from the source; None where that holds it (or this very one) no more."""
    place = place_of(letter.headers.get("alert", b"").rpartition(b":")[0])
    offset = letter.text("alert").rpartition(":")[2]
    if place is None or not offset.isdecimal() or find_missing(options, [place.topic]):
        return None
    found = record_at(options, place.topic, place.partition, int(offset))
    if found is None or hashlib.sha256(_bytes(found.value()) or b"").hexdigest() != letter.text("sha256"):
        return None
    headers = {name: value for name, value in letter.headers.items() if name not in ("cut", "n_bytes", "sha256")}
    return replace(letter, key=_bytes(found.key()), value=_bytes(found.value()), headers=headers)


def record_at(options: Mapping[str, str], topic: str, partition: int, offset: int) -> Message | None:
    """The message at these coordinates; None where the topic holds it no more."""
    with open_consumer(options) as consumer:
        held = reaches(consumer, topic).get(partition)
        if held is None or not held.first <= offset < held.last_exclusive:
            return None
        return next(messages_in(consumer, Gap(topic, partition, offset, offset)), None)


@dataclass(frozen=True)
class Opinion:
    """What the present code says of a letter: refused with reason and detail, or readable (reason None)."""

    reason: str | None
    detail: str


def second_opinion(letter: Rejected, config: Config) -> Opinion:
    """Read the letter's bytes again, by the second reader under its limits. Never raises for what the bytes are."""
    if letter.is_cut:
        return Opinion("cut", f"the letter holds {len(letter.value or b'')} of {letter.n_bytes} bytes: not read again")
    source = next((s for s in config.sources if s.name == letter.source), None)
    name = survey_of_letter(letter, config)
    if name is None:
        return Opinion("unknown", "its source is not in this config, and its bytes do not tell the survey")
    survey = surveys.find(name)
    limit = source.max_alert_bytes if source is not None else 16_777_216
    found = read(letter.value, survey, limit, struct_of(survey), letter.key)
    if isinstance(found, Refusal):
        return Opinion(found.reason, found.detail)
    for wrong, detail in implausible(found.alert, survey):
        if wrong.any():
            return Opinion("implausible_values", detail)
    return Opinion(None, f"an alert of {survey.name}, schema {found.schema}")


def survey_of_letter(letter: Rejected, config: Config) -> str | None:
    """The survey of the letter's source; where this config lacks it, what the bytes tell."""
    source = next((s for s in config.sources if s.name == letter.source), None)
    return source.survey if source is not None else survey_of_value(letter.value or b"", letter.key)


def struct_of(survey: Survey) -> pa.StructType:
    """The Arrow type of a decoded alert, as the JVM gives it."""
    return _struct(survey.fields)


def _struct(fields: Fields) -> pa.StructType:
    return pa.struct([(name, _kind(wanted)) for name, wanted in fields.items()])


def _kind(wanted: str | Fields | list[Fields]) -> pa.DataType:
    if isinstance(wanted, str):
        return _TYPES[wanted]
    return pa.list_(_struct(wanted[0])) if isinstance(wanted, list) else _struct(wanted)


def _bytes(data: str | bytes | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data
