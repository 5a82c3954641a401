"""A new LSST schema in the night: learnt while the job runs, before its first alert or after it; nothing is lost."""

import io
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka import Message
from registry_server import RegistryServer
from running import Alert, Place, Running, broker, read_outcome, send, topics_of, wait_until, write_config
from samples import SCHEMAS, whole

from broker import registry
from broker.config import Config, load
from broker.embedded import EmbeddedKafka, free_port
from broker.learning import Learner, News, Waiting, waiting_file
from broker.wire import FRAME_BYTES, frame

BASE = 1000
TEXT = (SCHEMAS / "lsst" / f"{BASE}.avsc").read_text()
SUBJECT = "alert-packet"


def successor(number: int) -> str:
    """LSST's next schema: another namespace, and one field more, in front."""
    schema = json.loads(TEXT.replace("v10_0", f"v10_{number}"))
    schema["fields"].insert(0, {"name": f"new_{number}", "type": ["null", "double"]})
    return json.dumps(schema)


def as_successor(data: bytes, number: int) -> bytes:
    """The same alert, written by that schema under the id BASE + number."""
    body = io.BytesIO(data[FRAME_BYTES:])
    record = fastavro.schemaless_reader(body, json.loads(TEXT), None)
    assert isinstance(record, dict)
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(json.loads(successor(number))), record)
    return frame(BASE + number, out.getvalue())


ALERTS = [sample.data for sample in whole("lsst") if sample.schema == str(BASE)]


@pytest.fixture
def known() -> Iterator[None]:
    """What a test teaches this process is forgotten after it."""
    yield
    registry._learnt.clear()


def config_of(port: int, folder: Path) -> Config:
    rest = f'[registry]\nurl = "http://127.0.0.1:{port}/apis/ccompat/v7"\nsubjects = ["{SUBJECT}"]\nrefresh_s = 2.0'
    source = {"name": "night", "survey": "lsst", "topics": ["nowhere"]}
    return load(write_config(folder, "127.0.0.1:9", [source], rest=f'{rest}\ncache = "schemas"'))


def learner(port: int, folder: Path) -> Learner:
    return Learner(config_of(port, folder))


@pytest.mark.usefixtures("known")
def test_a_registry_that_comes_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    port = free_port()
    asking = learner(port, tmp_path)
    asking.begin()
    assert "known schemas are not concerned" in caplog.text
    with ThreadPoolExecutor(1) as pool, RegistryServer(port) as server:
        server.put(SUBJECT, {BASE: TEXT, BASE + 2: successor(2)})
        found: tuple[registry.Writer, ...] = ()
        since = time.monotonic()
        while not found and time.monotonic() - since < 60:
            before = time.monotonic()
            found = asking.look(pool).fresh
            assert time.monotonic() - before < 5  # it never waits: an answer may take 10 s
            time.sleep(0.05)
        assert [writer.label for writer in found] == ["1002"]
    assert registry.by_id(1002) == ("lsst", found[0])
    assert registry.writers("lsst")[-1] == found[0]
    assert registry.writers("ztf") == registry.packaged("ztf")
    assert caplog.text.count("does not answer") == 1
    assert "answers again" in caplog.text
    assert "learnt from the registry: schema 1002" in caplog.text


@pytest.mark.usefixtures("known")
def test_the_cache_is_known_without_a_registry(tmp_path: Path) -> None:
    port = free_port()
    with RegistryServer(port) as server:
        server.put(SUBJECT, {BASE + 2: successor(2)})
        learner(port, tmp_path).begin()
    registry._learnt.clear()
    learner(port, tmp_path).begin()
    assert [writer.label for writer in registry.learnt()] == ["1002"]


