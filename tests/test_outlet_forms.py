"""Each outlet's form over made-up verdicts, by the reader's own means; each filter beside plain Python."""

import io
import json
import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, cast
from zlib import crc32

import fastavro
import jsonschema
import numpy as np
import pyarrow as pa
import pytest
from decoding import alerts_of
from generate import single
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from samples import SCHEMAS

from broker import model as models
from broker import surveys
from broker.delivery import Cone, Filter, Kind
from broker.lightcurve import BANDS
from broker.outlets import ROWS, Passport, columns, elasticc, fink, fink_ai, json_lines, native
from broker.outlets.batch import Batch
from broker.outlets.filters import passes
from broker.outlets.further import Further, deliver
from broker.verdict import REASONS
from broker.written import Written

Row = dict[str, Any]
CARD = models.load(models.find("t2b-1")).card
PASSPORT = Passport("t2b-1", "1", "ab" * 32, 1, '{"b": 1, "a": "x"}', "0.1.0")
CLASSES = [c.name for c in CARD.classes]
STARTED, FINISHED = 1_795_000_000_123_456, 1_795_000_001_000_000
EITHER: tuple[Literal["classified", "abstained"], ...] = ("classified", "abstained")
EVERYTHING = Filter(statuses=EITHER)
N_PARTITIONS = 7
NOTHING_WRITTEN = Written({})
DESC = fastavro.parse_schema(json.loads((SCHEMAS / "output" / "elasticc.brokerClassification.avsc").read_text()))
JSON_SCHEMA = json.loads((SCHEMAS / "output" / "verdict.schema.json").read_text())
CHECKER = jsonschema.Draft202012Validator(JSON_SCHEMA, format_checker=jsonschema.FormatChecker())

singles = st.floats(-1e6, 1e6, width=32)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = {"lsst": st.integers(1, 2**63 - 1).map(str), "ztf": texts, "elasticc": st.integers(1, 2**63 - 1).map(str)}


