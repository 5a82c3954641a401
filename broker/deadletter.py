"""`broker dead-letters`: what was rejected and why, and what the present code says of it. No record is written here."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import cast

import pyarrow as pa
from confluent_kafka import Message
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker import surveys
from broker.config import Config, kafka_options
from broker.errors import UsageError
from broker.gather import implausible
from broker.recognise import survey_of_value
from broker.reconcile import place_of, printable
from broker.second_reader import Refusal, read
from broker.surveys import Fields, Survey
from broker.topics import read_all, require_topics, wait_for_kafka

HEX_BYTES = 256
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
    def is_cut(self) -> bool:
        """Whether `value` is only the beginning."""
        return self.headers.get("cut") == b"true"

    @property
    def n_bytes(self) -> int:
        """Length of the alert, bytes."""
        told = self.text("n_bytes")
        return int(told) if self.is_cut and told.isascii() and told.isdecimal() else len(self.value or b"")


def letters(config: Config, since: datetime | None = None) -> Iterator[Rejected]:
    """Every dead letter that the topic holds, in the order of its partitions. Raises KafkaError."""
    options, topic = kafka_options(config), config.output.dead_letters
    wait_for_kafka(options, config.kafka.startup_timeout_s)
    require_topics(options, [topic])
    since_ms = None if since is None else int(since.timestamp() * 1000)
    for message in read_all(options, topic, since_ms):
        letter = letter_of(message)
        if letter.time_ms >= (since_ms or 0):
            yield letter


def letter_of(message: Message) -> Rejected:
    """The letter of a record, also of one that is none of ours."""
    place = f"{message.topic()}:{message.partition()}:{message.offset()}"
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    named = {name: value or b"" for name, value in pairs}
    return Rejected(place, max(0, message.timestamp()[1]), _bytes(message.key()), _bytes(message.value()), named)


def pick(found: Iterable[Rejected], reason: str | None, limit: int) -> tuple[list[Rejected], int]:
    """The newest `limit` letters of a reason, oldest first, and how many there are in all; holds no more than those."""
    newest: list[tuple[int, int, Rejected]] = []
    n = 0
    for letter in found:
        if reason is None or letter.text("reason") == reason:
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


@dataclass(frozen=True)
class Opinion:
    """What the present code says of a letter: refused with reason and detail, or readable (reason None)."""

    reason: str | None
    detail: str


def second_opinion(letter: Rejected, config: Config) -> Opinion:
    """Read the letter's bytes again, by the second reader under its limits. Never raises for what the bytes are."""
    if letter.is_cut:
        return Opinion("cut", f"the letter holds {len(letter.value or b'')} of {letter.n_bytes} bytes: not read again")
    place = place_of(letter.headers.get("alert", b"").rpartition(b":")[0])
    source = next((s for s in config.sources if place is not None and s.name == place.source), None)
    name = source.survey if source is not None else survey_of_value(letter.value or b"")
    if name is None:
        return Opinion("unknown", "its source is not in this config, and its bytes do not tell the survey")
    survey = surveys.find(name)
    limit = source.max_alert_bytes if source is not None else 16_777_216
    found = read(letter.value, survey, limit, struct_of(survey))
    if isinstance(found, Refusal):
        return Opinion(found.reason, found.detail)
    for wrong, detail in implausible(found.alert, survey):
        if wrong.any():
            return Opinion("implausible_values", detail)
    return Opinion(None, f"an alert of {survey.name}, schema {found.schema}")


def struct_of(survey: Survey) -> pa.StructType:
    """The Arrow type of a decoded alert, as the JVM gives it."""
    return _struct(survey.fields)


def hex_lines(value: bytes, start: int = 0, n_bytes: int = HEX_BYTES) -> list[str]:
    """A hex dump, 16 bytes a line: offset, hex, printable ASCII."""
    shown = value[start : start + n_bytes]
    lines = []
    for i in range(0, len(shown), 16):
        row = shown[i : i + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{start + i:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text}")
    return lines


def fault_at(letter: Rejected, detail: str) -> int:
    """Where to begin the dump: 128 bytes before the end if the bytes end too early, else at the beginning."""
    ends_early = any(words in detail for words in ("end before the alert", "end inside the alert"))
    return max(0, len(letter.value or b"") - HEX_BYTES // 2) // 16 * 16 if ends_early and not letter.is_cut else 0


def _struct(fields: Fields) -> pa.StructType:
    return pa.struct([(name, _kind(wanted)) for name, wanted in fields.items()])


def _kind(wanted: str | Fields | list[Fields]) -> pa.DataType:
    if isinstance(wanted, str):
        return _TYPES[wanted]
    return pa.list_(_struct(wanted[0])) if isinstance(wanted, list) else _struct(wanted)


def _bytes(data: str | bytes | None) -> bytes | None:
    return data.encode() if isinstance(data, str) else data


def utc(time_ms: int) -> str:
    """A time stamp in words."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_list(chosen: list[Rejected], n: int, console: Console) -> None:
    """A line per letter."""
    table = Table()
    for name in ("time", "alert", "reason", "detail"):
        table.add_column(name, overflow="fold", no_wrap=name == "time")
    table.add_column("bytes", justify="right")
    table.add_column("cut")
    for letter in chosen:
        alert = letter.text("alert") or f"({letter.place}: not ours)"
        told = (alert, letter.text("reason"), letter.text("detail"))
        texts = [Text(printable(text)) for text in told]
        table.add_row(utc(letter.time_ms), *texts, str(letter.n_bytes), "cut" if letter.is_cut else "")
    console.print(table)
    more = f", the newest {len(chosen)} shown" if len(chosen) < n else ""
    _say(console, f"{n} dead letters{more}")


def show(letter: Rejected, opinion: Opinion, console: Console) -> None:
    """Headers, what the present code says, and the bytes around the fault."""
    _say(console, f"dead letter {letter.place}, written {utc(letter.time_ms)}, {letter.n_bytes} bytes")
    table = Table("header", "value", box=None)
    for name, value in letter.headers.items():
        table.add_row(Text(printable(name)), Text(printable(value.decode(errors="backslashreplace")), overflow="fold"))
    console.print(table)
    said = "readable now" if opinion.reason is None else f"still refused: {opinion.reason}"
    if opinion.reason in ("cut", "unknown"):
        said = "not read again"
    _say(console, f"{said}: {printable(opinion.detail)}")
    start = fault_at(letter, opinion.detail)
    for line in hex_lines(letter.value or b"", start):
        _say(console, line)
    left = len(letter.value or b"") - start - HEX_BYTES
    if left > 0:
        _say(console, f"... {left} bytes more")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
