"""Files as Spark data sources: alerts as rows shaped like Kafka's, tables as alerts that are decoded already."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from pyspark.sql.datasource import DataSource, DataSourceReader, InputPartition
from pyspark.sql.types import StructType

from broker import surveys, table_rows
from broker.archive import Frame, read_frames
from broker.errors import ArchiveError
from broker.tables import Plan

FRAMES = (
    "key binary, value binary, headers array<struct<key: string, value: binary>>, topic string, partition int, "
    "offset bigint, timestamp timestamp, timestampType int"
)
NO_TIMESTAMP = -1  # Kafka's timestampType where there is none
_BATCH_ROWS = 256
_BATCH_BYTES = 8 * 2**20


@dataclass
class _Part(InputPartition):
    """The files of one task."""

    number: int
    files: list[str]


class Archive(DataSource):
    """Files as a batch of rows with the Kafka source's columns.

    Options: `paths` (JSON list of files), `root` (folder that topics are relative to; default: each file's own),
    `max_alert_bytes`, `errors` (folder for one JSON line {file, error} per file that failed, in a file per task),
    `tasks` (at most this many).
    """

    @classmethod
    def name(cls) -> str:
        """Its name for spark.read.format."""
        return "archive"

    def schema(self) -> str:
        """The Kafka source's columns with headers."""
        return FRAMES

    def reader(self, schema: StructType) -> DataSourceReader:
        """One reader per query."""
        return _Reader(self.options)


class _Reader(DataSourceReader):
    def __init__(self, options: Mapping[str, str]) -> None:
        self.paths: list[str] = json.loads(options["paths"])
        self.root = options.get("root")
        self.max_alert_bytes = int(options.get("max_alert_bytes", 16_777_216))
        self.errors = options.get("errors")
        self.n_tasks = int(options.get("tasks", 4 * (os.cpu_count() or 1)))

    def partitions(self) -> Sequence[InputPartition]:
        """Files dealt out by size, the largest first, each to the task with the least so far."""
        sizes = sorted(((_size(path), i) for i, path in enumerate(self.paths)), reverse=True)
        tasks = [(0, number, list[int]()) for number in range(max(1, min(self.n_tasks, len(self.paths))))]
        for size, i in sizes:
            total, number, files = tasks[0]
            heapq.heapreplace(tasks, (total + size, number, [*files, i]))
        tasks.sort(key=lambda task: task[1])
        return [_Part(number, [self.paths[i] for i in sorted(files)]) for _, number, files in tasks]

    def read(self, partition: InputPartition) -> Iterator[pa.RecordBatch]:
        """Batches of at most _BATCH_ROWS rows and little more than _BATCH_BYTES."""
        assert isinstance(partition, _Part)
        failed: list[dict[str, str]] = []
        n = 0
        for batch in self.batches(partition.files, failed):
            n += len(batch)
            yield batch
        if self.errors is not None:
            notes = Path(self.errors) / f"part-{partition.number:05d}.jsonl"
            _write_lines(notes, failed)
            _write_lines(notes.with_suffix(".count"), [{"n": str(n)}])  # what came in, for the books

    def batches(self, files: list[str], failed: list[dict[str, str]]) -> Iterator[pa.RecordBatch]:
        """Rows of the files of a task."""
        return _batches(self.frames(files, failed))

    def frames(self, files: list[str], failed: list[dict[str, str]]) -> Iterator[Frame]:
        """The alerts of all files; a file that fails is noted, and the next one follows."""
        for file in files:
            path = Path(file)
            try:
                yield from read_frames(path, Path(self.root) if self.root else path, self.max_alert_bytes)
            except ArchiveError as error:
                failed.append({"file": file, "error": str(error)})


class Tables(DataSource):
    """Tables as a batch of rows of the hop: alerts that are decoded already.

    Options: those of Archive, `plans` (JSON: a Plan for each of `paths`) and `survey` (a name for surveys.find).
    """

    @classmethod
    def name(cls) -> str:
        """Its name for spark.read.format."""
        return "tables"

    def schema(self) -> str:
        """What `job.before_hop` gives for this survey."""
        return table_rows.ddl(surveys.find(self.options["survey"]))

    def reader(self, schema: StructType) -> DataSourceReader:
        """One reader per query."""
        return _TablesReader(self.options)


class _TablesReader(_Reader):
    def __init__(self, options: Mapping[str, str]) -> None:
        super().__init__(options)
        self.survey = options["survey"]
        self.plans = dict(zip(self.paths, (Plan(**plan) for plan in json.loads(options["plans"])), strict=True))

    def batches(self, files: list[str], failed: list[dict[str, str]]) -> Iterator[pa.RecordBatch]:
        """The rows of all tables; one that fails is noted, and the next one follows."""
        for file in files:
            path = Path(file)
            topic = path.relative_to(self.root).as_posix() if self.root else path.name
            try:
                yield from table_rows.read(path, topic, self.plans[file], self.survey)
            except ArchiveError as error:
                failed.append({"file": file, "error": str(error)})


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError:
        return 0  # reading it will say what is wrong


def _write_lines(path: Path, rows: list[dict[str, str]]) -> None:
    """The file of a task, whole or not at all: a task may run twice."""
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(f".{path.name}.{os.getpid()}")
    new.write_text("".join(json.dumps(row) + "\n" for row in rows))
    new.replace(path)


def _batches(frames: Iterator[Frame]) -> Iterator[pa.RecordBatch]:
    rows: list[Frame] = []
    n_bytes = 0
    for frame in frames:
        rows.append(frame)
        n_bytes += len(frame.value or b"")
        if len(rows) == _BATCH_ROWS or n_bytes >= _BATCH_BYTES:
            yield _batch(rows)
            rows, n_bytes = [], 0
    if rows:
        yield _batch(rows)


def _batch(rows: list[Frame]) -> pa.RecordBatch:
    header = pa.struct([("key", pa.string()), ("value", pa.binary())])
    columns = {
        "key": pa.array([row.key for row in rows], pa.binary()),
        "value": pa.array([row.value for row in rows], pa.binary()),
        "headers": pa.array(
            [[{"key": k, "value": v} for k, v in row.headers] or None for row in rows], pa.list_(header)
        ),
        "topic": pa.array([row.topic for row in rows], pa.string()),
        "partition": pa.array([row.partition for row in rows], pa.int32()),
        "offset": pa.array([row.offset for row in rows], pa.int64()),
        "timestamp": pa.array([row.timestamp for row in rows], pa.timestamp("us", "UTC")),
        "timestampType": pa.array([NO_TIMESTAMP] * len(rows), pa.int32()),
    }
    return pa.RecordBatch.from_pydict(columns)
