"""Outlet `hop`: the native container with the header by which hop-client knows Avro."""

from __future__ import annotations

from broker.outlets import native
from broker.outlets.batch import Batch

HEADERS = (("_format", b"avro"),)


def encode(batch: Batch) -> list[bytes]:
    """A container each, whatever the native outlet wraps its records in."""
    return [native.container(body) for body in batch.bodies]
