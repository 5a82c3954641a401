"""Files of every form give the same alerts; broken ones are named and stop nothing else."""

import gzip
import io
import json
import os
import random
import subprocess
import sys
import tarfile
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import generate
import pyarrow.parquet as pq
import pytest
import reference
from samples import ALERTS, SCHEMAS, whole

from broker.archive import Frame, find_files, read_frames, schemas_beside, survey_of
from broker.errors import ArchiveError

LIMIT = 1_000_000
ELASTICC = generate.schema_of("elasticc", "0.9")
BODIES = generate.generated("elasticc", "0.9", 4)
RECORDS = [generate.alert("elasticc", "0.9", seed) for seed in range(4)]
CODECS = ("null", "deflate", "snappy", "zstandard")


def frames(path: Path, root: Path | None = None, limit: int = LIMIT) -> list[Frame]:
    return list(read_frames(path, root or path, limit))


def values(path: Path, limit: int = LIMIT) -> list[bytes]:
    return [frame.value or b"" for frame in frames(path, limit=limit)]


def failing(path: Path, limit: int = LIMIT) -> tuple[list[bytes], str]:
    """What was read before the file failed, and the message."""
    found: list[bytes] = []
    with pytest.raises(ArchiveError) as caught:  # noqa: PT012  # the loop is what raises
        for frame in read_frames(path, path, limit):
            found.append(frame.value or b"")
    return found, str(caught.value)


