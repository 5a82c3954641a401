"""What the product is measured against: two ways of doing the same work, with the same model and Kafka settings.

field: how brokers commonly do it. Spark reads Kafka, a pandas UDF decodes each alert in full with fastavro, pads its
    light curve to the model's length, runs the model on it alone, and Spark writes the answers to Kafka.
lean: the least that Python can do without Spark. One process reads Kafka, fastavro decodes with a pruned reader
    schema, the product's own gathering, model and outlet work in batches, and the process writes to Kafka.

Both stand as they were before the product was tuned; they count alerts and do not survive a crash, which is part of
what the product pays for.
"""

from __future__ import annotations

import io
import math
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import fastavro
import numpy as np
import onnxruntime as ort
import pandas as pd
import pyarrow as pa
from confluent_kafka import Consumer, Message, Producer, TopicPartition
from pyspark.sql.pandas.functions import PandasUDFType, pandas_udf
from pyspark.sql.types import BinaryType

from broker import decode, job, model, registry, session, sources, surveys
from broker.config import Policy
from broker.gather import gather
from broker.lightcurve import merge, summarise, thin
from broker.outlets import Passport, native
from broker.surveys import Survey
from broker.verdict import Coordinates, Verdicts, judge
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, schema_id_of

ARROW_ROWS = session.ARROW_BATCH_ROWS
# The product's producer: service._sink_options for topics of 1 MB.
PRODUCER = {"kafka.acks": "all", "kafka.linger.ms": "5", "kafka.batch.size": "131072"}
MAX_FETCH_BYTES = 2**30

Record = dict[str, Any]


@dataclass(frozen=True)
class Job:
    """One measurement: n alerts of a load lie in `topic` (partitions 0 and 1) and are answered into `out`."""

    bootstrap_servers: str
    survey: str
    topic: str
    out: str
    n: int
    batch: int
    folder: str
    model: str
    cores: int = 2

    @property
    def checkpoint(self) -> Path:
        """Of the streaming query, if there is one."""
        return Path(self.folder) / "checkpoint"


def field(todo: Job) -> None:
    """The field baseline, until all is answered."""
    spark = session.start("field", f"local[{todo.cores}]", "2g")
    here = Path(__file__).resolve().parent
    spark.sparkContext.addPyFile(shutil.make_archive(f"{todo.folder}/field", "zip", here.parent, here.name))
    options = {"kafka.bootstrap.servers": todo.bootstrap_servers}
    frames = sources.kafka(spark, options, (todo.topic,), "earliest", todo.batch)
    answer = pandas_udf(_field_udf(todo.survey, todo.model), BinaryType(), PandasUDFType.SCALAR)
    writer = frames.select("key", answer("value").alias("value")).writeStream.format("kafka")
    writer = writer.options(**options, **PRODUCER).option("topic", todo.out)
    writer = writer.option("checkpointLocation", str(todo.checkpoint)).trigger(availableNow=True)
    writer.start().awaitTermination()
    spark.stop()


def _field_udf(survey: str, folder: str) -> Callable[[pd.Series], pd.Series]:
    def answer(values: pd.Series) -> pd.Series:
        table = surveys.find(survey)
        return pd.Series([_field_answer(value, table, folder) for value in values])

    answer.__annotations__ = {"values": pd.Series, "return": pd.Series}
    return answer


def _field_answer(value: bytes, survey: Survey, folder: str) -> bytes:
    """One alert: decoded in full, padded, inferred, encoded."""
    record = _whole(value, survey)
    session_, card = _field_model(folder)
    points = _points(record, survey)[-card.max_points :]
    feed: dict[str, np.ndarray[Any, Any]] = {
        "mjd": np.zeros((1, card.max_points)),
        "flux": np.zeros((1, card.max_points), np.float32),
        "flux_err": np.ones((1, card.max_points), np.float32),
        "band": np.full((1, card.max_points), -1, np.int32),
        "detected": np.zeros((1, card.max_points), np.bool_),
    }
    for i, (mjd, band, flux, flux_err, detected) in enumerate(points):
        feed["mjd"][0, i], feed["band"][0, i], feed["detected"][0, i] = mjd, card.bands.index(band), detected
        feed["flux"][0, i], feed["flux_err"][0, i] = flux, flux_err
    scores = session_.run([model.OUTPUT], feed)[0][0].tolist()
    out = io.BytesIO()
    classes = [{"classId": c.taxonomy_id, "probability": p} for c, p in zip(card.classes, scores, strict=True)]
    source_id = _at(record, survey.columns["source_id"][0])
    fastavro.schemaless_writer(out, _field_schema(), {"diaSourceId": source_id, "classifications": classes})
    return out.getvalue()


