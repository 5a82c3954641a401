"""Whole batches: in = out, whatever the alerts; the same verdict for an alert alone and in any company."""

import random
from dataclasses import replace
from typing import Any

import generate
import numpy as np
import pyarrow as pa
import pytest
from decoding import SENT, assigned, hop
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, whole

from broker import surveys
from broker.classify import Seen, classify
from broker.delivery import Filter, Kind
from broker.outlets import ROWS, native
from broker.outlets.further import LARGEST_RECORD, Further
from broker.verdict import ABSTAINED, CLASSIFIED, REASONS, REJECTED
from broker.written import Written

STABLE = settings(derandomize=True, deadline=None, database=None, max_examples=25)
CHANGES = {"brokerIngestTimestamp", "brokerPublishTimestamp", "repeats_alert"}  # the last is about the company


def mixed(survey: str) -> list[bytes | None]:
    """Good, bad and foreign alerts, in no order."""
    good = [sample.data for sample in whole(survey)[:40]]
    good += [value for label in generate.LABELS[survey] for value in generate.generated(survey, label, 2)]
    foreign = [sample.data for other in surveys.NAMES if other != survey for sample in whole(other)[:2]]
    bad: list[bytes | None] = [None, b"", b"\x00", b"Obj\x01", b"hello", *(sample.data for sample in damaged())]
    bad += [generate.zero_byte_bomb(), generate.container_within(good[0]), generate.huge_array(survey, LAYOUT[survey])]
    rng = random.Random(survey)
    bad += [damage(rng.choice(good), rng) for damage in generate.DAMAGES for _ in range(10)]
    bad += [implausible(survey, field) for field in ("ra", "time")]
    values = [*good, *foreign, *bad]
    rng.shuffle(values)
    return values


LAYOUT = {survey: labels[-1] for survey, labels in generate.LABELS.items()}


def implausible(survey: str, field: str) -> bytes:
    """An alert of a place or time that cannot be."""
    time = {"lsst": "midpointMjdTai", "ztf": "jd", "elasticc": "midPointTai"}[survey]
    record = generate.alert(survey, LAYOUT[survey], 1)
    record[generate.HISTORY[survey][2]] |= {"ra": 400.0} if field == "ra" else {time: 1e9}
    return generate.encode(survey, LAYOUT[survey], record)


def answers(batch: pa.RecordBatch, survey: str) -> dict[str, Any]:
    """By coordinates: the record of each native verdict, the headers of each dead letter; one answer per alert."""
    answer, found = classify(batch, assigned(survey)), dict[str, Any]()
    assert len(answer.verdicts) == len(batch)
    assert all(part.schema.equals(ROWS) for part in answer.rows)
    places = {f"night:alerts:3:{offset}": i for i, offset in enumerate(batch.column("offset").to_pylist())}
    for part in answer.rows:
        for row in part.to_pylist():
            headers = {h["key"]: h["value"] for h in row["headers"]}
            place = headers["alert"].decode()
            assert place not in found
            assert headers["model"].startswith(b"t2b-1@")
            status, reason = answer.verdicts[places[place]].split("/")
            assert reason in REASONS[status]
            assert row["topic"] == ("dead-letters" if status == REJECTED else "classifications")
            if status == REJECTED:
                found[place] = headers | {"key": row["key"], "value": row["value"]}
                assert headers["reason"].decode() == reason
                continue
            record = native.read(row["value"])
            assert (record["status"], record["reason"]) == (status, reason)
            assert row["key"] == str(record["source_id"]).encode()
            found[place] = {name: value for name, value in record.items() if name not in CHANGES}
    assert found.keys() == places.keys()
    return found


