"""A live source: nights come and go while the job runs, each with a checkpoint, and every alert has one answer."""

import json
import os
import signal
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from pathlib import Path

import pytest
from running import STARTUP_S, Alert, Outcome, Place, Running, broker, read_outcome, send, topics_of, write_config
from samples import whole

from broker import bounds, checkpoint, config
from broker.config import Source
from broker.embedded import EmbeddedKafka
from broker.errors import BrokerError, ConfigError, KafkaError
from broker.night_names import night_at, topic_of
from broker.nights import Nights, check_start, each_night, known_nights
from broker.part import prepare
from broker.topics import Reach

NAME = "sky_{night}_programid1"
OUTPUT = topics_of("sky") | {"create_topics": True}
ALERTS = [Alert(sample.data) for sample in whole("ztf")]
QUIET_S = 3.0
FLIP_S = 20  # from the start of the job to the end of its first night: Spark takes 10 s of it


# --- the job ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Nightly:
    """A job over four nights: it was killed, and started again."""

    kafka: EmbeddedKafka
    config: Path
    tonight: date
    sent: dict[Place, Alert]
    first: str
    was_done: bool
    """Whether the late alerts' topic had been left again before the kill."""
    second: str
    outcome: Outcome

    def topic(self, n: int) -> str:
        """That of the n-th night from the first one that was on."""
        return topic_of(NAME, self.tonight + timedelta(days=n))

    def folder(self, n: int) -> Path:
        return self.config.parent / "checkpoints" / "sky" / self.topic(n)


@pytest.fixture(scope="module")
def nightly(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Nightly:
    """Night -2 holds nothing, -1 is over, 0 ends while the job runs, the topic of 1 comes while it runs."""
    folder = tmp_path_factory.mktemp("sky")
    flips_at = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=FLIP_S)
    begins = flips_at.strftime("%H:%M:%S")
    tonight = night_at(datetime.now(UTC), begins)
    topics = {n: topic_of(NAME, tonight + timedelta(days=n)) for n in (-2, -1, 0, 1)}
    source = {"name": "sky", "survey": "ztf", "topics": [NAME], "max_alerts_per_batch": 20}
    source |= {"night_begins": begins, "night_quiet_s": QUIET_S}
    path = write_config(folder, kafka.bootstrap_servers, [source], OUTPUT)
    with Running(folder / "first.log", "run", "--config", path) as job:
        job.wait_for("sky: no night is open; waits for sky_")
        kafka.create_topics({topics[n]: 2 for n in (-2, -1, 0)})
        sent = send(kafka, topics[-1], ALERTS[:7], 2) | send(kafka, topics[0], ALERTS[7:27], 2)
        job.wait_for(f"sky/{topics[0]} batch 0")
        kafka.create_topics({topics[1]: 2})
        sent |= send(kafka, topics[1], ALERTS[27:37], 2)
        job.wait_for(f"sky/{topics[1]} batch 0")
        job.wait_for(f"sky/{topics[0]}: done")
        assert datetime.now(UTC) > flips_at
        sent |= send(kafka, topics[0], ALERTS[37:40], 2)  # late
        job.wait_for(f"3 alerts came to {topics[0]} after it was done")
        job.wait_for(f"sky/{topics[0]} batch 1: 3 alerts in")
        sent |= send(kafka, topics[1], ALERTS[40:110], 2)
        wait_for_a_batch(folder / "checkpoints" / "sky" / topics[1])
        os.kill(job.process.pid, signal.SIGKILL)
        job.process.wait(30)
        first = job.text
    was_done = (folder / "checkpoints" / "sky" / topics[0] / "done.json").exists()
    sent |= send(kafka, topics[1], ALERTS[:5], 2)
    second = broker("run", "--config", path, "--once", timeout_s=STARTUP_S)
    assert second.returncode == 0, second.stderr
    outcome = read_outcome(kafka.bootstrap_servers, OUTPUT)
    return Nightly(kafka, path, tonight, sent, first, was_done, second.stderr, outcome)


def wait_for_a_batch(folder: Path) -> None:
    """Return while a batch is planned and not committed."""
    deadline = time.monotonic() + 60
    while checkpoint.planned_spans(folder) is None:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_every_alert_of_every_night_has_one_answer(nightly: Nightly) -> None:
    assert {place: n for place in nightly.sent if (n := nightly.outcome.answers(place)) != 1} == {}
    assert nightly.outcome.repeats().keys() == {1}
    assert {place.topic for place in nightly.sent} == {nightly.topic(n) for n in (-1, 0, 1)}
    assert {row.source for row in nightly.outcome.ledger} == {"sky"}  # whatever the night


