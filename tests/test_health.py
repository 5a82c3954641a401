"""The health file: what it says at each moment of a job, and what a probe makes of it."""

import json
import time
from pathlib import Path

import pytest
from running import broker, write_config

from broker.health import Health, SourceHealth, complaint


def read(file: Path) -> dict[str, object]:
    found: dict[str, object] = json.loads(file.read_text())
    return found


def test_it_follows_the_job(tmp_path: Path) -> None:
    file = tmp_path / "new" / "health.json"
    source = SourceHealth()
    with Health(file) as health:
        health.sources["ztf"] = source
        assert complaint(file, 60) is None
        assert "starting, not ready" in str(complaint(file, 60, wants_ready=True))
        source.state, source.batch, source.lag = "running", 7, 3
        health.tell("running")
        assert complaint(file, 60, wants_ready=True) is None
        found = read(file)
        assert (found["state"], found["ready"]) == ("running", True)
        assert found["sources"] == {"ztf": vars(source)}
        for source.state, source.balanced in (("restarting", True), ("running", False)):
            health._written_at = float("-inf")
            health.tell()
            assert "the job is running, not ready: ztf " in str(complaint(file, 60, wants_ready=True))
            assert complaint(file, 60) is None
    assert complaint(file, 60) == "the job has stopped"
    assert [path.name for path in file.parent.iterdir()] == ["health.json"]


def test_it_is_written_once_a_second_and_at_each_change(tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    health = Health(file)
    began = time.monotonic()
    health.tell("running")
    first = file.read_text()
    health.tell()
    assert file.read_text() == first or time.monotonic() - began >= 1
    health.sources["ztf"] = SourceHealth("restarting")
    health.tell()
    assert read(file)["ready"] is False
    health.tell("draining")
    assert read(file)["state"] == "draining"


def test_the_end_says_why(tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    with pytest.raises(ValueError, match="books"), Health(file):
        raise ValueError("books")
    assert complaint(file, 60) == "the job has failed: books"


def test_a_probe_says_what_is_wrong_with_the_file(tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    assert "the job has not started" in str(complaint(file, 60))
    for text in ("", "[]", "{}", '{"health": 1, "time": "x"}'):
        file.write_text(text)
        assert "not a health file" in str(complaint(file, 60))
    file.write_text('{"health": 2}')
    assert "version 2" in str(complaint(file, 60))
    Health(file).tell("running")
    old = read(file) | {"time": "2026-01-01T00:00:00+00:00"}
    file.write_text(json.dumps(old))
    assert "60 s are allowed" in str(complaint(file, 60))


def test_a_file_that_can_not_be_written_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    with Health(tmp_path / "file" / "health.json") as health:
        health.tell("running")
    assert len([m for m in caplog.messages if "can't be written" in m]) == 1
    with Health(None) as health:
        health.tell("running")


def test_the_command_asks_the_file_of_the_config(tmp_path: Path) -> None:
    source = {"name": "one", "survey": "ztf", "topics": ["in"]}
    config = write_config(tmp_path, "127.0.0.1:9", [source])
    without = broker("health", "--config", config)
    assert without.returncode == 2
    assert "[service] has no health_file" in without.stderr
    config.write_text(config.read_text() + '[service]\nhealth_file = "state/health.json"\n')
    missing = broker("health", "--config", config)
    assert missing.returncode == 3
    assert f"{tmp_path / 'state' / 'health.json'}: No such file" in missing.stderr
    with Health(tmp_path / "state" / "health.json") as health:
        health.tell("running")
        for arguments, word in (((), "alive"), (("--ready",), "ready")):
            found = broker("health", "--config", config, *arguments)
            assert (found.returncode, found.stdout) == (0, f"{word}\n")
