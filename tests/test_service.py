"""The job as it runs for users: what comes in is answered, the books balance, and it stops where they do not."""

import hashlib
import io
import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, cast

import fastavro
import pytest
from confluent_kafka import Message
from generate import recursive
from mixture import killers, mixture
from reference import light_curve
from running import Alert, Outcome, Place, broker, headers, read_outcome, send, topics_of, write_config

from broker.embedded import EmbeddedKafka
from broker.ledger import Span, compare
from broker.outlets.dead_letter import CUT_BYTES
from broker.topics import watermarks
from broker.verdict import REASONS

SURVEYS = ("lsst", "ztf", "elasticc")
LETTER_BYTES = 200_000  # what the dead-letter topic takes
MAX_POINTS = 256  # of the model in use
OUTPUT = topics_of("mix") | {"create_topics": True}


@dataclass(frozen=True)
class Mixed:
    """A finished run over the whole mixture, and the same config run again."""

    sent: dict[Place, Alert]
    first: str
    outcome: Outcome
    second: str
    after_second: Outcome
    ends: dict[str, dict[int, int]]


@pytest.fixture(scope="module")
def mixed(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Mixed:
    """All surveys and a source with a killer, in one job; the dead-letter topic takes 200 kB."""
    folder = tmp_path_factory.mktemp("mix")
    topics = {survey: f"mix-{survey}" for survey in (*SURVEYS, "killer")}
    kafka.create_topics({topics[survey]: 2 for survey in SURVEYS} | {topics["killer"]: 1, "mix-empty": 1})
    kafka.create_topics({str(OUTPUT["dead_letters"]): 1}, {"max.message.bytes": str(LETTER_BYTES)})
    sent: dict[Place, Alert] = {}
    for survey in SURVEYS:
        sent |= send(kafka, topics[survey], mixture(survey), 2)
    sent |= send(kafka, topics["killer"], killers())
    sources: list[dict[str, Any]] = [{"name": s, "survey": s, "topics": [topics[s]]} for s in SURVEYS]
    sources.append({"name": "killer", "survey": "ztf", "topics": [topics["killer"], "mix-empty"]})
    for source in sources:
        source["max_alerts_per_batch"] = 150
    config = write_config(folder, kafka.bootstrap_servers, sources, OUTPUT)
    first = broker("run", "--config", config, "--once", timeout_s=300)
    assert first.returncode == 0, first.stderr
    outcome = read_outcome(kafka.bootstrap_servers, OUTPUT)
    second = broker("run", "--config", config, "--once", timeout_s=120)
    assert second.returncode == 0, second.stderr
    after = read_outcome(kafka.bootstrap_servers, OUTPUT)
    reach = watermarks({"bootstrap.servers": kafka.bootstrap_servers}, [*topics.values(), "mix-empty"])
    ends = {topic: {p: r.last_exclusive for p, r in parts.items()} for topic, parts in reach.items()}
    return Mixed(sent, first.stdout + first.stderr, outcome, second.stdout + second.stderr, after, ends)


def verdict(message: Message) -> str:
    """The "status/reason" of a record on either topic."""
    found = headers(message)
    if "reason" in found:
        return f"rejected/{found['reason'].decode()}"
    record = read(message)
    return f"{record['status']}/{record['reason']}"


def read(message: Message) -> dict[str, Any]:
    """A classification, read by nothing but fastavro and the schema in its own container."""
    (record,) = fastavro.reader(io.BytesIO(message.value() or b""))
    return cast(dict[str, Any], record)


def test_every_alert_is_answered_exactly_once(mixed: Mixed) -> None:
    answers = Counter({place: mixed.outcome.answers(place) for place in mixed.sent})
    assert {place: n for place, n in answers.items() if n != 1} == {}
    assert mixed.outcome.repeats().keys() == {1}
    assert len(mixed.outcome.classifications) + len(mixed.outcome.dead_letters) == len(mixed.sent) > 600


def test_every_verdict_is_the_one_that_is_due(mixed: Mixed) -> None:
    wrong = {}
    for place, alert in mixed.sent.items():
        (message,) = mixed.outcome.classifications.get(place) or mixed.outcome.dead_letters[place]
        found = verdict(message)
        status, reason = found.split("/")
        assert reason in REASONS[status]
        is_due = alert.group == "any" or found == alert.group or status == alert.group
        if not is_due and not (alert.group in ("answered", "sample") and status != "rejected"):
            wrong[place] = (alert.group, found, headers(message).get("detail"))
    assert wrong == {}


def test_samples_become_what_a_plain_reading_says(mixed: Mixed) -> None:
    n = 0
    for place, alert in mixed.sent.items():
        if alert.group == "sample":
            assert alert.value is not None
            survey = place.topic.removeprefix("mix-")
            curve = light_curve(alert.value, survey)
            record = read(mixed.outcome.classifications[place][0])
            assert (record["survey"], record["source_id"]) == (survey, curve["source_id"])
            assert record["object_id"] == curve["object_id"]
            n_points = len(curve["mjd_tai"])  # of longer ones nights are averaged
            assert record["n_points_used"] == n_points or MAX_POINTS / 4 < record["n_points_used"] <= MAX_POINTS
            assert (record["n_points_used"] < n_points) == (n_points > MAX_POINTS)
            assert (record["alert_topic"], record["alert_partition"], record["alert_offset"]) == place
            n += 1
    assert n > 250


def test_probabilities_are_given_whenever_the_model_ran(mixed: Mixed) -> None:
    for messages in mixed.outcome.classifications.values():
        record = read(messages[0])
        assert bool(record["classifications"]) == (record["n_points_used"] > 0) == (record["probability"] is not None)
        if record["classifications"]:
            given = [c["probability"] for c in record["classifications"]]
            assert sum(given) == pytest.approx(1, abs=1e-5)
            assert record["probability"] == max(given)
        assert messages[0].key() == str(record["source_id"]).encode()
        assert json.loads(record["classifierParams"])["moving_min_minutes"] == 30


def test_dead_letters_keep_bytes_key_and_headers(mixed: Mixed) -> None:
    n_cut = 0
    for place, (message,) in mixed.outcome.dead_letters.items():
        alert, found, value = mixed.sent[place], headers(message), message.value()
        if found.get("cut") == b"true":
            n_cut += 1
            assert alert.value is not None
            assert value == alert.value[:CUT_BYTES]
            assert int(found["n_bytes"]) == len(alert.value) > LETTER_BYTES - 5000
            assert found["sha256"].decode() == hashlib.sha256(alert.value).hexdigest()
            continue
        assert (value, message.key()) == (alert.value, alert.key)
        kept = {name.removeprefix("original."): v for name, v in found.items() if name.startswith("original.")}
        assert kept == dict(alert.headers)
    assert n_cut >= 5  # deflate bombs on each topic, 17 MB of nothing, the killer


def test_ledger_rows_balance_with_the_offsets(mixed: Mixed) -> None:
    for source in (*SURVEYS, "killer"):
        topics = [f"mix-{source}"] + (["mix-empty"] if source == "killer" else [])
        spans = [Span(topic, p, 0, end) for topic in topics for p, end in mixed.ends[topic].items()]
        rows = [row for row in mixed.outcome.ledger if row.source == source]
        balance = compare(spans, rows)
        assert balance.is_balanced
        assert balance.repeated == 0
        records = [
            verdict(message)
            for by_place in (mixed.outcome.classifications, mixed.outcome.dead_letters)
            for place, messages in by_place.items()
            for message in messages
            if place.topic in topics
        ]
        assert balance.counts == Counter(records)


def test_a_killer_is_found_alone_and_rejected(mixed: Mixed) -> None:
    assert mixed.first.count("killer batch 0: a worker failed (1)") == 1
    assert mixed.first.count("killer batch 0: a worker failed (2)") == 1
    assert "killer batch 0: runs again alert by alert" in mixed.first
    (place,) = [place for place, alert in mixed.sent.items() if alert.group == "rejected/kills_reader"]
    (letter,) = mixed.outcome.dead_letters[place]
    found = headers(letter)
    assert found["reason"] == b"kills_reader"
    assert found["detail"] == b"the process that read it ended with SIGSEGV"
    assert letter.value() == recursive(inside="3.3")[:CUT_BYTES]


def test_nobody_sees_a_stack_trace_and_each_batch_has_its_line(mixed: Mixed) -> None:
    assert "Traceback" not in mixed.first + mixed.second
    for survey in SURVEYS:
        assert f"{survey} batch 0: " in mixed.first
    assert f"{len(mixed.sent)} alerts answered" in mixed.first


def test_the_same_config_run_again_answers_nothing_twice(mixed: Mixed) -> None:
    assert "0 alerts answered: none" in mixed.second
    assert mixed.after_second.repeats() == mixed.outcome.repeats()
    assert len(mixed.after_second.ledger) == len(mixed.outcome.ledger)
