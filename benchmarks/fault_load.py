"""What the fault runs are made of: the job as a process, its config, and the stream of alerts that it answers."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from benchmarks import alerts, machine

SHARES = {"elasticc": ("elasticc", 0.5), "ztf": ("ztf", 0.25), "lsst": ("lsst-average", 0.25)}
PARTITIONS = 2
OUTLETS = {  # by name, which is its kind; every one takes all verdicts that its form has a place for
    "json": "{run}-json",
    "lasair": "anno_{run}",
    "hop": "{run}-hop",
    "elasticc": "{run}-elasticc-outlet",
    "fink": "{run}-fink-{{survey}}",
    "fink-ai": "fink_ai_{run}",
}
FINK_SOURCES = ("ztf", "lsst")
CONFIG = """
[kafka]
bootstrap_servers = "{servers}"
[output]
classifications = "{run}-classifications"
dead_letters = "{run}-dead-letters"
ledger = "{run}-ledger"
create_topics = true
[spark]
master = "local[2]"
driver_memory = "1500m"
"""
SOURCE = """
[[source]]
name = "{name}"
survey = "{name}"
topics = ["{run}-{name}"]
checkpoint = "checkpoints/{name}"
start = "earliest"
max_alerts_per_batch = {batch}
"""
Dress = Callable[[str, bytes], bytes]  # what becomes of an alert of a survey before it is sent


def config(servers: str, run: str, batch: int) -> str:
    """The job's config: three sources, all kinds of outlets."""
    text = CONFIG.format(servers=servers, run=run)
    text += "".join(SOURCE.format(name=name, run=run, batch=batch) for name in SHARES)
    for kind, topic in OUTLETS.items():
        text += f'\n[[outlet]]\nname = "{kind}"\nkind = "{kind}"\ntopic = "{topic.format(run=run)}"\n'
        text += "public_only = false\n"
        text += 'class_name = "SNIa"\n' if kind == "fink-ai" else ""
        text += f"sources = {list(FINK_SOURCES)}\n".replace("'", '"') if kind == "fink" else ""
        text += '[outlet.filter]\nstatuses = ["classified", "abstained"]\n'
    return text


def outlet_topics(run: str) -> dict[str, list[str]]:
    """Topics of each outlet."""
    return {
        kind: [topic.format(run=run).format(survey=survey) for survey in FINK_SOURCES]
        if kind == "fink"
        else [topic.format(run=run)]
        for kind, topic in OUTLETS.items()
    }


@dataclass(frozen=True)
class Load:
    """So many alerts over so many seconds, this share of them damaged; every_s: in visits so far apart, 0 evenly."""

    alerts: int
    over_s: float
    damaged: float
    seed: int
    every_s: float = 0.0


class Job:
    """`broker run` in a session of its own."""

    def __init__(self, config: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.log = log
        with log.open("ab") as output:
            command = [sys.executable, "-P", "-m", "broker", "run", "--config", str(config)]
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, start_new_session=True, env={**os.environ, **environment}
            )
        self.begin = log.stat().st_size
        self._has_run = False

    @property
    def is_running(self) -> bool:
        """Whether its queries have started."""
        self._has_run = self._has_run or self.has_said("running: ")
        return self._has_run

    def said(self) -> str:
        """Its part of the log."""
        with self.log.open("rb") as file:
            file.seek(self.begin)
            return file.read().decode(errors="replace")

    def has_said(self, words: str) -> bool:
        """Whether its part of the log holds these words."""
        return words in self.said()

    def below(self) -> list[machine.Process]:
        """The driver and all that it has started."""
        among = machine.processes()
        return machine.descendants(self.process.pid, among) if self.process.pid in among else []


class Feed(threading.Thread):
    """Sends the alerts at a steady pace, or in visits; damaged ones are cut in half."""

    def __init__(self, servers: str, run: str, load: Load, dress: Dress) -> None:
        super().__init__(daemon=True)
        self.sent: Counter[str] = Counter()
        self._run, self._load, self._dress = run, load, dress
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "message.max.bytes": 17_825_792,
                "queue.buffering.max.kbytes": 1_000_000,
                "queue.buffering.max.messages": 1_000_000,
                "message.timeout.ms": 900_000,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        """Sends all, and returns once Kafka has them."""
        load, start = self._load, time.monotonic()
        rng = random.Random(f"damage {load.seed}")  # by the seed alone it would pick the alerts that the mix picks
        for i, (name, value) in enumerate(mix(load.alerts, load.seed)):
            due = load.over_s * i / load.alerts
            wait = start + (due // load.every_s * load.every_s if load.every_s else due) - time.monotonic()
            if wait > 0:
                self._producer.poll(wait)
            data = self._dress(name, value)
            data = data[: len(data) // 2] if rng.random() < load.damaged else data
            self._send(f"{self._run}-{name}", data, i % PARTITIONS)
        self._producer.flush(900)

    def _send(self, topic: str, data: bytes, partition: int) -> None:
        while True:
            try:
                self._producer.produce(topic, data, partition=partition, on_delivery=self._told)
                break
            except BufferError:  # Kafka is away, and the queue is full
                self._producer.poll(0.5)
        self._producer.poll(0)

    def _told(self, fault: object, message: object) -> None:
        if fault is not None:
            raise RuntimeError(f"an alert could not be sent: {fault}")
        self.sent[message.topic().rpartition("-")[2]] += 1  # type: ignore[attr-defined]


def mix(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """Alerts of the three surveys by their shares: survey and bytes."""
    rng = random.Random(seed)
    streams = {name: alerts.build(load, n, seed) for name, (load, _) in SHARES.items()}
    names = rng.choices(list(SHARES), [share for _, share in SHARES.values()], k=n)
    for name in names:
        yield name, next(streams[name])[1]
