"""Classifications as Confluent frames: the schema in a real registry, and every reader of the topic reads them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import reference
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext
from generate import body
from registry_server import RegistryServer
from running import Alert, broker, read_outcome, send, topics_of, write_config
from samples import SCHEMAS, whole

from broker.config import Output
from broker.embedded import EmbeddedKafka
from broker.errors import SchemaError
from broker.outlets import native
from broker.published import Published, publish
from broker.registry_client import RegistryError
from broker.topics import read_all
from broker.wire import frame

SCHEMA = json.loads((SCHEMAS / "output" / "classification.avsc").read_text())


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


def versions(server: RegistryServer, subject: str) -> Any:
    return server.call(f"/apis/ccompat/v7/subjects/{subject}/versions")


def test_a_schema_is_published_once(server: RegistryServer) -> None:
    output = Output(classifications="once", registry=server.url)
    schema_id = publish(output)
    assert schema_id is not None
    assert publish(output) == publish(output.model_copy(update={"classifications": "other"})) == schema_id
    assert versions(server, "once-value") == [1]
    assert json.loads(Published(server.url)(schema_id)) == SCHEMA
    assert publish(Output()) is None
    with pytest.raises(SchemaError, match="has no schema 987654"):
        Published(server.url)(987654)


def test_a_registry_that_refuses_or_is_away(server: RegistryServer) -> None:
    other = {"type": "record", "name": "classification", "namespace": "t2b.v1", "fields": []}
    server.put("taken-value", {4001: json.dumps({**other, "fields": [{"name": "ra", "type": "string"}]})})
    server.call("/apis/ccompat/v7/config/taken-value", b'{"compatibility": "FULL"}', JSON, "PUT")
    with pytest.raises(RegistryError, match="refused subject 'taken-value'"):
        publish(Output(classifications="taken", registry=server.url))
    with pytest.raises(RegistryError, match="has no subject 'x-value'"):
        publish(Output(classifications="x", registry=server.url + "/nowhere"))
    with pytest.raises(RegistryError, match="does not answer"):
        publish(Output(classifications="x", registry="http://127.0.0.1:9"))


JSON = {"Content-Type": "application/json"}
OLDER = {**SCHEMA, "fields": SCHEMA["fields"][:-1]}


def test_every_reader_reads_frames(kafka: EmbeddedKafka, server: RegistryServer, tmp_path: Path) -> None:
    """A job, a second try of a letter, and an older version's record lie on the topic."""
    servers, output = kafka.bootstrap_servers, {**topics_of("framed"), "create_topics": True, "registry": server.url}
    kafka.create_topics({"framed-in": 1})
    alerts = [Alert(sample.data) for sample in whole("ztf")[:20]]
    send(kafka, "framed-in", [*alerts, Alert(alerts[3].value)])
    source = {"name": "ztf", "survey": "ztf", "topics": ["framed-in"]}
    config = write_config(tmp_path, servers, [source], {**output, "registry": "http://127.0.0.1:9"})
    refused = broker("run", "--config", config, "--once", timeout_s=120)
    assert refused.returncode == 3
    assert "error: the registry http://127.0.0.1:9 does not answer" in refused.stderr
    assert "Traceback" not in refused.stderr
    config = write_config(tmp_path, servers, [source], output)
    done = broker("run", "--config", config, "--once", timeout_s=180)
    assert done.returncode == 0, done.stderr

    schema_id = publish(Output(classifications="framed-classifications", registry=server.url))
    assert schema_id is not None
    by_confluent = AvroDeserializer(SchemaRegistryClient({"url": server.url}))
    context = SerializationContext("framed-classifications", MessageField.VALUE)
    found = read_outcome(servers, output).classifications
    assert len(found) == len(alerts) + 1
    records = []
    for (message,) in found.values():
        value = message.value() or b""
        assert value[:5] == native.FRAME.pack(0, schema_id)
        records.append(native.read(value))
        assert by_confluent(value, context) == records[-1]

    server.put("older-value", {4100: json.dumps(OLDER)})
    old = native.frame(4100, body(records[0], OLDER))
    send(kafka, "framed-classifications", [Alert(old, headers=[("alert", b"ztf:gone:0:0"), ("model", b"t2b-1@1")])])
    read = broker("read", "framed-classifications", "--config", config)
    assert read.returncode == 0, read.stderr
    ids = sorted(json.loads(line)["source_id"] for line in read.stdout.splitlines())
    assert ids == sorted(record["source_id"] for record in [*records, records[0]])
    audit = broker("audit", "--config", config, "--repeats", timeout_s=120)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "again, after ztf:framed-in:0:3, the same points" in audit.stdout
    same = f"{servers}/framed-classifications"
    compared = broker("models", "compare", same, same, "--config", config)
    assert compared.returncode == 0, compared.stdout + compared.stderr
    bare = broker("read", "framed-classifications", "--servers", servers)
    assert bare.returncode == 3  # without its registry, nobody knows what another version has written
    assert "none of the forms" in bare.stderr


def test_a_replay_with_a_registry(kafka: EmbeddedKafka, server: RegistryServer, tmp_path: Path) -> None:
    """Every sample, however it came, in a frame that a client with the registry reads; sent twice, published once."""
    samples = [*whole("ztf")[:30:3], *whole("elasticc")[:10], *whole("lsst")[:20:2]]
    for i, sample in enumerate(samples):
        (tmp_path / f"{i:02}.avro").write_bytes(sample.data)
    kafka.create_topics({"published": 1})
    to = ("replay", tmp_path, "--to", f"{kafka.bootstrap_servers}/published", "--registry", server.url)
    for _ in range(2):
        done = broker(*to)
        assert done.returncode == 0, done.stderr
    by_confluent = AvroDeserializer(SchemaRegistryClient({"url": server.url}))
    context = SerializationContext("published", MessageField.VALUE)
    values = [
        message.value() or b"" for message in read_all({"bootstrap.servers": kafka.bootstrap_servers}, "published")
    ]
    wanted = [plain(reference.decode(sample.data)) for sample in samples]
    assert [plain(by_confluent(value, context)) for value in values] == wanted * 2
    n_schemas = len({sample.schema for sample in samples if sample.survey == "lsst"})
    assert len(versions(server, "published-value")) == len({value[:5] for value in values}) > n_schemas
    away = broker(*to[:-1], "http://127.0.0.1:9")
    assert (away.returncode, "does not answer" in away.stderr) == (3, True)
    (tmp_path / "zz.bin").write_bytes(frame(77_777, b"body"))
    unknown = broker(*to)
    assert (unknown.returncode, "has no schema that is known" in unknown.stderr) == (3, True)


def plain(value: object) -> str:
    return repr(value)  # NaN is NaN
