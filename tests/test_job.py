"""The composition: what its plan holds, what crosses to Python, and that live and batch are the same job."""

import io
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import fastavro
import generate
import pyarrow as pa
import pytest
from mixture import LAYOUT
from pyspark.sql import DataFrame, SparkSession
from running import Alert, send
from samples import damaged, whole

from broker import job, registry, sources, surveys
from broker import model as models
from broker.classify import Assignment
from broker.config import Policy
from broker.delivery import Filter
from broker.embedded import EmbeddedKafka
from broker.ledger import Gap, LedgerRow
from broker.outlets.further import Further
from broker.sources import FRAME_COLUMNS

SURVEYS = ("lsst", "ztf", "elasticc")
HEADERS = pa.list_(pa.struct([("key", pa.string()), ("value", pa.binary())]))
CLASSIFICATIONS, DEAD_LETTERS, LEDGER = "classifications", "dead-letters", "ledger"
PYTHON = re.compile("Python|Arrow|Pandas")  # in the name of a node that calls Python
CLOCKS = ("brokerIngestTimestamp", "brokerPublishTimestamp")


def assignment(survey: str, max_alert_bytes: int = 16_777_216) -> Assignment:
    topics = (CLASSIFICATIONS, DEAD_LETTERS, LEDGER)
    folder: Path = models.find("t2b-1")
    return job.assignment("night", survey, folder, Policy(), 31.4, (1,), topics, max_alert_bytes, 1_000_000)


def alerts(survey: str, n: int = 12) -> list[Alert]:
    """Some samples of a survey, one of every other kind, and what can't be read."""
    found = [s.data for s in whole(survey)[:n]] + [s.data for s in damaged()]
    found += [s.data for other in SURVEYS if other != survey for s in whole(other)[:1]]
    found += [generate.huge_array(survey, LAYOUT[survey]), b""]
    return [Alert(data, f"key {i}".encode(), [("h", b"x")]) for i, data in enumerate(found)]


def frames_of(spark: SparkSession, sent: list[Alert], topic: str = "in") -> DataFrame:
    """Alerts as rows of one partition of a topic, as a batch."""
    n = len(sent)
    columns = {
        "key": pa.array([a.key for a in sent], pa.binary()),
        "value": pa.array([a.value for a in sent], pa.binary()),
        "headers": pa.array([[{"key": k, "value": v} for k, v in a.headers] for a in sent], HEADERS),
        "topic": pa.array([topic] * n),
        "partition": pa.array([0] * n, pa.int32()),
        "offset": pa.array(range(n), pa.int64()),
        "timestamp": pa.array([1_700_000_000_000_000] * n, pa.timestamp("us", "UTC")),
    }
    assert tuple(columns) == FRAME_COLUMNS
    return spark.createDataFrame(pa.table(columns))


def verdicts(rows: DataFrame) -> dict[bytes, Any]:
    """By the header `alert`: the record without its clocks, or the dead letter's bytes and headers."""
    found: dict[bytes, Any] = {}
    for row in rows.collect():
        names = {h.key: bytes(h.value) for h in row.headers}
        if row.topic == LEDGER:
            continue
        assert names["alert"] not in found
        if row.topic == CLASSIFICATIONS:
            (record,) = fastavro.reader(io.BytesIO(bytes(row.value)))
            found[names["alert"]] = {k: v for k, v in cast(dict[str, Any], record).items() if k not in CLOCKS}
        else:
            found[names["alert"]] = (bytes(row.value or b""), {k: v for k, v in names.items() if k != "timestamp_us"})
    return found


@pytest.mark.parametrize("survey", SURVEYS)
def test_streaming_plan_holds_one_kafka_scan_and_one_python_node(
    spark: SparkSession, kafka: EmbeddedKafka, tmp_path: Path, survey: str
) -> None:
    """And what it answers is, to the bit, what a batch over the same alerts gives."""
    topic, sent = f"job-{survey}", alerts(survey)
    kafka.create_topics({topic: 1})
    assert list(send(kafka, topic, sent).values()) == sent
    options = {"kafka.bootstrap.servers": kafka.bootstrap_servers}
    frames = sources.kafka(spark, options, (topic,), "earliest", 1000)
    rows = job.build(frames, surveys.find(survey), assignment(survey), [Gap("other", 0, 1, 2)])
    name = f"job_{survey}"
    writer = rows.writeStream.format("memory").queryName(name).option("checkpointLocation", str(tmp_path))
    query = writer.trigger(availableNow=True).start()
    assert query.awaitTermination(120)
    nodes = [node.split(" ")[0] for node in plan_nodes(query)]
    assert nodes.count("MicroBatchScan") == sum("Scan" in node for node in nodes) == 1
    assert nodes.count("MapInArrow") == sum(bool(PYTHON.search(node)) for node in nodes) == 1
    assert not [node for node in nodes if "Union" in node or "Exchange" in node]
    live = {place: _without_time(v) for place, v in verdicts(spark.table(name)).items()}
    batch = verdicts(job.build(frames_of(spark, sent, topic), surveys.find(survey), assignment(survey)))
    assert live == {place: _without_time(v) for place, v in batch.items()}
    assert len(live) == len(sent)