def test_each_night_is_read_for_itself_and_ends_for_itself(nightly: Nightly) -> None:
    source = config.load(nightly.config).sources[0]
    assert known_nights(source) == {nightly.topic(n): nightly.tonight + timedelta(days=n) for n in (-1, 0, 1)}
    assert [(nightly.folder(n) / "done.json").exists() for n in (-1, 0, 1)] == [True, True, False]
    assert all(any((nightly.folder(n) / bounds.FOLDER).iterdir()) for n in (-1, 0, 1))
    assert nightly.first.count("no night is open") == 1
    assert f"sky/{nightly.topic(-1)}: done: over, and nothing was left to read for 3 s" in nightly.first
    assert nightly.first.count(f"{nightly.topic(1)}: opened") == 1
    assert nightly.topic(-2) not in nightly.first
    running = next(line for line in nightly.second.splitlines() if "running: " in line)
    assert [nightly.topic(n) in running for n in (-2, -1, 0, 1)] == [False, False, not nightly.was_done, True]
    assert "restart" not in nightly.first + nightly.second
    assert "Traceback" not in nightly.first + nightly.second


def test_what_looks_at_the_source_from_outside_sees_its_nights(nightly: Nightly, tmp_path: Path) -> None:
    late = send(nightly.kafka, nightly.topic(-1), ALERTS[:2])  # nobody runs
    ended = broker("audit", "--config", nightly.config, "--json", tmp_path / "audit.json")
    assert ended.returncode == 0, ended.stdout + ended.stderr
    n = len(nightly.sent)
    assert f"balanced: {n} offsets offered, {n} answered, 0 holes" in ended.stdout
    assert f"{nightly.topic(-1)}: {len(late)} alerts came after its night was done" in ended.stdout
    assert f"{nightly.topic(-2)} is there, and the job has not begun with it" in ended.stdout
    told = json.loads((tmp_path / "audit.json").read_text())
    assert [(p["source"], p["topic"]) for p in told["partitions"][::2]] == [
        ("sky", nightly.topic(n)) for n in (-1, 0, 1)
    ]
    part, ends = prepare(config.load(nightly.config), "again", tmp_path / "again", (), None, None)
    assert part.sources[0].topics == tuple(ends["sky"]) == tuple(nightly.topic(n) for n in (-1, 0, 1))
    assert sum(end for parts in ends["sky"].values() for end in parts.values()) == n + len(late)
    checked = broker("schemas", "check", "--config", nightly.config, "--newest", "3")
    assert checked.returncode == 0, checked.stdout + checked.stderr


# --- what follows from what Kafka holds ---------------------------------------------------------------------------

NOON = datetime(2026, 11, 20, 12, tzinfo=UTC)
DAY = timedelta(days=1)


def options_of(kafka: EmbeddedKafka) -> dict[str, str]:
    return {"bootstrap.servers": kafka.bootstrap_servers}


def live(folder: Path, **settings: object) -> Source:
    values = {"name": "sky", "survey": "ztf", "topics": ["z_{night}"], "checkpoint": folder, "start": "earliest"}
    return Source.model_validate(values | {"nights": 3, "night_quiet_s": 600.0} | settings)


def nights_of(source: Source, held: Mapping[str, Mapping[int, Reach]] | None = None) -> Nights:
    """As a job begins with them; no Kafka is asked."""
    nights = Nights(source, {})
    nights.begin(held or {})
    return nights


def leave(folder: Path, topic: str, read: int, planned: int | None = None) -> None:
    """A night's checkpoint with one committed batch, and perhaps one that is only planned."""
    night = folder / topic
    for name in ("offsets", "commits", "sources/0"):
        (night / name).mkdir(parents=True, exist_ok=True)
    (night / "imprint.json").write_text("{}")
    (night / "metadata").write_text('{"id": "q"}')
    (night / "sources/0/0").write_text("\0v1\n" + json.dumps({topic: {"0": 0}}))
    for batch, end in enumerate([read] if planned is None else [read, planned]):
        ends = json.dumps({topic: {"0": end}})
        (night / f"offsets/{batch}").write_text(f'v1\n{{"batchTimestampMs": 1}}\n{ends}')
    (night / "commits/0").write_text("v1\n{}")