@cache
def _field_model(folder: str) -> tuple[ort.InferenceSession, model.Card]:
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(f"{folder}/{model.MODEL_FILE}", options), model.read_card(
        Path(folder) / model.CARD_FILE
    )


@cache
def _field_schema() -> Any:
    items = {
        "type": "record",
        "name": "classifications",
        "fields": [{"name": "classId", "type": "int"}, {"name": "probability", "type": "float"}],
    }
    fields = [
        {"name": "diaSourceId", "type": "long"},
        {"name": "classifications", "type": {"type": "array", "items": items}},
    ]
    return fastavro.parse_schema({"type": "record", "name": "brokerClassification", "fields": fields})


def _whole(value: bytes, survey: Survey) -> Record:
    """The whole record, cutouts and all."""
    if value.startswith(CONTAINER_MAGIC):
        found = next(fastavro.reader(io.BytesIO(value)))
    elif survey.framing == "confluent":
        found = fastavro.schemaless_reader(io.BytesIO(value[FRAME_BYTES:]), _writer(survey.name, value), None)
    else:
        found = fastavro.schemaless_reader(io.BytesIO(value), _writer(survey.name, value), None)
    assert isinstance(found, dict)
    return found


def _at(record: Record, path: str) -> Any:
    for name in path.split("."):
        record = record[name]
    return record


def _points(record: Record, survey: Survey) -> list[tuple[float, str, float, float, bool]]:
    """(mjd, band, flux, flux_err, detected) of one alert in order of time, forced points first choice."""
    found: dict[tuple[float, str], tuple[float, float, bool]] = {}
    for table in survey.measurements:
        entries = [record[table.path]] if table.kind == "trigger" else record.get(table.path) or []
        for entry in entries:
            value, error = entry[table.value], entry[table.error]
            band = survey.bands.get(entry[table.band])
            if value is None or error is None or band is None:
                continue
            if table.photometry == "magnitude":
                assert table.positive is not None
                sign = 1 if entry[table.positive] in survey.true_labels else -1
                flux = sign * 10 ** (0.4 * (31.4 - value))
                flux_err = abs(flux) * error * 0.4 * math.log(10)
            elif table.photometry == "counts":
                scale = 10 ** (0.4 * (31.4 - entry[table.zero_point]))
                flux, flux_err = value * scale, error * scale
            else:
                flux, flux_err = value, error
            if not (flux_err > 0 and math.isfinite(flux)):
                continue
            mjd = entry[table.time] if table.time_scale == "mjd_tai" else entry[table.time] - 2400000.5
            old = found.get((mjd, band))
            detected = table.kind != "forced" or (old is not None and old[2])
            found[mjd, band] = (flux, flux_err, detected) if old is None else (old[0], old[1], detected)
    return [(mjd, band, *rest) for (mjd, band), rest in sorted(found.items())]


def lean(todo: Job, at: Callable[[int], None]) -> None:
    """The lean baseline, until all is answered; tells `at` how many are done, after each batch."""
    survey = surveys.find(todo.survey)
    work = _Lean(todo, survey)
    consumer = Consumer(
        {
            "bootstrap.servers": todo.bootstrap_servers,
            "group.id": "lean",
            "enable.auto.commit": False,
            "fetch.message.max.bytes": 4 * 2**20,
            "fetch.max.bytes": MAX_FETCH_BYTES,
            "queued.max.messages.kbytes": 65_536,
        }
    )
    consumer.assign([TopicPartition(todo.topic, partition, 0) for partition in (0, 1)])
    done = 0
    try:
        while done < todo.n:
            messages = consumer.consume(min(ARROW_ROWS, todo.n - done), timeout=10)
            if not messages:
                raise RuntimeError(f"{todo.topic}: no alert in 10 s, after {done} of {todo.n}")
            work.answer(messages)
            done += len(messages)
            at(done)
    finally:
        consumer.close()
        work.producer.flush()


