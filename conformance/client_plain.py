"""Readers with confluent-kafka, fastavro and jsonschema alone; prints counts as JSON.

usage: client_plain.py SERVERS SCHEMA_FOLDER REGISTRY KIND=TOPIC...

fastdb.v10_0_0.BrokerMessage.json is the layout (no documentation) of share/avsc/fastdb.v10_0_0.BrokerMessage.avsc in
github.com/LSSTDESC/FASTDB at 16ece30; the records of lsst.v10_0 that it names are those of schemas/lsst/1000.avsc.
"""

import io
import json
import sys
from functools import cache
from pathlib import Path

import fastavro
import jsonschema
from confluent_kafka import Consumer, Message
from confluent_kafka.schema_registry import SchemaRegistryClient
from confluent_kafka.schema_registry.avro import AvroDeserializer
from confluent_kafka.serialization import MessageField, SerializationContext

servers, schemas, registry = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
folder = schemas / "output"
CHECKER = jsonschema.Draft202012Validator(
    json.loads((folder / "verdict.schema.json").read_text()), format_checker=jsonschema.FormatChecker()
)
ELASTICC = fastavro.parse_schema(json.loads((folder / "elasticc.brokerClassification.avsc").read_text()))
LASAIR = ("objectId", "topic", "version", "classification", "explanation", "classdict", "url")


BY_REGISTRY = AvroDeserializer(SchemaRegistryClient({"url": registry}))
NAMED: dict = {}
fastavro.parse_schema(json.loads((schemas / "lsst" / "1000.avsc").read_text()), named_schemas=NAMED)
FASTDB = fastavro.parse_schema(
    json.loads(Path(__file__).with_name("fastdb.v10_0_0.BrokerMessage.json").read_text()), named_schemas=NAMED
)


def container(message: Message) -> None:
    """By the container's own schema."""
    (record,) = fastavro.reader(io.BytesIO(message.value()))
    assert record["classifierName"] == "t2b-1@1"


def frame(message: Message) -> None:
    """By confluent-kafka's own deserializer and the registry."""
    record = BY_REGISTRY(message.value(), SerializationContext(message.topic(), MessageField.VALUE))
    assert record["classifierName"] == "t2b-1@1"
    assert str(record["source_id"]).encode() == message.key()


@cache
def _parsed(key: bytes) -> dict:
    return fastavro.parse_schema(json.loads(key))


def _whole(value: bytes, schema: dict) -> dict:
    """To the last byte."""
    file = io.BytesIO(value)
    record = fastavro.schemaless_reader(file, schema, None)
    assert not file.read()
    return record


def fastdb(message: Message) -> None:
    """As FASTDB's consumer does: by the schema in the key, and for version 10.0 by DESC's file."""
    record = _whole(message.value(), _parsed(message.key()))
    if json.loads(message.key())["name"] == "fastdb.v10_0_0.BrokerMessage":
        assert repr(_whole(message.value(), FASTDB)) == repr(record)
    assert (record["brokerName"], record["classifierName"], record["classifierVersion"]) == ("t2-broker", "t2b-1", "1")
    assert abs(sum(c["probability"] for c in record["classifications"]) - 1) < 1e-3
    assert record["diaSource"]["diaSourceId"] > 0


def elasticc(message: Message) -> None:
    """By the published schema, to the last byte."""
    record = _whole(message.value(), ELASTICC)
    assert abs(sum(c["probability"] for c in record["classifications"]) - 1) < 1e-3


def lasair(message: Message) -> None:
    """The documented rules of annotations: all keys, texts that are not empty, a table of numbers."""
    record = json.loads(message.value())
    assert set(LASAIR) == set(record)
    assert all(isinstance(record[key], str) and record[key] for key in LASAIR[:5])
    assert record["classdict"]
    assert all(isinstance(p, float) for p in record["classdict"].values())


def json_object(message: Message) -> None:
    """By the published JSON Schema."""
    CHECKER.validate(json.loads(message.value()))


READERS = {f.__name__: f for f in (container, frame, elasticc, lasair, fastdb)} | {"json": json_object}
counts: dict[str, int] = {}
for kind, _, topic in (argument.partition("=") for argument in sys.argv[4:]):
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"conformance-{topic}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    counts[kind] = 0
    while message := consumer.poll(8):
        headers = dict(message.headers())
        assert headers["model"] == b"t2b-1@1"
        assert headers["alert"].count(b":") == 3
        READERS[kind](message)
        counts[kind] += 1
    consumer.close()
print(json.dumps(counts))
