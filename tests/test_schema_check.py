"""`broker schemas check` without a topic: what is said of alerts of files, and what is learnt from a registry."""

import gzip
import json
import random
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import generate
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import ALERTS, SCHEMAS, damaged, whole

from broker import registry, surveys
from broker.errors import ArchiveError
from broker.recognise import survey_of_schema, survey_of_value
from broker.schema_check import check, of_files, origin
from broker.verdict import REASONS, REJECTED
from broker.wire import frame

# --- alerts of files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_all_samples_are_read_by_the_schema_of_the_manifest(survey: str) -> None:
    found = check(sample.data for sample in whole(survey))
    assert {(theirs, said) for theirs, _, said in found} == {(survey, "ok")}
    assert found.total() == len(whole(survey))
    if survey == "lsst":
        due = Counter((survey, sample.schema, "ok") for sample in whole(survey))
        assert found == due


@pytest.mark.parametrize(("survey", "label"), [(s, label) for s, labels in generate.LABELS.items() for label in labels])
def test_every_layout_is_read_by_itself(survey: str, label: str) -> None:
    found = check(generate.generated(survey, label, 6))
    assert {(theirs, said) for theirs, _, said in found} == {(survey, "ok")}
    assert found.total() == 6
    if survey == "lsst":
        assert {schema for _, schema, _ in found} == {label}


def test_files_give_what_they_hold_in_their_order(tmp_path: Path) -> None:
    data = [sample.data for sample in whole("lsst")[:3]]
    for i, value in enumerate(data):
        (tmp_path / f"{2 - i}.bin").write_bytes(value)
    assert list(of_files([tmp_path])) == data[::-1]
    assert list(of_files([tmp_path / "2.bin", tmp_path, tmp_path / "2.bin"])) == [data[0], data[2], data[1]]
    packed = list(of_files([ALERTS / "ztf.tar.gz"]))
    assert packed == [sample.data for sample in whole("ztf") if sample.file == "ztf.tar.gz"]


def test_what_can_t_be_opened_is_an_error_after_what_could(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="check the path"):
        list(of_files([tmp_path / "none.avro"]))
    (tmp_path / "a.bin").write_bytes(whole("lsst")[0].data)
    (tmp_path / "b.avro.gz").write_bytes(gzip.compress(whole("ztf")[0].data)[:-100])
    values = of_files([tmp_path])
    assert next(values) == whole("lsst")[0].data
    with pytest.raises(ArchiveError, match=r"b\.avro\.gz"):
        list(values)


# --- what is said of what is none ---------------------------------------------------------------------------------


def test_what_nobody_knows_is_told_by_its_id() -> None:
    found = check([frame(54_321, b"body"), frame(54_321, b"other"), frame(7, b""), b"hello", b"\x00", b"", None])
    assert found == {
        ("-", "54321", "no known schema"): 2,
        ("-", "7", "no known schema"): 1,
        ("-", "-", "no known schema"): 2,
        ("-", "-", "empty"): 2,
    }


def test_with_a_survey_given_each_alert_must_be_its() -> None:
    found = check([whole("ztf")[0].data, whole("lsst")[0].data, None, frame(54_321, b"x")], "lsst")
    assert {theirs for theirs, _, _ in found} == {"lsst"}
    said = Counter(words.partition(":")[0] for _, _, words in found.elements())
    assert said == {"ok": 1, "wrong_survey": 1, "empty": 1, "schema_unavailable": 1}


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_a_refusal_has_a_reason_of_the_closed_list(survey: str) -> None:
    rng = random.Random(survey)
    spoilt = [damage(sample.data, rng) for sample in whole(survey)[:5] for damage in generate.DAMAGES * 3]
    found = check([*spoilt, *(sample.data for sample in damaged())], survey)
    assert found.total() == len(spoilt) + len(damaged())
    for theirs, schema, said in found:
        reason, _, detail = said.partition(": ")
        assert theirs == survey
        assert said == "ok" or (schema == "-" and reason in REASONS[REJECTED] and detail)
    assert any(said != "ok" for *_, said in found)


@given(st.lists(st.none() | st.binary(max_size=40), max_size=8), st.sampled_from([*surveys.NAMES, None]))
@settings(max_examples=60, deadline=None)
def test_each_value_is_counted_once(values: list[bytes | None], survey: str | None) -> None:
    found = check(values, survey)
    assert found.total() == len(values)
    assert all(said != "ok" for *_, said in found)


def test_known_schemas_are_of_the_package() -> None:
    for survey in surveys.NAMES:
        assert {origin(writer) for writer in registry.packaged(survey)} == {"package"}


