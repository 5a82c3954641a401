"""What is shown of dead letters: counts by what they share, one by one, one of them taken apart. No Kafka here."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.deadletter import Opinion, Rejected
from broker.dissect import Dissected, wire_form
from broker.reconcile import printable

if TYPE_CHECKING:
    from broker.putback import PutBack

HEX_BYTES = 256
VALUES_FIRST, VALUES_LAST = 30, 15
_MOST_COMMON = 3
_MAX_KINDS = 1_000  # of one property that are told apart; what a stream of letters has more of says nothing
_HOUR_MS = 3_600_000


@dataclass
class Group:
    """Letters of one hour, source, reason and form on the wire."""

    hour: str
    source: str
    reason: str
    form: str
    n: int = 0
    n_bytes: int = 0


def grouped(found: Iterable[Rejected]) -> list[Group]:
    """Counts by hour of writing, source, reason and form, in that order."""
    groups: dict[tuple[str, ...], Group] = {}
    for letter in found:
        hour = utc(letter.time_ms // _HOUR_MS * _HOUR_MS)
        key = (hour, letter.source or "(not ours)", letter.text("reason"), wire_form(letter.value, letter.key))
        group = groups.setdefault(key, Group(*key))
        group.n += 1
        group.n_bytes += letter.n_bytes
    return [groups[key] for key in sorted(groups)]


def in_common(found: Iterable[Rejected]) -> list[str]:
    """What letters share, a line for each property: its most frequent values with their counts; first and last offset.

    In a detail every number counts as the same.
    """
    properties: dict[str, Callable[[Rejected], str]] = {
        "reason": lambda letter: letter.text("reason"),
        "schema": lambda letter: wire_form(letter.value, letter.key),
        "detail": lambda letter: re.sub(r"\d+", "N", letter.text("detail"))[:200],
        "partition": lambda letter: letter.text("alert").rpartition(":")[0],
    }
    counts: dict[str, Counter[str]] = {name: Counter() for name in properties}
    spans: dict[str, tuple[int, int]] = {}
    n = 0
    for letter in found:
        n += 1
        for name, of in properties.items():
            kind = of(letter)
            counts[name][kind if kind in counts[name] or len(counts[name]) < _MAX_KINDS else "others"] += 1
        place, _, offset = letter.text("alert").rpartition(":")
        if offset.isdecimal():
            first, last = spans.get(place, (int(offset), int(offset)))
            spans[place] = min(first, int(offset)), max(last, int(offset))
    lines = [f"{name}: {_shares(found_of, n)}" for name, found_of in counts.items() if n]
    ends = (f"{place} from {first} to {last}" for place, (first, last) in sorted(spans.items())[:10])
    return [*lines, "offsets: " + ", ".join(map(printable, ends))] if spans else lines


def _shares(counts: Counter[str], n: int) -> str:
    told = [f"{printable(kind) or '(none)'} ({'all' if m == n else m})" for kind, m in counts.most_common(_MOST_COMMON)]
    left = len(counts) - _MOST_COMMON
    return ", ".join(told) + (f" and {left} more" if left > 0 else "")


def utc(time_ms: int) -> str:
    """A time stamp in words."""
    return datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def show_groups(groups: Sequence[Group], console: Console) -> None:
    """A line per group, and the sum."""
    table = Table()
    for name in ("hour (UTC)", "source", "reason", "schema"):
        table.add_column(name, overflow="fold", no_wrap=name.startswith("hour"))
    for name in ("letters", "bytes"):
        table.add_column(name, justify="right", no_wrap=True)
    for group in groups:
        texts = [Text(printable(text)) for text in (group.source, group.reason, group.form)]
        table.add_row(group.hour[:16] + "Z", *texts, str(group.n), str(group.n_bytes))
    console.print(table)
    _say(console, f"{sum(group.n for group in groups)} dead letters")


def show_list(chosen: list[Rejected], n: int, console: Console) -> None:
    """A line per letter."""
    table = Table()
    for name in ("time", "alert", "reason", "schema", "detail"):
        table.add_column(name, overflow="fold", no_wrap=name == "time")
    table.add_column("bytes", justify="right")
    table.add_column("cut")
    for letter in chosen:
        alert = letter.text("alert") or f"({letter.place}: not ours)"
        told = (alert, letter.text("reason"), wire_form(letter.value, letter.key), letter.text("detail"))
        texts = [Text(printable(text)) for text in told]
        table.add_row(utc(letter.time_ms), *texts, str(letter.n_bytes), "cut" if letter.is_cut else "")
    console.print(table)
    more = f", the newest {len(chosen)} shown" if len(chosen) < n else ""
    _say(console, f"{n} dead letters{more}")


def show(letter: Rejected, opinion: Opinion, parts: Dissected, console: Console) -> None:
    """Headers, what the present code says, the values up to the fault, and the bytes around it."""
    _say(console, f"dead letter {letter.place}, written {utc(letter.time_ms)}, {letter.n_bytes} bytes")
    table = Table("header", "value", box=None)
    for name, value in letter.headers.items():
        table.add_row(Text(printable(name)), Text(printable(value.decode(errors="backslashreplace")), overflow="fold"))
    console.print(table)
    said = "readable now" if opinion.reason is None else f"still refused: {opinion.reason}"
    if opinion.reason in ("cut", "unknown"):
        said = "not read again"
    _say(console, f"{said}: {printable(opinion.detail)}")
    _say(console, f"on the wire: {printable(parts.form)}; {len(parts.values)} values")
    show_values(parts, console)
    if parts.fault:
        where = "" if parts.fault_at is None else f"at byte {parts.fault_at}: "
        _say(console, f"{where}{printable(parts.fault)}")
    start = dump_start(parts)
    for line in hex_lines(parts.data, start):
        _say(console, line)
    left = len(parts.data) - start - HEX_BYTES
    if left > 0:
        _say(console, f"... {left} bytes more")


def show_values(parts: Dissected, console: Console) -> None:
    """The first values and the last ones, before the fault."""
    values = parts.values
    n_left_out = len(values) - VALUES_FIRST - VALUES_LAST
    chosen = values if n_left_out <= 0 else [*values[:VALUES_FIRST], *values[-VALUES_LAST:]]
    for i, value in enumerate(chosen):
        if i == VALUES_FIRST and n_left_out > 0:
            _say(console, f"    ... {n_left_out} values more")
        _say(console, f"    {value.offset:>8}  {printable(value.path)} = {printable(value.text)}")


def dump_start(parts: Dissected) -> int:
    """Where the dump begins: the fault lies in its middle; at the beginning where there is none."""
    return max(0, (parts.fault_at or 0) - HEX_BYTES // 2) // 16 * 16


def hex_lines(value: bytes, start: int = 0, n_bytes: int = HEX_BYTES) -> list[str]:
    """A hex dump, 16 bytes a line: offset, hex, printable ASCII."""
    shown = value[start : start + n_bytes]
    lines = []
    for i in range(0, len(shown), 16):
        row = shown[i : i + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in row)
        lines.append(f"{start + i:08x}  {row[:8].hex(' '):<23}  {row[8:].hex(' '):<23}  {text}")
    return lines


def show_replay(done: PutBack, dry_run: bool, console: Console) -> None:
    """What became of the letters, a line for each kind."""
    would = "would be " if dry_run else ""
    _say(console, f"{done.n_letters} rejected alerts; {done.before} of them have a classification already")
    for words, counts in ((f"{would}answered now", done.answered), (f"{would}rejected again", done.again)):
        told = ", ".join(f"{name} {n}" for name, n in counts.most_common())
        _say(console, f"{counts.total()} {words}" + (f": {told}" if told else ""))
    for why, n in done.left.most_common():
        _say(console, f"{n} not tried: {why}")


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False)
