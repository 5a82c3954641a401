"""Alerts that are deleted from a real topic before the job has read them: it stops, or books them and goes on."""

import json
from pathlib import Path

import pytest
from confluent_kafka import TopicPartition
from confluent_kafka.admin import AdminClient
from running import Alert, Place, Running, broker, read_outcome, send, topics_of, write_config
from samples import whole

from broker import retention
from broker.config import Source
from broker.embedded import EmbeddedKafka
from broker.errors import BrokerError
from broker.ledger import Gap
from broker.topics import read_all

N, KEPT = 8000, 200


def cut(kafka: EmbeddedKafka, topic: str, before: int, partition: int = 0) -> None:
    """Delete what lies before this offset, as retention does."""
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    (deleted,) = admin.delete_records([TopicPartition(topic, partition, before)]).values()
    assert deleted.result(10).low_watermark == before


def test_a_job_stops_at_a_gap_and_goes_on_when_told(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"expired-in": 1})
    data = [s.data for s in whole("elasticc")]
    sent = send(kafka, "expired-in", [Alert(data[i % len(data)], b"") for i in range(N)])
    names = topics_of("expired")
    source = {"name": "night", "survey": "elasticc", "topics": ["expired-in"], "max_alerts_per_batch": 200}
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], names | {"create_topics": True})
    with Running(tmp_path / "log", "run", "--config", config) as job:
        job.wait_for("running: ")
        job.wait_for("night batch 1: ")
        cut(kafka, "expired-in", N - KEPT)
        assert job.end(120) == 3, job.text
        assert f"to {N - KEPT - 1}. They can't be answered any more" in job.text
        assert "Traceback" not in job.text
    again = broker("run", "--config", config, "--once")
    assert again.returncode == 3
    assert again.stderr == job.text[job.text.index("error: ") :]
    assert "source 'night': " in again.stderr
    assert "alerts were deleted from the topic before they were read" in again.stderr
    assert "expired-in partition 0, offsets " in again.stderr
    assert 'set on_data_loss = "go_on"' in again.stderr

    config.write_text(config.read_text() + 'on_data_loss = "go_on"\n')
    on = broker("run", "--config", config, "--once", timeout_s=180)
    assert on.returncode == 0, on.stderr
    assert "night: deleted before they were read, goes on behind: expired-in partition 0" in on.stderr
    assert ", expired " in on.stderr
    outcome = read_outcome(kafka.bootstrap_servers, names)
    expired = {
        Place(row.topic, row.partition, offset)
        for row in outcome.ledger
        for first, last in row.expired
        for offset in range(first, last + 1)
    }
    assert outcome.repeats().keys() == {1}
    assert outcome.classifications.keys() | expired == sent.keys()
    assert {Place("expired-in", 0, offset) for offset in range(N - KEPT, N)} <= outcome.classifications.keys() - expired
    audit = broker("audit", "--config", config)
    assert audit.returncode == 0, audit.stdout
    lost = expired - outcome.classifications.keys()
    assert f"the ledger says of {len(lost)} that they expired before they were read" in audit.stdout


# --- the search alone ---------------------------------------------------------------------------------------------


def planned(folder: Path, offsets: dict[str, dict[str, int]]) -> Source:
    """A source whose checkpoint has a planned and committed batch up to these offsets."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    zero = {topic: dict.fromkeys(parts, 0) for topic, parts in offsets.items()}
    (folder / "sources" / "0" / "0").write_text("\0v1\n" + json.dumps(zero))
    (folder / "offsets" / "0").write_text('v1\n{"batchTimestampMs": 1}\n' + json.dumps(offsets))
    (folder / "commits" / "0").write_text("v1\n{}")
    (folder / "metadata").write_text('{"id": "q"}')
    return Source(name="night", survey="ztf", topics=(*offsets, "gap-new"), checkpoint=folder, start="earliest")


def test_gaps_are_found_in_old_and_new_partitions(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    kafka.create_topics({"gap-old": 2, "gap-new": 1, "gap-ledger": 1})
    for topic, n in (("gap-old", 2), ("gap-new", 1)):
        send(kafka, topic, [Alert(b"x") for _ in range(20 * n)], n)
    source = planned(tmp_path, {"gap-old": {"0": 5, "1": 5}})
    assert retention.find_expired(options, source) == []
    assert retention.find_expired(options, source.model_copy(update={"checkpoint": tmp_path / "new"})) == []
    cut(kafka, "gap-old", 8, partition=1)
    cut(kafka, "gap-new", 3)
    gaps = [Gap("gap-old", 1, 5, 7), Gap("gap-new", 0, 0, 2)]
    assert retention.find_expired(options, source) == gaps
    assert retention.expired_of(options, [Gap("gap-old", 1, 6, 12), Gap("gap-old", 0, 0, 3)]) == [
        Gap("gap-old", 1, 6, 7)
    ]
    told = str(retention.refuse(source, gaps))
    assert "6 alerts were deleted" in told
    assert "gap-old partition 1, offsets 5 to 7; gap-new partition 0, offsets 0 to 2" in told
    retention.book(options, "gap-ledger", source, 1, "m@1", gaps)
    rows = [json.loads(message.value() or b"") for message in read_all(options, "gap-ledger")]
    assert [(r["batch"], r["task"], r["topic"], r["n"], r["expired"]) for r in rows] == [
        (1, -1, "gap-old", 0, [[5, 7]]),
        (1, -1, "gap-new", 0, [[0, 2]]),
    ]


def test_a_topic_made_anew_is_told_from_a_gap(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"anew-in": 1})
    with pytest.raises(BrokerError, match="ends at offset 0, and was read up to 9: the topic was deleted and made"):
        retention.find_expired({"bootstrap.servers": kafka.bootstrap_servers}, planned(tmp_path, {"anew-in": {"0": 9}}))