# --- recognising --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "due"),
    [
        ({"name": "ztf.alert"}, "ztf"),
        ({"name": "alert", "namespace": "ztf"}, "ztf"),
        ({"name": "alert", "namespace": "lsst.v11_1"}, "lsst"),
        ({"name": "lsst.v99_9.alert", "namespace": "ztf"}, "lsst"),  # a dotted name has its own namespace
        ({"name": "elasticc.v0_9.alert"}, "elasticc"),
        ({"name": "ztf", "type": "record", "fields": []}, None),  # no namespace at all
        ({"name": "ztfx.alert", "type": "record", "fields": []}, None),
        ({"name": "alert", "namespace": "atlas", "type": "record", "fields": [{"name": "x", "type": "int"}]}, None),
    ],
)
def test_a_schema_is_known_by_the_first_part_of_its_name(schema: dict[str, Any], due: str | None) -> None:
    assert survey_of_schema(schema) == due


@pytest.mark.parametrize(("survey", "label"), [(s, labels[-1]) for s, labels in generate.LABELS.items()])
def test_without_its_name_a_schema_is_known_by_its_fields(survey: str, label: str) -> None:
    schema = {**generate.schema_of(survey, label), "name": "topLevelRecord"}
    assert survey_of_schema(json.loads(json.dumps(schema))) == survey
    own = generate.HISTORY[survey][2]
    without = schema | {"fields": [field for field in schema["fields"] if field["name"] != own]}
    assert survey_of_schema(json.loads(json.dumps(without))) is None


@given(st.binary(max_size=120), st.sampled_from([b"", b"Obj\x01", b"\x00"]))
@settings(max_examples=150, deadline=None)
def test_bytes_at_random_are_no_alert(rest: bytes, start: bytes) -> None:
    found = survey_of_value(start + rest)
    assert found in (None, "lsst")  # a frame names its schema by five bytes alone
    if found == "lsst":
        assert registry.by_id(int.from_bytes((start + rest)[1:5])) is not None


@pytest.mark.parametrize("label", generate.LABELS["elasticc"])
def test_a_bare_body_must_be_filled_to_the_last_byte(label: str) -> None:
    (data,) = generate.generated("elasticc", label, 1, seed=3)
    assert survey_of_value(data) == "elasticc"
    assert survey_of_value(data + b"\x00") is None
    for n in (1, 2, 3, 4, 8, 30):
        assert survey_of_value(data[:-n]) is None


# --- learning -----------------------------------------------------------------------------------------------------

# In a process of its own, since what is learnt stays known.
LEARN = """
import json, sys
from broker import registry, schema_check
from broker.recognise import survey_of_value
from broker.registry import Writer
text, data = sys.argv[1], bytes.fromhex(sys.stdin.read())
later, other = Writer("1109", text, 1109), Writer("1105", text, 1105)
first = registry.learn([later, Writer("no id", text), Writer("1101", "{}", 1101)])
told = {
    "before": [survey_of_value(b"\\0\\0\\0" + (1105).to_bytes(2) + data[5:])],
    "first": [w.label for w in first],
    "again": [w.label for w in registry.learn([later, Writer("changed", "{}", 1109)])],
    "second": [w.label for w in registry.learn(iter([other]))],
    "learnt": [w.label for w in registry.learnt()],
    "kept": registry.by_id(1109)[1].text == text and registry.by_id(1101)[1].text != "{}",
    "writers": [w.label for w in registry.writers("lsst")][-3:],
    "ztf": [w.label for w in registry.writers("ztf")] == [w.label for w in registry.packaged("ztf")],
    "packaged": [w.label for w in registry.packaged("lsst")][-1],
    "origins": [schema_check.origin(w) for w in registry.writers("lsst")][-3:],
    "found": [list(key) for key in schema_check.check([b"\\0\\0\\0" + (1109).to_bytes(2) + data[5:]])],
    "after": [survey_of_value(b"\\0\\0\\0" + (1105).to_bytes(2) + data[5:])],
}
print(json.dumps(told))
"""


@pytest.fixture(scope="module")
def learnt() -> dict[str, Any]:
    text = (SCHEMAS / "lsst" / "1101.avsc").read_text()
    data = generate.generated("lsst", "1101", 1)[0]
    ended = subprocess.run(
        [sys.executable, "-P", "-c", LEARN, text],
        input=data.hex(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_only_what_is_new_and_has_an_id_is_learnt(learnt: dict[str, Any]) -> None:
    assert learnt["first"] == ["1109"]
    assert learnt["again"] == []
    assert learnt["second"] == ["1105"]


def test_an_id_stands_for_one_schema_for_ever(learnt: dict[str, Any]) -> None:
    assert learnt["kept"] is True


def test_what_is_learnt_comes_behind_the_package_s_by_id(learnt: dict[str, Any]) -> None:
    assert learnt["learnt"] == ["1105", "1109"]
    assert learnt["writers"] == ["1101", "1105", "1109"]
    assert learnt["origins"] == ["package", "registry", "registry"]
    assert learnt["packaged"] == "1101"
    assert learnt["ztf"] is True


def test_an_alert_is_read_by_a_schema_that_was_learnt(learnt: dict[str, Any]) -> None:
    assert learnt["before"] == [None]
    assert learnt["after"] == ["lsst"]
    assert learnt["found"] == [["lsst", "1109", "ok"]]
