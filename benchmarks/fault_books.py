"""The books of a fault run: which phase a batch was in when something broke, and who has a record in the end."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from confluent_kafka import TopicPartition

from benchmarks.fault_load import FINK_SOURCES, SHARES, outlet_topics
from broker import checkpoint
from broker.audit import ledger_rows
from broker.collected import Collected, collect, take
from broker.ledger import Span
from broker.topics import open_consumer, watermarks

Ends = Mapping[str, Mapping[int, int]]
Alerts = Counter[tuple[bytes, int]]  # records by (b"source:topic:partition", offset)
COMPLETE = ("json", "hop", "fink")  # forms that have a place for whatever was read


@dataclass(frozen=True)
class Moment:
    """The checkpoints, and the ends of the output topics, when something broke."""

    planned: Mapping[str, tuple[int, list[Span]] | None]
    ends: Ends


def planned(folder: Path) -> dict[str, tuple[int, list[Span]] | None]:
    """The unfinished batch of each source."""
    return {name: checkpoint.planned_spans(folder / "checkpoints" / name) for name in SHARES}


class Answers:
    """Which alerts have a record on the topics that carry every verdict, read on from hit to hit."""

    def __init__(self, options: Mapping[str, str]) -> None:
        self._options = options
        self._at: dict[tuple[str, int], int] = {}
        self._found = Collected()

    def phases(self, moment: Moment) -> dict[str, str]:
        """Where the batch of each source was: plan, decode, write or commit.

        plan: the newest planned batch is committed. decode: none of its alerts has a record, write: some, commit: all.
        """
        self._read_to(moment.ends)
        found = {}
        for name, batch in moment.planned.items():
            if batch is None:
                found[name] = "plan"
                continue
            n_all = sum(span.last_exclusive - span.first for span in batch[1])
            n = sum(self._n_within(name, span) for span in batch[1])
            found[name] = "decode" if n == 0 else "write" if n < n_all else "commit"
        return found

    def _n_within(self, source: str, span: Span) -> int:
        prefix, n = f"{source}:{span.topic}:{span.partition}".encode(), 0
        for (place, _), offsets in self._found.offsets.items():
            if place == prefix:
                there = np.unique(np.frombuffer(offsets, np.int64))
                n += int(((there >= span.first) & (there < span.last_exclusive)).sum())
        return n

    def _read_to(self, ends: Ends) -> None:
        wanted = {(topic, p): end for topic, parts in ends.items() for p, end in parts.items()}
        waiting = {place for place, end in wanted.items() if self._at.get(place, 0) < end}
        deadline = time.monotonic() + 120
        with open_consumer(self._options, reset="earliest") as consumer:
            consumer.assign([TopicPartition(*place, self._at.get(place, 0)) for place in waiting])
            while waiting:
                for message in consumer.consume(1000, 0.2):
                    place, offset = (message.topic() or "", message.partition() or 0), message.offset()
                    if message.error() is None and offset is not None and offset < wanted[place]:
                        take([message], self._found)
                        self._at[place] = offset + 1
                waiting = {place for place in waiting if self._at.get(place, 0) < wanted[place]}
                if time.monotonic() > deadline:
                    raise RuntimeError(f"the outputs could not be read up to {waiting}")


def count(options: dict[str, str], run: str) -> dict[str, int]:
    """What is on all topics of a run, native and outlets: lost, duplicates, and the same of the outlets."""
    verdicts, letters = (collect(options, f"{run}-{name}") for name in ("classifications", "dead-letters"))
    answers = _tally(verdicts.answers)
    native = _tally(verdicts.offsets) + _tally(letters.offsets)
    waited = _tally(letters.waiting)
    put_back = waited.keys() & answers.keys()  # a letter, and the classification that answers it
    everything = {
        (f"{name}:{run}-{name}:{partition}".encode(), offset)
        for name in SHARES
        for partition, reach in watermarks(options, [f"{run}-{name}"])[f"{run}-{name}"].items()
        for offset in range(reach.last_exclusive)
    }
    strays = native.keys() - everything
    lost = len(everything - native.keys()) + len(waited.keys() - answers.keys())
    found = {"offered": len(everything), "lost": lost, "dead_letters": letters.n_records, "put_back": len(put_back)}
    found["duplicates"] = native.total() - len(native) - len(put_back) + len(strays)
    found |= _count_outlets(options, run, {alert for alert in _tally(verdicts.offsets) if alert not in answers})
    rows = ledger_rows(options, f"{run}-ledger", None)
    found["already_written"] = sum(row.already_written for of_place in rows.values() for row in of_place)
    return found


def _count_outlets(options: dict[str, str], run: str, verdicts: set[tuple[bytes, int]]) -> dict[str, int]:
    """Records on the outlets' topics: too many, and missing from the forms that hold all; the audit has the others."""
    n, too_many, missing = 0, 0, 0
    for kind, topics in outlet_topics(run).items():
        there: Alerts = Counter()
        for topic in topics:
            there.update(_tally(collect(options, topic).offsets))
        n += there.total()
        too_many += there.total() - len(there) + len(there.keys() - verdicts)
        if kind in COMPLETE:
            starts = tuple(f"{name}:".encode() for name in (FINK_SOURCES if kind == "fink" else SHARES))
            missing += len({alert for alert in verdicts if alert[0].startswith(starts)} - there.keys())
    return {"outlet_records": n, "outlet_duplicates": too_many, "outlet_lost": missing}


def _tally(offsets: Mapping[tuple[bytes, bytes], Sequence[int]]) -> Alerts:
    return Counter((prefix, offset) for (prefix, _), found in offsets.items() for offset in found)


def audit(config: Path) -> tuple[int, str]:
    """Exit code of `broker audit` (0: balanced) and its last line; it must have audited the outlets too."""
    told = config.with_name("audit.json")
    command = [sys.executable, "-P", "-m", "broker", "audit", "--config", str(config), "--json", str(told)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 3) or not told.is_file():
        return done.returncode or 1, done.stderr[-500:]
    found = json.loads(told.read_text())
    if len(found["outlets"]) < len(outlet_topics("")):
        return 1, "the outlets were not audited"
    return done.returncode, str(found["summary"])
