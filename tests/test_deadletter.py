"""Dead letters: listed, found, and read again by the present code."""

import random
import re
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from confluent_kafka import Producer
from decoding import struct_of as struct_of_spark
from hypothesis import given
from hypothesis import strategies as st
from running import broker, topics_of, write_config
from samples import damaged, whole

from broker import config as configs
from broker import surveys
from broker.deadletter import Opinion, Rejected, Selection, find, pick, second_opinion, struct_of
from broker.dissect import Dissected
from broker.embedded import EmbeddedKafka
from broker.errors import UsageError
from broker.letter_report import HEX_BYTES, dump_start, grouped, hex_lines
from broker.outlets import Headers, dead_letter

ALERT = "ztf:dl-night:0:7"
LETTER = Rejected("t:0:0", 0, None, b"x", {"alert": ALERT.encode(), "reason": b"damaged", "detail": b"d"})


def config_at(folder: Path, servers: str, name: str = "dl") -> Path:
    sources = [{"name": survey, "survey": survey, "topics": [f"{name}-{survey}"]} for survey in surveys.NAMES]
    return write_config(folder, servers, sources, topics_of(name))


# --- without Kafka ------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from(["damaged", "empty"]))), st.integers(1, 9))
def test_the_newest_of_a_reason_are_picked_and_counted(made: list[tuple[int, str]], limit: int) -> None:
    letters = [
        replace(LETTER, place=f"t:0:{i}", time_ms=time_ms, headers={**LETTER.headers, "reason": reason.encode()})
        for i, (time_ms, reason) in enumerate(made)
    ]
    for reason in (None, "empty"):
        meant = [x for x in letters if Selection("ztf", reason).takes(x)]
        due = sorted((x for x in letters if reason in (None, x.text("reason"))), key=lambda x: x.time_ms)
        assert pick(meant, limit) == (due[-limit:], len(due))
        assert sum(group.n for group in grouped(meant)) == len(due)
    assert [g.reason for g in grouped(letters)] == sorted({reason for _, reason in made})


def test_a_selection_looks_at_source_schema_and_time() -> None:
    framed = replace(LETTER, value=b"\0\0\0\x04\x4dx", time_ms=5_000)
    assert Selection("ztf", "damaged", "1101").takes(framed)
    assert not Selection("lsst").takes(framed)
    assert not Selection(schema="1100").takes(framed)
    assert not Selection(since=datetime.fromtimestamp(6, UTC)).takes(framed)
    assert not Selection("ztf").takes(replace(framed, headers={}))
    assert [group.form for group in grouped([framed, LETTER])] == ["no frame", "schema id 1101"]


@given(st.binary(max_size=600), st.integers(0, 40).map(lambda n: n * 16))
def test_a_dump_holds_the_bytes_and_steers_no_terminal(value: bytes, start: int) -> None:
    lines = hex_lines(value, start)
    assert bytes.fromhex("".join(line[10:58] for line in lines)) == value[start : start + HEX_BYTES]
    assert all(line.isprintable() for line in lines)
    assert [int(line[:8], 16) for line in lines] == list(range(start, min(len(value), start + HEX_BYTES), 16))


def test_the_dump_begins_before_the_fault() -> None:
    assert dump_start(Dissected("", bytes(1000), [], 992)) == 864
    assert dump_start(Dissected("", bytes(1000), [], 7)) == 0
    assert dump_start(Dissected("", b"")) == 0


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_the_struct_is_the_one_that_spark_gives(survey: str) -> None:
    assert struct_of(surveys.find(survey)) == struct_of_spark(survey)


def test_what_the_present_code_says(tmp_path: Path) -> None:
    config = configs.load(config_at(tmp_path, "127.0.0.1:1"))
    for survey in surveys.NAMES:
        sound = replace(LETTER, value=whole(survey)[0].data, headers={"alert": f"{survey}:x:0:1".encode()})
        assert second_opinion(sound, config).reason is None, survey
        assert second_opinion(replace(sound, headers={"alert": b"gone:x:0:1"}), config).reason is None
    for sample in damaged():
        source = sample.survey or "lsst"
        letter = replace(LETTER, value=sample.data, headers={"alert": f"{source}:x:0:1".encode()})
        assert second_opinion(letter, config).reason in ("damaged", "schema_unavailable")
    cut = replace(LETTER, value=b"x" * 10, headers={**LETTER.headers, "cut": b"true", "n_bytes": b"99"})
    assert second_opinion(cut, config) == Opinion("cut", "the letter holds 10 of 99 bytes: not read again")
    assert second_opinion(replace(LETTER, value=b"?", headers={}), config).reason == "unknown"
    assert second_opinion(replace(LETTER, value=None), config).reason == "empty"


def test_damaged_bytes_never_raise(tmp_path: Path) -> None:
    config, chance = configs.load(config_at(tmp_path, "127.0.0.1:1")), random.Random(6)
    for survey in surveys.NAMES:
        value = whole(survey)[0].data
        for _ in range(40):
            wrong = bytearray(value[: chance.randrange(len(value))])
            for _ in range(chance.randrange(4) if wrong else 0):
                wrong[chance.randrange(len(wrong))] = chance.randrange(256)
            letter = replace(LETTER, value=bytes(wrong), headers={"alert": f"{survey}:x:0:1".encode()})
            assert second_opinion(letter, config).detail