def holds(**ends: int) -> dict[str, dict[int, Reach]]:
    return {topic: {0: Reach(0, end)} for topic, end in ends.items()}


def opened(nights: Nights, held: Mapping[str, Mapping[int, Reach]], now: datetime = NOON) -> list[str]:
    return [source.topics[0] for source in nights.to_open(held, now)]


def test_nights_that_are_looked_for(tmp_path: Path) -> None:
    nights = nights_of(live(tmp_path, topics=["z_{night}", "z_{night}_p2"]))
    dates = ["20261121", "20261120", "20261119", "20261118"]  # the next one, since clocks differ
    assert list(nights.wanted(NOON)) == [f"z_{d}{end}" for d in dates for end in ("", "_p2")]
    assert "z_20261117" in nights.wanted(NOON - DAY)
    assert nights.next_topics(NOON) == "z_20261120, z_20261120_p2"
    begun_at_noon = nights_of(live(tmp_path / "other", night_begins="12:00:01"))
    assert [max(begun_at_noon.wanted(NOON + timedelta(seconds=s))) for s in (0, 1)] == ["z_20261120", "z_20261121"]


def test_no_night_is_passed_over_after_a_long_stop(tmp_path: Path) -> None:
    nights = nights_of(live(tmp_path))
    leave(tmp_path, "z_20261101", 5)
    leave(tmp_path, "z_20261102", 5)
    nights.finish("z_20261101", NOON)
    assert min(nights.wanted(NOON)) == "z_20261102"
    nights.finish("z_20261102", NOON)
    assert min(nights.wanted(NOON)) == "z_20261103"
    leave(tmp_path, "z_20261120", 5)
    assert min(nights.wanted(NOON)) == "z_20261118"


def test_a_night_opens_where_there_is_something_to_read_or_it_goes_on(tmp_path: Path) -> None:
    nights = nights_of(live(tmp_path))
    held = holds(z_20261118=0, z_20261119=3, z_20261120=0) | {"z_20261117": {0: Reach(0, 9)}}
    assert opened(nights, held) == ["z_20261119", "z_20261120"]
    assert opened(nights, held) == []
    assert opened(nights, held | holds(z_20261121=0)) == ["z_20261121"]
    expired = {"z_20261118": {0: Reach(7, 7)}}
    assert opened(nights_of(live(tmp_path / "2")), expired) == []
    assert opened(nights_of(live(tmp_path / "3")), {"z_20261120": {}}) == ["z_20261120"]  # has no leader yet


def test_a_night_ends_when_it_is_over_and_quiet(tmp_path: Path) -> None:
    nights = nights_of(live(tmp_path))
    opened(nights, holds(z_20261120=5))
    leave(tmp_path, "z_20261120", 5)
    over = datetime(2026, 11, 21, tzinfo=UTC)

    def closes(minutes: float, end: int = 5) -> bool:
        return nights.to_close(holds(z_20261120=end), over + timedelta(minutes=minutes)) == ["z_20261120"]

    assert not any(closes(minutes) for minutes in (-60, -1, 0, 8.9))
    assert closes(9)  # ten minutes from the last look in the night
    assert not closes(9.2, 6)
    leave(tmp_path, "z_20261120", 5, 6)  # planned is not read
    assert not closes(10, 6)
    leave(tmp_path, "z_20261120", 6)
    (tmp_path / "z_20261120/offsets/1").unlink()
    assert not closes(19.9, 6)
    assert nights.to_close({}, over + timedelta(minutes=20)) == []  # not known: the topic did not answer
    assert not closes(29.9, 6)
    assert closes(30, 6)
    nights.finish("z_20261120", over)
    assert nights.open == {}
    assert opened(nights, holds(z_20261120=6), over) == []


