"""Readers with confluent-kafka, fastavro and jsonschema alone; prints counts as JSON.

usage: client_plain.py SERVERS SCHEMA_FOLDER KIND=TOPIC...
"""

import io
import json
import sys
from pathlib import Path

import fastavro
import jsonschema
from confluent_kafka import Consumer

servers, folder = sys.argv[1], Path(sys.argv[2])
CHECKER = jsonschema.Draft202012Validator(
    json.loads((folder / "verdict.schema.json").read_text()), format_checker=jsonschema.FormatChecker()
)
ELASTICC = fastavro.parse_schema(json.loads((folder / "elasticc.brokerClassification.avsc").read_text()))
LASAIR = ("objectId", "topic", "version", "classification", "explanation", "classdict", "url")


def native(value: bytes) -> None:
    """By the container's own schema."""
    (record,) = fastavro.reader(io.BytesIO(value))
    assert record["classifierName"] == "t2b-1@1"


def elasticc(value: bytes) -> None:
    """By the published schema, to the last byte."""
    file = io.BytesIO(value)
    record = fastavro.schemaless_reader(file, ELASTICC, None)
    assert not file.read()
    assert abs(sum(c["probability"] for c in record["classifications"]) - 1) < 1e-3


def lasair(value: bytes) -> None:
    """The documented rules of annotations: all keys, texts that are not empty, a table of numbers."""
    record = json.loads(value)
    assert set(LASAIR) == set(record)
    assert all(isinstance(record[key], str) and record[key] for key in LASAIR[:5])
    assert record["classdict"]
    assert all(isinstance(p, float) for p in record["classdict"].values())


def json_object(value: bytes) -> None:
    """By the published JSON Schema."""
    CHECKER.validate(json.loads(value))


READERS = {"native": native, "elasticc": elasticc, "lasair": lasair, "json": json_object}
counts: dict[str, int] = {}
for kind, _, topic in (argument.partition("=") for argument in sys.argv[3:]):
    consumer = Consumer(
        {"bootstrap.servers": servers, "group.id": f"conformance-{topic}", "auto.offset.reset": "earliest"}
    )
    consumer.subscribe([topic])
    counts[kind] = 0
    while message := consumer.poll(8):
        headers = dict(message.headers())
        assert headers["model"] == b"t2b-1@1"
        assert headers["alert"].count(b":") == 3
        READERS[kind](message.value())
        counts[kind] += 1
    consumer.close()
print(json.dumps(counts))