# --- over a real Kafka --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def config(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A topic with letters by the product's own function, the newest last, and a record that is none."""
    name = "dl"
    kept = {"retention.ms": "-1"}  # else Kafka deletes letters of these times at its next look, each 5 minutes
    kafka.create_topics(dict.fromkeys(topics_of(name).values(), 2), kept)
    cut_short = next(s.data for s in damaged() if "cut-short" in s.file)
    steering = "says \x1b[2J[red]boo[/red]"
    made = [
        dead_letter.Letter(b"k", cut_short, [("trace", b"1")], "lsst:dl-lsst:0:7", 0, "damaged", "cut short"),
        dead_letter.Letter(None, None, [], "lsst:dl-lsst:0:1", 0, "empty", "null value"),
        dead_letter.Letter(None, whole("ztf")[0].data, [], "ztf:dl-ztf:1:2", 0, "schema_unavailable", "was unknown"),
        dead_letter.Letter(None, bytes(900_000), [], "ztf:dl-ztf:1:3", 0, "damaged", steering),
    ]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    topic = topics_of(name)["dead_letters"]
    built = [dead_letter.build(letter, "m@1", 100_000) for letter in made]
    strange: tuple[bytes | None, bytes | None, Headers] = (None, b"\x00\x01", [])
    for i, (key, value, headers) in enumerate([*built, strange]):
        stamp = 1_790_000_000_000 + 1000 * i
        producer.produce(topic, key=key, value=value, headers=list(headers), partition=i % 2, timestamp=stamp)
    assert producer.flush(30) == 0
    return config_at(tmp_path_factory.mktemp("dl"), kafka.bootstrap_servers)


def listed(config: Path, *arguments: str) -> str:
    ended = broker("dead-letters", "list", "--config", config, *arguments)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_list_counts_and_each_is_by_time_and_steers_no_terminal(config: Path) -> None:
    text = listed(config, "--each")
    alerts = re.findall(r"(?:ztf|lsst):dl-\w+:\d:\d", text)
    assert alerts == ["lsst:dl-lsst:0:7", "lsst:dl-lsst:0:1", "ztf:dl-ztf:1:2", "ztf:dl-ztf:1:3"]
    assert "2026-09-21T14:13:20Z" in text
    assert "says \\x1b[2J[red]boo[/red]" in text
    assert re.search(r"900000 +│ cut", text)
    assert "not ours" in text
    assert text.splitlines()[-1] == "5 dead letters"
    counted = listed(config)
    assert re.search(r"2026-09-21T14:00Z +│ lsst +│ damaged +│ schema id 1000 +│ +1 │ +20000 ", counted)
    assert re.search(r"ztf +│ schema_unavailable +│ container ztf.alert \d.\d +│ +1 │", counted)
    assert counted.splitlines()[-1] == "5 dead letters"


def test_list_by_reason_time_schema_and_number(config: Path) -> None:
    assert listed(config, "--reason", "damaged").splitlines()[-1] == "2 dead letters"
    assert listed(config, "--schema", "1000", "--source", "lsst").splitlines()[-1] == "1 dead letters"
    assert listed(config, "--each", "--limit", "1").splitlines()[-1] == "5 dead letters, the newest 1 shown"
    since = listed(config, "--since", "2026-09-21T14:13:22Z")
    assert since.splitlines()[-1] == "3 dead letters"
    assert "lsst" not in since
    ended = broker("dead-letters", "list", "--config", config, "--reason", "broken")
    assert ended.returncode == 2
    assert "the reasons are schema_unavailable, damaged" in ended.stderr


def test_show_says_what_is_wrong_now(config: Path) -> None:
    ended = broker("dead-letters", "show", "--config", config, "lsst:dl-lsst:0:7")
    assert ended.returncode == 0, ended.stderr
    assert "still refused: damaged: the 19995 bytes end before the alert does" in ended.stdout
    assert "on the wire: schema id 1000, read as 1000; " in ended.stdout
    assert re.search(r"^ +47  diaSource\.diaSourceId = 170094456528175205$", ended.stdout, re.M)
    assert "at byte 6602: cutoutDifference: bytes of 34560 bytes, 13398 are left" in ended.stdout
    assert re.search(r"^00001940 .*", ended.stdout, re.M)  # 128 bytes before
    assert re.search(r"original\.trace +1", ended.stdout)
    assert re.search(r"^[0-9a-f]{8}  [0-9a-f]{2} ", ended.stdout, re.M)
    ended = broker("dead-letters", "show", "--config", config, "ztf:dl-ztf:1:2")
    assert "readable now: an alert of ztf, schema " in ended.stdout
    ended = broker("dead-letters", "show", "--config", config, "ztf:dl-ztf:1:3")
    assert "not read again: the letter holds 65536 of 900000 bytes" in ended.stdout
    assert "\x1b" not in ended.stdout


def test_an_alert_without_a_letter_is_wrong_usage(config: Path) -> None:
    loaded = configs.load(config)
    with pytest.raises(UsageError, match="no dead letter of alert 'ztf:dl-ztf:0:8'"):
        find(loaded, "ztf:dl-ztf:0:8")
    for wrong in ("7", "ztf:dl-ztf:0", "ztf:dl-ztf:0:x"):
        with pytest.raises(UsageError, match="needs source:topic:partition:offset"):
            find(loaded, wrong)