def test_late_alerts_open_a_night_again_while_it_is_among_the_last(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nights = nights_of(live(tmp_path))
    for topic in ("z_20261117", "z_20261118"):
        leave(tmp_path, topic, 5)
        nights.finish(topic, NOON)
    assert opened(nights, holds(z_20261117=6, z_20261118=5)) == []
    assert opened(nights, holds(z_20261117=6, z_20261118=8)) == ["z_20261118"]
    assert "sky: 3 alerts came to z_20261118 after it was done" in caplog.text
    late = holds(z_20261118=8)
    assert opened(nights_of(live(tmp_path), late), late) == ["z_20261118"]  # a start resumes it


@pytest.mark.parametrize(
    ("start", "begins"), [("earliest", "earliest"), ("latest", '{"z_20261120": {"0": 7, "1": -2}}')]
)
def test_start_counts_for_nights_that_are_there_at_the_first_start(tmp_path: Path, start: str, begins: str) -> None:
    first = nights_of(live(tmp_path, start=start), holds(z_20261119=9, z_20261120=7))
    more = {"z_20261120": {0: Reach(0, 8), 1: Reach(0, 1)}}  # a partition more
    (tonight,) = first.to_open(more, NOON)
    assert (tonight.start, tonight.name) == (begins, "sky")
    assert tonight.checkpoint == tmp_path / "z_20261120"
    again = nights_of(live(tmp_path, start="earliest"), holds(z_20261121=4))
    assert opened(again, holds(z_20261119=9)) == ([] if start == "latest" else ["z_20261119"])
    (following,) = again.to_open(holds(z_20261121=4), NOON)
    assert following.start == "earliest"


def test_a_start_by_time(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    topic = topic_of("at_{night}", datetime.now(UTC).date())
    kafka.create_topics({topic: 1})
    send(kafka, topic, [Alert(b"1"), Alert(b"2")])
    time.sleep(0.01)
    source = live(tmp_path, topics=["at_{night}"], start=datetime.now(UTC))
    nights = Nights(source, options_of(kafka))
    send(kafka, topic, [Alert(b"3")])
    held = nights.ask(datetime.now(UTC))
    assert held == {topic: {0: Reach(0, 3)}}
    nights.begin(held)
    assert json.loads(nights.night(topic).start) == {topic: {"0": 2}}  # type: ignore[arg-type]  # offsets, as Spark's


def test_a_night_that_is_gone_is_not_passed_over_in_silence(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    nights_of(live(tmp_path))
    leave(tmp_path, "z_20261101", 5)
    with pytest.raises(BrokerError, match=r"z_20261101 is gone, and its night was not done.*on_data_loss"):
        nights_of(live(tmp_path))
    with pytest.raises(ConfigError, match="z_20261101 is not done, and its topic is none of 'topics' any more"):
        nights_of(live(tmp_path, topics=["y_{night}"]))
    nights = nights_of(live(tmp_path, on_data_loss="go_on"))
    assert "z_20261101 is gone, and its night was not done; what was unread of it is lost" in caplog.text
    assert "z_20261101" not in nights.wanted(NOON)
    nights_of(live(tmp_path))  # told once


def test_a_checkpoint_is_of_one_kind(tmp_path: Path) -> None:
    fixed = {"topics": ("z",), "start": None}
    with pytest.raises(ConfigError, match="is new, so 'start' must be given"):
        check_start(live(tmp_path, start=None))
    nights_of(live(tmp_path))
    check_start(live(tmp_path, start=None))
    with pytest.raises(ConfigError, match="was written for a topic per night, and this is a list of topics"):
        check_start(live(tmp_path).model_copy(update=fixed))
    leave(tmp_path, "old", 5)
    with pytest.raises(ConfigError, match="was written for a list of topics, and this is a topic per night"):
        check_start(live(tmp_path / "old"))
    (tmp_path / "nights.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"nights.json: can't be read: KeyError"):
        nights_of(live(tmp_path))


def test_from_outside_without_the_jobs_folder(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    source, notes = live(tmp_path, topics=["out_{night}"]), list[str]()
    with pytest.raises(
        KafkaError, match=r"no topic is there by out_\{night\}: 4 nights from out_20261118 to out_20261121"
    ):
        each_night(source, options_of(kafka), NOON, notes)
    kafka.create_topics({"out_20261119": 1, "out_20261101": 1})
    (night,) = each_night(source, options_of(kafka), NOON, notes)
    assert (night.topics, night.start, night.checkpoint) == (("out_20261119",), "earliest", tmp_path / "out_20261119")
    nights_of(source)
    leave(tmp_path, "out_20261101", 0)
    leave(tmp_path, "out_20261102", 0)
    (night,) = each_night(source, options_of(kafka), NOON, notes)
    assert night.topics == ("out_20261101",)
    assert notes == [
        "sky: the topics of 1 nights are gone, which can't be looked at: out_20261102",
        "sky: out_20261119 is there, and the job has not begun with it",
    ]
