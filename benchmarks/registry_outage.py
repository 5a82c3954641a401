"""What a registry that is away costs alerts with known schemas: latency and CPU of a job before, and while it is away.

    python benchmarks/registry_outage.py [--rate 50] [--before 120] [--away 600] [--json FILE]

One job on an embedded Kafka with a real registry (Apicurio) behind a proxy; average LSST alerts at a steady pace. After
a warm-up the registry answers for `before` seconds, then nobody listens at its address for `away` seconds.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import numpy as np  # noqa: E402

from benchmarks import latency, machine, throughput  # noqa: E402
from benchmarks.fault_load import Job  # noqa: E402
from benchmarks.fault_registry import BASE, REGISTRY, SUBJECT, TEXT, Proxy, RegistryServer  # noqa: E402
from benchmarks.nights import cost  # noqa: E402
from benchmarks.throughput import say  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402

WARM_UP_S = 60.0
CONFIG = """
[kafka]
bootstrap_servers = "SERVERS"
[output]
classifications = "out"
create_topics = true
[spark]
master = "local[2]"
[[source]]
name = "lsst"
survey = "lsst"
topics = ["in"]
checkpoint = "checkpoints/lsst"
start = "earliest"
"""


def phase(job: Job, seconds: float) -> tuple[int, int, float]:
    """When it began and ended, ms since 1970, and the cores that the job took in it."""
    begin = time.time_ns() // 1_000_000
    cores = cost(job, seconds)
    return begin, time.time_ns() // 1_000_000, cores


def measure(rate: float, before_s: float, away_s: float) -> dict[str, Any]:
    """Both phases."""
    started = machine.moment()
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka() as kafka, RegistryServer() as server:
        server.put(SUBJECT, {BASE: TEXT})
        proxy = Proxy(server.port)
        proxy.start()
        servers = kafka.bootstrap_servers
        kafka.create_topics({"in": 2, "out": 4}, latency.TOPIC_SETTINGS)
        path = Path(folder, "job.toml")
        path.write_text(CONFIG.replace("SERVERS", servers) + REGISTRY.format(port=proxy.port, subject=SUBJECT))
        job = Job(path, Path(folder, "log"), {})
        try:
            while not job.is_running and job.process.poll() is None:
                time.sleep(0.2)
            total_s = before_s + away_s
            feeder = latency._Feeder(
                servers, "in", latency.Plan("lsst-average", rate, WARM_UP_S, total_s + 5, 1, 2, "t2b-1")
            )
            feeding = threading.Thread(target=feeder.keep_sending, args=(WARM_UP_S, total_s + 5))
            feeding.start()
            time.sleep(WARM_UP_S)
            phases = {"answers": phase(job, before_s)}
            proxy.delay_s = None
            phases["away"] = phase(job, away_s)
            feeding.join()
            deadline = time.monotonic() + 60
            while throughput.count(servers, "out") < feeder.sent and time.monotonic() < deadline:
                time.sleep(0.2)
            said = job.said()
        finally:
            proxy.left.set()
            os.killpg(job.process.pid, signal.SIGTERM if job.is_running else signal.SIGKILL)
            job.process.wait(60)
        arrived, answered = latency.times(servers, "in"), latency.times(servers, "out")
    result: dict[str, Any] = {"machine": machine.describe(), "rate": rate, "sent": feeder.sent}
    result |= {"unanswered": len(arrived.keys() - answered.keys()), "load": machine.between(started, machine.moment())}
    result["said"] = [line[:200] for line in said.splitlines() if "registry" in line]
    for name, (begin, end, cores) in phases.items():
        waits = np.array([answered[key] - at for key, at in arrived.items() if begin <= at < end and key in answered])
        p50, p98 = np.percentile(waits, [50, 98])
        result[name] = {
            "n": len(waits), "p50_ms": round(float(p50)), "p98_ms": round(float(p98)), "max_ms": int(waits.max()),
            "cpu_us": round(cores * (end - begin) * 1e3 / len(waits)),
        }  # fmt: skip
        say(f"registry {name:8s} {result[name]}")
    return result


def main() -> int:
    """0 where every alert was answered."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--before", type=float, default=120.0)
    parser.add_argument("--away", type=float, default=600.0)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.rate, given.before, given.away)
    print(json.dumps(result["said"], indent=1))
    if given.json:
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(result["unanswered"] > 0)


if __name__ == "__main__":
    raise SystemExit(main())
