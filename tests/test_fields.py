"""Fields of the alert that an outlet carries through: by the JVM and the second reader, and as they are sent."""

import json
from base64 import b64decode
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import jsonschema
import pyarrow as pa
import pytest
from decoding import assigned, hop
from generate import LABELS, alert, encode
from pyspark.sql import SparkSession
from running import Alert, write_config
from samples import SCHEMAS, whole
from test_job import frames_of

from broker import job, surveys
from broker.classify import Answer, Assignment, classify
from broker.config import load
from broker.deadletter import struct_of
from broker.decode import type_of
from broker.delivery import Filter
from broker.errors import ConfigError
from broker.outlets.further import LARGEST_RECORD, Further

PATHS = {
    "lsst": ("diaObject.ra", "diaObject.nDiaSources", "diaSource.snr", "cutoutScience", "diaSource.band"),
    "ztf": ("candidate.nid", "candidate.magpsf", "cutoutScience.stampData", "publisher"),
    "elasticc": ("diaObject.hostgal_zphot", "diaSource.midPointTai"),
}
CHECKER = jsonschema.Draft202012Validator(json.loads((SCHEMAS / "output" / "verdict.schema.json").read_text()))


def assignment(survey: str, max_bytes: int = 2**31) -> Assignment:
    paths = PATHS[survey]
    extra = tuple((path, type_of(surveys.find(survey), path)) for path in paths)
    wanted = Filter(statuses=("classified", "abstained"))
    outlet = Further("j", "json", {"": "j"}, 1, False, None, wanted, (), paths, max_bytes)
    return replace(assigned(survey), outlets=(outlet,), extra=extra)


def by_hand(survey: str, values: list[bytes | None], made: Assignment) -> Answer:
    """By the second reader alone."""
    batch = hop(survey, values, by_hand=True)
    nulls = pa.nulls(len(values), struct_of(made.table()))
    return classify(batch.set_column(batch.schema.get_field_index("alert"), "alert", nulls), made)


def sent(answer: Answer) -> dict[int, dict[str, Any]]:
    rows = [row for part in answer.rows for row in part.to_pylist() if row["topic"] == "j"]
    found = [json.loads(row["value"]) for row in rows]
    for value in found:
        CHECKER.validate(value)
    return {value["alert_offset"]: value["alert"] for value in found}


def due(survey: str, data: bytes, schema: str) -> dict[str, Any]:
    """The fields by fastavro, from the whole alert."""
    if survey == "ztf":
        (record,) = fastavro.reader(BytesIO(data))
    else:
        body = data[5:] if survey == "lsst" else data
        layout = fastavro.parse_schema(json.loads((SCHEMAS / survey / f"{schema}.avsc").read_text()))
        record = fastavro.schemaless_reader(BytesIO(body), layout, None)
    found = {}
    for path in PATHS[survey]:
        value: Any = record
        for name in path.split("."):
            value = (value or {}).get(name)
        found[path] = value
    return found


def same(got: dict[str, Any], wanted: dict[str, Any]) -> bool:
    for path, value in wanted.items():
        if isinstance(value, bytes):
            if b64decode(got[path]) != value:
                return False
        elif isinstance(value, float):
            if got[path] is not None and got[path] != pytest.approx(value, rel=1e-6):
                return False
        elif got[path] != value:
            return False
    return set(got) == set(wanted)


def alerts_of(survey: str) -> list[tuple[bytes, str]]:
    found = [(s.data, s.schema) for s in whole(survey)[:12] if s.schema and (survey, s.schema) != ("lsst", "702")]
    label = LABELS[survey][-1]
    return [*found, *((encode(survey, label, alert(survey, label, i)), label) for i in range(3))]


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_fields_by_both_readers(spark: SparkSession, survey: str) -> None:
    given, made = alerts_of(survey), assignment(survey)
    values: list[bytes | None] = [data for data, _ in given]
    first = sent(by_hand(survey, values, made))
    crossing = job.before_hop(frames_of(spark, [Alert(v) for v in values]), surveys.find(survey), made).sort("offset")
    table = crossing.toArrow().combine_chunks()
    assert table["alert"].type == struct_of(made.table())
    second = sent(classify(table.to_batches()[0], made))
    assert first.keys() == second.keys()
    assert len(first) >= 10
    for at, found in first.items():
        assert same(found, due(survey, *given[at])), (at, given[at][1])
        assert same(second[at], due(survey, *given[at]))


def test_what_does_not_fit_is_held_back_and_counted() -> None:
    label = LABELS["lsst"][-1]
    small, large = (
        encode("lsst", label, alert("lsst", label, i) | {"cutoutScience": bytes(n)})
        for i, n in enumerate((100, 90_000))
    )
    answer = by_hand("lsst", [small, large], assignment("lsst", LARGEST_RECORD * 2))
    share = answer.outlets["j"]
    assert (share.passed.tolist(), share.filtered.tolist()) == ([True, False], [False, True])
    assert list(sent(answer)) == [0]


def test_fields_in_a_config(tmp_path: Path) -> None:
    def check(kind: str, fields: str) -> tuple[Any, ...]:
        source = {"name": "lsst", "survey": "lsst", "topics": ["in"]}
        path = write_config(tmp_path, "localhost:9092", [source])
        path.write_text(path.read_text() + f'[[outlet]]\nname = "o"\nkind = "{kind}"\ntopic = "o"\nfields = {fields}\n')
        config = load(path)
        job.check_outlets(config)
        limits = dict.fromkeys([*config.output.topics, "o"], 100_000)
        made = job.assign(config, config.sources[0], limits, {"o": 1})
        return (*made.extra, made.outlets[0].max_bytes)

    assert check("json", '["diaObject.ra", "cutoutScience"]') == (
        ("diaObject.ra", "double"),
        ("cutoutScience", "bytes"),
        100_000,
    )
    for kind, fields, complaint in [
        ("elasticc", '["diaObject.ra"]', "has fields to carry through, for which only json has a place"),
        ("json", '["diaObject.RA"]', "outlet 'o', fields: alerts of lsst .1101. have no field 'diaObject.RA'"),
        ("json", '["diaObject.ra.x"]', "have no field 'diaObject.ra.x'"),
        ("json", '["diaObject"]', "is no single value: name one inside a record"),
        ("json", '["prvDiaSources.ra"]', "have no field 'prvDiaSources.ra'"),
        ("json", '["diaObject."]', "fields"),
    ]:
        with pytest.raises(ConfigError, match=complaint):
            check(kind, fields)