def optional(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | values


@st.composite
def verdict(draw: st.DrawFn, survey: str) -> Row:
    """One row of `columns.table`: the model ran or did not, and each value that may be missing is missing at times."""
    ran = draw(st.booleans())
    status = draw(st.sampled_from(EITHER)) if ran else "abstained"
    best = draw(st.integers(0, len(CLASSES) - 1))
    weights = [1.0 + (i == best) * draw(st.floats(0.5, 50)) + 0.01 * i for i in range(len(CLASSES))]
    chances = [single(w / sum(weights)) for w in weights]
    best = int(np.argmax(chances))
    flux, error = draw(optional(singles)), draw(optional(st.floats(0.125, 1e4, width=32)))
    magnitude = 31.4 - 2.5 * math.log10(abs(flux)) if flux else None
    return {
        "survey": survey,
        "source_id": draw(st.integers(1, 2**63 - 1)),
        "object_id": draw(optional(names[survey])),
        "programid": draw(st.sampled_from([None, 1, 2, 3])),
        "ra": draw(optional(st.floats(0, 360, exclude_max=True))),
        "dec": draw(optional(st.floats(-90, 90))),
        "mjd_tai": draw(st.floats(58_000, 62_000)),
        "band": draw(optional(st.sampled_from(BANDS[:9]))),
        "flux": flux,
        "flux_err": error,
        "snr": single(flux / error) if flux is not None and error else None,
        "magnitude": magnitude,
        "is_negative": draw(optional(st.booleans())),
        "reliability": draw(optional(st.floats(0, 1, width=32))),
        "visit": draw(optional(st.integers(0, 2**62))),
        "detector": draw(optional(st.integers(0, 200))),
        "status": status,
        "reason": draw(st.sampled_from(REASONS[status])),
        "class_id": CARD.classes[best].taxonomy_id if ran else None,
        "class_name": CLASSES[best] if ran else None,
        "probability": chances[best] if ran else None,
        **{f"p_{name}": chance if ran else None for name, chance in zip(CLASSES, chances, strict=True)},
        **{name: draw(st.integers(0, 2000)) for name in ("n_points_offered", "n_detections", "n_nights")},
        "n_points_dropped": 0,
        "n_points_used": 1,
        "n_positive_detections": 0,
        "span_days": draw(optional(st.floats(0, 4000))),
        "points_hash": "0123456789abcdef",
        "alert_schema": draw(optional(st.sampled_from(["1000", "3.3"]))),
        "alert_topic": "alerts",
        "alert_partition": draw(st.integers(0, 9)),
        "alert_offset": draw(st.integers(0, 2**40)),
        "alert_timestamp": datetime(2026, 11, 20, tzinfo=UTC) + timedelta(microseconds=draw(st.integers(0, 10**12))),
    }


def batch_of(survey: str, rows: list[Row]) -> Batch:
    """The rows as an outlet gets them; a ZTF alert's own record goes along, whose time and magnitude Fink shows."""
    schema = columns.schema(CARD)
    table = pa.RecordBatch.from_pylist([{name: row.get(name) for name in schema.names} for row in rows], schema)
    raw = [{"candidate": raw_of(row)} for row in rows] if survey == "ztf" else [{} for _ in rows]
    places = [f"night:alerts:{row['alert_partition']}:{row['alert_offset']}".encode() for row in rows]
    bodies = [b"record %d" % i for i in range(len(rows))]
    alerts = alerts_of(survey, raw)
    return Batch(
        surveys.find(survey),
        CARD,
        PASSPORT,
        table,
        alerts,
        bodies,
        places,
        STARTED,
        FINISHED,
        pa.nulls(len(rows), pa.binary()),
    )


def raw_of(row: Row) -> Row:
    fid = {"ztf-g": 1, "ztf-r": 2, "ztf-i": 3}.get(row["band"])
    magnitude = row["magnitude"]
    return {"jd": 2_400_000.5 + row["mjd_tai"], "magpsf": magnitude and single(magnitude), "fid": fid}


@st.composite
def made(draw: st.DrawFn, *of: str) -> tuple[str, list[Row], Batch]:
    """(survey, rows, batch) of up to five verdicts."""
    survey = draw(st.sampled_from(of or surveys.NAMES))
    rows = draw(st.lists(verdict(survey), max_size=5))
    return survey, rows, batch_of(survey, rows)


def outlet(kind: Kind, wanted: Filter = EVERYTHING, is_public: bool = False) -> Further:
    return Further(
        kind, kind, {"": "anno_x" if kind == "lasair" else "out"}, N_PARTITIONS, is_public,
        "TDE" if kind == "fink-ai" else None, wanted,
    )  # fmt: skip


def sent(outlet_: Further, batch: Batch) -> list[Row]:
    found = deliver(outlet_, batch, NOTHING_WRITTEN)
    assert all(part.schema.equals(ROWS) for part in found.rows)
    return [row for part in found.rows for row in part.to_pylist()]


def read(data: bytes, schema: Any) -> Row:
    """By fastavro, to the last byte."""
    file = io.BytesIO(data)
    record = cast(Row, fastavro.schemaless_reader(file, schema, None))
    assert file.read() == b""
    return record


def chances(row: Row) -> dict[str, float]:
    """Probabilities by class, empty where the model did not run."""
    return {name: row[f"p_{name}"] for name in CLASSES if row[f"p_{name}"] is not None}


# --- forms --------------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(made())
def test_json_says_what_the_columns_say(given_: tuple[str, list[Row], Batch]) -> None:
    _, rows, batch = given_
    values = [json.loads(data) for data in json_lines.encode(batch)]
    assert len(values) == len(rows)
    for value, row in zip(values, rows, strict=True):
        CHECKER.validate(value)
        for name in batch.columns.schema.names:
            if name == "alert_timestamp":
                assert datetime.fromisoformat(value[name]) == row[name]
            else:
                assert value[name] == row.get(name), name
        assert value["classifierName"] == "t2b-1@1"
        assert json.loads(value["classifierParams"]) == {"a": "x", "b": 1}
        assert value["brokerIngestTimestamp"] == "2026-11-18T11:06:40.123456Z"
        assert datetime.fromisoformat(value["brokerPublishTimestamp"]).timestamp() == FINISHED / 1e6


@settings(max_examples=25, deadline=None)
@given(made())
def test_lasair_gets_annotations_of_objects_with_a_class(given_: tuple[str, list[Row], Batch]) -> None:
    _, rows, batch = given_
    due = [row for row in rows if row["object_id"] is not None and row["class_name"] is not None]
    values = [json.loads(row["value"]) for row in sent(outlet("lasair"), batch)]
    assert [value["objectId"] for value in values] == [row["object_id"] for row in due]
    for value, row in zip(values, due, strict=True):
        is_classified = row["status"] == "classified"
        assert value["classification"] == (row["class_name"] if is_classified else "abstained")
        assert (value["topic"], value["version"], value["url"]) == ("x", "t2b-1@1", "")
        assert value["classdict"] == {name: round(chance, 6) for name, chance in chances(row).items()}
        told = f"{row['class_name']} with probability {row['probability']:.2f} after {row['n_detections']} detections"
        assert f"{told}, source {row['source_id']}" in value["explanation"]
        assert value["explanation"].startswith(f"{row['reason']}: ") is not is_classified


@settings(max_examples=25, deadline=None)
@given(made())
def test_desc_reads_its_own_record(given_: tuple[str, list[Row], Batch]) -> None:
    _, rows, batch = given_
    for data, row in zip(elasticc.encode(batch), rows, strict=True):
        value = read(data, DESC)
        assert value["alertId"] == value["diaSourceId"] == row["source_id"]
        assert abs(value["elasticcPublishTimestamp"] - row["alert_timestamp"]) < timedelta(milliseconds=1)
        assert value["brokerIngestTimestamp"] == datetime(2026, 11, 18, 11, 6, 40, 123000, UTC)
        assert (value["brokerName"], value["classifierName"]) == ("t2-broker", "t2b-1@1")
        found = {c["classId"]: c["probability"] for c in value["classifications"]}
        ids = {c.name: c.taxonomy_id for c in CARD.classes}
        assert found == {ids[name]: chance for name, chance in chances(row).items()}


def test_desc_gets_the_start_of_the_work_where_kafka_has_no_time() -> None:
    row = verdict_of("lsst") | {"alert_timestamp": None}
    value = read(elasticc.encode(batch_of("lsst", [row]))[0], DESC)
    assert value["elasticcPublishTimestamp"] == value["brokerIngestTimestamp"]


@settings(max_examples=25, deadline=None)
@given(made(), st.sampled_from(CLASSES))
def test_fink_ai_sends_one_number(given_: tuple[str, list[Row], Batch], name: str) -> None:
    _, rows, batch = given_
    values = [json.loads(data) for data in fink_ai.encode(batch, name)]
    assert [value["result"]["predictions"] for value in values] == [[row[f"p_{name}"]] for row in rows]
    assert [value["source"]["candid"] for value in values] == [row["source_id"] for row in rows]


@settings(max_examples=40, deadline=None)
@given(made("lsst", "ztf"))
def test_fink_reads_by_the_key_alone(given_: tuple[str, list[Row], Batch]) -> None:
    survey, rows, batch = given_
    found = sent(outlet("fink"), batch)
    assert len(found) == len(rows)
    for message, row in zip(found, rows, strict=True):
        value = read(message["value"], fastavro.parse_schema(json.loads(message["key"])))
        assert message["partition"] == crc32((row["object_id"] or str(row["source_id"])).encode()) % N_PARTITIONS
        ours = value["t2b"]
        for theirs, mine in (("class", "class_name"), ("class_id", "class_id"), ("score", "probability")):
            assert ours[theirs] == row[mine]
        for name in ("status", "reason", "n_detections"):
            assert ours[name] == row[name]
        assert {c["class"]: c["probability"] for c in ours["classifications"]} == chances(row)
        if survey == "lsst":
            source = value["diaSource"]
            assert (value["diaSourceId"], source["midpointMjdTai"]) == (row["source_id"], row["mjd_tai"])
            assert (source["psfFlux"], source["psfFluxErr"]) == (row["flux"], row["flux_err"])
            assert source["band"] == (row["band"] and row["band"][-1])
            object_id = value["diaObject"] and str(value["diaObject"]["diaObjectId"])
            assert object_id == row["object_id"]
            assert (value["mpc_orbits"] is None) is (object_id is not None)
            assert (source["ra"], source["dec"]) == (row["ra"], row["dec"])
        else:
            assert (value["objectId"], value["candid"]) == (row["object_id"], row["source_id"])
            assert value["candidate"] == raw_of(row) | {"ra": row["ra"], "dec": row["dec"]}


@settings(max_examples=15, deadline=None)
@given(made())
def test_hop_sends_containers(given_: tuple[str, list[Row], Batch]) -> None:
    _, _, batch = given_
    for row, body in zip(sent(outlet("hop"), batch), batch.bodies, strict=True):
        assert row["value"] == native.container(body)
        assert {"key": "_format", "value": b"avro"} in row["headers"]


# --- what holds for all of them -------------------------------------------------------------------------------------

KINDS: tuple[Kind, ...] = ("json", "lasair", "hop", "fink", "elasticc", "fink-ai")


@settings(max_examples=15, deadline=None)
@given(made("lsst", "ztf"), st.sampled_from(KINDS))
def test_a_batch_is_its_verdicts_one_by_one(given_: tuple[str, list[Row], Batch], kind: Kind) -> None:
    """So no record depends on its neighbours, and what a batch's end is cut at does not matter."""
    _, rows, batch = given_
    single_ = [row for i in range(len(rows)) for row in sent(outlet(kind), batch.take(np.array([i])))]
    assert sent(outlet(kind), batch) == single_


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_batch_is_no_record(kind: Kind) -> None:
    batch = batch_of("ztf", [])
    found = deliver(outlet(kind), batch, NOTHING_WRITTEN)
    assert [part.num_rows for part in found.rows] == [0]
    assert (found.passed.tolist(), found.fresh.tolist()) == ([], [])
    assert batch.objects() == []


@settings(max_examples=15, deadline=None)
@given(made("lsst", "ztf"), st.sampled_from(KINDS))
def test_keys_and_headers_name_object_alert_and_model(given_: tuple[str, list[Row], Batch], kind: Kind) -> None:
    survey, rows, batch = given_
    assert batch.objects() == [(row["object_id"] or str(row["source_id"])).encode() for row in rows]
    by_place = dict(zip(batch.places, rows, strict=True))
    for message in sent(outlet(kind), batch):
        headers = {header["key"]: header["value"] for header in message["headers"]}
        row = by_place[headers["alert"]]
        assert headers["model"] == b"t2b-1@1"
        assert message["topic"] == ("anno_x" if kind == "lasair" else "out")
        if kind == "fink":
            assert message["key"] == fink.key(survey)
        else:
            assert message["partition"] is None
            if len(by_place) == len(rows):
                assert message["key"] == (row["object_id"] or str(row["source_id"])).encode()


@settings(max_examples=15, deadline=None)
@given(made("ztf"))
def test_alerts_of_other_programs_go_where_it_is_allowed_alone(given_: tuple[str, list[Row], Batch]) -> None:
    _, rows, batch = given_
    due = [row["programid"] in (None, 1) for row in rows]
    assert deliver(outlet("json", is_public=True), batch, NOTHING_WRITTEN).passed.tolist() == due
    assert deliver(outlet("json"), batch, NOTHING_WRITTEN).passed.all()


@settings(max_examples=15, deadline=None)
@given(made("lsst"), st.sets(st.tuples(st.integers(0, 9), st.integers(0, 2**40)), max_size=3), st.data())
def test_what_a_topic_has_is_not_sent_again(
    given_: tuple[str, list[Row], Batch], others: set[tuple[int, int]], data: st.DataObject
) -> None:
    _, rows, batch = given_
    mine = {(row["alert_partition"], row["alert_offset"]) for row in rows if data.draw(st.booleans())}
    places: dict[tuple[str, int], list[int]] = {}
    for partition, offset in sorted(mine | others):
        places.setdefault(("alerts", partition), []).append(offset)
    written = Written({"out": {place: np.array(offsets) for place, offsets in places.items()}})
    due = [(row["alert_partition"], row["alert_offset"]) not in mine | others for row in rows]
    found = deliver(outlet("json"), batch, written)
    assert found.fresh.tolist() == due
    assert [json.loads(v)["alert_offset"] for part in found.rows for v in part.column("value").to_pylist()] == [
        row["alert_offset"] for row, is_due in zip(rows, due, strict=True) if is_due
    ]


@settings(max_examples=15, deadline=None)
@given(made("ztf"), st.sets(st.sampled_from(CLASSES), min_size=1, max_size=3))
def test_a_topic_per_class_has_that_class_alone(given_: tuple[str, list[Row], Batch], chosen: set[str]) -> None:
    _, rows, batch = given_
    wanted = Filter(classes=tuple(sorted(chosen)))
    by_class = replace(outlet("json", wanted), topics={name: f"t-{name}" for name in wanted.classes})
    for message in (found := sent(by_class, batch)):
        assert message["topic"] == f"t-{json.loads(message['value'])['class_name']}"
    assert len(found) == sum(row["status"] == "classified" and row["class_name"] in chosen for row in rows)


@settings(max_examples=15, deadline=None)
@given(made(), st.data())
def test_taking_rows_takes_all_parts_of_them(given_: tuple[str, list[Row], Batch], data: st.DataObject) -> None:
    _, rows, batch = given_
    some = st.lists(st.integers(0, len(rows) - 1), max_size=len(rows) - 1, unique=True) if rows else st.just([])
    picked = data.draw(some)
    taken = batch.take(np.array(picked, np.int64))
    assert len(taken) == len(picked)
    assert taken.places == [batch.places[i] for i in picked]
    assert taken.bodies == [batch.bodies[i] for i in picked]
    assert taken.columns.to_pylist() == [batch.columns.to_pylist()[i] for i in picked]
    assert taken.alerts.to_pylist() == [batch.alerts.to_pylist()[i] for i in picked]


# --- filters --------------------------------------------------------------------------------------------------------


# Whole numbers, which hypothesis spreads over the sphere where its floats gather at 0.
longitudes, latitudes = st.integers(0, 359).map(float), st.integers(-90, 90).map(float)
radii = st.integers(0, 179).map(lambda degrees: degrees + 0.3)
cones = st.builds(Cone, ra=longitudes, dec=latitudes, radius_deg=radii)


@st.composite
def filters_(draw: st.DrawFn) -> Filter:
    """Each condition is there or not, so that the others decide too."""
    low, least = draw(optional(st.floats(10, 25))), draw(st.just(0) | st.integers(0, 1500))
    return Filter(
        statuses=draw(st.sampled_from([EITHER, ("classified",), ("abstained",)])),
        classes=tuple(draw(st.just(set()) | st.sets(st.sampled_from(CLASSES), max_size=6))),
        min_probability=draw(st.just(0.0) | st.floats(0, 1)),
        bands=tuple(draw(st.just(set()) | st.sets(st.sampled_from(BANDS[:9]), max_size=6))),
        min_detections=least,
        max_detections=draw(optional(st.integers(least, 2000))),
        brightest_mag=low,
        faintest_mag=draw(optional(st.floats(low or 10, 30))),
        cone=draw(optional(cones)),
    )


def separation(row: Row, cone: Cone) -> float:
    """Degrees, from the angle between two vectors by its sine and cosine."""

    def vector(ra: float, dec: float) -> Any:
        lon, lat = math.radians(ra), math.radians(dec)
        return np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])

    a, b = vector(row["ra"], row["dec"]), vector(cone.ra, cone.dec)
    return math.degrees(math.atan2(float(np.linalg.norm(np.cross(a, b))), float(a @ b)))


