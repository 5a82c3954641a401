"""`broker read`: every form that the job writes, from a real Kafka, against what went in."""

import json
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from confluent_kafka import Producer
from decoding import assigned, hop
from running import broker
from samples import whole

from broker.classify import classify
from broker.delivery import Filter, Kind
from broker.embedded import EmbeddedKafka
from broker.errors import KafkaError, UsageError
from broker.outlets.further import Further
from broker.reading import line, pick, records

KINDS: tuple[Kind, ...] = ("json", "lasair", "hop", "elasticc", "fink-ai", "fink")
IDS = {
    "classifications": "source_id",
    "elasticc": "diaSourceId",
    "fink": "candid",
    "hop": "source_id",
    "json": "source_id",
}


@pytest.fixture(scope="module")
def topics(kafka: EmbeddedKafka) -> dict[str, int]:
    """Number of records by topic `read-NAME`, over two partitions."""
    wanted = Filter(statuses=("classified", "abstained"))
    outlets = tuple(Further(k, k, {"": k}, 2, True, "SNIa" if k == "fink-ai" else None, wanted) for k in KINDS)
    values: list[bytes | None] = [*(s.data for s in whole("ztf")[:20]), None, b"junk"]
    answer = classify(hop("ztf", values), replace(assigned("ztf"), outlets=outlets))
    rows = [row for part in answer.rows for row in part.to_pylist()]
    counts: dict[str, int] = {}
    for row in rows:
        counts[row["topic"]] = counts.get(row["topic"], 0) + 1
    kafka.create_topics({f"read-{topic}": 2 for topic in counts} | {"read-nothing": 1, "read-other": 1})
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    for i, row in enumerate(rows):
        headers = [(h["key"], h["value"]) for h in row["headers"]]
        producer.produce(f"read-{row['topic']}", row["value"], row["key"], i % 2, headers=headers)
    producer.produce("read-other", b"neither JSON nor Avro")
    assert producer.flush(30) == 0
    return counts


def options(kafka: EmbeddedKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def test_every_form_is_read(kafka: EmbeddedKafka, topics: dict[str, int]) -> None:
    assert set(topics) == {*KINDS, "classifications", "dead-letters"}
    ids: dict[str, set[int]] = {}
    for topic, n in topics.items():
        found = list(pick(records(options(kafka), f"read-{topic}"), None))
        assert len(found) == n, topic
        for record in found:
            assert json.loads(line(record))
        if topic in IDS:
            ids[topic] = {record[IDS[topic]] for record in found}
    assert len(set(map(frozenset, ids.values()))) == 1
    reasons = {record["reason"] for record in pick(records(options(kafka), "read-dead-letters"), None)}
    assert reasons == {"empty", "damaged"}


def test_a_condition_picks_by_the_fields(kafka: EmbeddedKafka, topics: dict[str, int]) -> None:
    everything = list(pick(records(options(kafka), "read-json"), None))
    some = list(pick(records(options(kafka), "read-json"), "p_SNIa > 0.5 AND n_detections >= 3"))
    due = [r for r in everything if r["p_SNIa"] is not None and r["p_SNIa"] > 0.5 and r["n_detections"] >= 3]
    assert sorted(r["source_id"] for r in some) == sorted(r["source_id"] for r in due)
    assert 0 < len(some) < len(everything)
    for where, complaint in (("nope > 1", "nope"), ("p_SNIa + 1", "not true or false"), ("p_SNIa >", "parse")):
        with pytest.raises(UsageError, match=complaint):
            list(pick(records(options(kafka), "read-json"), where))


def test_an_empty_topic_and_one_of_others(kafka: EmbeddedKafka, topics: dict[str, int]) -> None:
    assert list(pick(records(options(kafka), "read-nothing"), "x > 1")) == []
    with pytest.raises(KafkaError, match="read-other:0:0: none of the forms that this broker writes"):
        list(records(options(kafka), "read-other"))
    with pytest.raises(KafkaError, match="read-nowhere"):
        list(records(options(kafka), "read-nowhere"))


def test_the_command(kafka: EmbeddedKafka, topics: dict[str, int], tmp_path: Path) -> None:
    servers, file = kafka.bootstrap_servers, tmp_path / "out.parquet"
    counted = broker("read", "read-fink", "--servers", servers, "--count")
    assert (counted.returncode, counted.stdout) == (0, f"{topics['fink']}\n")
    saved = broker("read", "read-json", "--servers", servers, "--where", "source_id > 0", "-o", file)
    assert saved.stdout == f"{topics['json']} records saved to {file}\n", saved.stderr
    assert pq.read_table(file).num_rows == topics["json"]
    shown = broker("read", "read-lasair", "--servers", servers, "--limit", "3").stdout.splitlines()
    assert [set(json.loads(text)) >= {"objectId", "classdict"} for text in shown] == [True] * 3
    wrong = broker("read", "read-json", "--servers", servers, "--follow", "--count")
    assert wrong.returncode == 2
    assert "--follow has no end" in wrong.stderr
    wrong = broker("read", "read-json", "-o", tmp_path / "out.csv")
    assert wrong.returncode == 2
    assert ".parquet" in wrong.stderr
