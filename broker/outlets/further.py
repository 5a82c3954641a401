"""Outlets beside the native one: filter, form, key and partition of what a job sends to each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.delivery import Filter, Kind
from broker.lightcurve import Bools
from broker.outlets import elasticc, fink, fink_ai, hop, json_lines, lasair, records
from broker.outlets.batch import Batch
from broker.outlets.filters import passes
from broker.written import Written

PUBLIC_PROGRAM = 1
LARGEST_RECORD = 65_536  # bytes; the largest of ours, a native container, has 8,000
_NEEDS = {"lasair": lasair.NEEDS, "elasticc": elasticc.NEEDS, "fink-ai": fink_ai.NEEDS}


@dataclass(frozen=True)
class Further:
    """An outlet as the tasks of one source know it; travels to the workers.

    topics by class, one under "" where all share it; n_partitions: the least of them has so many.
    """

    name: str
    kind: Kind
    topics: Mapping[str, str]
    n_partitions: int
    public_only: bool
    class_name: str | None
    filter: Filter


@dataclass(frozen=True)
class Delivered:
    """What an outlet made of n verdicts. passed (n,): through the filter; fresh (n,): not written before."""

    rows: list[pa.RecordBatch]
    passed: Bools
    fresh: Bools


def deliver(outlet: Further, batch: Batch, written: Written) -> Delivered:
    """Rows of the verdicts that pass and that are not on the topic already."""
    columns = batch.columns
    passed = passes(outlet.filter, columns) & _is_fit(outlet, columns)
    places = (columns.column(name) for name in ("alert_topic", "alert_partition", "alert_offset"))
    fresh = ~written.holds(outlet.topics.values(), *places)
    found = []
    for name, topic in outlet.topics.items():
        mine = passed & fresh
        if name:
            mine &= pc.equal(columns.column("class_name"), name).fill_null(False).to_numpy(zero_copy_only=False)
        found.append(_rows(outlet, topic, batch.take(np.flatnonzero(mine))))
    return Delivered(found, passed, fresh)


def _is_fit(outlet: Further, columns: pa.RecordBatch) -> Bools:
    """Whether the outlet may have the verdict, and has a form for it."""
    fit = np.ones(columns.num_rows, np.bool_)
    for name in _NEEDS.get(outlet.kind, ()):
        fit &= columns.column(name).is_valid().to_numpy(zero_copy_only=False)
    if outlet.public_only:
        program = columns.column("programid").fill_null(PUBLIC_PROGRAM).to_numpy(zero_copy_only=False)
        fit &= program == PUBLIC_PROGRAM
    return fit


def _rows(outlet: Further, topic: str, batch: Batch) -> pa.RecordBatch:
    objects, partitions = batch.objects(), None
    keys: Sequence[bytes] = objects
    if outlet.kind == "fink":  # its key is the schema, the same for all: the partition must be chosen here
        keys = [fink.key(batch.survey.name)] * len(batch)
        partitions = pa.array([crc32(name) % outlet.n_partitions for name in objects], pa.int32())
    more = hop.HEADERS if outlet.kind == "hop" else ()
    model = batch.passport.model.encode()
    return records(topic, keys, _values(outlet, topic, batch), batch.places, model, more, partitions)


def _values(outlet: Further, topic: str, batch: Batch) -> list[bytes]:
    if not len(batch):
        return []
    match outlet.kind:
        case "json":
            return json_lines.encode(batch)
        case "lasair":
            return lasair.encode(batch, topic)
        case "hop":
            return hop.encode(batch)
        case "fink":
            return fink.encode(batch)
        case "elasticc":
            return elasticc.encode(batch)
        case "fink-ai":
            assert outlet.class_name is not None  # the config sees to it
            return fink_ai.encode(batch, outlet.class_name)
