"""Avro containers of many alerts, taken apart into containers of one, block by block in flat memory."""

from __future__ import annotations

import hashlib
import json
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from typing import Any, BinaryIO, cast

import cramjam
import fastavro
from fastavro.schema import SchemaParseException, UnknownType

from broker.second_reader import Bounded, Refusal, unpack
from broker.wire import CONTAINER_MAGIC

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

MAX_BLOCK_BYTES = 64 * 2**20  # of one block, packed or unpacked; writers close theirs at some tens of kB
MAX_HEADER_BYTES = 2**20  # real ones have up to 60 kB
# What fastavro raises on damaged bytes, on damaged schemas, and what the codecs raise.
BAD_BYTES = (EOFError, IndexError, KeyError, TypeError, ValueError, OverflowError, MemoryError)
_BAD_SCHEMA = (*BAD_BYTES, AttributeError, RecursionError, SchemaParseException, UnknownType)
_BAD_PACKING = (*BAD_BYTES, zlib.error, zstd.ZstdError, cramjam.DecompressionError)
# fastavro walks over a number or bytes that are cut short without a word; with one byte more it is seen to go too far.
_BEHIND = b"\x00"
_META = fastavro.parse_schema({"type": "map", "values": "bytes"})


class Unreadable(Exception):
    """These bytes are no container that can be taken apart; says why."""


class CutShort(Unreadable):
    """The container ends in the middle of a block."""


@dataclass(frozen=True)
class Header:
    """A container's header: its bytes up to the sync marker as if the codec were null, codec, sync marker, schema."""

    plain: bytes
    codec: str
    sync: bytes
    schema: str

    def wrap(self, record: bytes) -> bytes:
        """The record as a container of one, codec null, same embedded schema."""
        return b"".join((self.plain, self.sync, _long(1), _long(len(record)), record, self.sync))


def read_header(head: bytes) -> tuple[Header, int]:
    """The header at the start of the bytes, and where it ends (behind the sync marker). Raises Unreadable."""
    if not head.startswith(CONTAINER_MAGIC):
        raise Unreadable("not an Avro container")
    file = BytesIO(head[: MAX_HEADER_BYTES + 16])
    file.seek(len(CONTAINER_MAGIC))
    try:
        meta = cast(dict[str, bytes], fastavro.schemaless_reader(file, _META, None))
        schema, codec = meta["avro.schema"].decode(), meta.get("avro.codec", b"null").decode()
    except BAD_BYTES as error:
        raise Unreadable(f"no container header in the first {len(head)} bytes") from error
    end = file.tell()
    sync = file.read(16)
    if len(sync) < 16:
        raise CutShort("the container ends within its header")
    plain = head[:end]
    if codec != "null":
        packed = BytesIO()
        fastavro.schemaless_writer(packed, _META, meta | {"avro.codec": b"null"})
        plain = CONTAINER_MAGIC + packed.getvalue()
    return Header(plain, codec, sync, schema), end + 16


def is_single(header: Header, rest: bytes) -> bool:
    """Whether what follows the header is one record in one block without a codec: a container that stays as it is."""
    return single(header, rest) is not None


def single(header: Header, rest: bytes) -> bytes | None:
    """The body of such a record, None where the container is another."""
    file = BytesIO(rest)
    try:
        count, size = _read_long(file), _read_long(file)
    except Unreadable:
        return None
    start = file.tell()
    is_one = header.codec == "null" and count == 1 and len(rest) - start == size + 16
    return rest[start : start + size] if is_one else None


def records(header: Header, file: BinaryIO) -> Iterator[bytes]:
    """The body of every record in the blocks that follow; `file` stands behind the header's sync marker.

    Raises CutShort or Unreadable after the last record of the last whole block.
    """
    schema = walkable(header.schema)
    while first := file.read(1):
        count, size = _read_long(file, first), _read_long(file)
        if not (0 <= size <= MAX_BLOCK_BYTES and count >= 0):
            raise Unreadable(f"a block of {count} records in {size} bytes; at most {MAX_BLOCK_BYTES} bytes are read")
        block, sync = file.read(size), file.read(16)
        if len(block) + len(sync) < size + 16:
            raise CutShort("the container ends within a block")
        if sync != header.sync:
            raise Unreadable("a block is not followed by its sync marker")
        yield from _split(unpacked(block, header.codec), count, schema)


def unpacked(block: bytes, codec: str) -> bytes:
    """A block without its codec. Raises Unreadable."""
    try:
        return unpack(block, codec, MAX_BLOCK_BYTES)
    except Refusal as refusal:
        raise Unreadable(refusal.detail) from refusal
    except _BAD_PACKING as error:
        raise Unreadable(f"a block does not unpack ({codec}): {type(error).__name__}") from error


