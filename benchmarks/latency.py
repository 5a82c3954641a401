"""Latency: from the broker's clock on the alert to the broker's clock on its answer (LogAppendTime both times).

    python benchmarks/latency.py [--rate 100] [--warm-up 60] [--seconds 120] [--with-async] [--json FILE]

The product and a bare Spark query that copies the same topic (Kafka to Kafka, default trigger) take turns, each in a
process of its own while the other is not running. Alerts that came during the warm-up are answered but not counted.
--with-async adds the passthrough under asynchronous progress tracking: offsets and commits written beside the batches.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import numpy as np  # noqa: E402
from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402

from benchmarks import alerts, machine, throughput  # noqa: E402
from benchmarks.baselines import PRODUCER, Job  # noqa: E402
from benchmarks.throughput import say  # noqa: E402
from broker import model, session, sources  # noqa: E402
from broker.embedded import MAX_MESSAGE_BYTES, EmbeddedKafka  # noqa: E402

SYSTEMS = ("passthrough", "product")
ASYNC = "passthrough-async"
STARTUP_S, DRAIN_S = 120.0, 60.0
TOPIC_SETTINGS = {"message.timestamp.type": "LogAppendTime", "max.message.bytes": str(MAX_MESSAGE_BYTES)}


@dataclass(frozen=True)
class Plan:
    """rate: alerts per second; warm_up_s and seconds: what is left out, and what is measured; rounds: turns of each."""

    load: str
    rate: float
    warm_up_s: float
    seconds: float
    rounds: int
    cores: int
    model: str
    systems: tuple[str, ...] = SYSTEMS


def passthrough(todo: Job, is_async: bool = False) -> None:
    """Copies key and value from topic to topic, until it is told to stop."""
    # Asynchronous progress tracking knows Kafka's sink by its second interface alone
    extra = {"spark.sql.streaming.disabledV2Writers": ""} if is_async else {}
    spark = session.start("passthrough", f"local[{todo.cores}]", "2g", extra)
    options = {"kafka.bootstrap.servers": todo.bootstrap_servers}
    frames = sources.kafka(spark, options, (todo.topic,), "earliest", todo.batch)
    writer = frames.select("key", "value").writeStream.format("kafka").options(**options, **PRODUCER)
    writer = writer.option("kafka.max.request.size", str(MAX_MESSAGE_BYTES)).option("topic", todo.out)
    if is_async:
        writer = writer.option("asyncProgressTrackingEnabled", "true")
    query = writer.option("checkpointLocation", str(todo.checkpoint)).start()
    signal.signal(signal.SIGTERM, lambda *_: query.stop())
    query.awaitTermination()
    spark.stop()


def measure(plan: Plan) -> dict[str, Any]:
    """Each system plan.rounds times, in turn."""
    results: dict[str, Any] = throughput.about(plan) | {"runs": []}
    with EmbeddedKafka() as kafka:
        for number in range(plan.rounds):
            for system in plan.systems:
                run = _run(kafka, plan, system, number)
                results["runs"].append(run)
                say(
                    f"{system:12s} p50 {run['p50_ms']:.0f} ms  p98 {run['p98_ms']:.0f} ms  max {run['max_ms']:.0f} ms  "
                    f"of {run['n']} alerts, load {run['machine']['load_after']} steal {run['machine']['steal']}"
                )
    bare, ours = ([run["p98_ms"] for run in results["runs"] if run["system"] == system] for system in SYSTEMS)
    results["p98_product_over_passthrough"] = [round(b / a, 2) for a, b in zip(bare, ours, strict=True)]
    say(f"p98 of the product over the passthrough's: {results['p98_product_over_passthrough']}")
    return results


def _run(kafka: EmbeddedKafka, plan: Plan, system: str, number: int) -> dict[str, Any]:
    topic, out = f"in-{system}-{number}", f"out-{system}-{number}"
    kafka.create_topics({topic: 2, out: 4}, TOPIC_SETTINGS)
    servers = kafka.bootstrap_servers
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as folder:
        survey = alerts.LOADS[plan.load].survey
        todo = Job(servers, survey, topic, out, 0, throughput.BATCH, folder, plan.model, plan.cores)
        with running(system, todo) as process:
            feeder = _Feeder(servers, topic, plan)
            feeder.send(1)
            _wait(lambda: throughput.count(servers, out) > 0, STARTUP_S, process, "first answer")
            before = machine.moment()
            since = feeder.keep_sending(plan.warm_up_s, plan.seconds)
            busy = machine.between(before, machine.moment())
            _wait(lambda: throughput.count(servers, out) >= feeder.sent, DRAIN_S, process, "last answer")
    arrived, answered = times(servers, topic), times(servers, out)
    waits = np.array([answered[key] - at for key, at in arrived.items() if at >= since])
    p50, p98 = np.percentile(waits, [50, 98])
    return {
        "system": system,
        "n": len(waits),
        "p50_ms": round(float(p50)),
        "p98_ms": round(float(p98)),
        "max_ms": int(waits.max()),
        "machine": busy,
    }


class _Feeder:
    """Sends alerts at a steady pace."""

    def __init__(self, servers: str, topic: str, plan: Plan) -> None:
        n = int(plan.rate * (plan.warm_up_s + plan.seconds)) + 2
        self.topic, self.rate, self.sent = topic, plan.rate, 0
        self.alerts = alerts.build(plan.load, n)
        self.producer = Producer({"bootstrap.servers": servers, "message.max.bytes": MAX_MESSAGE_BYTES, "linger.ms": 0})

    def send(self, n: int) -> None:
        """The next n alerts, now."""
        for _ in range(n):
            source_id, value = next(self.alerts)
            self.producer.produce(self.topic, value, str(source_id).encode(), partition=self.sent % 2)
            self.producer.poll(0)
            self.sent += 1
        if n == 1 and self.sent == 1:
            self.producer.flush(30)

    def keep_sending(self, warm_up_s: float, seconds: float) -> int:
        """Send for so long; Kafka's time in ms from which on alerts count."""
        start, already = time.monotonic(), self.sent
        since = time.time() + warm_up_s
        while (now := time.monotonic() - start) < warm_up_s + seconds:
            due = int(now * self.rate) - (self.sent - already)
            self.send(max(0, due))
            time.sleep(0.002)
        self.producer.flush(30)
        return int(since * 1000)


