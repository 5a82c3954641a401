"""What each outlet writes, beside the native record of the same alert; what it leaves out, and what is counted."""

import io
import json
from dataclasses import replace
from functools import cache
from typing import Any, cast
from zlib import crc32

import fastavro
import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from decoding import assigned, hop
from generate import LABELS, alert, encode, of_solar_system
from samples import SCHEMAS, whole

from broker import surveys
from broker.classify import Answer, classify
from broker.delivery import Filter, Kind
from broker.outlets import ROWS, native
from broker.outlets.further import Further
from broker.written import Written

KINDS: tuple[Kind, ...] = ("json", "lasair", "hop", "elasticc", "fink-ai", "fink")
EVERYTHING = Filter(statuses=("classified", "abstained"))
N_PARTITIONS = 5


def topic_of(kind: Kind, name: str | None = None) -> str:
    return "anno_t2b" if kind == "lasair" else f"out-{name or kind}"


def outlet(kind: Kind, wanted: Filter = EVERYTHING, is_public: bool = True, name: str | None = None) -> Further:
    topic = topic_of(kind, name)
    return Further(
        name or kind, kind, {"": topic}, N_PARTITIONS, is_public, "SNIa" if kind == "fink-ai" else None, wanted
    )


def alerts_of(survey: str) -> list[bytes | None]:
    """Real alerts, one without an object where the survey has such, and two that are rejected."""
    found: list[bytes | None] = [s.data for s in whole(survey)[:40]]
    if survey == "lsst":
        found.append(encode("lsst", LABELS["lsst"][-1], of_solar_system(alert("lsst", LABELS["lsst"][-1], 5))))
    return [*found, None, b"junk"]


@cache
def batch_of(survey: str) -> pa.RecordBatch:
    return hop(survey, alerts_of(survey))


def answer_of(survey: str, *outlets: Further) -> Answer:
    assignment = replace(assigned(survey), outlets=outlets)
    return classify(batch_of(survey), assignment)


@cache
def with_all(survey: str) -> Answer:
    """Every kind that the survey has."""
    return answer_of(survey, *(outlet(kind) for kind in KINDS if kind != "fink" or survey != "elasticc"))


def rows_of(answer: Answer, topic: str) -> list[dict[str, Any]]:
    """Rows of a topic; headers by name."""
    found = [row for part in answer.rows for row in part.to_pylist() if row["topic"] == topic]
    return [row | {"headers": {h["key"]: h["value"] for h in row["headers"]}} for row in found]


