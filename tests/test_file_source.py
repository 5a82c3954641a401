"""Files as a source of rows, without a Spark: how files are dealt to tasks, and what a task's rows and notes say."""

import json
import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ALERTS, whole

from broker.file_source import NO_TIMESTAMP, Archive, Tables, _Part, _Reader
from broker.tables import Hints, look

LIMIT = 16_777_216


def reader_of(paths: list[Path], **more: Any) -> _Reader:
    options = {"paths": json.dumps([str(path) for path in paths])} | {name: str(value) for name, value in more.items()}
    return _Reader(options)


def parts_of(reader: _Reader) -> list[_Part]:
    return [part for part in reader.partitions() if isinstance(part, _Part)]


def rows_of(reader: _Reader) -> list[dict[str, Any]]:
    """Rows of all tasks, as a task gives them."""
    return [row for part in parts_of(reader) for batch in reader.read(part) for row in batch.to_pylist()]


# --- tasks ----------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 50_000), min_size=1, max_size=20), st.integers(1, 12))
def test_files_are_dealt_out_evenly(sizes: list[int], n_tasks: int) -> None:
    """Each to one task, in their order within it; the fullest task has at most one file more than it needed."""
    with TemporaryDirectory() as name:
        paths = [Path(name) / f"{i:02}.avro" for i in range(len(sizes))]
        for path, size in zip(paths, sizes, strict=True):
            with path.open("wb") as file:
                os.truncate(file.fileno(), size)
        parts = parts_of(reader_of(paths, tasks=n_tasks))
    assert [part.number for part in parts] == list(range(min(n_tasks, len(sizes))))
    dealt = [file for part in parts for file in part.files]
    assert sorted(dealt) == [str(path) for path in paths]
    assert all(part.files == sorted(part.files) for part in parts)
    size_of = dict(zip(map(str, paths), sizes, strict=True))
    loads = [sum(size_of[file] for file in part.files) for part in parts]
    assert max(loads) <= sum(sizes) / len(parts) + max(sizes)
    if all(sizes):
        assert all(part.files for part in parts)


def test_no_file_is_one_task_without_work() -> None:
    (part,) = parts_of(reader_of([]))
    assert part.files == []
    assert list(reader_of([]).read(part)) == []


def test_a_file_that_is_gone_is_dealt_out_and_noted(tmp_path: Path) -> None:
    """Reading says what is wrong, in the notes of its task; the other file is read."""
    (tmp_path / "here.avro").write_bytes(whole("ztf")[0].data)
    reader = reader_of([tmp_path / "gone.avro", tmp_path / "here.avro"], errors=tmp_path / "notes", tasks=1)
    (row,) = rows_of(reader)
    assert row["value"] == whole("ztf")[0].data
    (note,) = (json.loads(line) for line in (tmp_path / "notes" / "part-00000.jsonl").read_text().splitlines())
    assert note["file"] == str(tmp_path / "gone.avro")
    assert "No such file" in note["error"]
    assert json.loads((tmp_path / "notes" / "part-00000.count").read_text()) == {"n": "1"}
    assert {path.name for path in (tmp_path / "notes").iterdir()} == {"part-00000.jsonl", "part-00000.count"}


def test_a_task_that_runs_twice_leaves_the_same_notes(tmp_path: Path) -> None:
    reader = reader_of([tmp_path / "gone.avro"], errors=tmp_path / "notes")
    before = [list(reader.read(part)) for part in parts_of(reader)]
    first = (tmp_path / "notes" / "part-00000.jsonl").read_text()
    assert [list(reader.read(part)) for part in parts_of(reader)] == before == [[]]
    assert (tmp_path / "notes" / "part-00000.jsonl").read_text() == first


def test_nothing_that_failed_is_no_note(tmp_path: Path) -> None:
    (tmp_path / "a.avro").write_bytes(whole("ztf")[0].data)
    rows_of(reader_of([tmp_path / "a.avro"], errors=tmp_path / "notes"))
    assert [path.name for path in (tmp_path / "notes").iterdir()] == ["part-00000.count"]


# --- rows -----------------------------------------------------------------------------------------------------------


