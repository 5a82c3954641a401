"""Verdicts compared to the bit: what differs is found and named, whatever form the verdicts are in."""

import json
import struct
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from decoding import assigned, hop
from running import broker
from samples import damaged, whole

from broker.classify import classify
from broker.compare import compare
from broker.embedded import EmbeddedKafka
from broker.errors import ArchiveError, UsageError
from broker.files import _save  # the files of `broker classify` without a Spark
from broker.outlets import native

Record = dict[str, Any]


def verdicts(n: int = 20) -> list[Record]:
    answer = classify(hop("ztf", [s.data for s in whole("ztf")[:n]]), assigned("ztf"))
    return [native.read(value) for part in answer.rows for value in part.column("value").to_pylist()]


def saved(path: Path, records: list[Record]) -> str:
    _save(path.suffix, str(path), iter([records]))
    return str(path)


def test_files_of_all_forms_are_the_same(tmp_path: Path) -> None:
    records = verdicts()
    paths = [saved(tmp_path / f"a{suffix}", records) for suffix in (".parquet", ".avro", ".jsonl")]
    for path in paths:
        found = compare(paths[0], path)
        assert (found.n_here, found.n_same, found.is_same, found.first) == (20, 20, True, None), path
        assert found.n_same_class == 20


def test_times_and_places_do_not_count_and_order_does_not(tmp_path: Path) -> None:
    here = saved(tmp_path / "a.parquet", verdicts())
    moved = [r | {"alert_topic": "x", "alert_offset": i, "brokerVersion": "9"} for i, r in enumerate(verdicts())]
    assert compare(here, saved(tmp_path / "b.parquet", moved[::-1])).is_same


def test_the_last_bit_counts(tmp_path: Path) -> None:
    here = saved(tmp_path / "a.avro", verdicts())
    changed = verdicts()
    record = next(r for r in changed if r["classifications"])
    (bits,) = struct.unpack("<I", struct.pack("<f", record["classifications"][2]["probability"]))
    record["classifications"][2]["probability"] = struct.unpack("<f", struct.pack("<I", bits + 1))[0]
    found = compare(here, saved(tmp_path / "b.avro", changed))
    assert (found.n_same, found.n_differ, found.n_same_class, found.is_same) == (19, 1, 20, False)
    assert found.first is not None
    assert found.first[0] == f"source {record['source_id']}"
    assert [field for field, _, _ in found.first[1]] == ["classifications"]


def test_what_is_missing_is_on_its_side(tmp_path: Path) -> None:
    records = verdicts()
    here, there = saved(tmp_path / "a.avro", records[1:]), saved(tmp_path / "b.avro", [*records[:10], *records[2:3]])
    found = compare(here, there)
    assert (found.n_here, found.n_there, found.n_same) == (19, 11, 9)
    assert (found.n_only_here, found.n_only_there, found.n_differ) == (10, 2, 0)
    assert found.first is not None
    assert found.first[1] == [("record", "there", "missing")]
    assert compare(there, there).is_same  # an alert that came twice, with two verdicts


def test_a_source_that_came_again_with_other_content(tmp_path: Path) -> None:
    """Two verdicts of one source: each is held against its own equal, in whatever order they come."""
    first, *rest = verdicts()
    again = first | {"points_hash": "0" * 16, "n_points_used": 99}
    here = saved(tmp_path / "a.avro", [first, again, *rest])
    assert compare(here, saved(tmp_path / "b.avro", [again, *rest, first])).is_same
    found = compare(here, saved(tmp_path / "c.avro", [again | {"n_points_used": 98}, *rest, first]))
    assert (found.n_same, found.n_differ) == (20, 1)
    assert found.first is not None
    assert found.first[1] == [("n_points_used", 99, 98)]


def test_what_is_no_set_of_verdicts_is_told(tmp_path: Path) -> None:
    good = saved(tmp_path / "a.avro", verdicts(3))
    (tmp_path / "x.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "y.jsonl").write_text("<html>\n")
    (tmp_path / "z.jsonl").write_text("")
    for name, message in (
        ("x", "no field source_id"),
        ("y", "can't be read"),
        ("z", "holds no verdict"),
        ("w", "No such"),
    ):
        with pytest.raises(ArchiveError, match=message):
            compare(good, str(tmp_path / f"{name}.jsonl"))
    with pytest.raises(UsageError, match=r"\.parquet, \.avro or \.jsonl, or HOST:PORT"):
        compare(good, "verdicts.fits")


def test_topics_with_their_dead_letters(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"compare-a": 1, "compare-b": 2, "compare-letters": 1})
    values = [s.data for s in whole("ztf")[:10]] + [s.data for s in damaged()]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    for part in classify(hop("ztf", list(values)), assigned("ztf")).rows:
        for i, row in enumerate(part.to_pylist()):
            letters = row["topic"] == "dead-letters"
            for topic, partition in (("compare-a", 0), ("compare-letters" if letters else "compare-b", i % 2)):
                producer.produce(
                    topic, row["value"], row["key"], 0 if letters else partition,
                    headers=[(h["key"], h["value"]) for h in row["headers"]],
                )  # fmt: skip
    assert producer.flush(30) == 0
    servers = kafka.bootstrap_servers
    here, there = f"{servers}/compare-a", f"{servers}/compare-b,compare-letters"
    same = broker("models", "compare", here, there, timeout_s=120)
    assert same.returncode == 0, same.stdout + same.stderr
    assert "13 the same to the bit, 0 differ, 0 only here, 0 only there" in same.stdout
    differ = broker("models", "compare", here, f"{servers}/compare-b", timeout_s=120)
    assert differ.returncode == 3
    assert "the first difference: bytes " in differ.stdout
    producer.produce("compare-b", json.dumps({"a": 1}).encode())
    producer.flush(30)
    with pytest.raises(ArchiveError, match=r"compare-b:\d:\d+: neither a verdict nor a dead letter"):
        compare(here, there)
