"""Dead letters: a rejected alert's own bytes and key, with reason, detail and coordinates in the headers."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from broker.outlets import Headers

CUT_BYTES = 65_536
ANSWERS = "answers_letter"  # header of the classification that a letter got later: topic:partition:offset of the letter
_RECORD_OVERHEAD_BYTES = 512  # room for Kafka's own: a batch has a header of 61 bytes, a record a few varints


@dataclass(frozen=True)
class Letter:
    """One rejected alert: its Kafka record and why it was rejected."""

    key: bytes | None
    value: bytes | None
    headers: Headers
    coordinates: str
    timestamp_us: int
    reason: str
    detail: str


def build(letter: Letter, model: str, max_message_bytes: int) -> tuple[bytes | None, bytes | None, Headers]:
    """Key, value and headers of the dead letter; cut to its first 64 kB, and marked so, where it would not fit."""
    value = letter.value
    ours: Headers = [
        ("alert", letter.coordinates.encode()),
        ("model", model.encode()),
        ("reason", letter.reason.encode()),
        ("detail", letter.detail.encode(errors="backslashreplace")[:2000]),
        ("timestamp_us", str(letter.timestamp_us).encode()),
    ]
    theirs: Headers = [(f"original.{key}", data) for key, data in letter.headers]
    if _size(letter.key, value, ours + theirs) <= max_message_bytes:
        return letter.key, value, ours + theirs
    digest = hashlib.sha256(value or b"").hexdigest()
    ours += [("cut", b"true"), ("n_bytes", str(len(value or b"")).encode()), ("sha256", digest.encode())]
    key = None if letter.key is None else letter.key[:1024]
    room = max(0, max_message_bytes - _size(key, b"", ours))
    return key, None if value is None else value[: min(CUT_BYTES, room)], ours


def _size(key: bytes | None, value: bytes | None, headers: Headers) -> int:
    inside = sum(len(k) + len(v or b"") + 10 for k, v in headers)
    return len(key or b"") + len(value or b"") + inside + _RECORD_OVERHEAD_BYTES
