"""Sources that come again: found as counting by hand finds them, from records of any version of the schema."""

import io
import json
import random
from datetime import UTC, datetime
from typing import Any, cast

import fastavro
import pytest
from decoding import assigned, hop
from hypothesis import given
from hypothesis import strategies as st
from samples import SCHEMAS, whole

from broker import surveys
from broker.classify import classify
from broker.outlets import native
from broker.reconcile import Place
from broker.repeats import Again, Columns, again_in, inside, read_record

PLACES = [Place("ztf", "night", 0), Place("ztf", "night", 1)]
Alert = tuple[int, int, int, int, int]  # source id, time, place, offset, hash
ALERTS = st.lists(
    st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 1), st.integers(0, 30), st.integers(0, 2)),
    max_size=25,
    unique_by=lambda alert: alert[2:4],
)


def columns_of(alerts: list[Alert]) -> Columns:
    columns = Columns()
    for source_id, time, place, offset, content in alerts:
        columns.source_id.append(source_id)
        columns.time.append(time)
        columns.place.append(place)
        columns.offset.append(offset)
        columns.hash.append(content)
    return columns


@given(ALERTS, st.integers(0, 9))
def test_each_alert_but_the_first_has_the_one_before(alerts: list[Alert], seed: int) -> None:
    shuffled = list(alerts)
    random.Random(seed).shuffle(shuffled)
    doubled = [*shuffled, *shuffled[:3]]  # records of another model, or written twice: the same alerts
    due, last = [], dict[int, Alert]()
    for alert in sorted(alerts, key=lambda a: (a[0], a[1], a[2], a[3])):
        source_id, _, place, offset, content = alert
        if source_id in last:
            before = last[source_id]
            earlier = f"{PLACES[before[2]]}:{before[3]}"
            due.append(Again(source_id, PLACES[place], offset, earlier, content == before[4]))
        last[source_id] = alert
    found = again_in(columns_of(doubled), PLACES)
    assert found == due
    for whole_place in PLACES:
        same, changed = inside(found, whole_place, 5, 20)
        mine = [a for a in due if a.place == whole_place and 5 <= a.offset < 20]
        assert same.tolist() == sorted(a.offset for a in mine if a.is_same)
        assert changed.tolist() == sorted(a.offset for a in mine if not a.is_same)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_records_are_read_whatever_version_wrote_them(survey: str) -> None:
    (part,) = classify(hop(survey, [sample.data for sample in whole(survey)[5:12]]), assigned(survey)).rows
    older = json.loads((SCHEMAS / "output" / "classification.avsc").read_text())
    older["fields"] = [f for f in older["fields"] if f["name"] != "repeats_alert"]
    newer = json.loads((SCHEMAS / "output" / "classification.avsc").read_text())
    newer["fields"].append({"name": "later", "type": ["null", "string"], "default": None})
    for value in part.column("value").to_pylist():
        record = native.read(value)
        time_us = (record["alert_timestamp"] - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds() * 1e6
        due = (record["source_id"], int(record["points_hash"], 16), round(time_us))
        assert read_record(value) == due
        for schema in (older, newer):
            file = io.BytesIO()
            fastavro.writer(file, cast(Any, json.loads(json.dumps(schema))), [record])
            assert read_record(file.getvalue()) == due
        packed = io.BytesIO()
        fastavro.writer(packed, cast(Any, newer), [record], codec="deflate")
        assert read_record(packed.getvalue()) is None  # none of ours


@pytest.mark.parametrize(("old", "new"), [(b'"type"', b'"tape"'), (b'"name"', b'" ame"'), (b'"long"', b'"gnol"')])
def test_a_damaged_schema_is_passed_over(old: bytes, new: bytes) -> None:
    (part,) = ROWS
    value = part.column("value")[0].as_py()
    assert old in value
    assert read_record(value.replace(old, new, 3)) is None


@given(st.data())
def test_what_is_no_record_is_passed_over(data: st.DataObject) -> None:
    (part,) = ROWS
    value = bytearray(part.column("value")[0].as_py())
    assert read_record(data.draw(st.binary(max_size=80))) is None
    assert read_record(bytes(value[: data.draw(st.integers(0, 3_000))])) is None
    for _ in range(3):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    read = read_record(bytes(value))
    assert read is None or len(read) == 3


ROWS = classify(hop("ztf", [whole("ztf")[0].data]), assigned("ztf")).rows
