"""What the fault runs are made of: the job as a process, and the stream of alerts that it answers."""

from __future__ import annotations

import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from confluent_kafka import Producer

from benchmarks import alerts, machine

SHARES = {"elasticc": ("elasticc", 0.5), "ztf": ("ztf", 0.25), "lsst": ("lsst-average", 0.25)}
PARTITIONS = 2


@dataclass(frozen=True)
class Load:
    """So many alerts over so many seconds, this share of them damaged."""

    alerts: int
    over_s: float
    damaged: float
    seed: int


class Job:
    """`broker run` in a session of its own."""

    def __init__(self, config: Path, log: Path) -> None:
        self.log = log
        with log.open("ab") as output:
            command = [sys.executable, "-P", "-m", "broker", "run", "--config", str(config)]
            self.process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
        self.n_before = log.read_text(errors="replace").count("running: ")
        self.begin = log.stat().st_size

    @property
    def is_running(self) -> bool:
        """Whether its queries have started."""
        return self.log.read_text(errors="replace").count("running: ") > self.n_before

    def has_said(self, words: str) -> bool:
        """Whether its part of the log holds these words."""
        return words in self.log.read_bytes()[self.begin :].decode(errors="replace")

    def below(self) -> list[machine.Process]:
        """The driver and all that it has started."""
        among = machine.processes()
        return machine.descendants(self.process.pid, among) if self.process.pid in among else []


class Feed(threading.Thread):
    """Sends the alerts at a steady pace; damaged ones are cut in half."""

    def __init__(self, servers: str, run: str, load: Load) -> None:
        super().__init__(daemon=True)
        self.sent: Counter[str] = Counter()
        self._run, self._load = run, load
        self._producer = Producer(
            {
                "bootstrap.servers": servers,
                "enable.idempotence": True,
                "message.max.bytes": 17_825_792,
                "queue.buffering.max.kbytes": 2_000_000,
                "message.timeout.ms": 600_000,
                "log_level": 0,
            }
        )

    def run(self) -> None:
        """Sends all, and returns once Kafka has them."""
        load, start = self._load, time.monotonic()
        rng = random.Random(f"damage {load.seed}")  # by the seed alone it would pick the alerts that the mix picks
        for i, (name, value) in enumerate(mix(load.alerts, load.seed)):
            wait = start + load.over_s * i / load.alerts - time.monotonic()
            if wait > 0:
                self._producer.poll(wait)
            data = value[: len(value) // 2] if rng.random() < load.damaged else value
            self._producer.produce(f"{self._run}-{name}", data, partition=i % PARTITIONS, on_delivery=self._told)
            self._producer.poll(0)
        self._producer.flush(600)

    def _told(self, fault: object, message: object) -> None:
        if fault is not None:
            raise RuntimeError(f"an alert could not be sent: {fault}")
        self.sent[message.topic().rpartition("-")[2]] += 1  # type: ignore[attr-defined]


def mix(n: int, seed: int) -> Iterator[tuple[str, bytes]]:
    rng = random.Random(seed)
    streams = {name: alerts.build(load, n, seed) for name, (load, _) in SHARES.items()}
    names = rng.choices(list(SHARES), [share for _, share in SHARES.values()], k=n)
    for name in names:
        yield name, next(streams[name])[1]