def holds(wanted: Filter, row: Row) -> bool:
    """The filter in plain words: a condition on what is missing is not met."""
    if row["status"] not in wanted.statuses:
        return False
    if wanted.classes and row["class_name"] not in wanted.classes:
        return False
    if wanted.bands and row["band"] not in wanted.bands:
        return False
    if wanted.min_probability > 0 and (row["probability"] is None or row["probability"] < wanted.min_probability):
        return False
    if row["n_detections"] < wanted.min_detections:
        return False
    if wanted.max_detections is not None and row["n_detections"] > wanted.max_detections:
        return False
    for limit, sign in ((wanted.brightest_mag, 1), (wanted.faintest_mag, -1)):
        if limit is not None and (row["magnitude"] is None or sign * (row["magnitude"] - limit) < 0):
            return False
    if wanted.cone is None:
        return True
    if row["ra"] is None or row["dec"] is None:
        return False
    distance = separation(row, wanted.cone)
    assume(abs(distance - wanted.cone.radius_deg) > 1e-6)
    return distance <= wanted.cone.radius_deg


@settings(max_examples=70, deadline=None)
@given(made(), filters_())
def test_a_filter_keeps_what_the_plain_predicate_keeps(given_: tuple[str, list[Row], Batch], wanted: Filter) -> None:
    _, rows, batch = given_
    assert passes(wanted, batch.columns).tolist() == [holds(wanted, row) for row in rows]


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(longitudes, latitudes), min_size=5, max_size=20), cones)
def test_a_cone_keeps_what_lies_within_its_radius(places: list[tuple[float, float]], cone: Cone) -> None:
    rows = [verdict_of("lsst", ra=ra, dec=dec) for ra, dec in places]
    due = [holds(Filter(statuses=EITHER, cone=cone), row) for row in rows]
    assert passes(Filter(statuses=EITHER, cone=cone), batch_of("lsst", rows).columns).tolist() == due


