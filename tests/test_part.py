"""Replay is live: the same alerts live, copied to another topic, as a part of their topic, and from files."""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Producer
from running import broker, topics_of, write_config
from samples import damaged, whole

from broker import config
from broker.compare import compare, records
from broker.delivery import Outlet
from broker.embedded import EmbeddedKafka
from broker.errors import UsageError
from broker.part import prepare
from broker.topics import read_all, watermarks

VALUES = [s.data for s in whole("ztf")[:60]] + [s.data for s in damaged()]
BEGAN = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)  # retention deletes what is a week old
FIRST, LAST = 10, 25  # the part: offsets of both partitions


@dataclass(frozen=True)
class Ran:
    """What the runs left behind."""

    servers: str
    folder: Path
    config: Path

    def answers(self, which: str) -> str:
        """Both output topics of a run, as `compare` takes them."""
        return f"{self.servers}/{which}-classifications,{which}-dead-letters"


@pytest.fixture(scope="module")
def ran(kafka: EmbeddedKafka, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Alerts on two partitions, answered live."""
    folder, servers = tmp_path_factory.mktemp("part"), kafka.bootstrap_servers
    kafka.create_topics({"part-in": 2, "part-copy": 2})
    producer = Producer({"bootstrap.servers": servers, "enable.idempotence": True})
    for i, value in enumerate(VALUES):
        time_ms = int(BEGAN.timestamp() * 1000) + 1000 * i
        producer.produce("part-in", value, b"%d" % i, i % 2, timestamp=time_ms, headers=[("n", b"x")])
    assert producer.flush(30) == 0
    source = {"name": "ztf", "survey": "ztf", "topics": ["part-in"], "max_alerts_per_batch": 24}
    path = write_config(folder, servers, [source], topics_of("part-live") | {"create_topics": True})
    live = broker("run", "--config", path, "--once", timeout_s=400)
    assert f"{len(VALUES)} alerts answered" in live.stdout, live.stdout + live.stderr
    return Ran(servers, folder, path)


def test_live_replayed_and_from_files(ran: Ran) -> None:
    """All alerts, by another topic and from files: bit for bit, and the bytes of the rejected ones as well."""
    copied = broker(
        "replay", f"{ran.servers}/part-in", "--to", f"{ran.servers}/part-copy", "--rate", "500", timeout_s=120
    )
    assert f"sent {len(VALUES)} alerts" in copied.stdout, copied.stderr
    source = {"name": "copy", "survey": "ztf", "topics": ["part-copy"]}
    (ran.folder / "copy").mkdir()
    path = write_config(
        ran.folder / "copy", ran.servers, [source], topics_of("part-replayed") | {"create_topics": True}
    )
    replayed = broker("run", "--config", path, "--once", timeout_s=400)
    assert replayed.returncode == 0, replayed.stderr
    same = broker("models", "compare", ran.answers("part-live"), ran.answers("part-replayed"), timeout_s=120)
    assert same.returncode == 0, same.stdout + same.stderr
    assert f"{len(VALUES)} the same to the bit" in same.stdout
    files = ran.folder / "files"
    files.mkdir()
    for i, value in enumerate(VALUES):
        (files / f"{i}.avro").write_bytes(value)
    out = ran.folder / "files.parquet"
    classified = broker("classify", files, "-o", out, timeout_s=400)
    assert classified.returncode == 0, classified.stderr
    found = compare(f"{ran.servers}/part-live-classifications", str(out))
    assert found.is_same, found
    assert found.n_same == 60


def test_a_part_of_a_topic_again(ran: Ran) -> None:
    """Up to its last offset and no further, twice; what the live job has is as it was."""
    offsets = [json.dumps({"part-in": {"0": n, "1": n}}) for n in (FIRST, LAST)]
    before = watermarks({"bootstrap.servers": ran.servers}, topics_of("part-live").values())
    order = ("repeat", "--config", ran.config, "--into", "part-again", "--since", offsets[0], "--until", offsets[1])
    again = broker(*order, timeout_s=400)
    assert again.returncode == 0, again.stderr
    assert f"{2 * (LAST - FIRST)} alerts answered into part-again-classifications" in again.stdout
    options = {"bootstrap.servers": ran.servers}
    places = {dict(m.headers() or [])["alert"] for t in topics_of("part-again").values() for m in letters(options, t)}
    assert places == {b"ztf:part-in:%d:%d" % (p, o) for p in (0, 1) for o in range(FIRST, LAST)}
    done = broker(*order, timeout_s=120)
    assert (done.returncode, "done already" in done.stdout) == (0, True), done.stderr
    found = compare(ran.answers("part-live"), ran.answers("part-again"))
    assert (found.n_same, found.n_there, found.n_differ) == (2 * (LAST - FIRST), 2 * (LAST - FIRST), 0)
    assert watermarks(options, topics_of("part-live").values()) == before
    assert {p.name for p in (ran.folder / "checkpoints").iterdir()} == {"ztf"}
    assert len(list(records(ran.answers("part-live"), options))) == len(VALUES)


def letters(options: dict[str, str], topic: str) -> list[Any]:
    """Records that answer an alert."""
    return [] if topic.endswith("-ledger") else list(read_all(options, topic))


def test_parts_by_time_and_what_they_cannot_be(ran: Ran, tmp_path: Path) -> None:
    loaded = config.load(ran.config)
    since, until = ((BEGAN + timedelta(seconds=s)).isoformat() for s in (10, 20))
    outlet = Outlet(name="json", kind="json", topic="of-the-live-job")
    with_outlet = loaded.model_copy(update={"outlets": (outlet,)})
    moved, ends = prepare(with_outlet, "x", tmp_path / "a", (), since, until)
    assert moved.outlets == ()
    assert ends == {"ztf": {"part-in": {"0": 10, "1": 10}}}
    assert json.loads(str(moved.sources[0].start)) == {"part-in": {"0": 5, "1": 5}}
    assert moved.output.topics == ("x-classifications", "x-dead-letters", "x-ledger")
    assert moved.sources[0].checkpoint == tmp_path / "a" / "ztf"
    assert prepare(loaded, "x", tmp_path / "a", (), None, None)[1] == ends  # as it was begun
    _, whole_topic = prepare(loaded, "x", tmp_path / "b", ("ztf",), None, None)
    assert sum(whole_topic["ztf"]["part-in"].values()) == len(VALUES)
    wrong: list[tuple[str, tuple[str, ...], str | None, str]] = [
        ("part-live", (), None, "is a topic of the live job"),
        ("x", ("lsst",), None, "--source lsst: its sources are ztf"),
        ("x", (), "yesterday", "needs a time with a zone"),
        ("x", (), '{"part-in": {"0": 9999}}', "part-in:0 holds 0 to 32; 9999 was asked for"),
        ("x", (), '{"part-in": {"7": 0}}', "part-in:7 is not there"),
        ("x", (), '{"part-in": [1]}', "needs offsets such as"),
        ("x", (), "2033-01-01T00:00:00Z", "no alerts of ztf lie there"),
    ]
    for number, (into, names, text, message) in enumerate(wrong):
        with pytest.raises(UsageError, match=message):
            prepare(loaded, into, tmp_path / f"w{number}", names, text, None)
