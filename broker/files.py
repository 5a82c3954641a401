"""`broker classify`: the same job over files, batch instead of stream. Coordinates: file (and member), 0, record."""

from __future__ import annotations

import json
import logging
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fastavro
import pyarrow as pa
import pyarrow.parquet as pq
from pyspark.sql import DataFrame, SparkSession
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from broker import job, registry, session, sources, surveys
from broker import model as models
from broker.archive import ALERT_SUFFIXES, PACKED_SUFFIXES, find_files, schemas_beside, survey_of
from broker.classify import Assignment
from broker.config import Policy, Source
from broker.errors import ArchiveError, LedgerError, UsageError
from broker.ledger import LedgerRow
from broker.outlets import native
from broker.tables import SUFFIXES, Hints, Plan, is_table, look

_log = logging.getLogger(__name__)

TOPICS = ("classifications", "dead-letters", "ledger")
FOUND = ALERT_SUFFIXES + PACKED_SUFFIXES + SUFFIXES
MAX_ALERT_BYTES = 16_777_216
NAMED_REJECTIONS = 20
ROWS_PER_GROUP = 4096
Records = Iterator[list[dict[str, Any]]]


@dataclass
class Group:
    """Files of one survey, found under one argument; plans: of tables, empty for files of alerts."""

    survey: str
    root: Path
    files: list[Path] = field(default_factory=list)
    plans: dict[Path, Plan] = field(default_factory=dict)


def classify_files(
    paths: list[Path], output: str, summary: Path | None, model: str, master: str, hints: Hints | None = None
) -> None:
    """Classify every alert of the files to `output`. One bad file is counted and named, the others are done.

    hints: what the user says of light curves. Raises UsageError for wrong paths or an unknown output format,
    ArchiveError when a file failed or nothing could be read, after everything else has been written.
    """
    hints = hints or Hints()
    hints.check()
    form = _format(output)
    models.load(models.find(model))  # a wrong model must not wait for Spark to be told
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="t2-broker-") as scratch:
        rows, errors = Path(scratch) / "rows", Path(scratch) / "errors"
        errors.mkdir()
        groups = _groups(paths, hints, errors)
        spark = session.start("t2-broker classify", master, "2g")
        try:
            for number, group in enumerate(groups):
                name = f"{group.survey}-{number}"
                _write(spark, _rows(spark, group, model, errors / name), rows / name)
        finally:
            spark.stop()
        counts = _counts(rows)
        _check(counts.total(), errors)
        _save(form, output, _records(rows))
        _tell(counts, rows, errors, summary, time.monotonic() - started)


def _format(output: str) -> str:
    form = "table" if output == "-" else Path(output).suffix
    if form not in ("table", ".parquet", ".avro", ".jsonl"):
        raise UsageError(
            f"--output {output!r}: ends in {form!r}; .parquet, .avro and .jsonl are written, '-' prints a table"
        )
    if output != "-" and not Path(output).absolute().parent.is_dir():
        raise UsageError(f"--output {output!r}: there is no folder {Path(output).absolute().parent}")
    return form


def _groups(paths: list[Path], hints: Hints, errors: Path) -> list[Group]:
    """Files by what they hold. Alerts of no survey go with others', to be rejected; tables that fail are noted."""
    groups: dict[tuple[str, Path, bool], Group] = {}
    homeless = []
    beside, strange = schemas_beside(paths)
    registry.learn(beside)
    failed = [{"file": str(file), "error": f"{file}: {why}"} for file, why in strange]
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: no such file or folder")
        root = path if path.is_dir() else path.parent
        for file in find_files([path], FOUND):
            if not is_table(file):
                if (survey := survey_of(file)) is None:
                    homeless.append((root, file))
                else:
                    groups.setdefault((survey, root, False), Group(survey, root)).files.append(file)
                continue
            try:
                plan = _look(file, file == path, hints)
            except ArchiveError as error:
                failed.append({"file": str(file), "error": str(error)})
                continue
            for survey in plan.surveys if plan else ():
                assert plan is not None
                groups.setdefault((survey, root, True), Group(survey, root)).plans[file] = plan
    for root, file in homeless:  # any survey's second reader says what they are
        groups.setdefault(("ztf", root, False), Group("ztf", root)).files.append(file)
    if failed:
        (errors / "look").mkdir()
        (errors / "look" / "part.jsonl").write_text("".join(json.dumps(entry) + "\n" for entry in failed))
    if not groups:
        told = "; ".join(entry["error"] for entry in failed) or "no files of alerts or light curves there"
        raise ArchiveError(f"{', '.join(map(str, paths))}: {told}")
    return list(groups.values())


