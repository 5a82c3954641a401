"""Fink's topics as a source: each alert's schema is its message's key, its body has neither frame nor header."""

from pathlib import Path
from typing import Any, cast

import pytest
from decoding import MAX_ALERT_BYTES, struct_of
from fink_form import as_fink_sends
from running import Alert, Place, broker, headers, read_outcome, send, topics_of, write_config
from samples import whole

from broker import surveys
from broker.dissect import dissect, wire_form
from broker.embedded import EmbeddedKafka
from broker.observed import observed
from broker.outlets import native
from broker.recognise import survey_of_value
from broker.second_reader import Read, Refusal, read
from broker.wire import MAX_SCHEMA_CHARS, schema_in_key

SAME = ("status", "reason", "class_name", "classifications", "points_hash", "object_id", "source_id", "n_detections")


@pytest.mark.parametrize("survey", ["ztf", "lsst"])
def test_what_is_read_is_what_the_survey_sent(survey: str) -> None:
    table, struct = surveys.find(survey), struct_of(survey)
    for sample in whole(survey):
        theirs = as_fink_sends(sample)
        assert theirs.value is not None
        found = read(theirs.value, table, MAX_ALERT_BYTES, struct, theirs.key)
        direct = read(sample.data, table, MAX_ALERT_BYTES, struct)
        assert isinstance(found, Read), (sample, found)
        assert isinstance(direct, Read)
        assert repr(found.alert.to_pylist()) == repr(direct.alert.to_pylist())  # NaN equals itself
        assert found.schema.endswith("topLevelRecord")
        assert survey_of_value(theirs.value, theirs.key) == survey
        assert observed(theirs.value, theirs.key) == observed(sample.data)
        assert isinstance(read(theirs.value, table, MAX_ALERT_BYTES, struct), Refusal)  # without the key


def test_a_body_cut_short_is_damaged_and_shown_up_to_there() -> None:
    theirs = as_fink_sends(whole("ztf")[0])
    assert theirs.value is not None
    for value in (theirs.value[:-1], theirs.value + b"\x00", theirs.value[:40]):
        found = read(value, surveys.find("ztf"), MAX_ALERT_BYTES, struct_of("ztf"), theirs.key)
        assert isinstance(found, Refusal)
        assert found.reason == "damaged"
        parts = dissect(value, "ztf", theirs.key)
        assert parts.fault_at is not None
        assert parts.values
    assert dissect(theirs.value, "ztf", theirs.key).fault_at is None
    assert wire_form(theirs.value, theirs.key) == "schema in the key"


def test_another_surveys_schema_is_told() -> None:
    theirs = as_fink_sends(whole("ztf")[0])
    found = read(theirs.value, surveys.find("lsst"), MAX_ALERT_BYTES, struct_of("lsst"), theirs.key)
    assert isinstance(found, Refusal)
    assert found.reason == "wrong_survey"


@pytest.mark.parametrize(
    "key",
    [
        None, b"", b"{", b"ZTF18abc", b'{"id": 1}', b'{"type": "string"}', b"[1]", b"{\xff", b"{" * 20_000,
        b'{"type":"record","pad":"' + b" " * MAX_SCHEMA_CHARS + b'"}', '{"type": "record"}'.encode("utf-16-le"),
    ],
    ids=lambda key: repr(key[:12] if key else key),
)  # fmt: skip
def test_any_other_key_does_not_matter(key: bytes | None) -> None:
    assert schema_in_key(key) is None
    sample = whole("ztf")[0]
    found = read(sample.data, surveys.find("ztf"), MAX_ALERT_BYTES, struct_of("ztf"), key)
    assert isinstance(found, Read)


def test_a_key_that_is_no_whole_schema_is_a_rejection() -> None:
    for key in (b'{"type":"record"}', b'{"type":"record","name":"x","fields":[{"name":"candidate"}]}'):
        found = read(b"\x00\x01\x02", surveys.find("ztf"), MAX_ALERT_BYTES, struct_of("ztf"), key)
        assert isinstance(found, Refusal)


def test_the_job_reads_them_as_it_reads_the_surveys_own(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """examples/fink.toml, with these servers and topics: both surveys, both forms, damage among them."""
    text = (Path(__file__).parent.parent / "examples" / "fink.toml").read_text()
    names = {"fink_sn_near_galaxy_candidate_ztf": "ztf", "fink_extragalactic_new_candidate_lsst": "lsst"}
    chosen = {survey: whole(survey)[:12] for survey in names.values()}
    plain: dict[Place, Alert] = {}
    sent: dict[Place, Alert] = {}
    kafka.create_topics({**dict.fromkeys(names, 2), "plain-ztf": 1, "plain-lsst": 1})
    for topic, survey in names.items():
        assert topic in text
        theirs = [as_fink_sends(sample) for sample in chosen[survey]]
        assert theirs[0].value is not None
        broken = Alert(theirs[0].value[:100], theirs[0].key, group="broken")
        sent |= send(kafka, topic, [*theirs, broken, Alert(theirs[0].value, b"no schema", group="broken")], 2)
        plain |= send(kafka, f"plain-{survey}", [Alert(s.data, group=repr(s)) for s in chosen[survey]])
    config = tmp_path / "fink.toml"
    config.write_text(text.replace("localhost:9092", kafka.bootstrap_servers).replace('"latest"', '"earliest"'))
    for command in (("run", "--once"), ("audit",)):
        done = broker(*command, "--config", config, timeout_s=240)
        assert done.returncode == 0, done.stdout + done.stderr
    output = {
        "classifications": "t2b-fink-classifications",
        "dead_letters": "t2b-fink-dead-letters",
        "ledger": "t2b-fink-ledger",
    }
    found = read_outcome(kafka.bootstrap_servers, output)
    assert found.repeats() == {1: len(sent)}
    broken_ones = {place for place, alert in sent.items() if alert.group == "broken"}
    assert set(found.dead_letters) == broken_ones
    for place in broken_ones:
        (letter,) = found.dead_letters[place]
        assert letter.key() == sent[place].key  # so that it can be read again
        assert headers(letter)["reason"] in (b"damaged", b"schema_unavailable")  # the latter: 0 and four bytes more
    cut = next(p for p in broken_ones if p.topic.endswith("_ztf") and sent[p].key != b"no schema")
    shown = broker("dead-letters", "show", "--config", config, f"fink-ztf:{cut.topic}:{cut.partition}:{cut.offset}")
    assert "on the wire: schema in the key" in shown.stdout, shown.stdout + shown.stderr
    assert "still refused: damaged" in shown.stdout
    sources = [{"name": s, "survey": s, "topics": [f"plain-{s}"]} for s in names.values()]
    direct = write_config(tmp_path, kafka.bootstrap_servers, sources, topics_of("plain") | {"create_topics": True})
    done = broker("run", "--once", "--config", direct, timeout_s=240)
    assert done.returncode == 0, done.stderr
    wanted = read_outcome(kafka.bootstrap_servers, topics_of("plain")).classifications
    assert verdicts(found.classifications) == verdicts(wanted)
    for survey in names.values():
        done = broker("read", f"fink_t2b_{survey}", "--count", "--servers", kafka.bootstrap_servers, timeout_s=60)
        assert done.returncode == 0, done.stderr


def verdicts(found: Any) -> list[str]:
    records = [native.read(cast(bytes, message.value())) for messages in found.values() for message in messages]
    return sorted(repr([(name, record[name]) for name in SAME]) for record in records)
