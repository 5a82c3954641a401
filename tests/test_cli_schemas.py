"""`broker schemas`: what is known, what a registry adds, and whether it reads what there is."""

import json
from pathlib import Path

from registry_server import RegistryServer
from running import Alert, broker, send, topics_of, write_config
from samples import ALERTS, SCHEMAS, whole

from broker.embedded import EmbeddedKafka
from broker.wire import FRAME_BYTES, frame

TEXT = (SCHEMAS / "lsst" / "1100.avsc").read_text()


def successor(number: int) -> str:
    return json.dumps(json.loads(TEXT.replace("v11_0", f"v11_{number}")))


def test_known_ones_are_listed() -> None:
    ended = broker("schemas", "list")
    assert ended.returncode == 0, ended.stderr
    for text in ("id 1101", "ztf-3.3", "elasticc-0.9", "package"):
        assert text in ended.stdout


def test_the_cache_is_filled_and_listed_and_checked(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """An alert by a new schema is not read before the schema was fetched, and then it is."""
    kafka.create_topics({"check-in": 2})
    data = next(sample.data for sample in whole("lsst") if sample.schema == "1100")
    send(kafka, "check-in", [Alert(data), Alert(frame(1109, data[FRAME_BYTES:]))], 2)
    with RegistryServer() as server:
        server.put("alert-packet", {1100: TEXT, 1109: successor(9)})
        rest = f'[registry]\nurl = "{server.url}"\nsubjects = ["alert-packet"]\ncache = "schemas"'
        source = {"name": "night", "survey": "lsst", "topics": ["check-in"]}
        config = write_config(tmp_path, kafka.bootstrap_servers, [source], topics_of("check"), rest)
        before = broker("schemas", "check", "--config", config)
        assert before.returncode == 3
        assert "schema_unavailable" in before.stdout
        fetched = broker("schemas", "fetch", "--config", config)
        assert fetched.returncode == 0, fetched.stderr
        assert fetched.stdout.startswith("1109; the cache is ")
        assert broker("schemas", "fetch", "1109", "--config", config).stdout.startswith("1109; ")
        assert broker("schemas", "fetch", "1199", "--config", config).returncode == 3
    listed = broker("schemas", "list", "--config", config)
    assert "id 1109" in listed.stdout
    assert "registry" in listed.stdout
    after = broker("schemas", "check", "--config", config)
    assert after.returncode == 0, after.stdout + after.stderr
    rows = [row.split() for row in after.stdout.splitlines() if "lsst" in row]
    assert sorted(row[3] for row in rows) == ["1100", "1109"]
    away = broker("schemas", "fetch", "--config", config)
    assert away.returncode == 3
    assert "does not answer" in away.stderr


def test_files_are_checked(tmp_path: Path) -> None:
    sound = broker("schemas", "check", ALERTS / "elasticc.tar.gz")
    assert sound.returncode == 0, sound.stdout + sound.stderr
    (tmp_path / "unknown.bin").write_bytes(frame(1777, b"body"))
    (tmp_path / "cut.bin").write_bytes(next(s.data for s in whole("lsst"))[:2000])
    bad = broker("schemas", "check", tmp_path)
    assert bad.returncode == 3
    assert "1777" in bad.stdout
    assert "no known schema" in bad.stdout
    assert "damaged" in bad.stdout


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    for args, words in (
        (("fetch",), "which registry?"),
        (("fetch", "--registry", "http://localhost:9"), "which schemas?"),
        (("fetch", "--registry", "localhost"), "needs http://HOST:PORT"),
        (("fetch", "--registry", "http://me:secret@localhost"), "has a login in it"),
        (("check",), "check what?"),
    ):
        ended = broker("schemas", *args)
        assert ended.returncode == 2, ended.stdout
        assert words in ended.stderr