class _Lean:
    """What the lean process holds: model, passport, Arrow type and producer."""

    def __init__(self, todo: Job, survey: Survey) -> None:
        folder = Path(todo.model)
        self.out, self.survey, self.model = todo.out, survey, model.load(folder)
        self.passport: Passport
        names = (todo.out, f"{todo.out}-dead", f"{todo.out}-ledger")
        task = job.assignment("lean", todo.survey, folder, Policy(), 31.4, (1,), names, 2**24, 2**20)
        self.settings, self.passport = task.settings, task.passport
        self.struct = arrow_type(survey.fields)
        servers = {"bootstrap.servers": todo.bootstrap_servers}
        self.producer = Producer({**servers, "acks": "all", "linger.ms": 5, "enable.idempotence": True})

    def answer(self, messages: list[Message]) -> None:
        """Decode, gather, infer, judge, encode and send one batch."""
        started_us = time.time_ns() // 1000
        rows, labels = zip(*(_pruned(m.value() or b"", self.survey) for m in messages), strict=True)
        verdicts = self._judged(pa.array(rows, self.struct), labels, messages)
        values = native.encode(verdicts, self.model.card, self.passport, started_us)
        ids = verdicts.gathered.columns["source_id"].to_pylist()
        for message, source_id, value in zip(messages, ids, values, strict=True):
            place = f"lean:{message.topic()}:{message.partition()}:{message.offset()}".encode()
            headers: list[tuple[str, str | bytes | None]] = [("alert", place), ("model", self.passport.model.encode())]
            self.producer.produce(self.out, value, str(source_id).encode(), headers=headers)
            self.producer.poll(0)

    def _judged(self, alerts: pa.StructArray, labels: tuple[str, ...], messages: list[Message]) -> Verdicts:
        card = self.model.card
        gathered = gather(alerts, self.survey, self.settings)
        curves, counts = merge(gathered.points, len(alerts), gathered.mjd_tai)
        summary = summarise(curves)
        used = thin(curves, card.max_points)
        probabilities = self.model.predict(used)
        evident = card.evident(self.survey.name, probabilities, summary)
        reason = judge(gathered, self.survey, self.settings, counts, summary, card.min_points, evident)
        coordinates = Coordinates(
            pa.array([m.topic() for m in messages]),
            pa.array([m.partition() for m in messages]),
            pa.array([m.offset() for m in messages]),
            pa.array([m.timestamp()[1] * 1000 for m in messages], pa.timestamp("us")),
        )
        return Verdicts(
            self.survey,
            coordinates,
            pa.array(labels, pa.string()),
            gathered,
            used,
            counts,
            used.counts,
            summary,
            probabilities,
            reason,
        )


_ARROW = {
    "long": pa.int64(),
    "int": pa.int32(),
    "double": pa.float64(),
    "float": pa.float32(),
    "string": pa.string(),
    "boolean": pa.bool_(),
}


def arrow_type(fields: Any) -> pa.DataType:
    """The Arrow type of a survey's fields, as the JVM gives it."""
    if isinstance(fields, str):
        return _ARROW[fields]
    if isinstance(fields, list):
        return pa.list_(arrow_type(fields[0]))
    return pa.struct([(name, arrow_type(kind)) for name, kind in fields.items()])


def _pruned(value: bytes, survey: Survey) -> tuple[Record, str]:
    """The fields of a light curve, and the label of the schema they were read by."""
    for label, start, body_at, size, writer, reader in _readers(survey.name):
        if value.startswith(start) and (not size or len(value) > size):
            file = io.BytesIO(value)
            file.seek(body_at)
            if size:  # a container: header, sync marker, count and size of its one block
                file.seek(size + 16)
                for _ in range(2):
                    fastavro.schemaless_reader(file, "long", None)
            found = fastavro.schemaless_reader(file, writer, reader)
            assert isinstance(found, dict)
            return found, label
    raise RuntimeError(f"no schema of {survey.name} for an alert that starts with {value[:8].hex()}")


@cache
def _readers(survey: str) -> tuple[tuple[str, bytes, int, int, Any, Any], ...]:
    """For each way that an alert can start: label, start, offset of the body, header bytes, schemas."""
    return tuple(_starts(surveys.find(survey)))


def _starts(survey: Survey) -> Iterator[tuple[str, bytes, int, int, Any, Any]]:
    for writer in reversed(registry.writers(survey.name)):
        full, pruned = map(fastavro.parse_schema, decode.schema_pair(writer.schema, survey, widest=True))
        for header in writer.headers:
            yield writer.label, header.start, 0, header.n_bytes, full, pruned
        if writer.schema_id is not None:
            yield writer.label, b"\0" + writer.schema_id.to_bytes(4), FRAME_BYTES, 0, full, pruned
        if survey.framing == "bare" and writer.label == "elasticc-0.9":
            yield writer.label, b"", 0, 0, full, pruned


@cache
def _writers(survey: str) -> dict[int | None, Any]:
    """Parsed writer schemas by id; of bare bodies the one that the load is in."""
    found = registry.writers(survey)
    if surveys.find(survey).framing == "bare":
        return {None: next(fastavro.parse_schema(w.schema) for w in found if w.label == "elasticc-0.9")}
    return {w.schema_id: fastavro.parse_schema(w.schema) for w in found}


def _writer(survey: str, value: bytes) -> Any:
    framed = surveys.find(survey).framing == "confluent"
    return _writers(survey)[schema_id_of(value) if framed else None]
