"""An alert's bytes taken apart by hand, value by value with offsets, as far as they go: where exactly it breaks off.

For people who look at one dead letter. The readers that decide are others (`decode`, `second_reader`); this one never
raises, follows at most MAX_VALUES values in MAX_STEPS steps, and holds nothing that the bytes claim and don't have.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from broker import registry
from broker.container import Unreadable, read_header, unpacked
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, schema_id_of, schema_in_key

MAX_VALUES = 200_000  # a deep LSST alert has 80,000
MAX_STEPS = 5 * MAX_VALUES  # a value takes one to four; records without fields take steps, but neither bytes nor values
MAX_DEPTH = 64
_NUMBERS = {"float": ("<f", 4), "double": ("<d", 8)}
_ITEMS = ("array", "map")


class Value(NamedTuple):
    """One value: its path in the alert, its first byte, and itself in words (80 characters at most)."""

    path: str
    offset: int
    text: str


@dataclass
class Dissected:
    """What was found. form: see `wire_form`. data: the bytes that offsets count in (a packed block: unpacked).

    fault_at: the byte at which it goes on no more, and why; None where the alert ends with its bytes.
    """

    form: str
    data: bytes
    values: list[Value] = field(default_factory=list)
    fault_at: int | None = None
    fault: str = ""


class _Fault(Exception):
    """The bytes are not what the schema says."""


_BAD_HEADER = (Unreadable, ValueError, RecursionError)


def wire_form(value: bytes | None, key: bytes | None = None) -> str:
    """How an alert is wrapped, in a few words: what letters are grouped by. Never raises."""
    if not value:
        return "null" if value is None else "no bytes"
    if schema_in_key(key) is not None:
        return "schema in the key"
    if value.startswith(CONTAINER_MAGIC):
        try:
            return _container(value)[0]
        except _BAD_HEADER:
            return "container, header damaged"
    number = schema_id_of(value)
    return "no frame" if number is None else f"schema id {number}"


def dissect(value: bytes | None, survey: str | None, key: bytes | None = None) -> Dissected:
    """Take an alert apart; survey says whose bare bodies to try where neither frame nor container tells the schema."""
    data = value or b""
    found = Dissected(wire_form(value, key), data)
    if not data:
        found.fault = "there are no bytes"
        return found
    try:
        if (text := schema_in_key(key)) is not None:
            return _walked(data, 0, len(data), json.loads(text), found.form)
        if data.startswith(CONTAINER_MAGIC):
            return _of_container(data, found.form)
        number = schema_id_of(data)
        known = None if number is None else registry.by_id(number)
        if known is not None:
            return _best(data, FRAME_BYTES, [known[1]], found.form)
        if survey is not None and number is None:
            return _best(data, 0, list(registry.writers(survey)), found.form)
    except _BAD_HEADER as error:
        found.fault_at, found.fault = 0, str(error)[:200]
        return found
    found.fault_at, found.fault = 0, "nobody here knows the schema"
    return found


def _best(data: bytes, start: int, writers: list[registry.Writer], form: str) -> Dissected:
    """By the writer schema that goes furthest."""
    tried = [_walked(data, start, len(data), w.schema, f"{form}, read as {w.label}") for w in writers]
    return max(tried, key=lambda found: (found.fault_at is None, found.fault_at or 0))


def _of_container(data: bytes, form: str) -> Dissected:
    _, schema, codec, at = _container(data)
    walk = _Walk(data, at, len(data))
    try:
        count, size = walk.long(), walk.long()
    except _Fault as fault:
        return Dissected(form, data, [], walk.at, str(fault))
    end = walk.at + max(size, 0)
    if codec != "null":
        block = unpacked(data[walk.at : end], codec)
        return _walked(block, 0, len(block), schema, f"{form}; offsets are those of its unpacked block")
    if end + 16 > len(data):
        form += f"; its block claims {size} bytes, {len(data) - walk.at - 16} are there"
    if count != 1:
        form += f"; it claims {count} records, an alert is one"
    found = _walked(data, walk.at, min(end, len(data)), schema, form)
    if found.fault_at is None and end + 16 != len(data):
        found.fault_at, found.fault = min(end, len(data)), "the block does not end with its sync marker and the value"
    return found


def _walked(data: bytes, start: int, end: int, schema: object, form: str) -> Dissected:
    walk, found = _Walk(data, start, end), Dissected(form, data)
    try:
        walk.walk(schema, "", 0)
        if walk.at != end:
            found.fault_at, found.fault = walk.at, f"the alert ends here, {end - walk.at} bytes are left over"
    except _Fault as fault:
        found.fault_at, found.fault = walk.at, str(fault)
    except (RecursionError, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        found.fault_at, found.fault = walk.at, f"the schema can't be followed here ({type(error).__name__})"
    found.values = walk.values
    return found


def _container(value: bytes) -> tuple[str, object, str, int]:
    """Form, schema, codec of a container, and where its first block begins. Raises what is in _BAD_HEADER."""
    header, at = read_header(value)
    schema = json.loads(header.schema)
    named = schema if isinstance(schema, dict) else {}
    space, name, version = (str(named.get(key, ""))[:60] for key in ("namespace", "name", "version"))
    return f"container {space}{'.' if space else ''}{name} {version}".strip(), schema, header.codec, at


class _Walk:
    """A position in bytes that end at `end`, and what was read on the way to it."""

    def __init__(self, data: bytes, at: int, end: int) -> None:
        self.data, self.at, self.end = data, at, end
        self.values: list[Value] = []
        self._n_steps = 0
        self._named: dict[str, object] = {}

    def take(self, n: int) -> bytes:
        """The next n bytes."""
        if n < 0:
            raise _Fault(f"a length of {n}")
        if self.at + n > self.end:
            raise _Fault(f"{n} bytes are due, {self.end - self.at} are left")
        part = self.data[self.at : self.at + n]
        self.at += n
        return part

    def long(self) -> int:
        """An Avro long."""
        number, start = 0, self.at
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            number |= (byte & 127) << shift
            if byte < 128:
                return (number >> 1) ^ -(number & 1)
        self.at = start
        raise _Fault("a number of more than 10 bytes")

    def walk(self, schema: object, path: str, depth: int) -> None:
        """Read one datum. Raises _Fault, with `at` where it is."""
        if depth > MAX_DEPTH:
            raise _Fault(f"nested deeper than {MAX_DEPTH}")
        self._n_steps += 1
        if self._n_steps > MAX_STEPS:
            raise _Fault(f"not followed further than {MAX_STEPS} steps")
        if isinstance(schema, list):
            start, branch = self.at, self.long()
            if not 0 <= branch < len(schema):
                self.at = start
                raise _Fault(f"{path}: branch {branch} of a union of {len(schema)}")
            return self.walk(schema[branch], path, depth + 1)
        if isinstance(schema, str):
            known = self._named.get(schema.rpartition(".")[2])
            return self._leaf(schema, path) if known is None else self.walk(known, path, depth + 1)
        if not isinstance(schema, dict):
            raise TypeError("a schema is text, a list or a table")
        return self._table(schema, path, depth)

    def _table(self, schema: dict[str, Any], path: str, depth: int) -> None:
        kind = schema["type"]
        if isinstance(kind, dict | list):
            return self.walk(kind, path, depth + 1)
        if "name" in schema:
            self._named[str(schema["name"]).rpartition(".")[2]] = schema
        if kind == "record":
            for inner in schema["fields"]:
                self.walk(inner["type"], f"{path}.{inner['name']}".lstrip("."), depth + 1)
            return None
        if kind in _ITEMS:
            return self._items(schema, kind, path, depth)
        if kind in ("enum", "fixed"):
            return self._told(path, self._named_leaf(schema, kind), self.at)
        return self.walk(str(kind), path, depth + 1)

    def _named_leaf(self, schema: dict[str, object], kind: str) -> str:
        if kind == "fixed":
            return self.take(int(str(schema["size"])))[:20].hex(" ")
        start, number, symbols = self.at, self.long(), schema["symbols"]
        if not isinstance(symbols, list):
            raise TypeError("symbols are a list")
        if not 0 <= number < len(symbols):
            self.at = start
            raise _Fault(f"symbol {number} of an enum of {len(symbols)}")
        return str(symbols[number])

    def _items(self, schema: dict[str, object], kind: str, path: str, depth: int) -> None:
        start, n_all, number = self.at, 0, 0
        while True:
            block_at, n = self.at, self.long()
            if n == 0:
                break
            if n < 0:
                n = -n
                self.long()
            if n > self.end - self.at:  # no item of an alert takes less than a byte
                self.at = block_at
                raise _Fault(f"{path}: {n} items are claimed, {self.end - block_at} bytes are left")
            n_all += n
            for _ in range(n):
                name = f"{path}[{number}]"
                if kind == "map":
                    name = f"{path}[{_words(self.take(self.long()))}]"
                self.walk(schema["items" if kind == "array" else "values"], name, depth + 1)
                number += 1
        self._told(path, f"{n_all} items", start)

    def _leaf(self, kind: str, path: str) -> None:
        start = self.at
        if kind == "null":
            text = "null"
        elif kind == "boolean":
            text = {0: "false", 1: "true"}.get(self.take(1)[0], "")
            if not text:
                self.at = start
                raise _Fault(f"{path}: a boolean that is neither 0 nor 1")
        elif kind in ("int", "long"):
            text = str(self.long())
        elif kind in _NUMBERS:
            form, size = _NUMBERS[kind]
            text = f"{struct.unpack(form, self.take(size))[0]:.9g}"
        elif kind in ("bytes", "string"):
            n = self.long()
            if not 0 <= n <= self.end - self.at:
                self.at = start
                raise _Fault(f"{path}: {kind} of {n} bytes, {self.end - start} are left")
            part = self.take(n)
            text = f"{n} bytes" if kind == "bytes" else _words(part)
        else:
            raise _Fault(f"{path}: a type {kind!r} that the schema does not define")
        self._told(path, text, start)

    def _told(self, path: str, text: str, offset: int) -> None:
        if len(self.values) >= MAX_VALUES:
            raise _Fault(f"not followed further than {MAX_VALUES} values")
        self.values.append(Value(path, offset, text[:80]))


def _words(data: bytes) -> str:
    return data[:80].decode(errors="backslashreplace")
