"""Outlets beside the native one: filter, form, key and partition of what a job sends to each."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from zlib import crc32

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.delivery import Filter, Kind
from broker.lightcurve import Bools, Integers
from broker.outlet_nights import NIGHT, OTHER, expand
from broker.outlets import elasticc, fastdb, fink, fink_ai, hop, json_lines, lasair, records
from broker.outlets.batch import Batch
from broker.outlets.filters import passes
from broker.outlets.nights import dates, name_of
from broker.written import Written

PUBLIC_PROGRAM = 1
LARGEST_RECORD = 65_536  # bytes; the largest of ours, a native container, has 8,000
_NEEDS = {"lasair": lasair.NEEDS, "elasticc": elasticc.NEEDS, "fink-ai": fink_ai.NEEDS, "fastdb": fastdb.NEEDS}


@dataclass(frozen=True)
class Further:
    """An outlet as the tasks of one source know it; travels to the workers.

    topics by class, one under "" where all share it, with {night} in them for the nights; n_partitions: the least of
    them has so many; nights: dates for which all of them are there; fields: of the alert, to be carried through;
    max_bytes: largest message that they take.
    """

    name: str
    kind: Kind
    topics: Mapping[str, str]
    n_partitions: int
    public_only: bool
    class_name: str | None
    filter: Filter
    nights: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    max_bytes: int = 2**31

    def names(self) -> list[str]:
        """All topics."""
        return expand(self.topics.values(), dict.fromkeys(self.topics.values(), self.nights))


@dataclass(frozen=True)
class Delivered:
    """What an outlet made of n verdicts. passed (n,): through the filter; fresh (n,): not written before."""

    rows: list[pa.RecordBatch]
    passed: Bools
    fresh: Bools


def deliver(outlet: Further, batch: Batch, written: Written) -> Delivered:
    """Rows of the verdicts that pass and that are not on the topic already."""
    columns = batch.columns
    passed = passes(outlet.filter, columns) & _is_fit(outlet, batch)
    places = (columns.column(name) for name in ("alert_topic", "alert_partition", "alert_offset"))
    fresh = ~written.holds(outlet.names(), *places)
    found = []
    for name, topic in outlet.topics.items():
        mine = passed & fresh
        if name:
            mine &= pc.equal(columns.column("class_name"), name).fill_null(False).to_numpy(zero_copy_only=False)
        found += [_rows(outlet, one, batch.take(rows)) for one, rows in _by_night(outlet, topic, batch, mine)]
    return Delivered(found, passed, fresh)


def _by_night(outlet: Further, topic: str, batch: Batch, mine: Bools) -> Iterator[tuple[str, Integers]]:
    """Topics and the rows that go there. A night without a topic goes where all others go: nothing is lost or late."""
    where = np.flatnonzero(mine)
    if NIGHT not in topic:
        yield topic, where
        return
    mjd_tai = batch.columns.column("mjd_tai").fill_null(np.nan).to_numpy(zero_copy_only=False)
    days = dates(batch.survey.name, mjd_tai)[where]
    found: dict[str, list[Integers]] = {}
    for day in np.unique(days).tolist():
        name = name_of(day) if day >= 0 else OTHER
        found.setdefault(name if name in outlet.nights else OTHER, []).append(where[days == day])
    for name, parts in found.items():
        yield topic.replace(NIGHT, name), np.sort(np.concatenate(parts))


def _is_fit(outlet: Further, batch: Batch) -> Bools:
    """Whether the outlet may have the verdict, and has a form for it."""
    columns = batch.columns
    fit = fastdb.fits(batch.raws) if outlet.kind == "fastdb" else np.ones(len(batch), np.bool_)
    if outlet.fields:
        fit &= json_lines.bytes_of(batch.alerts, outlet.fields) + LARGEST_RECORD // 2 <= outlet.max_bytes
    for name in _NEEDS.get(outlet.kind, ()):
        fit &= columns.column(name).is_valid().to_numpy(zero_copy_only=False)
    if outlet.public_only:
        program = columns.column("programid").fill_null(PUBLIC_PROGRAM).to_numpy(zero_copy_only=False)
        fit &= program == PUBLIC_PROGRAM
    return fit


def _rows(outlet: Further, topic: str, batch: Batch) -> pa.RecordBatch:
    objects, partitions = batch.objects(), None
    keys: Sequence[bytes] = objects
    if outlet.kind == "fastdb" and len(batch):
        keys, values = fastdb.encode(batch)
    else:
        values = _values(outlet, topic, batch)
    if outlet.kind == "fink":
        keys = [fink.key(batch.survey.name)] * len(batch)
    if outlet.kind in ("fink", "fastdb"):  # their key is a schema, the same for many: the partition is chosen here
        partitions = pa.array([crc32(name) % outlet.n_partitions for name in objects], pa.int32())
    more = hop.HEADERS if outlet.kind == "hop" else ()
    return records(topic, keys, values, batch.places, batch.passport.model.encode(), more, partitions)


def _values(outlet: Further, topic: str, batch: Batch) -> list[bytes]:
    if not len(batch):
        return []
    match outlet.kind:
        case "json":
            return json_lines.encode(batch, outlet.fields)
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
    raise AssertionError(outlet.kind)