@settings(max_examples=25, deadline=None)
@given(made(), st.data())
def test_the_limit_itself_passes(given_: tuple[str, list[Row], Batch], data: st.DataObject) -> None:
    """At least and at most, not more and less: a verdict whose value is the limit is let through."""
    _, rows, batch = given_
    assume(rows)
    row = data.draw(st.sampled_from(rows))
    i = rows.index(row)
    limits: list[dict[str, Any]] = [{"min_detections": row["n_detections"]}, {"max_detections": row["n_detections"]}]
    if row["probability"]:
        limits.append({"min_probability": row["probability"]})
    if row["magnitude"] is not None:
        limits += [{"brightest_mag": row["magnitude"]}, {"faintest_mag": row["magnitude"]}]
    for limit in limits:
        assert passes(Filter(statuses=EITHER, **limit), batch.columns)[i], limit


@settings(max_examples=25, deadline=None)
@given(made(), st.floats(0, 1), st.integers(0, 2000), st.sampled_from(CLASSES))
def test_an_expression_is_python_s(given_: tuple[str, list[Row], Batch], p: float, n: int, name: str) -> None:
    """SQL's nulls: a comparison with one is not true, and neither is its negation."""
    _, rows, batch = given_
    where = f"p_{name} >= {single(p)!r} AND (n_nights > {n} OR is_negative) AND NOT reliability < 0.5"
    due = [
        (row[f"p_{name}"] or -1) >= single(p)
        and (row["n_nights"] > n or row["is_negative"] is True)
        and row["reliability"] is not None
        and not row["reliability"] < 0.5
        for row in rows
    ]
    assert passes(Filter(statuses=EITHER, where=where), batch.columns).tolist() == due