def _look(file: Path, is_named: bool, hints: Hints) -> Plan | None:
    """What a table holds; one that is neither alerts nor light curves is passed over where a folder was given."""
    plan = look(file, hints)
    if plan is None:
        if is_named:
            raise ArchiveError(
                f"{file}: neither alerts of a survey nor light curves: no columns mjd and flux or mag; docs/files.md "
                "has the names that are known"
            )
        Console(stderr=True, soft_wrap=True).print(
            f"passed over: {file}: neither alerts nor light curves", markup=False, highlight=False
        )
    return plan


def _rows(spark: SparkSession, group: Group, model: str, errors: Path) -> DataFrame:
    assignment = _assignment(group.survey, model)
    if group.plans:
        alerts = sources.tables(spark, group.plans, group.survey, group.root, errors)
        return job.build_from_alerts(alerts, assignment)
    frames = sources.archive(spark, group.files, group.root, MAX_ALERT_BYTES, errors)
    return job.build(frames, surveys.find(group.survey), assignment)


def _assignment(survey: str, model: str) -> Assignment:
    defaults = Source.model_construct()
    return job.assignment(
        name="files",
        survey=survey,
        folder=models.find(model),
        policy=Policy(),
        zero_point=defaults.zero_point,
        programids=defaults.programids,
        topics=TOPICS,
        max_alert_bytes=MAX_ALERT_BYTES,
        max_dead_letter_bytes=2**30,
    )


def _write(spark: SparkSession, rows: DataFrame, folder: Path) -> None:
    """Run the batch, with a progress bar on a terminal."""
    executor = ThreadPoolExecutor(1)
    work = executor.submit(rows.write.parquet, str(folder))
    columns = (
        TextColumn("classifying"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} parts"),
        TimeElapsedColumn(),
    )
    terminal = Console(stderr=True)
    with Progress(*columns, console=terminal, transient=True, disable=not terminal.is_terminal) as progress:
        bar = progress.add_task("", total=None)
        tracker = spark.sparkContext.statusTracker()
        while wait([work], timeout=0.2).not_done:
            infos = [tracker.getStageInfo(stage) for stage in tracker.getActiveStageIds()]
            for info in infos:
                if info is not None:
                    progress.update(bar, total=info.numTasks, completed=info.numCompletedTasks)
    executor.shutdown()
    work.result()  # raises what the batch raised


def _topic(rows: Path, topic: str) -> Iterator[pa.RecordBatch]:
    for file in sorted(rows.glob("*/*.parquet")):
        for batch in pq.ParquetFile(file).iter_batches(ROWS_PER_GROUP):
            yield batch.filter(pa.compute.equal(batch.column("topic"), topic))


def _counts(rows: Path) -> Counter[str]:
    """Verdicts by "status/reason", from the ledger."""
    counts: Counter[str] = Counter()
    for batch in _topic(rows, TOPICS[2]):
        for value in batch.column("value").to_pylist():
            counts.update(LedgerRow.from_json(value).counts)
    return counts


def _check(n_answered: int, errors: Path) -> None:
    """What the readers handed on must be what was answered."""
    n_in = sum(int(json.loads(file.read_text())["n"]) for file in errors.glob("*/*.count"))
    if n_in != n_answered:
        raise LedgerError(f"{n_in} alerts were read from the files, {n_answered} have a verdict; nothing was written")


def _records(rows: Path) -> Records:
    for batch in _topic(rows, TOPICS[0]):
        if len(batch):
            yield [native.read(value) for value in batch.column("value").to_pylist()]


def _save(form: str, output: str, batches: Records) -> None:
    if form == ".parquet":
        _save_parquet(output, batches)
    elif form == ".avro":
        with open(output, "wb") as file:
            fastavro.writer(
                file, json.loads(json.dumps(native.schema())), (r for b in batches for r in b), codec="deflate"
            )
    elif form == ".jsonl":
        with open(output, "w") as lines:
            for batch in batches:
                lines.writelines(json.dumps(record, default=str) + "\n" for record in batch)
    else:
        Console(soft_wrap=False).print(_table(batches))