def pairs(survey: str, kind: Kind) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(row of the outlet, record of the native one) of each alert that the outlet has."""
    answer = with_all(survey)
    assert all(part.schema.equals(ROWS) for part in answer.rows)
    natives = {row["headers"]["alert"]: native.read(row["value"]) for row in rows_of(answer, "classifications")}
    rows = rows_of(answer, topic_of(kind))
    assert len({row["headers"]["alert"] for row in rows}) == len(rows)
    assert {row["headers"]["model"] for row in rows} == {b"t2b-1@1"}
    share = answer.outlets[kind]
    assert int(share.passed.sum()) == len(rows)
    assert int(share.passed.sum() + share.filtered.sum()) == len(natives)
    found = [(row, natives[row["headers"]["alert"]]) for row in rows]
    for row, record in found:
        if kind != "fink":
            assert (row["partition"], row["key"].decode()) == (None, record["object_id"] or str(record["source_id"]))
    return found


def chances(record: dict[str, Any]) -> dict[str, float]:
    return {c["className"]: c["probability"] for c in record["classifications"]}


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_json_is_the_native_record_and_meets_its_schema(survey: str) -> None:
    schema = json.loads((SCHEMAS / "output" / "verdict.schema.json").read_text())
    checker = jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker())
    found = pairs(survey, "json")
    assert len(found) >= 30
    for row, record in found:
        value = json.loads(row["value"])
        checker.validate(value)
        for name in value.keys() & record.keys() - {"brokerIngestTimestamp", "brokerPublishTimestamp"}:
            if name == "alert_timestamp":
                assert value[name].endswith("Z")
            elif name == "classifierParams":
                assert json.loads(value[name]) == json.loads(record[name])
            else:
                assert value[name] == record[name], name
        assert {name[2:]: p for name, p in value.items() if name.startswith("p_") and p is not None} == chances(record)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_hop_is_the_native_container_with_a_header(survey: str) -> None:
    for row, record in pairs(survey, "hop"):
        assert row["headers"]["_format"] == b"avro"
        assert list(fastavro.reader(io.BytesIO(row["value"]))) == [record]


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_lasair_has_what_its_consumer_asks_for(survey: str) -> None:
    found = pairs(survey, "lasair")
    assert found
    for row, record in found:
        value = json.loads(row["value"])
        assert list(value) == ["objectId", "topic", "version", "classification", "explanation", "classdict", "url"]
        assert (value["objectId"], value["topic"], value["version"]) == (record["object_id"], "t2b", "t2b-1@1")
        is_classified = record["status"] == "classified"
        assert value["classification"] == (record["class_name"] if is_classified else "abstained")
        assert record["class_name"] in value["explanation"]
        assert value["explanation"].startswith(record["reason"]) or is_classified
        assert value["classdict"] == pytest.approx(chances(record), abs=1e-6)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_elasticc_by_the_published_schema(survey: str) -> None:
    schema = fastavro.parse_schema(json.loads((SCHEMAS / "output" / "elasticc.brokerClassification.avsc").read_text()))
    for row, record in pairs(survey, "elasticc"):
        file = io.BytesIO(row["value"])
        value = cast(dict[str, Any], fastavro.schemaless_reader(file, schema, None))
        assert file.read() == b""
        assert value["alertId"] == value["diaSourceId"] == record["source_id"]
        assert value["classifierName"] == record["classifierName"]
        assert {c["classId"]: c["probability"] for c in value["classifications"]} == {
            c["classId"]: c["probability"] for c in record["classifications"]
        }
        stamp = record["alert_timestamp"].replace(microsecond=record["alert_timestamp"].microsecond // 1000 * 1000)
        assert value["elasticcPublishTimestamp"] == stamp


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_fink_ai_gives_one_number(survey: str) -> None:
    for row, record in pairs(survey, "fink-ai"):
        value = json.loads(row["value"])
        assert value["source"] == {"candid": record["source_id"]}
        assert value["result"] == {"predictions": [chances(record)["SNIa"]]}
        assert value["bridge"] == "t2b-1@1"


@pytest.mark.parametrize("survey", ["lsst", "ztf"])
def test_fink_reads_by_its_key(survey: str) -> None:
    """By the schema in the key alone, to the last byte, with the fields without which fink-client stops."""
    found = pairs(survey, "fink")
    without_object = 0
    for row, record in found:
        assert len(row["key"]) < 2_000
        schema = fastavro.parse_schema(json.loads(row["key"]))
        file = io.BytesIO(row["value"])
        value = cast(dict[str, Any], fastavro.schemaless_reader(file, schema, None))
        assert file.read() == b""
        name = (record["object_id"] or str(record["source_id"])).encode()
        assert row["partition"] == crc32(name) % N_PARTITIONS
        ours = value["t2b"]
        assert (ours["status"], ours["class"], ours["score"]) == (
            record["status"],
            record["class_name"],
            record["probability"],
        )
        assert {c["class"]: c["probability"] for c in ours["classifications"]} == chances(record)
        if survey == "ztf":
            assert (value["objectId"], value["candid"]) == (record["object_id"], record["source_id"])
            assert value["candidate"]["ra"] == record["ra"]
            assert value["cdsxmatch"] is None
            assert value["candidate"]["jd"] - 2400000.5 == pytest.approx(record["mjd_tai"], abs=0.002)
            assert 10 < value["candidate"]["magpsf"] < 25
            continue
        assert value["diaSourceId"] == record["source_id"]
        assert value["diaSource"]["midpointMjdTai"] == record["mjd_tai"]
        assert value["diaSource"]["psfFlux"] == record["flux"]
        assert f"lsst-{value['diaSource']['band']}" == record["band"]
        if record["object_id"] is None:
            without_object += 1
            assert (value["diaObject"], value["mpc_orbits"]) == (None, {"designation": None})
        else:
            assert value["diaObject"] == {"diaObjectId": int(record["object_id"])}
    assert without_object or survey == "ztf"


def test_a_verdict_may_go_to_many_outlets_and_native_stays_what_it_was() -> None:
    answer = with_all("ztf")
    alone = answer_of("ztf")
    assert set(answer.outlets) == set(KINDS)
    for topic in ("classifications", "dead-letters"):
        many, one = rows_of(answer, topic), rows_of(alone, topic)
        assert [(r["key"], r["headers"]) for r in many] == [(r["key"], r["headers"]) for r in one]
    assert answer.verdicts == alone.verdicts


def test_what_an_outlet_has_already_is_left_out_there_alone() -> None:
    """Each outlet by its own topic: a batch may be broken off between two records of one alert."""
    first, second = outlet("json", name="first"), outlet("json", name="second")
    whole_answer = answer_of("ztf", first, second)
    n = len(rows_of(whole_answer, "out-first"))
    places = {("alerts", 3): np.arange(0, len(alerts_of("ztf")), 2)}
    assignment = replace(assigned("ztf"), outlets=(first, second), written=Written({"out-first": places}))
    answer = classify(batch_of("ztf"), assignment)
    assert len(rows_of(answer, "out-second")) == n
    left = rows_of(answer, "out-first")
    assert {int(row["headers"]["alert"].rpartition(b":")[2]) % 2 for row in left} == {1}
    share = answer.outlets["first"]
    assert int(share.passed.sum()) == n
    assert int(share.already_written.sum()) == n - len(left) > 0
    assert len(rows_of(answer, "classifications")) == len(rows_of(whole_answer, "classifications"))


def test_each_class_has_its_topic() -> None:
    """Every verdict of a class on the class's topic, none elsewhere; what is there already counts for the outlet."""
    wanted = Filter(classes=("SNIa", "AGN", "TDE"))
    by_class = replace(outlet("lasair", wanted), topics={name: f"anno_{name}" for name in wanted.classes})
    assignment = replace(assigned("ztf"), outlets=(by_class,))
    answer = classify(batch_of("ztf"), assignment)
    natives = [native.read(row["value"]) for row in rows_of(answer, "classifications")]
    n = 0
    for name in wanted.classes:
        rows = rows_of(answer, f"anno_{name}")
        due = {r["object_id"] for r in natives if r["status"] == "classified" and r["class_name"] == name}
        values = [json.loads(row["value"]) for row in rows]
        assert {value["objectId"] for value in values} == due
        assert {(value["topic"], value["classification"]) for value in values} <= {(name, name)}
        n += len(rows)
    assert n == int(answer.outlets["lasair"].passed.sum()) > 0
    written = Written({"anno_SNIa": {("alerts", 3): np.arange(1000)}, "anno_AGN": {}})
    again = classify(batch_of("ztf"), replace(assignment, written=written))
    assert rows_of(again, "anno_SNIa") == []
    assert int(again.outlets["lasair"].already_written.sum()) == n


