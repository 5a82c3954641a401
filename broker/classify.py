"""The one Python hop: decoded alerts in, finished rows out. Judges, publishes and counts, batch by batch."""

from __future__ import annotations

import gc
import os
import pickle
import signal
import sys
import time
import zipimport
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
from pyspark import TaskContext

from broker import model as models
from broker import registry, second_reader, surveys
from broker.errors import ModelError
from broker.gather import Settings, gather, implausible
from broker.lightcurve import Bools, merge, summarise, thin
from broker.outlets import Passport, columns, dead_letter, native, records, rows
from broker.outlets.batch import Batch
from broker.outlets.further import Further, deliver
from broker.second_reader import Refusal
from broker.surveys import Survey
from broker.tally import Share, Tally
from broker.verdict import EMPTY, REJECTED, Coordinates, Verdicts, judge
from broker.written import Written

ALONE_TIMEOUT_S = 60
MAX_KILLERS = 3  # more than these, and more than half of an Arrow batch: the installation is broken, not the alerts
Rows = list[pa.RecordBatch]
Seen = dict[int, tuple[str, int, int]]  # id of a source: topic, partition, offset of its first alert in the task


@dataclass(frozen=True)
class Assignment:
    """What a task must know; travels to the workers with the query."""

    source: str
    survey: str
    model: Path
    settings: Settings
    passport: Passport
    classifications: str
    dead_letters: str
    ledger: str
    max_alert_bytes: int
    max_dead_letter_bytes: int
    written: Written = field(default_factory=Written)
    outlets: tuple[Further, ...] = ()
    uncounted: frozenset[str] = frozenset({EMPTY})  # by the limits on rejections
    learnt: tuple[registry.Writer, ...] = ()
    schema_id: int | None = None  # of our record in the registry of [output]; None: containers
    extra: surveys.Extra = ()

    def table(self) -> Survey:
        """The survey's table, with the fields that outlets carry through."""
        return surveys.widened(surveys.find(self.survey), self.extra)


@dataclass
class Answer:
    """Finished rows of a batch of n alerts, the "status/reason" of each, and whether its record is among the rows.

    fresh (n,): False for an alert whose record was written before its batch was broken off. outlets: by name, what
    became of each alert there.
    """

    rows: Rows
    verdicts: list[str]
    fresh: Bools
    outlets: dict[str, Share] = field(default_factory=dict)


def task(assignment: Assignment) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
    """The function for mapInArrow: rows of each batch, and at the end of its input the ledger's."""

    def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        context = TaskContext.get()
        assert context is not None  # mapInArrow runs inside a task
        tally = Tally(
            assignment.source,
            context.getLocalProperty("sql.streaming.queryId") or "",
            int(context.getLocalProperty("streaming.sql.batchId") or -1),  # absent in a batch job
            context.partitionId(),
            assignment.passport.model,
            assignment.uncounted,
        )
        if tally.batch >= 0 and context.attemptNumber() > 0:
            # What the first try has written can only be left out by a batch that is begun anew.
            raise RuntimeError(
                f"task {tally.task} of batch {tally.batch} runs a second time: the query must start anew"
            )
        seen: Seen = {}
        registry.learn(assignment.learnt)
        for batch in batches:
            yield from _answered(batch, assignment, tally, seen)
        closing = tally.rows()
        key = assignment.source.encode()
        yield rows(assignment.ledger, [key] * len(closing), [r.to_json() for r in closing], [[] for _ in closing])
        _forget_zip_files()

    return run


def _answered(batch: pa.RecordBatch, assignment: Assignment, tally: Tally, seen: Seen) -> Iterator[pa.RecordBatch]:
    """Rows of a batch; alerts marked `alone` are answered one by one, each in a process of its own."""
    alone = batch.column("alone").to_numpy(zero_copy_only=False)
    parts = [batch] if not alone.any() else [batch.filter(pa.array(~alone))] if not alone.all() else []
    for part in parts:
        answer = classify(part, assignment, seen)
        tally.add(*_places(part), answer.verdicts, answer.fresh, answer.outlets)
        yield from answer.rows
    n_killed = 0
    for index in np.flatnonzero(alone):
        one = batch.slice(index, 1)
        answer = classify_alone(one, assignment)
        n_killed += answer.verdicts == [f"{REJECTED}/kills_reader"]
        if n_killed > MAX_KILLERS and n_killed > alone.sum() / 2:
            raise RuntimeError(f"{n_killed} alerts failed alone too: the fault is not in the alerts")
        tally.add(*_places(one), answer.verdicts, answer.fresh, answer.outlets)
        yield from answer.rows