def times(servers: str, topic: str) -> dict[bytes, int]:
    """Timestamp in ms of the first record of each key."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "times", "enable.auto.commit": False})
    found: dict[bytes, int] = {}
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        consumer.assign([TopicPartition(topic, p, 0) for p in partitions])
        left = throughput.count(servers, topic)
        while left > 0:
            messages = consumer.consume(500, timeout=10)
            if not messages:
                raise RuntimeError(f"{topic}: {left} records can't be read")
            left -= len(messages)
            for message in messages:
                found.setdefault(message.key() or b"", message.timestamp()[1])
    finally:
        consumer.close()
    return found


@contextmanager
def running(system: str, todo: Job) -> Iterator[subprocess.Popen[bytes]]:
    """One system in a process of its own; told to stop at the end."""
    order = [sys.executable, str(Path(__file__).resolve()), "--child", system, "--job", json.dumps(asdict(todo))]
    with (Path(todo.folder) / "log").open("wb") as output:
        process = subprocess.Popen(order, stdout=output, stderr=output)
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(ready: Any, seconds: float, process: subprocess.Popen[bytes], what: str) -> None:
    deadline = time.monotonic() + seconds
    while not ready():
        if process.poll() is not None:
            raise RuntimeError(f"the measured process ended with {process.returncode} before the {what}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"no {what} within {seconds:g} s")
        threading.Event().wait(0.2)


def main() -> None:
    """Measure and print, or be the child that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--load", default="lsst-average", choices=list(alerts.LOADS))
    parser.add_argument("--rate", type=float, default=100, help="alerts per second")
    parser.add_argument("--warm-up", type=float, default=60, help="seconds")
    parser.add_argument("--seconds", type=float, default=120, help="measured")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cores", type=int, default=2, help="Spark's task slots")
    parser.add_argument("--model", default="t2b-1", help="released model, or a folder")
    parser.add_argument("--with-async", action="store_true", help="the passthrough also with asynchronous progress")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--child", choices=(*SYSTEMS, ASYNC), help=argparse.SUPPRESS)
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        todo = Job(**given.job)
        throughput.product(todo, once=False) if given.child == "product" else passthrough(todo, given.child == ASYNC)
        return
    folder = str(model.find(given.model).resolve())
    plan = Plan(given.load, given.rate, given.warm_up, given.seconds, given.rounds, given.cores, folder)
    plan = replace(plan, systems=(*SYSTEMS, ASYNC) if given.with_async else SYSTEMS)
    results = measure(plan)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