def test_alerts_of_other_programs_are_held_back_unless_the_outlet_takes_them() -> None:
    record = alert("ztf", LABELS["ztf"][-1], 3)
    record["candidate"] |= {"programid": 2}
    batch = hop("ztf", [encode("ztf", LABELS["ztf"][-1], record)])
    outlets = (outlet("json", name="open"), outlet("json", is_public=False, name="all"))
    settings = {**assigned("ztf").settings, "programids": (1, 2)}
    answer = classify(batch, replace(assigned("ztf"), outlets=outlets, settings=settings))
    assert [len(rows_of(answer, f"out-{o.name}")) for o in outlets] == [0, 1]
    assert answer.outlets["open"].filtered.tolist() == [True]


def test_rejected_alerts_reach_no_outlet() -> None:
    answer = classify(hop("ztf", [None, b"junk"]), replace(assigned("ztf"), outlets=(outlet("json"),)))
    assert {row["topic"] for part in answer.rows for row in part.to_pylist()} == {"dead-letters"}
    assert answer.outlets == {}


def test_nothing_that_passes_is_no_row() -> None:
    nothing = Filter(min_detections=100_000)
    answer = answer_of("lsst", *(outlet(kind, nothing) for kind in KINDS))
    topics = {topic for part in answer.rows for topic in part.column("topic").to_pylist()}
    assert topics == {"classifications", "dead-letters"}
    assert all(not share.passed.any() for share in answer.outlets.values())
    assert pa.concat_batches(answer.rows).schema.equals(ROWS)