def _save_parquet(output: str, batches: Records) -> None:
    """Types come from the record's schema, not from the first rows (which may be all null)."""
    types = pa.schema([(f["name"], _arrow_type(f["type"])) for f in native.schema()["fields"]])  # type: ignore[attr-defined]
    with pq.ParquetWriter(output, types, compression="zstd") as writer:
        for batch in batches:
            writer.write_table(pa.Table.from_pylist(batch, types))


def _arrow_type(kind: object) -> pa.DataType:
    """Arrow type of an Avro type of our record."""
    simple = {
        "string": pa.string(),
        "long": pa.int64(),
        "int": pa.int32(),
        "double": pa.float64(),
        "float": pa.float32(),
        "boolean": pa.bool_(),
    }
    if isinstance(kind, str):
        return simple[kind]
    if isinstance(kind, list):
        return _arrow_type(kind[1])
    assert isinstance(kind, dict)
    if kind.get("logicalType") == "timestamp-micros":
        return pa.timestamp("us", "UTC")
    if kind["type"] == "map":
        return pa.map_(pa.string(), _arrow_type(kind["values"]))
    if kind["type"] == "array":
        return pa.list_(_arrow_type(kind["items"]))
    if kind["type"] == "record":
        return pa.struct([(f["name"], _arrow_type(f["type"])) for f in kind["fields"]])
    return _arrow_type(kind["type"])


def _table(batches: Records) -> Table:
    table = Table(box=None)
    for name in ("source id", "object", "class", "prob.", "points", "verdict"):
        table.add_column(name, no_wrap=True)
    for batch in batches:
        for r in batch:
            probability = "-" if r["probability"] is None else f"{r['probability']:.2f}"
            verdict = r["status"] if r["reason"] == "ok" else f"{r['status']}: {r['reason']}"
            cells = (
                r["source_id"],
                r["object_id"] or "-",
                r["class_name"] or "-",
                probability,
                r["n_points_used"],
                verdict,
            )
            table.add_row(*map(str, cells))
    return table


def _tell(counts: Counter[str], rows: Path, errors: Path, summary: Path | None, seconds: float) -> None:
    """The counts, the rejected ones by name, and the files that failed. Raises ArchiveError where nothing was read."""
    stderr = Console(stderr=True, soft_wrap=True)
    failed = [json.loads(line) for file in sorted(errors.glob("*/*.jsonl")) for line in file.read_text().splitlines()]
    for entry in failed:
        stderr.print(f"failed: {entry['file']}: {entry['error']}", markup=False, highlight=False)
    letters = [
        {h["key"]: h["value"].decode(errors="replace") for h in headers}
        for batch in _topic(rows, TOPICS[1])
        for headers in batch.column("headers").to_pylist()
    ]
    for letter in letters[:NAMED_REJECTIONS]:
        name = letter["alert"].removeprefix("files:")
        stderr.print(f"rejected: {name}: {letter['reason']}: {letter['detail']}", markup=False, highlight=False)
    if len(letters) > NAMED_REJECTIONS:
        stderr.print(f"... and {len(letters) - NAMED_REJECTIONS} more")
    by_status: dict[str, Counter[str]] = {"classified": Counter(), "abstained": Counter(), "rejected": Counter()}
    for name, n in counts.items():
        status, _, reason = name.partition("/")
        by_status[status][reason] += n
    total = counts.total()
    text = ", ".join(f"{c.total()} {status}" for status, c in by_status.items())
    stderr.print(f"{total} alerts: {text}; {seconds:.1f} s, {total / seconds:.0f} alerts/s", highlight=False)
    if summary is not None:
        report = {
            "in": total,
            "classified": by_status["classified"].total(),
            "abstained": by_status["abstained"].total(),
            "abstained_by_reason": dict(by_status["abstained"]),
            "rejected": dict(by_status["rejected"]),
            "failed_files": failed,
            "seconds": round(seconds, 3),
            "alerts_per_second": round(total / seconds, 1),
        }
        summary.write_text(json.dumps(report, indent=2) + "\n")
    if failed and total > by_status["rejected"].total():
        raise ArchiveError(f"{len(failed)} of the files failed (named above); {total} alerts were answered and written")
    if total == by_status["rejected"].total():
        raise ArchiveError(f"nothing could be classified: {total} alerts rejected, {len(failed)} files failed")