def test_rows_are_those_of_kafka(tmp_path: Path) -> None:
    """Topic: the file below the root; offsets: records in it; no key, no headers, no time."""
    folder = tmp_path / "night"
    folder.mkdir()
    values = [sample.data for sample in whole("lsst")[:3]]
    for i, value in enumerate(values):
        (folder / f"{i}.bin").write_bytes(value)
    rows = rows_of(reader_of(sorted(folder.iterdir()), root=tmp_path, tasks=1))
    assert [row["value"] for row in rows] == values
    assert [(row["topic"], row["partition"], row["offset"]) for row in rows] == [
        (f"night/{i}.bin", 0, 0) for i in range(3)
    ]
    for row in rows:
        assert (row["key"], row["headers"], row["timestamp"]) == (None, None, None)
        assert row["timestampType"] == NO_TIMESTAMP
    names = [
        part.split()[0] for part in Archive({}).schema().replace("struct<key: string, value: binary>", "x").split(", ")
    ]
    assert set(names) == set(rows[0])


def test_an_archive_s_rows_are_its_members() -> None:
    rows = rows_of(reader_of([ALERTS / "ztf.tar.gz"], root=ALERTS))
    assert [row["value"] for row in rows] == [sample.data for sample in whole("ztf")]
    assert [row["topic"] for row in rows] == [f"ztf.tar.gz/{sample.member}" for sample in whole("ztf")]


def test_batches_hold_at_most_256_rows(tmp_path: Path) -> None:
    value = whole("elasticc")[0].data
    for i in range(300):
        (tmp_path / f"{i:03}.avro").write_bytes(value)
    reader = reader_of(sorted(tmp_path.iterdir()), tasks=1)
    assert [batch.num_rows for part in parts_of(reader) for batch in reader.read(part)] == [256, 44]


def test_batches_hold_at_most_one_alert_more_than_8_mb(tmp_path: Path) -> None:
    """So a task's memory does not grow with alerts of 16 MB."""
    for i in range(7):
        (tmp_path / f"{i}.avro").write_bytes(bytes(3 * 2**20))
    reader = reader_of(sorted(tmp_path.iterdir()), tasks=1)
    assert [batch.num_rows for part in parts_of(reader) for batch in reader.read(part)] == [3, 3, 1]


def test_a_too_long_alert_is_cut_behind_the_limit(tmp_path: Path) -> None:
    """One byte more than may be: so it is known as too long."""
    (tmp_path / "a.avro").write_bytes(bytes(5000))
    (row,) = rows_of(reader_of([tmp_path / "a.avro"], max_alert_bytes=1000))
    assert len(row["value"]) == 1001


# --- tables ---------------------------------------------------------------------------------------------------------


def tables_of(paths: list[Path], survey: str, notes: Path, root: Path) -> Any:
    plans = [look(path, Hints(unit="nJy")) for path in paths]
    options = {
        "paths": json.dumps([str(path) for path in paths]),
        "plans": json.dumps([plan.to_json() for plan in plans if plan is not None]),
        "survey": survey,
        "errors": str(notes),
        "root": str(root),
        "tasks": "1",
    }
    source = Tables(options)
    return source.reader(None)  # type: ignore[arg-type]  # the schema is not used


def test_tables_give_rows_of_the_hop_and_a_broken_one_is_noted(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    paths = [folder / "a.parquet", folder / "b.parquet"]
    for path in paths:
        columns = {"object_id": ["x", "y"], "mjd": [60_000.0, 60_001.0], "band": ["ztf-g"] * 2}
        pq.write_table(pa.table(columns | {"flux": [1.0, 2.0], "flux_err": [0.5, 0.5]}), path)
    reader = tables_of(paths, "ztf-curves", tmp_path / "notes", tmp_path)
    paths[0].write_bytes(b"PAR1 is all that is left")
    rows = rows_of(reader)
    assert [(row["topic"], row["offset"]) for row in rows] == [("in/b.parquet", 0), ("in/b.parquet", 1)]
    assert [row["alert"]["newest"]["object_id"] for row in rows] == ["x", "y"]
    (note,) = (json.loads(line) for line in (tmp_path / "notes" / "part-00000.jsonl").read_text().splitlines())
    assert note["file"] == str(paths[0])
    assert "a.parquet" in note["error"]


@pytest.mark.parametrize("survey", ["lsst", "ztf", "elasticc", "lsst-curves", "ztf-curves"])
def test_a_source_of_tables_names_the_columns_of_its_rows(survey: str) -> None:
    text = Tables({"survey": survey}).schema()
    assert text.startswith("alert struct<")
    assert text.endswith("timestamp timestamp, alone boolean")
    assert text.count("<") == text.count(">")
