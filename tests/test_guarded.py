"""The live stream's login: SCRAM, TLS and rights by ACL, each way to be refused told in one line within 30 s."""

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.admin._acl import AclOperation
from confluent_kafka.admin._resource import ResourceType
from guarded import PASSWORD, USER, Guarded, certificate, guarded
from running import Alert, Running, broker, read_outcome, send, topics_of, write_config
from samples import whole

ALERTS = [Alert(sample.data) for sample in whole("lsst")]
LOGIN = {"T2_KAFKA_USERNAME": USER, "T2_KAFKA_PASSWORD": PASSWORD}
NAMES = topics_of("guarded")
READ, WRITE, SEE = AclOperation.READ, AclOperation.WRITE, AclOperation.DESCRIBE


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    """Its user may read `open` and write the outputs of NAMES, sees `shut`, and has no right for any group."""
    with guarded(tmp_path_factory.mktemp("guarded")) as running:
        running.kafka.create_topics(
            {"open": 2, "shut": 1, "hidden": 1, "unwritable": 1} | dict.fromkeys(NAMES.values(), 2)
        )
        send(running.kafka, "open", ALERTS, 2)
        send(running.kafka, "shut", ALERTS[:1])
        running.allow(ResourceType.TOPIC, "open", READ, SEE)
        running.allow(ResourceType.TOPIC, "shut", SEE, AclOperation.DESCRIBE_CONFIGS)
        running.allow(ResourceType.TOPIC, "unwritable", READ, SEE, AclOperation.DESCRIBE_CONFIGS)
        for name in NAMES.values():
            running.allow(ResourceType.TOPIC, name, READ, WRITE, SEE, AclOperation.DESCRIBE_CONFIGS)
        yield running


def config_for(folder: Path, server: Guarded, topic: str, tls: bool = False) -> Path:
    """As examples/lsst.toml has it."""
    rest = [
        'username_env = "T2_KAFKA_USERNAME"\npassword_env = "T2_KAFKA_PASSWORD"\nstartup_timeout_s = 10.0',
        '[kafka.options]\n"sasl.mechanism" = "SCRAM-SHA-512"',
        f'"security.protocol" = "{"SASL_SSL" if tls else "SASL_PLAINTEXT"}"',
        f'"ssl.ca.location" = "{server.authority}"' if tls else "",
        '[service]\nhealth_file = "health.json"',
    ]
    source = {"name": "lsst", "survey": "lsst", "topics": [topic]}
    return write_config(folder, server.tls if tls else server.scram, [source], NAMES, "\n".join(rest))


def refused(config: Path, login: dict[str, str]) -> str:
    """What the job says that may not run: one error, without a stack trace, exit code 3, within 30 s."""
    since = time.monotonic()
    ended = broker("run", "--config", config, "--once", timeout_s=120, changes=login)
    said = ended.stdout + ended.stderr
    assert ended.returncode == 3, said
    assert "Traceback" not in said
    assert "\tat " not in said
    assert time.monotonic() - since < 30, said
    return said


def command_lines(job: Running, timeout_s: float) -> str:
    """Every command line of the machine, again and again until the job ends."""
    listed, deadline = "", time.monotonic() + timeout_s
    while job.process.poll() is None:
        assert time.monotonic() < deadline, job.text
        listed += subprocess.run(["ps", "-A", "-ww", "-o", "args="], capture_output=True, text=True, check=True).stdout
        time.sleep(0.5)
    return listed


@pytest.mark.parametrize("tls", [False, True], ids=["scram", "tls"])
def test_with_its_login_the_job_runs_and_tells_it_to_nobody(server: Guarded, tmp_path: Path, tls: bool) -> None:
    config = config_for(tmp_path, server, "open", tls)
    with Running(tmp_path / "log", "run", "--config", config, "--once", changes=LOGIN) as job:
        listed = command_lines(job, timeout_s=180)
        assert job.process.returncode == 0, job.text
    assert str(config) in listed
    assert "broker.worker_daemon" in listed  # the workers too
    assert "battery" not in listed + job.text
    outcome = read_outcome(server.kafka.bootstrap_servers, NAMES)
    assert len(outcome.classifications) + len(outcome.dead_letters) == len(ALERTS)
    audit = broker("audit", "--config", config, timeout_s=120, changes=LOGIN)
    assert PASSWORD not in job.text + audit.stdout + audit.stderr
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any(path.name == "health.json" for path in kept)
    assert any(path.parent.name == "offsets" for path in kept)
    found = [path for path in kept if b"battery" in path.read_bytes()]
    assert found == []
    for records in (*outcome.classifications.values(), *outcome.dead_letters.values()):
        assert not any(b"battery" in (record.value() or b"") for record in records)


def test_a_wrong_password(server: Guarded, tmp_path: Path) -> None:
    said = refused(config_for(tmp_path, server, "open"), LOGIN | {"T2_KAFKA_PASSWORD": "wrong"})
    assert "login" in said or "uthentication" in said
    assert "wrong" not in said


def test_an_unknown_authority(server: Guarded, tmp_path: Path) -> None:
    config = config_for(tmp_path, server, "open", tls=True)
    config.write_text(config.read_text().replace(str(server.authority), str(certificate(tmp_path))))
    assert "certificate" in refused(config, LOGIN).lower()


def test_a_topic_that_may_not_be_read(server: Guarded, tmp_path: Path) -> None:
    said = refused(config_for(tmp_path, server, "shut"), LOGIN)
    assert "lacks the right Read on 'shut'. " in said


def test_an_output_that_may_not_be_written(server: Guarded, tmp_path: Path) -> None:
    """One error for all that is missing, before anything is read: each with the command that grants it."""
    config = config_for(tmp_path, server, "open")
    outlets = "".join(f'[[outlet]]\nname = "{t}"\nkind = "json"\ntopic = "{t}"\n' for t in ("unwritable", "shut"))
    config.write_text(config.read_text() + outlets)
    said = refused(config, LOGIN)
    assert "lacks the right Write on 'unwritable', Read and Write on 'shut'. " in said
    assert f"--allow-principal User:{USER} --topic unwritable --operation Write\n" in said
    assert not (tmp_path / "checkpoints" / "lsst" / "offsets").exists()


def test_a_topic_that_is_hidden(server: Guarded, tmp_path: Path) -> None:
    assert "hidden" in refused(config_for(tmp_path, server, "hidden"), LOGIN)


def test_a_login_that_is_not_set(server: Guarded, tmp_path: Path) -> None:
    ended = broker("run", "--config", config_for(tmp_path, server, "open"), changes={"T2_KAFKA_USERNAME": USER})
    assert ended.returncode == 2
    assert "T2_KAFKA_PASSWORD; it is not set" in ended.stderr