def tar(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as archive:  # type: ignore[call-overload]  # typeshed wants literals
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue()


def written(path: Path, data: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


# --- finding files ------------------------------------------------------------------------------------------------


def test_folders_are_walked_in_order_and_each_file_once(tmp_path: Path) -> None:
    names = ["b/2.avro", "a/1.avro.gz", "c.tar.gz", "d.tgz", "e.tar", "f.bin", "notes.txt", ".hidden.avro", ".g/x.avro"]
    for name in names:
        written(tmp_path / name, b"x")
    found = find_files([tmp_path, tmp_path / "f.bin", tmp_path / "notes.txt"])
    relative = [path.relative_to(tmp_path).as_posix() for path in found]
    assert relative == ["c.tar.gz", "d.tgz", "e.tar", "f.bin", "a/1.avro.gz", "b/2.avro", "notes.txt"]


def test_a_loop_of_links_ends(tmp_path: Path) -> None:
    written(tmp_path / "night" / "1.avro", b"x")
    (tmp_path / "night" / "again").symlink_to(tmp_path)
    (tmp_path / "night" / "linked.avro").symlink_to(tmp_path / "night" / "1.avro")
    assert find_files([tmp_path]) == [tmp_path / "night" / "1.avro"]


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    written(tmp_path / "notes.txt", b"x")
    with pytest.raises(ArchiveError, match=r"holds no file named \*\.avro"):
        find_files([tmp_path])
    with pytest.raises(ArchiveError, match=r"no file or folder .*gone"):
        find_files([tmp_path / "gone"])


# --- forms --------------------------------------------------------------------------------------------------------


def test_one_alert_comes_byte_for_byte(tmp_path: Path) -> None:
    for sample in [*whole("lsst")[:3], *whole("ztf")[:3], *whole("elasticc")[:3]]:
        for name, data in (("a.avro", sample.data), ("b.bin", sample.data), ("c.avro.gz", gzip.compress(sample.data))):
            path = written(tmp_path / name, data)
            assert frames(path) == [Frame(None, sample.data, [], name, 0, 0)]


@pytest.mark.parametrize("codec", CODECS)
def test_a_container_of_many_gives_containers_of_one(tmp_path: Path, codec: str) -> None:
    data = generate.container(RECORDS, ELASTICC, codec)
    parts = [generate.container([record], ELASTICC) for record in RECORDS]
    for name, packed in (("a.avro", data), ("a.avro.gz", gzip.compress(data))):
        found = frames(written(tmp_path / name, packed))
        assert [frame.value for frame in found] == parts
        assert [(frame.topic, frame.partition, frame.offset) for frame in found] == [(name, 0, i) for i in range(4)]
    alone = written(tmp_path / "one.avro", generate.container(RECORDS[:1], ELASTICC, codec))
    assert values(alone) == parts[:1]


@pytest.mark.parametrize("codec", CODECS)
def test_a_container_longer_than_one_alert_may_be(tmp_path: Path, codec: str) -> None:
    many = [generate.alert("ztf", "3.3", seed) for seed in range(30)]
    schema = generate.schema_of("ztf", "3.3")
    path = written(tmp_path / "long.avro", generate.container(many, schema, codec))
    limit = path.stat().st_size - 100
    assert [reference.decode(value) for value in values(path, limit)] == many


@pytest.mark.parametrize(("name", "mode"), [("n.tar", "w"), ("n.tar.gz", "w:gz"), ("n.tgz", "w:gz")])
def test_a_tar_archive_gives_its_members(tmp_path: Path, name: str, mode: str) -> None:
    members = {
        "n/1.avro": BODIES[0],
        "n/2.avro.gz": gzip.compress(BODIES[1]),
        "n/readme.txt": b"not an alert",
        "n/._3.avro": b"resource fork",
        "n/many.avro": generate.container(RECORDS[:2], ELASTICC, "deflate"),
        "n/empty.avro": b"",
    }
    found = frames(written(tmp_path / "nights" / name, tar(members, mode)), tmp_path)
    parts = [generate.container([record], ELASTICC) for record in RECORDS[:2]]
    start = f"nights/{name}/n/"
    assert [(f.topic.removeprefix(start), f.offset, f.value) for f in found] == [
        ("1.avro", 0, BODIES[0]),
        ("2.avro.gz", 0, BODIES[1]),
        ("many.avro", 0, parts[0]),
        ("many.avro", 1, parts[1]),
        ("empty.avro", 0, b""),
    ]


def test_links_and_folders_in_a_tar_are_no_alerts(tmp_path: Path) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE, tarfile.FIFOTYPE):
            member = tarfile.TarInfo("x.avro")
            member.type, member.linkname = kind, "/etc/hostname"
            archive.addfile(member)
    found, message = failing(written(tmp_path / "links.tar", file.getvalue()))
    assert found == []
    assert "holds no file named *.avro" in message


def test_the_samples_come_out_of_their_archives() -> None:
    found = [frame for path in find_files([ALERTS]) for frame in read_frames(path, ALERTS, 16_777_216)]
    by_place = {frame.topic: frame.value for frame in found}
    assert len(by_place) == len(found) == 294
    for sample in whole():
        place = f"{sample.file}/{sample.member}" if sample.member else sample.file
        assert by_place[place] == sample.data


# --- what is broken -----------------------------------------------------------------------------------------------


def test_what_cannot_be_taken_apart_is_passed_on_whole(tmp_path: Path) -> None:
    schema = generate.schema_of("elasticc", "0.9")
    damaged = {
        "empty": b"",
        "no record": generate.container([], schema),
        "cut": generate.container(RECORDS, schema)[:7_000],
        "header": b"Obj\x01",
        "nulls": generate.zero_byte_bomb(),
        "nulls in an alert": generate.zero_byte_bomb(inside="3.3"),
        "recursive": generate.recursive(),
        "recursive alert": generate.recursive(inside="4.01"),
        "nested schema": generate.nested_schema(),
        "deflate bomb": generate.deflate_bomb(),
        "container": generate.container_within(generate.container(RECORDS, schema)),
        "text": b"hello",
    }
    for name, data in damaged.items():
        assert values(written(tmp_path / f"{name}.avro", data)) == [data], name


def test_a_cut_file_gives_what_was_whole_and_is_named(tmp_path: Path) -> None:
    block = [generate.block(generate.body(record, ELASTICC)) for record in RECORDS]
    data = generate.header(ELASTICC) + generate.SYNC + b"".join(block)
    path = written(tmp_path / "many.avro", data[:-10])
    found, message = failing(path)
    assert found == [generate.container([record], ELASTICC) for record in RECORDS[:3]]
    assert str(path) in message
    assert "ends within a block; 3 alerts of it were read" in message


def test_a_cut_long_container_gives_what_was_whole(tmp_path: Path) -> None:
    schema = generate.schema_of("ztf", "3.3")
    blocks = [generate.block(generate.body(generate.alert("ztf", "3.3", i), schema)) for i in range(20)]
    data = generate.header(schema) + generate.SYNC + b"".join(blocks)
    found, message = failing(written(tmp_path / "long.avro", data[:-10]), limit=30_000)
    assert len(found) == 19
    assert "19 alerts" in message


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_tar_gives_what_was_whole(tmp_path: Path, mode: str) -> None:
    data = tar({f"{i}.avro": random.Random(i).randbytes(20_000) for i in range(10)}, mode)
    for part in (0.3, 0.55, 0.8):
        path = written(tmp_path / "cut.tar.gz", data[: int(len(data) * part)])
        found, message = failing(path)
        assert 2 <= len(found) <= 8
        assert found == [random.Random(i).randbytes(20_000) for i in range(len(found))]
        assert str(path) in message
        assert f"{len(found)} alerts of it were read" in message


def test_a_damaged_member_stops_none_of_the_others(tmp_path: Path) -> None:
    blocks = b"".join(generate.block(generate.body(record, ELASTICC)) for record in RECORDS[:2])
    cut = (generate.header(ELASTICC) + generate.SYNC + blocks)[:-10]
    members = {"1.avro": cut, "2.avro.gz": gzip.compress(BODIES[0])[:-9], "3.avro": BODIES[1]}
    found = frames(written(tmp_path / "n.tar", tar(members)))
    assert [(frame.topic, frame.offset) for frame in found] == [
        ("n.tar/1.avro", 0),
        ("n.tar/1.avro", 1),
        ("n.tar/2.avro.gz", 0),
        ("n.tar/3.avro", 0),
    ]
    assert found[1].value == cut
    assert found[3].value == BODIES[1]


def test_gzip_that_is_cut_or_wrong_is_named(tmp_path: Path) -> None:
    data = gzip.compress(BODIES[0])
    for spoilt in (data[:-9], data[:30], data[:-4] + b"\x00\x00\x00\x01", data[:-8] + b"\x00" * 8):
        path = written(tmp_path / "1.avro.gz", spoilt)
        found, message = failing(path)
        assert found == []
        assert str(path) in message


def test_a_file_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "gone.avro").symlink_to(tmp_path / "nowhere")
    assert "No such file" in failing(tmp_path / "gone.avro")[1]
    assert "holds no file named" in failing(written(tmp_path / "a.tar", tar({"readme.txt": b"x"})))[1]


