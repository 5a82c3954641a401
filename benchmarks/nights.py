"""What an open night costs a live source while no alert comes: CPU of the whole job by the number of open nights.

    python benchmarks/nights.py [--seconds N] [--json FILE]

One job on an embedded Kafka, whose nights are made one after another, each with 100 alerts, answered first. CPU is of
driver, JVM and workers, from /proc, over so many seconds in which nothing comes; memory is the JVM's largest so far.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from confluent_kafka import Producer  # noqa: E402

from benchmarks import alerts, machine  # noqa: E402
from benchmarks.fault_load import Job  # noqa: E402
from benchmarks.throughput import say  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402
from broker.night_names import topic_of  # noqa: E402

NAME, PARTITIONS, ALERTS = "ztf_{night}_programid1", 16, 100
DAYS = (0, 1, -1)  # yesterday's stays open, for it is not quiet yet
SETTLED_S, LONGEST_S = 15.0, 300.0
CONFIG = f"""
[kafka]
bootstrap_servers = "SERVERS"
[output]
create_topics = true
[spark]
master = "local[2]"
[[source]]
name = "ztf"
survey = "ztf"
topics = ["{NAME}"]
checkpoint = "checkpoints/ztf"
start = "earliest"
"""


def cost(job: Job, seconds: float) -> float:
    """CPU seconds of a job in each second."""
    before = sum(process.cpu_s for process in job.below())
    time.sleep(seconds)
    return (sum(process.cpu_s for process in job.below()) - before) / seconds


def open_night(kafka: EmbeddedKafka, job: Job, day: int) -> float:
    """Seconds from a night's topic to the answer to its alerts."""
    topic = topic_of(NAME, datetime.now(UTC).date() + timedelta(days=day))
    kafka.create_topics({topic: PARTITIONS})
    producer, since = Producer({"bootstrap.servers": kafka.bootstrap_servers}), time.monotonic()
    for _, value in alerts.build("ztf", ALERTS):
        producer.produce(topic, value)
    producer.flush(60)
    while not job.has_said(f"ztf/{topic} batch"):
        if job.process.poll() is not None or time.monotonic() - since > LONGEST_S:
            raise SystemExit(f"{topic} was not answered: {job.log.read_text()}")
        time.sleep(0.1)
    return time.monotonic() - since


def measure(seconds: float) -> list[dict[str, float]]:
    """Rows by the number of open nights, none first."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka:
        path = Path(folder, "job.toml")
        path.write_text(CONFIG.replace("SERVERS", kafka.bootstrap_servers))
        job = Job(path, Path(folder, "log"), {})
        try:
            while not job.is_running and job.process.poll() is None:
                time.sleep(0.2)
            for n in range(len(DAYS) + 1):
                opened_s = open_night(kafka, job, DAYS[n - 1]) if n else 0.0
                time.sleep(SETTLED_S)
                before = machine.moment()
                cores = cost(job, seconds)
                peak = max(machine.peak_memory(p.pid) for p in job.below() if p.name == "java")
                row = {"open": n, "opened_s": round(opened_s, 1), "cores": round(cores, 4), "peak_mb": peak // 2**20}
                rows.append(row | machine.between(before, machine.moment()))
                say(f"{n} open: {cores * 100:.1f} % of a core, JVM {row['peak_mb']} MB, opened in {opened_s:.1f} s")
        finally:
            os.killpg(job.process.pid, signal.SIGTERM if job.is_running else signal.SIGKILL)
            job.process.wait(60)
    return rows


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    rows = measure(given.seconds)
    if given.json:
        given.json.write_text(json.dumps({"machine": machine.describe(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