def classify(batch: pa.RecordBatch, assignment: Assignment, seen: Seen | None = None) -> Answer:
    """Verdicts of a batch of alerts (columns of job.HOP): every alert gets exactly one row, unless it has one.

    seen: sources that the task has met before, by id, with their alerts; those of this batch are added.
    """
    started_us = time.time_ns() // 1000
    survey, model = assignment.table(), _model(assignment.model, assignment.passport)
    alerts, index, schemas, refused = _read(batch, survey, assignment)
    for wrong, detail in implausible(alerts, survey) if len(alerts) else ():
        for i in np.flatnonzero(wrong):
            refused.setdefault(int(index[i]), Refusal("implausible_values", detail))
    sound = np.array([int(row) not in refused for row in index], np.bool_)
    if not sound.all():  # without need no copy: a deep alert's points are most of its cost
        alerts, index = alerts.filter(pa.array(sound)), index[sound]
    answer = Answer([], [""] * len(batch), _fresh(batch, assignment))
    if len(alerts):
        verdicts = _verdicts(alerts, index, schemas, batch, survey, model, assignment)
        verdicts = replace(verdicts, repeats=_repeats(verdicts, assignment.source, {} if seen is None else seen))
        for row, status, reason in zip(index.tolist(), verdicts.statuses(), verdicts.reasons(), strict=True):
            answer.verdicts[row] = f"{status}/{reason}"
        _publish(answer, verdicts, alerts, index, batch.column("raw"), model.card, assignment, started_us)
    for row, refusal in refused.items():
        answer.verdicts[row] = f"{REJECTED}/{refusal.reason}"
    letters = {row: refusal for row, refusal in refused.items() if answer.fresh[row]}
    if letters:
        answer.rows.append(_dead_letters(batch, letters, assignment))
    return answer


def _places(batch: pa.RecordBatch) -> tuple[pa.Array, pa.Array, pa.Array]:
    return batch.column("topic"), batch.column("partition"), batch.column("offset")


def _fresh(batch: pa.RecordBatch, assignment: Assignment) -> Bools:
    """Alerts that have no record yet; a classification and a dead letter are one answer, so either counts for both."""
    return ~assignment.written.holds((assignment.classifications, assignment.dead_letters), *_places(batch))


def _read(
    batch: pa.RecordBatch, survey: Survey, assignment: Assignment
) -> tuple[pa.StructArray, np.ndarray[tuple[int], np.dtype[np.int64]], list[str | None], dict[int, Refusal]]:
    """Decoded alerts, the row of each, schema labels of all rows, and what the second reader refused."""
    alerts, schemas = batch.column("alert"), batch.column("schema").to_pylist()
    decoded = alerts.is_valid().to_numpy(zero_copy_only=False)
    if decoded.all():
        return alerts, np.arange(len(alerts)), schemas, {}
    parts, index = [alerts.filter(pa.array(decoded))], [np.flatnonzero(decoded)]
    refused: dict[int, Refusal] = {}
    for row in np.flatnonzero(~decoded).tolist():
        value, key = (batch.column(name)[row].as_py() for name in ("raw", "key"))
        found = second_reader.read(value, survey, assignment.max_alert_bytes, alerts.type, key)
        if isinstance(found, Refusal):
            refused[row] = found
            continue
        parts.append(found.alert)
        index.append(np.array([row]))
        schemas[row] = found.schema
    return pa.concat_arrays(parts), np.concatenate(index).astype(np.int64), schemas, refused


def _verdicts(
    alerts: pa.StructArray,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    schemas: list[str | None],
    batch: pa.RecordBatch,
    survey: Survey,
    model: models.Model,
    assignment: Assignment,
) -> Verdicts:
    """Gather, infer, judge."""
    gathered = gather(alerts, survey, assignment.settings)
    curves, counts = merge(gathered.points, len(alerts), gathered.mjd_tai)
    summary = summarise(curves)
    used = thin(curves, model.card.max_points)
    probabilities = model.predict(used)
    evident = model.card.evident(survey.name, probabilities, summary)
    min_points = model.card.min_points
    reason = judge(gathered, survey, assignment.settings, counts, summary, min_points, evident)
    where = pa.array(index)
    coordinates = Coordinates(*(batch.column(c).take(where) for c in ("topic", "partition", "offset", "timestamp")))
    labels = pa.array([schemas[row] for row in index], pa.string())
    return Verdicts(survey, coordinates, labels, gathered, used, counts, used.counts, summary, probabilities, reason)


def _repeats(verdicts: Verdicts, source: str, seen: Seen) -> list[str | None]:
    """Coordinates of the alert of the same source that came before, for each alert that has one."""
    ids, c = verdicts.gathered.columns["source_id"].to_pylist(), verdicts.coordinates
    places = list(zip(c.topic.to_pylist(), c.partition.to_pylist(), c.offset.to_pylist(), strict=True))
    earlier = [seen.setdefault(source_id, place) for source_id, place in zip(ids, places, strict=True)]
    return [
        None if first == place else _coordinates(source, *first).decode()
        for first, place in zip(earlier, places, strict=True)
    ]