@settings(max_examples=25, deadline=None)
@given(made(), filters_(), filters_())
def test_two_filters_in_one_let_through_what_both_do(
    given_: tuple[str, list[Row], Batch], one: Filter, other: Filter
) -> None:
    _, _, batch = given_
    both = set(one.statuses) & set(other.statuses)
    assume(both)
    first = Filter(statuses=tuple(sorted(both)), classes=one.classes, bands=one.bands, cone=one.cone)
    second = Filter(statuses=EITHER, min_probability=other.min_probability, min_detections=other.min_detections)
    joined = first.model_copy(
        update={"min_probability": second.min_probability, "min_detections": second.min_detections}
    )
    expected = passes(first, batch.columns) & passes(second, batch.columns)
    assert passes(joined, batch.columns).tolist() == expected.tolist()


def verdict_of(survey: str, **changes: Any) -> Row:
    """One plain verdict."""
    row = dict.fromkeys(columns.schema(CARD).names)
    p = {f"p_{name}": single(1 / len(CLASSES)) for name in CLASSES}
    known = {"survey": survey, "source_id": 7, "mjd_tai": 60_000.0, "status": "abstained", "reason": "no_photometry"}
    places = {"alert_topic": "alerts", "alert_partition": 0, "alert_offset": 5, "alert_timestamp": datetime.now(UTC)}
    return row | dict.fromkeys(p) | known | places | {"n_detections": 0, "n_nights": 0, "points_hash": ""} | changes


