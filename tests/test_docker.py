"""The container files, as far as a machine without a container engine can tell. `make docker-lint` parses them."""

import ast
import re
import shlex
from pathlib import Path
from typing import Any, cast

import pytest
import typer.main
import yaml

from broker import config as settings
from broker.archive import find_files
from broker.cli import app

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "docker" / "Dockerfile").read_text()
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, list[str]]] = COMPOSE["services"]
REPLAYS = sorted(name for name in SERVICES if name.startswith("replay-"))


def instructions(word: str) -> list[list[str]]:
    """The words after each instruction of a kind, continued lines joined."""
    lines = re.sub(r"\\\n\s*", " ", DOCKERFILE).splitlines()
    return [shlex.split(line)[1:] for line in lines if line.startswith(f"{word} ")]


def test_the_image_does_not_run_as_root() -> None:
    assert instructions("USER") == [["10001"]]
    assert DOCKERFILE.rindex("FROM ") < DOCKERFILE.index("USER 10001") < DOCKERFILE.index("ENTRYPOINT")


def test_everything_copied_into_the_image_is_there_and_not_ignored() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    for words in instructions("COPY"):
        if words[0].startswith("--from"):
            continue
        for source in words[:-1]:
            assert (ROOT / source).exists(), source
            assert f"!{source.split('/')[0]}" in ignored


def test_the_images_lock_is_part_of_the_developers_lock() -> None:
    pins = re.compile(r"^[a-z0-9.-]+==\S+", re.MULTILINE)
    image = set(pins.findall((ROOT / "docker" / "requirements.lock").read_text()))
    developers = set(pins.findall((ROOT / "requirements.lock").read_text()))
    assert {pin.split("==")[0] for pin in image} >= {"pyspark", "onnxruntime", "confluent-kafka", "fastavro"}
    assert image <= developers


@pytest.mark.parametrize("name", [*REPLAYS, "job"])
def test_the_services_commands_are_known_to_the_command_line(name: str) -> None:
    command, *arguments = SERVICES[name]["command"]
    known = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    known.make_context(command, arguments)  # raises on an option or argument that it doesn't know


def test_the_jobs_probe_reads_the_file_that_the_job_writes() -> None:
    probe = cast("dict[str, Any]", COMPOSE["services"]["job"]["healthcheck"])["test"]
    assert probe[:3] == ["CMD", "broker", "health"]
    known = typer.main.get_command(app).commands["health"]  # type: ignore[attr-defined]
    known.make_context("health", probe[3:])
    assert probe[4] == SERVICES["job"]["command"][2]
    assert settings.load(ROOT / "docker" / "demo.toml").service.health_file == Path("/data/health.json")


@pytest.mark.parametrize("name", REPLAYS)
def test_replays_send_sample_alerts_to_a_topic_that_the_kafka_makes_and_the_job_reads(name: str) -> None:
    _, path, _, target, *_ = SERVICES[name]["command"]
    assert find_files([ROOT / Path(path).relative_to("/opt")])
    server, _, topic = target.partition("/")
    assert server == "kafka:9092"
    (made,) = [
        ast.literal_eval(word.value)
        for word in ast.walk(ast.parse((ROOT / "docker" / "kafka.py").read_text()))
        if isinstance(word, ast.keyword) and word.arg == "topics"
    ]
    assert topic in made
    job = settings.load(ROOT / "docker" / "demo.toml")
    assert job.kafka.bootstrap_servers == server
    assert [source.survey for source in job.sources if topic in source.topics] == [name.removeprefix("replay-")]
    assert {topic for source in job.sources for topic in source.topics} == set(made)
