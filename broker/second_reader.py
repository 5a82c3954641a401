"""The second reader: what the JVM refuses, fastavro reads here, or says exactly why not, under limits of its own."""

from __future__ import annotations

import json
import resource
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO

import cramjam
import fastavro
import pyarrow as pa
from fastavro.schema import SchemaParseException, UnknownType

from broker import registry, surveys
from broker.decode import MAX_ITEMS, schema_pair
from broker.errors import SchemaError
from broker.registry import Schema
from broker.surveys import Survey
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, MAX_SCHEMA_CHARS, schema_id_of, schema_in_key

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

# Beyond what the worker holds already. 16 MB of one-byte items would become gigabytes of Python objects; the largest
# sample alert (532 kB, 1,020 detections and 1,041 forced points) takes 2.7 MB at its peak.
READER_MEMORY_BYTES = 256 * 2**20
MAX_DETAIL_BYTES = 900  # of what is wrong, which may quote the alert
_HEADER = fastavro.parse_schema(
    {
        "type": "record",
        "name": "Header",
        "fields": [
            {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
            {"name": "meta", "type": {"type": "map", "values": "bytes"}},
            {"name": "sync", "type": {"type": "fixed", "name": "Sync", "size": 16}},
        ],
    }
)


@dataclass(frozen=True)
class Read:
    """An alert as the pruned struct (an array of length 1), and the label of the schema that it was read by."""

    alert: pa.StructArray
    schema: str


@dataclass(eq=False)
class Refusal(Exception):
    """Why an alert is rejected: a reason from the closed list and the detail."""

    reason: str
    detail: str


def _short(detail: str) -> str:
    """A detail may quote the alert's own schema: no more of it than a dead letter has room for."""
    told = detail.encode(errors="replace")
    return detail if len(told) <= MAX_DETAIL_BYTES else f"{told[:MAX_DETAIL_BYTES].decode(errors='ignore')} ..."


def read(
    value: bytes | None, survey: Survey, max_alert_bytes: int, struct: pa.StructType, key: bytes | None = None
) -> Read | Refusal:
    """One alert from its bytes, as the struct that the JVM gives. Never raises: what is wrong is the answer.

    key: of its message; on Fink's topics it holds the schema.
    """
    try:
        with limited_memory(READER_MEMORY_BYTES):
            alert, schema = _read(value, key, survey, max_alert_bytes)
            return Read(pa.array([alert], struct), schema)
    except Refusal as refusal:
        # A new one: the traceback of the one that was raised would keep the whole batch alive (1.6 GB seen).
        return Refusal(refusal.reason, _short(refusal.detail))
    except MemoryError:
        return Refusal("too_large", f"needs more than {READER_MEMORY_BYTES} bytes of memory to decode")
    except Exception as error:  # noqa: BLE001
        # fastavro raises EOFError, IndexError, UnicodeDecodeError, ValueError, SchemaParseException, RecursionError,
        # zlib.error and more on damaged bytes: any of them means that these bytes are no alert.
        return Refusal("damaged", _in_words(error))


def _in_words(error: Exception) -> str:
    """What an exception of fastavro, json, zlib or Arrow says about the bytes."""
    name = type(error).__name__
    said = str(error)[:200].encode(errors="backslashreplace").decode()
    if isinstance(error, EOFError) or said == "string index out of range":
        return f"the bytes end inside the alert ({said})"
    if isinstance(error, IndexError):
        return "a union branch that the schema lacks"
    for kind, words in _WORDS:
        if isinstance(error, kind):
            return f"{words} ({name}: {said})"
    return f"{name}: {said}"


_WORDS: tuple[tuple[type[Exception], str], ...] = (
    (UnicodeDecodeError, "text that is not UTF-8"),
    (json.JSONDecodeError, "the embedded schema is not JSON"),
    (RecursionError, "nested too deeply"),
    (zlib.error, "does not unpack (deflate)"),
    (cramjam.DecompressionError, "does not unpack (snappy)"),
    (zstd.ZstdError, "does not unpack (zstandard)"),
    (pa.ArrowInvalid, "a value that its field cannot hold"),
    (OverflowError, "a value that its field cannot hold"),
    (SchemaParseException, "the embedded schema is not valid Avro"),
    (UnknownType, "the embedded schema is not valid Avro"),
    (KeyError, "the embedded schema is not valid Avro"),
)


@contextmanager
def limited_memory(n_bytes: int) -> Iterator[None]:
    """Let this process grow by n_bytes at most (Linux; elsewhere the size limits alone hold)."""
    if sys.platform != "linux":
        yield
        return
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    wanted = now + n_bytes
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


Labelled = tuple[dict[str, object], str]


def _read(value: bytes | None, key: bytes | None, survey: Survey, max_alert_bytes: int) -> Labelled:
    if not value:
        raise Refusal("empty", "null value" if value is None else "value of 0 bytes")
    if len(value) > max_alert_bytes:
        raise Refusal("too_large", f"{len(value)} bytes; max_alert_bytes is {max_alert_bytes}")
    text = schema_in_key(key)
    if text is not None:
        return _datum(value, *_schemas(text, survey.name, survey.extra)), _label(text)
    if value.startswith(CONTAINER_MAGIC):
        return _read_container(value, survey, max_alert_bytes)
    if survey.framing == "bare":
        return _read_bare(value, survey)
    schema_id = schema_id_of(value)
    if schema_id is None:
        raise Refusal("damaged", f"neither a Confluent frame nor an Avro container: starts with {value[:5].hex(' ')}")
    known = registry.by_id(schema_id)
    if known is None:
        raise Refusal("schema_unavailable", f"schema id {schema_id} is not known")
    if known[0] != survey.name:
        raise Refusal("wrong_survey", f"frame of {known[0]} (schema id {schema_id}) on a topic of {survey.name}")
    return _read_body(value[FRAME_BYTES:], survey, known[1])


def _read_body(body: bytes, survey: Survey, writer: registry.Writer) -> Labelled:
    return _datum(body, *_schemas(writer.text, survey.name, survey.extra)), writer.label


def _read_bare(body: bytes, survey: Survey) -> Labelled:
    """A bare body by the layout that fits to its last byte.

    Where none does, the complaint is the first layout's, or that of one that fits but holds too much.
    """
    complaint: Exception | None = None
    for writer in registry.writers(survey.name):
        try:
            return _read_body(body, survey, writer)
        except Exception as error:  # noqa: BLE001  # as in read(): whatever fastavro raises, it is not this layout
            if complaint is None or (isinstance(error, Refusal) and error.reason == "too_large"):
                complaint = error
    assert complaint is not None
    raise complaint


def _read_container(value: bytes, survey: Survey, max_alert_bytes: int) -> Labelled:
    file = BytesIO(value)
    try:
        header = fastavro.schemaless_reader(file, _HEADER, None)
        assert isinstance(header, dict)
        text = header["meta"]["avro.schema"].decode()
    except (EOFError, IndexError, UnicodeDecodeError) as error:
        raise Refusal("damaged", f"the container's header is cut short or damaged ({error})") from error
    except KeyError as error:
        raise Refusal("damaged", f"the container's header has no {error}") from error
    if len(text) > MAX_SCHEMA_CHARS:
        raise Refusal("too_large", f"embedded schema of {len(text)} characters; at most {MAX_SCHEMA_CHARS} are read")
    codec = header["meta"].get("avro.codec", b"null").decode(errors="replace")
    schemas = _schemas(text, survey.name, survey.extra)
    if file.tell() == len(value):
        raise Refusal("empty", "container without a record")
    count, size = (_long(file) for _ in range(2))
    block = file.read(size) if size >= 0 else b""
    if len(block) != size or file.read(16) != header["sync"]:
        raise Refusal("damaged", f"container block of {size} bytes is cut short or not followed by its sync marker")
    if count != 1 or file.tell() != len(value):
        raise Refusal("damaged", f"container holds {count if count != 1 else 'more than 1'} records; an alert is one")
    return _datum(unpack(block, codec, max_alert_bytes), *schemas), _label(text)


def _long(file: BytesIO) -> int:
    number = fastavro.schemaless_reader(file, "long", None)
    assert isinstance(number, int)
    return number


@lru_cache(maxsize=64)
def _label(text: str) -> str:
    schema = json.loads(text)
    version = schema.get("version")
    text = f"{schema.get('name')}{'' if version is None else f' {version}'}"
    return text[:100].encode(errors="replace").decode()  # JSON can hold halves of characters, Avro and Arrow can't


def unpack(block: bytes, codec: str, max_bytes: int) -> bytes:
    """A container block without its codec. Raises Refusal before more than max_bytes are unpacked."""
    if codec == "null":
        return block
    if codec == "deflate":
        stream = zlib.decompressobj(-15)
        data = stream.decompress(block, max_bytes + 1)
    elif codec == "snappy":
        n, shift = 0, 0
        for byte in block[:5]:  # the unpacked length comes first, as a varint
            n |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                break
        data = bytes(cramjam.snappy.decompress_raw(block[:-4])) if n <= max_bytes else b"\0" * (max_bytes + 1)
    elif codec == "zstandard":
        data = zstd.ZstdDecompressor().decompress(block, max_bytes + 1)
    else:
        raise Refusal("damaged", f"container codec {codec[:40]!r}; null, deflate, snappy and zstandard are read")
    if len(data) > max_bytes:
        raise Refusal("too_large", f"unpacks ({codec}) to more than max_alert_bytes = {max_bytes}")
    return data


class Bounded(BytesIO):
    """Bytes whose end is an end: a read that goes past it raises EOFError.

    fastavro skips on behind the end of any other file without a word: 10 bytes that claim 2**62 numbers keep it busy
    for ever. Costs 20 to 45 % of reading an alert.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """At most the bytes asked for, and not fewer."""
        data = super().read(size)
        if size is not None and len(data) < size:
            raise EOFError(f"{size} bytes are due, {len(data)} are left")
        return data


def _datum(body: bytes, writer: Schema, reader: Schema) -> dict[str, object]:
    """One datum that fills the body exactly."""
    file = Bounded(body)
    try:
        alert = fastavro.schemaless_reader(file, writer, reader)
    except EOFError as error:
        raise Refusal("damaged", f"the {len(body)} bytes end before the alert does") from error
    assert isinstance(alert, dict)
    if file.tell() != len(body):
        raise Refusal("damaged", f"the alert does not end with its {len(body)} bytes")
    for name, part in alert.items():
        if isinstance(part, list) and len(part) > MAX_ITEMS:
            raise Refusal("too_large", f"{name} has {len(part)} items; at most {MAX_ITEMS} are read")
    return alert


@lru_cache(maxsize=64)
def _schemas(text: str, survey: str, extra: surveys.Extra = ()) -> tuple[Schema, Schema]:
    """Writer and pruned reader schema of a schema text, parsed once. Raises Refusal where they don't fit the survey."""
    try:
        writer = json.loads(text)
        if not isinstance(writer, dict) or writer.get("type") != "record":
            raise Refusal("wrong_survey", "the schema that came with it is not a record")
        _refuse_zero_bytes(writer, {"null"})
        apart, reader = schema_pair(writer, surveys.widened(surveys.find(survey), extra), widest=True)
    except SchemaError as error:
        raise Refusal("wrong_survey", str(error)) from error
    return _parsed(apart), _parsed(reader)


def _parsed(schema: Schema) -> Schema:
    return fastavro.parse_schema(schema)  # type: ignore[return-value]


def _refuse_zero_bytes(schema: object, empty: set[str]) -> None:
    """Refuse arrays whose items need no bytes: seven bytes could claim a billion of them. empty: such types' names."""
    if isinstance(schema, list):
        for part in schema:
            _refuse_zero_bytes(part, empty)
    elif isinstance(schema, dict):
        for field in schema.get("fields", ()):
            _refuse_zero_bytes(field["type"], empty)
        for key in ("items", "values", "type"):
            if isinstance(schema.get(key), dict | list):
                _refuse_zero_bytes(schema[key], empty)
        if schema.get("type") == "array" and _needs_no_bytes(schema["items"], empty):
            raise Refusal("too_large", "the embedded schema has an array whose items need no bytes")
        if "name" in schema and _needs_no_bytes(schema, empty):
            empty.add(str(schema["name"]).rpartition(".")[2])


def _needs_no_bytes(schema: object, empty: set[str]) -> bool:
    """Whether a datum of the type takes no bytes: null, fixed(0), and records of nothing else."""
    if isinstance(schema, str):
        return schema.rpartition(".")[2] in empty  # namespaces are inherited, so the last part decides
    if not isinstance(schema, dict):
        return False
    if schema.get("type") == "fixed":
        return int(schema["size"]) == 0
    if schema.get("type") == "record":
        return all(_needs_no_bytes(field["type"], empty) for field in schema["fields"])
    return _needs_no_bytes(schema.get("type"), empty)