@pytest.mark.parametrize(("ra", "dec", "is_inside"), [(0.5, 0.0, True), (359.5, 0.0, True), (358.9, 0.0, False)])
def test_a_cone_reaches_over_the_zero_of_right_ascension(ra: float, dec: float, is_inside: bool) -> None:
    table = batch_of("lsst", [verdict_of("lsst", ra=ra, dec=dec)]).columns
    assert passes(Filter(statuses=EITHER, cone=Cone(ra=0.0, dec=0.0, radius_deg=1.0)), table).tolist() == [is_inside]


def test_a_cone_at_the_pole_takes_every_right_ascension() -> None:
    rows = [verdict_of("lsst", ra=float(ra), dec=-89.5) for ra in range(0, 360, 45)]
    table = batch_of("lsst", rows).columns
    assert passes(Filter(statuses=EITHER, cone=Cone(ra=10.0, dec=-90.0, radius_deg=0.6)), table).all()
    assert not passes(Filter(statuses=EITHER, cone=Cone(ra=10.0, dec=-90.0, radius_deg=0.4)), table).any()


def test_a_cone_of_an_arc_second_is_exact() -> None:
    """Where the cosine of the distance is 1 to the last bits."""
    arc_second = 1 / 3600
    rows = [verdict_of("lsst", ra=10.0, dec=20.0 + factor * arc_second) for factor in (0.0, 0.99, 1.01)]
    table = batch_of("lsst", rows).columns
    wanted = Filter(statuses=EITHER, cone=Cone(ra=10.0, dec=20.0, radius_deg=arc_second))
    assert passes(wanted, table).tolist() == [True, True, False]