@pytest.mark.parametrize("survey", surveys.NAMES)
@pytest.mark.parametrize("by_hand", [False, True])
def test_every_alert_has_one_answer(survey: str, by_hand: bool) -> None:
    values = mixed(survey)
    found = answers(hop(survey, values, by_hand), survey)
    letters = [letter for letter in found.values() if "detail" in letter]
    assert {letter["reason"] for letter in letters} >= {b"empty", b"damaged", b"implausible_values"}
    assert len(letters) < len(found) - 30
    for place, letter in found.items():
        offset = int(place.rpartition(":")[2])
        if "detail" in letter:
            assert letter["value"] == values[offset]
            assert letter["key"] == f"key {offset}".encode()
            assert letter["original.night"] == b"20261120"
            assert letter["timestamp_us"] == str(int(SENT.timestamp() * 1e6)).encode()
            assert letter["detail"]


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_both_readers_lead_to_one_verdict(survey: str) -> None:
    values = mixed(survey)
    assert answers(hop(survey, values), survey) == answers(hop(survey, values, by_hand=True), survey)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_a_verdict_does_not_depend_on_its_company(survey: str) -> None:
    """Bit for bit: alone, in the whole batch, in any part of it, in any order."""
    batch = hop(survey, mixed(survey))
    together = answers(batch, survey)
    for i in range(len(batch)):
        assert answers(batch.slice(i, 1), survey).items() <= together.items()
    numbers = st.lists(st.integers(0, len(batch) - 1), min_size=2, max_size=60, unique=True)

    @STABLE
    @given(numbers)
    def check(chosen: list[int]) -> None:
        assert answers(batch.take(pa.array(chosen)), survey).items() <= together.items()

    check()


def test_probabilities_are_there_whenever_the_model_ran() -> None:
    for survey in surveys.NAMES:
        records = [record for record in answers(hop(survey, mixed(survey)), survey).values() if "status" in record]
        assert {record["status"] for record in records} == {CLASSIFIED, ABSTAINED}
        for record in records:
            classes = record["classifications"]
            assert bool(classes) == (record["n_points_used"] > 0)
            if not classes:
                assert (record["class_id"], record["class_name"], record["probability"]) == (None, None, None)
                assert record["status"] == ABSTAINED
                continue
            best = max(classes, key=lambda c: float(c["probability"]))
            assert (record["class_id"], record["class_name"]) == (best["classId"], best["className"])
            assert record["probability"] == best["probability"]
            assert sum(c["probability"] for c in classes) == pytest.approx(1, abs=1e-5)


def test_a_source_that_comes_again_is_marked_with_its_first_alert() -> None:
    one, two = (sample.data for sample in whole("ztf")[:2])
    seen: Seen = {}

    def marks(values: list[bytes | None], first: int) -> list[str | None]:
        answer = classify(hop("ztf", values, first=first), assigned("ztf"), seen)
        rows = [row for part in answer.rows for row in part.to_pylist() if row["topic"] == "classifications"]
        return [native.read(row["value"])["repeats_alert"] for row in rows]

    assert marks([one, two, None, one], 10) == [None, None, "night:alerts:3:10"]
    assert marks([two, one], 14) == ["night:alerts:3:11", "night:alerts:3:10"]  # the next Arrow batch of the task
    assert marks([two], 11) == [None]  # itself, run again
    assert set(seen.values()) == {("alerts", 3, 10), ("alerts", 3, 11)}


def test_an_empty_batch_has_no_rows() -> None:
    answer = classify(hop("ztf", []), assigned("ztf"))
    assert answer.verdicts == []
    assert sum(len(part) for part in answer.rows) == 0


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_a_batch_of_nothing_but_damage(survey: str) -> None:
    answer = classify(hop(survey, [None, b"", b"junk"]), assigned(survey))
    assert [verdict.partition("/")[0] for verdict in answer.verdicts] == [REJECTED] * 3


def test_reasons_of_what_must_not_be_classified() -> None:
    def verdict(survey: str, record: generate.Record) -> str:
        value = generate.encode(survey, LAYOUT[survey], record)
        return classify(hop(survey, [value]), assigned(survey)).verdicts[0]

    for survey in surveys.NAMES:
        record = generate.alert(survey, LAYOUT[survey], 2, n_detections=4, n_forced=6)
        assert verdict(survey, generate.with_all_fluxes(record, survey)) == "abstained/no_photometry"
        alone: generate.Record = {name: [] for name in generate.HISTORY[survey][:2] if name in record}
        assert verdict(survey, record | alone) == "abstained/maybe_moving"
    assert verdict("lsst", generate.of_solar_system(generate.alert("lsst", LAYOUT["lsst"], 2))) == (
        "abstained/solar_system"
    )