@pytest.mark.usefixtures("known")
def test_what_alerts_wait_for_outlives_the_job(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Asked for by the next start too, and given to be put back once; a schema that is no alert's is named once."""
    port = free_port()
    waiting = waiting_file(config_of(port, tmp_path))
    Waiting(waiting).come({BASE + 2, BASE + 3})
    with RegistryServer(port) as server, ThreadPoolExecutor(1) as pool:
        server.put("known by its ids alone", {BASE + 2: successor(2), BASE + 3: '"string"'})
        first = learner(port, tmp_path)
        first.begin()
        assert [[writer.label for writer in first.look(pool).ready] for _ in range(2)] == [["1002"], []]
        assert "alerts wait for a schema that is none of ours: schema 1003" in caplog.text
        time.sleep(2.0)  # refresh_s
        first.look(pool)
    assert caplog.text.count("none of ours") == 1
    assert json.loads(waiting.read_text()) == [BASE + 2, BASE + 3]  # nothing was put back
    waiting.write_text("rubbish")
    with ThreadPoolExecutor(1) as pool:
        assert learner(port, tmp_path).look(pool) == News()
    assert "which schemas alerts wait for can't be read" in caplog.text


@pytest.mark.usefixtures("known")
def test_alerts_that_come_while_others_are_put_back(tmp_path: Path) -> None:
    waiting = Waiting(tmp_path / "waiting.json")
    registry.learn([registry.Writer("1002", successor(2), BASE + 2)])
    waiting.come({BASE + 2})
    assert [writer.label for writer in waiting.ready()] == ["1002"]
    waiting.come({BASE + 2})
    waiting.done(BASE + 2)
    assert [writer.label for writer in waiting.ready()] == ["1002"]
    waiting.done(BASE + 2)
    assert Waiting(tmp_path / "waiting.json").ready() == ()


def test_a_new_schema_is_taken_up_between_two_batches(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """First old alerts, then the schema, then alerts by it, among old ones: one answer each, none of them late."""
    names, servers = topics_of("new-schema"), kafka.bootstrap_servers
    kafka.create_topics({"new-schema-in": 1})
    with RegistryServer() as server:
        server.put(SUBJECT, {BASE: TEXT})
        rest = f'[registry]\nurl = "{server.url}"\nsubjects = ["{SUBJECT}"]\nrefresh_s = 1.0\ncache = "schemas"'
        source = {"name": "night", "survey": "lsst", "topics": ["new-schema-in"]}
        config = write_config(tmp_path, servers, [source], names | {"create_topics": True}, rest)
        send(kafka, "new-schema-in", [Alert(data) for data in ALERTS])
        with Running(tmp_path / "log", "run", "--config", config) as job:
            job.wait_for("alerts in", count=1)
            server.put(SUBJECT, {BASE + 2: successor(2)}, first_version=2)
            job.wait_for("knows the new schemas after a pause")
            send(kafka, "new-schema-in", [Alert(as_successor(data, 2)) for data in ALERTS])
            server.empty(SUBJECT)
            send(kafka, "new-schema-in", [Alert(data) for data in ALERTS])
            wait_until(lambda: len(read_outcome(servers, names).classifications) == 3 * len(ALERTS))
            job.process.terminate()
            assert job.end(60) == 0, job.text
        assert "Traceback" not in job.text
    outcome = read_outcome(servers, names)
    assert outcome.repeats() == {1: 3 * len(ALERTS)}
    assert not outcome.dead_letters
    read = [verdict(outcome.classifications[place][0]) for place in sorted(outcome.classifications, key=offset)]
    old, new, again = (read[i * len(ALERTS) : (i + 1) * len(ALERTS)] for i in range(3))
    assert {v.pop("alert_schema") for v in old + again} == {str(BASE)}
    assert {v.pop("alert_schema") for v in new} == {str(BASE + 2)}
    assert old == new == again
    audit = broker("audit", "--config", config, timeout_s=120)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def test_alerts_that_come_before_their_schema_wait(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """They are dead letters at first, and put back by themselves: the audit sees each answered once."""
    names, servers, n = topics_of("waiting"), kafka.bootstrap_servers, len(ALERTS)
    kafka.create_topics({"waiting-in": 2})
    with RegistryServer() as server:
        rest = f'[registry]\nurl = "{server.url}"\nrefresh_s = 2.0\ncache = "schemas"'  # no subject: ids alone
        source = {"name": "night", "survey": "lsst", "topics": ["waiting-in"]}
        config = write_config(tmp_path, servers, [source], names | {"create_topics": True}, rest)
        send(kafka, "waiting-in", [Alert(a) for data in ALERTS for a in (data, as_successor(data, 3))], 2)
        with Running(tmp_path / "log", "run", "--config", config) as job:
            job.wait_for("schema_unavailable")
            job.wait_for("has no schema 1003 (now)")
            waiting = broker("audit", "--config", config, timeout_s=120)
            assert "schema_unavailable" in waiting.stdout or "waiting" in waiting.stdout
            job.process.terminate()
            assert job.end(60) == 0, job.text
        note = waiting_file(load(config))
        assert json.loads(note.read_text()) == [BASE + 3]
        server.put(SUBJECT, {BASE + 3: successor(3)})
        fetched = broker("schemas", "fetch", "1003", "--config", config)  # known, so no news to the next start
        assert fetched.returncode == 0, fetched.stderr
        with Running(tmp_path / "again", "run", "--config", config) as job:
            job.wait_for("alerts that waited for schema 1003: ", count=1)
            wait_until(lambda: json.loads(note.read_text()) == [])
            job.process.terminate()
            assert job.end(60) == 0, job.text
        assert f"{n} answered now" in job.text
        assert "Traceback" not in job.text
    outcome = read_outcome(servers, names)
    assert outcome.repeats() == {1: n, 2: n}  # 2: the letter, and the classification that answers it
    assert {len(found) for found in outcome.classifications.values()} == {1}
    read = {place: verdict(found[0]) for place, found in outcome.classifications.items()}
    old = [v for p, v in sorted(read.items(), key=lambda x: x[0].offset) if p.partition == 0]
    new = [v for p, v in sorted(read.items(), key=lambda x: x[0].offset) if p.partition == 1]
    assert {v.pop("alert_schema") for v in old} == {str(BASE)}
    assert {v.pop("alert_schema") for v in new} == {str(BASE + 3)}
    assert old == new
    audit = broker("audit", "--config", config, timeout_s=120)
    assert audit.returncode == 0, audit.stdout + audit.stderr


def offset(place: Place) -> int:
    return place.offset


def verdict(message: Message) -> dict[str, Any]:
    """What a classification says, apart from where its alert lay and what it was sent as."""
    value = message.value()
    assert value is not None
    (record,) = fastavro.reader(io.BytesIO(value))
    assert isinstance(record, dict)
    wanted = ("source_id", "object_id", "status", "reason", "classifications", "points_hash", "alert_schema")
    return {name: record[name] for name in wanted}
