"""Dead letters that are put back: answered once, by the job's own function, and the audit closes over them."""

import fcntl
import re
from dataclasses import dataclass, replace
from pathlib import Path

import generate
import pytest
from confluent_kafka import Producer
from decoding import assigned, hop
from running import Alert, Outcome, Place, broker, headers, read_outcome, send, topics_of, write_config
from samples import damaged, whole

from broker import config as configs
from broker.classify import classify
from broker.deadletter import Selection, original_of, read_letters
from broker.embedded import EmbeddedKafka
from broker.errors import UsageError
from broker.ledger import LedgerRow
from broker.outlets import Headers, dead_letter, native
from broker.putback import GONE, NO_SOURCE, NOT_OURS, put_back
from broker.topics import read_all

MODEL = "t2b-1@1"
CHANGES = {"brokerIngestTimestamp", "brokerPublishTimestamp", "alert_offset", "alert_topic", "alert_partition"}


@dataclass
class Night:
    """Alerts on a source, all of them rejected by a job that knew less."""

    kafka: EmbeddedKafka
    name: str
    folder: Path

    def __post_init__(self) -> None:
        self.topic, self.output = f"{self.name}-ztf", topics_of(self.name)
        self.json = f"{self.name}-json"  # an outlet, to which nothing goes that is put back
        self.kafka.create_topics({self.topic: 1} | dict.fromkeys([*self.output.values(), self.json], 2))
        source = {"name": "ztf", "survey": "ztf", "topics": [self.topic]}
        self.config = write_config(self.folder, self.kafka.bootstrap_servers, [source], self.output)
        outlet = f'[[outlet]]\nname = "json"\nkind = "json"\ntopic = "{self.json}"\n'
        self.config.write_text(self.config.read_text() + outlet)
        self.options = {"bootstrap.servers": self.kafka.bootstrap_servers}

    def reject(self, alerts: list[tuple[bytes | None, str]], max_bytes: int = 200_000) -> list[Place]:
        """Offer the alerts, write a letter for each, and the ledger's row."""
        sent = send(
            self.kafka, self.topic, [Alert(v, b"k%d" % i, [("night", b"1")]) for i, (v, _) in enumerate(alerts)]
        )
        places = sorted(sent)
        for place, (value, reason) in zip(places, alerts, strict=True):
            self.letter(f"ztf:{place.topic}:{place.partition}:{place.offset}", value, reason, max_bytes)
        run, counts = (places[0].offset, places[-1].offset), {"rejected/damaged": len(places)}
        row = LedgerRow("ztf", 0, 0, self.topic, 0, (run,), counts, MODEL, "q")
        self.write(self.output["ledger"], None, row.to_json(), [])
        return places

    def letter(self, alert: str, value: bytes | None, reason: str, max_bytes: int = 200_000) -> None:
        made = dead_letter.Letter(b"k", value, [("night", b"1")], alert, 1_790_000_000_000_000, reason, "once")
        self.write(self.output["dead_letters"], *dead_letter.build(made, MODEL, max_bytes))

    def write(self, topic: str, key: bytes | None, value: bytes | None, marks: Headers) -> None:
        producer = Producer(self.options)
        producer.produce(topic, key=key, value=value, headers=list(marks))
        assert producer.flush(30) == 0

    @property
    def outcome(self) -> Outcome:
        return read_outcome(self.kafka.bootstrap_servers, self.output)

    def command(self, *arguments: str) -> str:
        ended = broker("dead-letters", "replay", "--config", self.config, *arguments)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout


@pytest.fixture(scope="module")
def night(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Night:
    return Night(kafka, "putback", tmp_path_factory.mktemp("putback"))


def test_letters_are_answered_once_and_the_audit_closes(night: Night) -> None:
    sound = [sample.data for sample in whole("ztf")[:6]]
    big = generate.encode("ztf", "4.01", generate.alert("ztf", "4.01", 3) | {"cutoutDifference": stamp(400_000)})
    bad = next(s.data for s in damaged() if "line-ends" in s.file)
    deadly = generate.recursive(inside="3.3")
    alerts: list[tuple[bytes | None, str]] = [(value, "schema_unavailable") for value in sound]
    alerts += [(big, "too_large"), (bad, "damaged"), (deadly, "kills_reader"), (None, "empty")]
    places = night.reject(alerts)
    before = broker("audit", "--config", night.config)
    assert before.returncode == 0, before.stdout
    assert before.stdout.splitlines()[-1].startswith(
        "balanced: 10 offsets offered, 10 answered, 0 holes, 6 waiting for"
    )
    assert "put back" not in before.stdout

    with_outlet = night.config.with_name(
        "outlet.toml"
    )  # outlets get no late answers, so that their topics don't matter
    with_outlet.write_text(night.config.read_text() + '[[outlet]]\nname = "j"\nkind = "json"\ntopic = "nowhere"\n')
    dry = broker("dead-letters", "replay", "--config", with_outlet, "--dry-run").stdout
    assert dry.startswith("10 rejected alerts; 0 of them have a classification already\n7 would be answered now: ")
    assert not night.outcome.classifications
    assert night.command("--reason", "too_large").splitlines()[1].startswith("1 answered now: ")
    text = night.command()
    assert text.startswith("10 rejected alerts; 1 of them have a classification already\n6 answered now: ")
    again = re.search(r"^3 rejected again: (.*)$", text, re.M)
    assert again
    assert set(again[1].split(", ")) == {"rejected/damaged 1", "rejected/kills_reader 1", "rejected/empty 1"}
    second = night.command()
    assert second.startswith("10 rejected alerts; 7 of them have a classification already\n0 answered now\n3 rejected")

    outcome = night.outcome
    assert {place: len(found) for place, found in outcome.classifications.items()} == dict.fromkeys(places[:7], 1)
    assert {place: len(found) for place, found in outcome.dead_letters.items()} == dict.fromkeys(places, 1)
    for place in places[:7]:
        (message,) = outcome.classifications[place]
        marks = headers(message)
        (letter,) = outcome.dead_letters[place]
        assert marks["answers_letter"].decode() == f"{letter.topic()}:{letter.partition()}:{letter.offset()}"
        record = native.read(message.value() or b"")
        assert (record["alert_topic"], record["alert_partition"], record["alert_offset"]) == place
        assert message.key() == str(record["source_id"]).encode()
        assert record["alert_timestamp"].timestamp() == 1_790_000_000
    assert not list(read_all(night.options, night.json))
    after = broker("audit", "--config", night.config)
    assert after.returncode == 0, after.stdout
    assert after.stdout.splitlines()[-1].startswith("balanced: 10 offsets offered, 10 answered, 0 holes; no alert")
    assert re.search(r"0-9 +10 +10 +10 +0 +7 +0 +0 +0 +0", after.stdout)
    # A record that is sent once more is a repeat all the same.
    (message,) = outcome.classifications[places[0]]
    night.write(night.output["classifications"], message.key(), message.value(), list(headers(message).items()))
    doubled = broker("audit", "--config", night.config)
    assert doubled.returncode == 3
    assert "1 repeated" in doubled.stdout.splitlines()[-1]


def test_the_verdict_is_the_jobs(night: Night) -> None:
    answer = classify(hop("ztf", [sample.data for sample in whole("ztf")[:6]]), assigned("ztf"))
    due = [native.read(row["value"]) for part in answer.rows for row in part.to_pylist()]
    found = [m for p, (m, *_) in sorted(night.outcome.classifications.items()) if p.offset < 6]
    for message, record in zip(found, due, strict=True):
        got = native.read(message.value() or b"")
        assert {k: v for k, v in got.items() if k not in CHANGES | {"alert_timestamp"}} == {
            k: v for k, v in record.items() if k not in CHANGES | {"alert_timestamp"}
        }


def stamp(n: int) -> dict[str, object]:
    return {"fileName": "x", "stampData": bytes(n)}


def test_what_can_not_be_put_back_is_counted(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "putback-left", tmp_path)
    big = generate.encode("ztf", "4.01", generate.alert("ztf", "4.01", 4) | {"cutoutDifference": stamp(300_000)})
    (place,) = night.reject([(big, "too_large")])
    alert = f"ztf:{night.topic}:0:{place.offset}"
    night.letter(f"ztf:{night.topic}:0:77", big, "too_large")  # never was there
    night.letter("ztf:gone:0:1", big, "too_large")
    night.letter("other:night:0:1", whole("ztf")[0].data, "damaged")
    night.write(night.output["dead_letters"], None, b"x", [])
    loaded = configs.load(night.config)
    cut = [letter for letter in read_letters(night.options, night.output["dead_letters"], Selection()) if letter.is_cut]
    assert len(cut) == 3
    (mine,) = [letter for letter in cut if letter.text("alert") == alert]
    whole_again = original_of(night.options, mine)
    assert whole_again is not None
    assert (whole_again.value, whole_again.key, whole_again.is_cut) == (big, b"k0", False)
    assert original_of(night.options, replace(mine, headers={**mine.headers, "sha256": b"0"})) is None
    done = put_back(loaded, Selection(), dry_run=True)
    assert (done.n_letters, done.answered.total(), dict(done.left)) == (4, 1, {GONE: 2, NO_SOURCE: 1, NOT_OURS: 1})
    assert not list(read_all(night.options, night.output["classifications"]))


def test_one_at_a_time(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "putback-lock", tmp_path)
    folder = tmp_path / "checkpoints" / "ztf"
    folder.mkdir(parents=True)
    loaded = configs.load(night.config)
    with (folder / "replay-lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="another replay of dead letters runs"):
            put_back(loaded, Selection())
        assert put_back(loaded, Selection("lsst")).n_letters == 0
    assert put_back(loaded, Selection()).n_letters == 0
