"""The real command in a process of its own, and what it leaves on the topics."""

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Self, cast

from confluent_kafka import Message, Producer

from broker.embedded import EmbeddedKafka
from broker.ledger import LedgerRow
from broker.lock import JVM_ENDS_S
from broker.topics import read_all

BROKER = (sys.executable, "-P", "-m", "broker")
STARTUP_S = 240.0  # Spark takes 10 s of it on a quiet machine
Headers = list[tuple[str, bytes]]


class Place(NamedTuple):
    """Coordinates of a record."""

    topic: str
    partition: int
    offset: int


@dataclass(frozen=True)
class Alert:
    """A record to send. group: what it is, for the tests' own use."""

    value: bytes | None
    key: bytes | None = None
    headers: Headers = field(default_factory=list)
    group: str = ""


def send(kafka: EmbeddedKafka, topic: str, alerts: Iterable[Alert], n_partitions: int = 1) -> dict[Place, Alert]:
    """Put the alerts onto the partitions in turn; where each one came to lie."""
    settings = {"bootstrap.servers": kafka.bootstrap_servers, "message.max.bytes": 17_825_792, "linger.ms": 20}
    # Without it, on a busy machine, 24 of 127 topics that had just been made got their first batch behind others.
    producer = Producer(settings | {"enable.idempotence": True})
    sent: dict[Place, Alert] = {}

    def deliver(alert: Alert) -> Callable[[object, Message], None]:
        def told(fault: object, message: Message) -> None:
            assert fault is None, fault
            partition, offset = message.partition(), message.offset()
            assert partition is not None
            assert offset is not None
            sent[Place(topic, partition, offset)] = alert

        return told

    for i, alert in enumerate(alerts):
        producer.produce(
            topic,
            value=alert.value,
            key=alert.key,
            headers=list(alert.headers),
            partition=i % n_partitions,
            on_delivery=deliver(alert),
        )
        producer.poll(0)
    assert producer.flush(60) == 0
    return sent


def write_config(
    folder: Path,
    servers: str,
    sources: Sequence[Mapping[str, object]],
    output: Mapping[str, object] | None = None,
    rest: str = "",
) -> Path:
    """A config file for these sources (each with name, survey, topics; checkpoint and start have defaults)."""
    lines = ["[kafka]", f'bootstrap_servers = "{servers}"', rest, "[output]"]
    lines += [f"{key} = {_toml(value)}" for key, value in (output or {}).items()]
    if "[spark]" not in rest:
        lines += ["[spark]", 'master = "local[2]"', 'driver_memory = "1500m"']
    for source in sources:
        lines += ["[[source]]"]
        settings = {"checkpoint": f"checkpoints/{source['name']}", "start": "earliest"} | dict(source)
        lines += [f"{key} = {_toml(value)}" for key, value in settings.items() if value is not None]
    path = folder / "job.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_toml, value))}]"
    return f'"{value}"' if isinstance(value, str) else str(value)


def wait_until(is_so: Callable[[], bool], timeout_s: float = STARTUP_S) -> None:
    """Return once it is so."""
    deadline = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def topics_of(name: str) -> dict[str, str]:
    """Names of the three output topics of a test."""
    return {
        "classifications": f"{name}-classifications",
        "dead_letters": f"{name}-dead-letters",
        "ledger": f"{name}-ledger",
    }


def broker(
    *args: str | Path, timeout_s: float = 180, changes: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The command, run to its end. changes: environment variables."""
    environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(changes or {})}
    command = [*BROKER, *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False, env=environment)


class Running:
    """A command under way, in a session of its own, so that all that it starts can be told from the rest."""

    def __init__(
        self,
        log: Path,
        *args: str | Path,
        command: Sequence[str] = BROKER,
        changes: Mapping[str, str] | None = None,
    ) -> None:
        self.log = log
        environment = {**os.environ, "COLUMNS": "200", "NO_COLOR": "1", **(changes or {})}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [*command, *map(str, args)], stdout=output, stderr=output, start_new_session=True, env=environment
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Whatever the test found: nothing stays behind."""
        kill(self.left())
        self.process.wait(30)

    @property
    def text(self) -> str:
        """What it has said so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, timeout_s: float = STARTUP_S, count: int = 1) -> None:
        """Return once it has said this so many times."""
        deadline = time.monotonic() + timeout_s
        while self.text.count(words) < count:
            assert self.process.poll() is None, f"ended with {self.process.returncode} before {words!r}:\n{self.text}"
            assert time.monotonic() < deadline, f"no {words!r} within {timeout_s:g} s:\n{self.text}"
            time.sleep(0.1)

    def end(self, timeout_s: float) -> int:
        """Its exit code."""
        try:
            return self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still running after {timeout_s:g} s:\n{self.text}") from None

    def assert_nothing_left(self, timeout_s: float = JVM_ENDS_S) -> None:
        """Spark's JVM and the workers follow their parent in the time that the next start gives them."""
        deadline = time.monotonic() + timeout_s
        while (left := self.left()) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not left

    def left(self) -> list[int]:
        """Processes of its session that still run."""
        listed = subprocess.run(["ps", "-A", "-o", "pid=,stat="], capture_output=True, text=True, check=True).stdout
        pids = [int(pid) for pid, state in map(str.split, listed.splitlines()) if not state.startswith("Z")]
        return [pid for pid in pids if _session_of(pid) == self.process.pid]


def kill(pids: Iterable[int]) -> None:
    """SIGKILL for those that still run: between a listing and the signal some end by themselves."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _session_of(pid: int) -> int | None:
    try:
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


@dataclass
class Outcome:
    """What a job wrote: by the place of the alert, and the ledger's rows."""

    classifications: dict[Place, list[Message]] = field(default_factory=dict)
    dead_letters: dict[Place, list[Message]] = field(default_factory=dict)
    ledger: list[LedgerRow] = field(default_factory=list)

    def answers(self, place: Place) -> int:
        """How many records answer an alert."""
        return len(self.classifications.get(place, ())) + len(self.dead_letters.get(place, ()))

    def repeats(self) -> Counter[int]:
        """How many alerts were answered so many times."""
        return Counter(self.answers(place) for place in self.classifications.keys() | self.dead_letters.keys())


def read_outcome(servers: str, output: Mapping[str, object]) -> Outcome:
    """All records of the output topics; each must say which alert and which model it is of."""
    options, found = {"bootstrap.servers": servers}, Outcome()
    for kind in ("classifications", "dead_letters"):
        for message in read_all(options, str(output[kind])):
            names = headers(message)
            assert names["model"].startswith(b"t2b-1@")
            source, topic, partition, offset = names["alert"].decode().split(":")
            assert source
            getattr(found, kind).setdefault(Place(topic, int(partition), int(offset)), []).append(message)
    found.ledger = [LedgerRow.from_json(message.value()) for message in read_all(options, str(output["ledger"]))]
    return found


def headers(message: Message) -> dict[str, bytes]:
    """Headers by name; the names must be unique."""
    pairs = cast("list[tuple[str, bytes | None]]", message.headers() or [])
    assert len({name for name, _ in pairs}) == len(pairs)
    return {name: value or b"" for name, value in pairs}
