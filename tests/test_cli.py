"""The command: help with examples, exit codes, and one message for each mistake."""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from running import broker, write_config

from broker import __version__
from broker.cli import app

SECRET = "correct-horse-battery"


def one_line(text: str) -> str:
    """The text, whose only line it is."""
    (line,) = text.splitlines()
    return line


def config(folder: Path, rest: str = "", **changes: object) -> Path:
    source = {"name": "ztf", "survey": "ztf", "topics": ["night"]} | changes
    return write_config(folder, "localhost:9092", [source], rest=rest)


def leaves(command: Any, path: str = "broker") -> Iterator[tuple[str, str]]:
    """Each command with its words and its help."""
    below = getattr(command, "commands", {})
    if not below:
        yield path, command.help or ""
    for name, inner in below.items():
        yield from leaves(inner, f"{path} {name}")


def test_every_command_has_an_example_of_itself() -> None:
    found = dict(leaves(typer.main.get_command(app)))
    assert {"broker run", "broker classify", "broker config show", "broker models list"} <= found.keys()
    assert [path for path, text in found.items() if f"Example: {path}" not in text] == []
    for group in ([], ["run"], ["config"], ["models", "show"]):
        shown = broker(*group, "--help")
        assert shown.returncode == 0
        wanted = f"Example: broker {' '.join(group)}" if group in (["run"], ["models", "show"]) else "Commands"
        assert wanted in " ".join(shown.stdout.split())


def test_version() -> None:
    assert one_line(broker("--version").stdout) == __version__


@pytest.mark.parametrize("args", [("run", "--confg", "x"), ("run",), ("jog",), ("models", "show", "a", "b")])
def test_wrong_usage_is_exit_2(args: tuple[str, ...]) -> None:
    ended = broker(*args)
    assert ended.returncode == 2
    assert ended.stderr
    assert "Traceback" not in ended.stderr


def test_wrong_key_names_the_nearest(tmp_path: Path) -> None:
    ended = broker("config", "check", "--config", config(tmp_path, start_="earliest"))
    assert ended.returncode == 2
    assert "[[source]] 'ztf' has an unknown key 'start_': did you mean 'start'?" in one_line(ended.stderr)


def test_missing_file_is_one_line(tmp_path: Path) -> None:
    ended = broker("run", "--config", tmp_path / "none.toml")
    assert ended.returncode == 2
    assert one_line(ended.stderr).startswith(f"error: config {tmp_path / 'none.toml'}: can't be read")


def test_config_show_tells_origins_and_masks_secrets(tmp_path: Path) -> None:
    rest = (
        'username_env = "T2_TEST_USER"\npassword_env = "T2_TEST_PASSWORD"\n'
        '[kafka.options]\n"sasl.mechanism" = "PLAIN"\n"security.protocol" = "SASL_SSL"'
    )
    file = config(tmp_path, rest)
    login = {"T2_TEST_USER": "me", "T2_TEST_PASSWORD": SECRET, "COLUMNS": "400"}
    shown = broker("config", "show", "--config", file, changes=login)
    assert shown.returncode == 0, shown.stderr
    assert SECRET not in shown.stdout + shown.stderr
    rows = {cells[0]: cells[1:] for line in shown.stdout.splitlines() if len(cells := _cells(line)) == 3}
    assert rows["kafka.password"] == ["********", "environment variable T2_TEST_PASSWORD"]
    assert rows["kafka.bootstrap_servers"] == ["localhost:9092", str(file)]
    assert rows["source[ztf].max_alert_bytes"] == ["16777216", "default"]
    without = broker("config", "show", "--config", file, changes={"COLUMNS": "400"})
    assert "(not set)" in without.stdout


def _cells(line: str) -> list[str]:
    return re.split(r"\s{2,}", line.strip())


def test_config_check_loads_the_model(tmp_path: Path) -> None:
    fine = broker("config", "check", "--config", config(tmp_path))
    assert fine.returncode == 0
    assert one_line(fine.stdout).endswith("fine; 1 source(s), model t2b-1@1")
    missing = broker("config", "check", "--config", config(tmp_path, '[model]\nname = "t2b-10"'))
    assert missing.returncode == 2
    assert "no model 't2b-10': neither a released one (t2-paper, t2b-1, t2b-1-open) nor a" in one_line(missing.stderr)


def test_models_list_and_show() -> None:
    listed = broker("models", "list")
    assert listed.returncode == 0
    assert "t2b-1" in listed.stdout
    assert "SNIa" in listed.stdout
    shown = broker("models", "show", "t2b-1")
    assert shown.returncode == 0
    assert 'name = "t2b-1"' in shown.stdout
    assert "[[classes]]" in shown.stdout
    unknown = broker("models", "show", "none")
    assert unknown.returncode == 2
    assert "(t2-paper, t2b-1, t2b-1-open)" in one_line(unknown.stderr)


def test_replay_needs_a_topic() -> None:
    ended = broker("replay", "x.avro", "--to", "localhost:9092")
    assert ended.returncode == 2
    assert "HOST:PORT/TOPIC" in one_line(ended.stderr)


def test_java_missing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    """Before Kafka is waited for."""
    home = {"JAVA_HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    for args in (("run", "--config", config(tmp_path)), ("kafka",)):
        ended = broker(*args, changes=home)
        assert ended.returncode == 2
        assert f"Java is missing: no java in JAVA_HOME={tmp_path}; install Java 17 or later: " in one_line(ended.stderr)