def test_points_in_a_long_light_curve() -> None:
    """2,000 points: the model sees as many as it takes, and the record tells both numbers."""
    record = generate.alert("lsst", "1101", 8, n_detections=1000, n_forced=2000)
    (found,) = answers(hop("lsst", [generate.encode("lsst", "1101", record)]), "lsst").values()
    assert found["n_points_offered"] == 3001
    assert 2 <= found["n_points_used"] <= 256
    assert found["n_detections"] == 1001
    assert np.isfinite(found["probability"])


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_what_is_written_already_gets_a_verdict_and_no_record(survey: str) -> None:
    """A classification or a dead letter, whichever topic holds it; all other rows and verdicts stay as they were."""
    batch, assignment = hop(survey, mixed(survey), first=100), assigned(survey)
    whole_answer = classify(batch, assignment)
    places = {("alerts", 3): np.arange(100, 100 + len(batch), 3), ("alerts", 2): np.arange(100, 120)}
    others = {("alerts", 3): np.arange(101, 130, 6)}
    written = Written({"classifications": places, "dead-letters": others, "elsewhere": {("alerts", 3): np.arange(999)}})
    answer = classify(batch, replace(assignment, written=written))
    assert answer.verdicts == whole_answer.verdicts
    gone = {*range(100, 100 + len(batch), 3), *range(101, 130, 6)}
    assert answer.fresh.tolist() == [offset not in gone for offset in range(100, 100 + len(batch))]

    def alerts_of(parts: list[pa.RecordBatch]) -> list[tuple[str, int]]:
        rows = [row for part in parts for row in part.to_pylist()]
        named = [(row["topic"], {h["key"]: h["value"] for h in row["headers"]}) for row in rows]
        return [(topic, int(headers["alert"].rpartition(b":")[2])) for topic, headers in named]

    due = [(topic, offset) for topic, offset in alerts_of(whole_answer.rows) if offset not in gone]
    assert sorted(alerts_of(answer.rows)) == sorted(due)
    everything = replace(
        assignment, written=Written({"dead-letters": {("alerts", 3): np.arange(100, 100 + len(batch))}})
    )
    assert sum(len(part) for part in classify(batch, everything).rows) == 0


def test_an_alert_cannot_ask_for_a_record_that_no_topic_takes() -> None:
    """Of all that records repeat, an alert's id alone has no limit of its own."""
    record = generate.alert("ztf", generate.LABELS["ztf"][-1], 1)
    values = [
        generate.encode("ztf", generate.LABELS["ztf"][-1], record | {"objectId": name})
        for name in ("\x00" * 1000, "Z" * 1_200_000)
    ]
    outlets = tuple(outlet(kind) for kind in ("json", "lasair", "hop", "fink", "elasticc"))
    rows_ = [
        r
        for part in classify(hop("ztf", [*values]), replace(assigned("ztf"), outlets=outlets)).rows
        for r in part.to_pylist()
    ]
    letters = [row for row in rows_ if row["topic"] == "dead-letters"]
    (headers,) = ({h["key"]: h["value"] for h in row["headers"]} for row in letters)
    assert (headers["reason"], headers["detail"]) == (b"implausible_values", b"objectId has more than 1000 bytes")
    assert headers["n_bytes"] == str(len(values[1])).encode()
    assert {row["topic"] for row in rows_} == {"classifications", "dead-letters", *(o.name for o in outlets)}
    rest = [row for row in rows_ if row["topic"] != "dead-letters"]
    assert max(len(row["key"]) + len(row["value"]) for row in rest) < LARGEST_RECORD / 2


def outlet(kind: Kind) -> Further:
    return Further(kind, kind, {"": kind}, 2, True, None, Filter(statuses=("classified", "abstained")))