def _publish(
    answer: Answer,
    verdicts: Verdicts,
    alerts: pa.StructArray,
    index: np.ndarray[tuple[int], np.dtype[np.int64]],
    raws: pa.Array,
    card: models.Card,
    assignment: Assignment,
    started_us: int,
) -> None:
    """Rows of the native outlet and of the others; index: the row of each verdict in the batch; raws: of the batch."""
    passport, c = assignment.passport, verdicts.coordinates
    bodies, schema_id = native.encode(verdicts, card, passport, started_us), assignment.schema_id
    values = [native.container(b) if schema_id is None else native.frame(schema_id, b) for b in bodies]
    keys = [str(i).encode() for i in verdicts.gathered.columns["source_id"].to_pylist()]
    places = zip(c.topic.to_pylist(), c.partition.to_pylist(), c.offset.to_pylist(), strict=True)
    whence = [_coordinates(assignment.source, *place) for place in places]
    whole = records(assignment.classifications, keys, values, whence, passport.model.encode())
    answer.rows.append(whole if answer.fresh.all() else whole.filter(pa.array(answer.fresh[index])))
    if not assignment.outlets:
        return
    table, raws = columns.table(verdicts, card), raws.take(pa.array(index))
    now_us = time.time_ns() // 1000
    batch = Batch(verdicts.survey, card, passport, table, alerts, bodies, whence, started_us, now_us, raws)
    for outlet in assignment.outlets:
        sent = deliver(outlet, batch, assignment.written)
        answer.rows += sent.rows
        answer.outlets[outlet.name] = Share.of(len(answer.verdicts), index, sent.passed, sent.fresh)


def _coordinates(source: str, topic: str, partition: int, offset: int) -> bytes:
    return f"{source}:{topic}:{partition}:{offset}".encode()


def _dead_letters(batch: pa.RecordBatch, refused: Mapping[int, Refusal], assignment: Assignment) -> pa.RecordBatch:
    """Rows of the dead-letter topic."""
    letters = []
    for row, refusal in sorted(refused.items()):
        r = batch.slice(row, 1).drop_columns(["alert"]).to_pylist()[0]
        letter = dead_letter.Letter(
            key=r["key"],
            value=r["raw"],
            headers=[(h["key"], h["value"]) for h in r["headers"] or ()],
            coordinates=_coordinates(assignment.source, r["topic"], r["partition"], r["offset"]).decode(),
            timestamp_us=int(r["timestamp"].timestamp() * 1e6) if r["timestamp"] else 0,
            reason=refusal.reason,
            detail=refusal.detail,
        )
        letters.append(dead_letter.build(letter, assignment.passport.model, assignment.max_dead_letter_bytes))
    return rows(assignment.dead_letters, *(list(column) for column in zip(*letters, strict=True)))


def classify_alone(one: pa.RecordBatch, assignment: Assignment) -> Answer:
    """Answer for one alert by a child process: whatever kills the child is a rejection, not a lost worker."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        _answer_into(writing, one, assignment)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if status == 0 and data:
        answer = pickle.loads(data)  # our own child's bytes
        assert isinstance(answer, Answer)
        # Not in the child: Polars' threads don't survive a fork, and a filter would wait for them for ever.
        return classify(one, assignment) if assignment.outlets else answer
    code = os.waitstatus_to_exitcode(status)
    detail = f"the process that read it ended with {signal.Signals(-code).name if code < 0 else code}"
    refusal = Refusal("kills_reader", detail)
    fresh = _fresh(one, assignment)
    letters = [_dead_letters(one, {0: refusal}, assignment)] if fresh.all() else []
    return Answer(letters, [f"{REJECTED}/kills_reader"], fresh)


def _answer_into(writing: int, one: pa.RecordBatch, assignment: Assignment) -> NoReturn:
    """In the child: the answer into the pipe, and out, whatever happens."""
    code = 1
    try:
        signal.alarm(ALONE_TIMEOUT_S)
        with os.fdopen(writing, "wb") as pipe:
            pickle.dump(classify(one, replace(assignment, outlets=())), pipe)
        code = 0
    finally:
        os._exit(code)


@cache
def _model(folder: Path, passport: Passport) -> models.Model:
    """One session per worker process. Raises ModelError where the folder holds another than at the job's start."""
    model = models.load(folder)
    if model.card.sha256 != passport.sha256:
        raise ModelError(
            f"{folder}: holds {model.card.name}@{model.card.version} now, the job began with {passport.model}"
        )
    gc.freeze()  # pyspark collects after each task: 35 ms over all that is loaded by now, 1 ms over what came since
    return model


def _forget_zip_files() -> None:
    """Drop the import system's readers of zip files (pyspark.zip, jars).

    Before each task pyspark has all of them read their directories again: 100 ms of CPU and latency a task.
    """
    for path, finder in list(sys.path_importer_cache.items()):
        if isinstance(finder, zipimport.zipimporter):
            del sys.path_importer_cache[path]