def _split(data: bytes, count: int, schema: _Walkable, kind: type[BytesIO] = Bounded) -> list[bytes]:
    """The records of a block, found by walking over them without making Python objects."""
    file, ends = kind(data + _BEHIND), [0]
    if count > len(data):
        raise Unreadable(f"a block claims {count} records in {len(data)} bytes")
    try:
        for _ in range(count):
            fastavro.schemaless_reader(file, schema.writer, schema.nothing)
            ends.append(file.tell())
    except BAD_BYTES as error:
        raise Unreadable(f"record {len(ends) - 1} of a block: {type(error).__name__}") from error
    if ends[-1] > len(data):
        raise Unreadable(f"record {len(ends) - 2} of a block ends behind it")
    if ends[-1] < len(data):
        raise Unreadable(f"{len(data) - ends[-1]} bytes of a block belong to no record")
    return [data[start:end] for start, end in pairwise(ends)]


def fits(text: str, body: bytes) -> bool:
    """Whether the body is one datum of the schema, one of the package's, to the last byte."""
    try:
        _split(body, 1, walkable(text), BytesIO)  # twice as fast, and no array of theirs has items without a long
    except Unreadable:
        return False
    return True


# --- schemas that can be walked -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Walkable:
    """A writer schema and a reader schema of the same name without fields."""

    writer: Any
    nothing: Any


@lru_cache(maxsize=16)
def walkable(text: str) -> _Walkable:
    """The schema, ready for walking. Raises Unreadable: not a record, recursive, or with items that need no bytes.

    A recursive schema lets some kilobytes overflow the C stack; items of no bytes let seven bytes claim a billion.
    """
    try:
        schema = json.loads(text)
        if not isinstance(schema, dict) or schema.get("type") != "record":
            raise Unreadable("the embedded schema is not a record")
        _Sizes().smallest(schema, "")
        parsed = fastavro.parse_schema(schema)
    except _BAD_SCHEMA as error:
        raise Unreadable(f"the embedded schema is not valid Avro: {type(error).__name__}") from error
    name = cast(dict[str, Any], parsed)["name"]
    return _Walkable(parsed, fastavro.parse_schema({"type": "record", "name": name, "fields": []}))


class _Sizes:
    """Smallest number of bytes of a datum of each named type; 0, 1 or more."""

    def __init__(self) -> None:
        self.known: dict[str, int | None] = {}  # None: still being read, so a use of it is a recursion

    def smallest(self, schema: object, space: str) -> int:
        """Of any type inside namespace `space`."""
        if isinstance(schema, str):
            return self.named(schema, space)
        if isinstance(schema, list):
            sizes = [self.smallest(branch, space) for branch in schema]
            return 1 + min(sizes, default=0)
        if not isinstance(schema, dict):
            raise Unreadable("the embedded schema is not valid Avro")
        kind = schema["type"]
        if kind in ("record", "error", "enum", "fixed"):
            return self.define(schema, kind, space)
        if kind in ("array", "map"):
            inner = self.smallest(schema["items" if kind == "array" else "values"], space)
            if kind == "array" and inner == 0:
                raise Unreadable("the embedded schema has an array whose items need no bytes")
            return 1
        return self.smallest(kind, space)

    def named(self, name: str, space: str) -> int:
        """Of a primitive or of a type defined before."""
        if name == "null":
            return 0
        for full in (name, f"{space}.{name}"):
            if full in self.known:
                size = self.known[full]
                if size is None:
                    raise Unreadable(f"the embedded schema is recursive: {full} within itself")
                return size
        return 1

    def define(self, schema: dict[str, Any], kind: str, space: str) -> int:
        """Of a named type, at its definition."""
        name, inner = str(schema["name"]), str(schema.get("namespace", space))
        full = name if "." in name or not inner else f"{inner}.{name}"
        self.known[full] = None
        if kind in ("enum", "fixed"):
            size = 1 if kind == "enum" else int(schema["size"])
        else:
            size = sum(self.smallest(field["type"], full.rpartition(".")[0]) for field in schema["fields"])
        self.known[full] = size
        return size


# --- Avro longs ---------------------------------------------------------------------------------------------------


def _long(number: int) -> bytes:
    file = BytesIO()
    fastavro.schemaless_writer(file, "long", number)
    return file.getvalue()


def _read_long(file: BinaryIO, first: bytes = b"") -> int:
    """A long of at most 10 bytes, `first` being its first one. Raises CutShort at the end of the file."""
    number = 0
    for i in range(10):
        byte = first or file.read(1)
        first = b""
        if not byte:
            raise CutShort("the container ends within a number")
        number |= (byte[0] & 127) << 7 * i
        if byte[0] < 128:
            return (number >> 1) ^ -(number & 1)
    raise Unreadable("a number of more than 10 bytes")


def header_of(schema: str) -> Header:
    """A header, codec null, for records of this schema; its sync marker is a digest of the schema."""
    meta = BytesIO()
    fastavro.schemaless_writer(meta, _META, {"avro.codec": b"null", "avro.schema": schema.encode()})
    sync = hashlib.blake2b(schema.encode(), digest_size=16).digest()
    return Header(CONTAINER_MAGIC + meta.getvalue(), "null", sync, schema)
