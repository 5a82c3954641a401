"""How alerts are wrapped on the wire: Confluent frame, Avro container or bare body; for Spark and for Python."""

from __future__ import annotations

import json
import struct
from functools import lru_cache

from pyspark.sql import Column
from pyspark.sql import functions as F

from broker.registry import Writer
from broker.surveys import Survey

CONTAINER_MAGIC = b"Obj\x01"
FRAME_BYTES = 5  # 0x00 and the schema id, big-endian
MAX_SCHEMA_CHARS = 2**20  # of a schema that comes with an alert; real ones have up to 60,000


def schema_label(survey: Survey, writers: tuple[Writer, ...], value: Column) -> Column:
    """Label of the writer schema that an alert's frame or container header names, null where it names no known one."""
    label = F.lit(None).cast("string")
    if survey.framing == "confluent":
        framed = F.substring(value, 1, 1) == F.lit(b"\x00")
        number = F.conv(F.hex(F.substring(value, 2, 4)), 16, 10)
        label = F.when(framed & number.isin(*(str(w.schema_id) for w in writers)), number)
    for writer in writers:
        for header in writer.headers:
            # The whole header decides: texts differ within one version. Its first bytes tell the known ones apart, so
            # that one digest is taken per alert.
            starts = F.substring(value, 1, len(header.start)) == F.lit(header.start)
            same = F.sha2(F.substring(value, 1, header.n_bytes), 256) == F.lit(header.sha256)
            label = F.when(starts & same, F.lit(writer.label)).otherwise(label)
    return label


def frame(schema_id: int, body: bytes) -> bytes:
    """A Confluent frame around an Avro body."""
    return struct.pack(">BI", 0, schema_id) + body


def schema_id_of(value: bytes) -> int | None:
    """Schema id of a Confluent frame, None where the bytes are not one."""
    if len(value) < FRAME_BYTES or value[0] != 0:
        return None
    number: int = struct.unpack_from(">I", value, 1)[0]
    return number


def schema_in_key(key: bytes | None) -> str | None:
    """The record schema that stands in the key of a message, as on Fink's topics; None for any other key."""
    return _record_schema(key) if key is not None and key.startswith(b"{") and len(key) <= MAX_SCHEMA_CHARS else None


@lru_cache(maxsize=64)
def _record_schema(key: bytes) -> str | None:
    try:
        schema = json.loads(text := key.decode())
    except (ValueError, RecursionError):
        return None
    return text if isinstance(schema, dict) and schema.get("type") == "record" else None