def plan_nodes(query: Any) -> list[str]:
    """Names of the nodes of the plan that the query's last batch ran."""

    def walk(node: Any) -> Iterator[str]:
        yield str(node.nodeName())
        children = node.children()
        for i in range(children.size()):
            yield from walk(children.apply(i))

    return list(walk(query._jsq.streamingQuery().lastExecution().executedPlan()))


def _without_time(verdict: Any) -> Any:
    """Kafka's own time of the alert differs from the batch's."""
    return {k: v for k, v in verdict.items() if k != "alert_timestamp"} if isinstance(verdict, dict) else verdict


@pytest.mark.parametrize("survey", SURVEYS)
def test_bytes_of_good_alerts_stay_in_the_jvm(spark: SparkSession, survey: str) -> None:
    sent = alerts(survey)
    crossing = job.before_hop(frames_of(spark, sent), surveys.find(survey), assignment(survey), [Gap("in", 0, 3, 3)])
    rows = {row.offset: row for row in crossing.collect()}
    assert len(rows) == len(sent)
    n_good = 0
    for offset, row in rows.items():
        if row.alert is not None and not row.alone and row.offset < 12:
            n_good += 1
            assert (row.raw, row.key, row.headers) == (None, None, None)
        else:
            assert (bytes(row.raw), bytes(row.key)) == (sent[offset].value, sent[offset].key)
            assert [(h.key, bytes(h.value)) for h in row.headers] == sent[offset].headers
    assert n_good >= 10
    assert rows[3].alone
    assert bytes(rows[3].raw) == sent[3].value


def test_bytes_cross_where_an_outlet_sends_them(spark: SparkSession) -> None:
    sent = alerts("lsst")
    outlets = (Further("f", "fastdb", {"": "f"}, 1, True, None, Filter()),)
    crossing = job.before_hop(
        frames_of(spark, sent), surveys.find("lsst"), replace(assignment("lsst"), outlets=outlets)
    )
    assert [bytes(row.raw) for row in crossing.sort("offset").select("raw").collect()] == [a.value for a in sent]


def test_alone_changes_no_verdict(spark: SparkSession) -> None:
    sent, survey = alerts("ztf", 6), surveys.find("ztf")
    together = verdicts(job.build(frames_of(spark, sent), survey, assignment("ztf")))
    everyone = [Gap("in", 0, 0, len(sent) - 1)]
    assert verdicts(job.build(frames_of(spark, sent), survey, assignment("ztf"), everyone)) == together


def test_alerts_around_the_size_limit(spark: SparkSession) -> None:
    record = generate.alert("lsst", "1101", 1)
    data = [generate.encode("lsst", "1101", record | {"cutoutTemplate": bytes(n)}) for n in (49_999, 50_000, 50_001)]
    rows = job.build(frames_of(spark, [Alert(d) for d in data]), surveys.find("lsst"), assignment("lsst", len(data[1])))
    found = verdicts(rows)
    assert [isinstance(found[b"night:in:0:%d" % i], dict) for i in range(3)] == [True, True, False]
    assert found[b"night:in:0:2"][1]["reason"] == b"too_large"
    assert found[b"night:in:0:2"][0] == data[2]


def test_every_task_closes_with_its_ledger_rows(spark: SparkSession) -> None:
    sent = alerts("elasticc")
    frames = frames_of(spark, sent).repartition(3, "offset")
    rows = job.build(frames, surveys.find("elasticc"), assignment("elasticc")).collect()
    ledger = [LedgerRow.from_json(bytes(row.value)) for row in rows if row.topic == LEDGER]
    assert len(rows) == len(sent) + len(ledger)
    assert {row.task for row in ledger} <= {0, 1, 2}
    answered = sorted(o for row in ledger for a, b in row.answered for o in range(a, b + 1))
    assert answered == list(range(len(sent)))
    assert sum(row.n for row in ledger) == len(sent)
    assert {row.source for row in ledger} == {"night"}


def test_no_alerts_no_rows(spark: SparkSession) -> None:
    assert job.build(frames_of(spark, []), surveys.find("ztf"), assignment("ztf")).collect() == []


def test_each_layout_has_a_branch_of_its_own() -> None:
    for survey in SURVEYS:
        labels = [writer.label for writer in registry.writers(survey)]
        assert len(set(labels)) == len(labels) >= 3