def test_a_too_long_alert_is_cut_one_byte_behind_the_limit(tmp_path: Path) -> None:
    big = bytes(10_000_000)
    members = {"1.avro": big, "2.avro.gz": gzip.compress(big), "3.avro": BODIES[0]}
    assert [len(v) for v in values(written(tmp_path / "n.tar.gz", tar(members, "w:gz")))] == [
        LIMIT + 1, LIMIT + 1, len(BODIES[0]),
    ]  # fmt: skip
    for name, data in (("a.avro", big), ("a.avro.gz", gzip.compress(big)), ("b.avro", b"Obj\x01" + big)):
        assert [len(value) for value in values(written(tmp_path / name, data))] == [LIMIT + 1]
    exact = {"1.avro": bytes(LIMIT), "2.avro.gz": gzip.compress(bytes(LIMIT))}
    assert [len(v) for v in values(written(tmp_path / "x.tar", tar(exact)))] == [LIMIT, LIMIT]


def test_memory_stays_flat(tmp_path: Path) -> None:
    """A tar of 60 MB, a gzip of 300 MB of zeros, a tar that asks for a name of 200 MB: all in a few MB."""
    many = tar({f"{i}.avro": bytes(60_000) for i in range(1000)}, "w:gz")
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 200_000_000
    bomb = gzip.compress(name.tobuf() + bytes(200_000_000), 1)
    paths = [
        written(tmp_path / "many.tar.gz", many),
        written(tmp_path / "zeros.avro.gz", gzip.compress(bytes(300_000_000), 1)),
        written(tmp_path / "name.tar.gz", bomb),
    ]
    del many, bomb
    counts = []
    tracemalloc.start()
    for path in paths:
        counts.append(sum(1 for _ in tolerant(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert counts == [1000, 1, 0]
    assert peak < 10 * LIMIT


def tolerant(path: Path) -> Iterator[Frame]:
    try:
        yield from read_frames(path, path, LIMIT)
    except ArchiveError:
        return


@pytest.mark.parametrize("form", ["container", "tar", "tar.gz", "gz"])
def test_damage_of_any_kind_raises_nothing_else(tmp_path: Path, form: str) -> None:
    rng = random.Random(11)
    container = generate.container(RECORDS, ELASTICC, "deflate")
    members = {"1.avro": BODIES[0], "2.avro": container, "3.avro.gz": gzip.compress(BODIES[1])}
    data = {
        "container": container,
        "tar": tar(members),
        "tar.gz": tar(members, "w:gz"),
        "gz": gzip.compress(container),
    }[form]
    for _ in range(400):
        spoilt = rng.choice(generate.DAMAGES)(data, rng)
        path = written(tmp_path / "x.avro", spoilt)
        for _frame in tolerant(path):
            pass
        survey_of(path)


# --- survey -------------------------------------------------------------------------------------------------------


def test_the_survey_is_found_in_the_content(tmp_path: Path) -> None:
    found = {path.name: survey_of(path) for path in find_files([ALERTS / "ztf.tar.gz", ALERTS / "elasticc.tar.gz"])}
    assert found == {"ztf.tar.gz": "ztf", "elasticc.tar.gz": "elasticc"}
    assert {survey_of(path) for path in find_files([ALERTS / "lsst"])} == {"lsst"}
    late = {f"{i}.avro": b"junk" for i in range(5)} | {"9.avro": whole("lsst")[0].data}
    assert survey_of(written(tmp_path / "late.tar", tar(late))) == "lsst"
    assert survey_of(written(tmp_path / "junk.avro", b"junk")) is None
    assert survey_of(tmp_path / "gone.avro") is None


# --- schemas beside the alerts ------------------------------------------------------------------------------------


def test_schemas_beside_the_alerts_are_found_and_what_is_none_is_named(tmp_path: Path) -> None:
    text = (SCHEMAS / "lsst" / "1101.avsc").read_text()
    written(tmp_path / "a" / "1201.json", json.dumps({"schema": text}).encode())
    written(tmp_path / "1202.avsc", text.encode())
    written(tmp_path / "1101.json", text.encode())  # the package knows that id
    written(tmp_path / "77.avsc", b'{"type": "record", "name": "x", "fields": []}')  # no survey's
    written(tmp_path / "notes.json", b"<html>")
    broken = {"1.json": b"<html>", "2.json": b"\xff", "3.avsc": b'{"type": "recor"}', "4.avsc": b"[" * 100_000}
    for name, data in broken.items():
        written(tmp_path / name, data)
    found, failed = schemas_beside([tmp_path, tmp_path / "1202.avsc"])
    assert sorted((writer.schema_id or 0, writer.label) for writer in found) == [
        (1101, "1101"), (1201, "1201"), (1202, "1202"),
    ]  # fmt: skip
    assert {json.dumps(writer.schema) for writer in found} == {json.dumps(json.loads(text))}
    assert sorted(path.name for path, _ in failed) == sorted(broken)
    assert all("is no Avro schema" in why for _, why in failed)


# --- through Spark ------------------------------------------------------------------------------------------------

# In a process of its own: the JVM stays as long as its process, with the options that it was started with.
QUERY = """
import os, sys
import pyarrow.parquet as pq
from pyspark.sql import SparkSession
from broker.file_source import Archive
from broker.java import java
java()
os.environ["PYSPARK_PYTHON"] = sys.executable
spark = SparkSession.builder.master("local[2]").config("spark.ui.enabled", "false").getOrCreate()
spark.dataSource.register(Archive)
paths, root, errors, out = sys.argv[1:]
reader = spark.read.format("archive").option("paths", paths).option("root", root).option("errors", errors)
pq.write_table(reader.option("tasks", "3").load().toArrow(), out)
spark.stop()
"""


def test_spark_reads_files_and_names_the_failed_ones(tmp_path: Path) -> None:
    good, errors, out = whole("lsst")[0].data, tmp_path / "errors", tmp_path / "out.parquet"
    written(tmp_path / "in" / "a.avro.gz", gzip.compress(good))
    written(tmp_path / "in" / "b.avro", generate.container(RECORDS, ELASTICC, "snappy"))
    written(tmp_path / "in" / "c.tar.gz", tar({f"{i}.avro": bytes([i]) * 20_000 for i in range(5)}, "w:gz")[:-60])
    written(tmp_path / "in" / "d.avro.gz", gzip.compress(good)[:500])
    files = find_files([tmp_path / "in"])
    arguments = [json.dumps([str(path) for path in files]), str(tmp_path), str(errors), str(out)]
    command = [sys.executable, "-P", "-c", QUERY, *arguments]
    safe = os.environ | {"PYTHONSAFEPATH": "1"}  # the installed package, in the workers too
    ran = subprocess.run(command, env=safe, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    table = pq.read_table(out)
    names = ["key", "value", "headers", "topic", "partition", "offset", "timestamp", "timestampType"]
    assert table.column_names == names
    expected = [frame for path in files for frame in tolerant_under(path, tmp_path)]
    got = {(row["topic"], row["offset"]): row for row in table.to_pylist()}
    assert len(got) == table.num_rows == len(expected)
    for frame in expected:
        row = got[frame.topic, frame.offset]
        assert row["value"] == frame.value
        assert (row["key"], row["headers"], row["timestamp"], row["partition"]) == (None, None, None, 0)
    lines = [line for path in sorted(errors.glob("*.jsonl")) for line in path.read_text().splitlines()]
    failed = sorted((json.loads(line) for line in lines), key=lambda row: str(row["file"]))
    assert [Path(row["file"]).name for row in failed] == ["c.tar.gz", "d.avro.gz"]
    assert "alerts of it were read" in failed[0]["error"]
    assert sum(int(json.loads(path.read_text())["n"]) for path in errors.glob("*.count")) == len(expected)


def tolerant_under(path: Path, root: Path) -> Iterator[Frame]:
    try:
        yield from read_frames(path, root, 16_777_216)
    except ArchiveError:
        return
