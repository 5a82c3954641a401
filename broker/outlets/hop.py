"""Outlet `hop`: the native container with the header by which hop-client knows Avro."""

from __future__ import annotations

from broker.outlets.batch import Batch

HEADERS = (("_format", b"avro"),)


def encode(batch: Batch) -> list[bytes]:
    """The containers of the native outlet, byte for byte."""
    return batch.natives
