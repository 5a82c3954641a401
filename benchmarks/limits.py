"""Limits: what the largest alerts cost a Python worker in memory, and that each of them is answered.

    python benchmarks/limits.py [--json FILE]

LSST alerts, several of each kind in one micro-batch, through the product: 10 MB; just under, at and just over
max_alert_bytes; the same sizes as bytes that are no alert (they cross to Python whole); 2,000 points in one light
curve; hundreds of deep alerts; and a topic without any. Peak resident memory of every worker must stay under 600 MB.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402

from benchmarks import alerts, machine, throughput  # noqa: E402
from benchmarks.baselines import Job  # noqa: E402
from benchmarks.throughput import say  # noqa: E402
from broker import config, model  # noqa: E402
from broker.embedded import MAX_MESSAGE_BYTES, EmbeddedKafka  # noqa: E402

LIMIT = int(config.Source.model_fields["max_alert_bytes"].default)
BAR_BYTES = 600_000_000
LONG_POINTS = 2_000


def sized(n_bytes: int, source_id: int) -> bytes:
    """A sound LSST alert of exactly so many bytes: its difference cutout is filled up."""
    schema_id, record = alerts.lsst_sample(deep=False)
    fill = n_bytes - len(alerts.lsst_frame(schema_id, record | {"cutoutDifference": b""}, source_id))
    for spare in range(8):  # the cutout's own length takes a few bytes as well
        value = alerts.lsst_frame(schema_id, record | {"cutoutDifference": bytes(max(0, fill - spare))}, source_id)
        if len(value) == n_bytes:
            return value
    raise ValueError(f"no alert of {n_bytes} bytes; the smallest has {n_bytes - fill}")


def long_curve(n_points: int, source_id: int) -> bytes:
    """A deep alert with so many forced points, a night apart."""
    schema_id, record = alerts.lsst_sample(deep=True)
    point, own = record["prvDiaForcedSources"][0], record["diaSource"]["midpointMjdTai"]
    forced = [point | {"midpointMjdTai": own - i, "visit": point["visit"] + i} for i in range(n_points, 0, -1)]
    return alerts.lsst_frame(schema_id, record | {"prvDiaForcedSources": forced, "prvDiaSources": []}, source_id)


def spoilt(value: bytes) -> bytes:
    """The same size, and no alert any more: its schema id is one that nobody knows."""
    return b"\0\x7f\xff\xff\xff" + value[5:]


def cases(copies: int, deep: int) -> Iterator[tuple[str, str, int, bytes]]:
    """(case, expected status, source id, bytes) of every alert."""
    ids = iter(range(alerts.FIRST_ID + 1_000_000, alerts.FIRST_ID + 2_000_000))
    sizes = {"10 MB": 10_000_000, "just under": LIMIT - 1, "at the limit": LIMIT, "just over": LIMIT + 1}
    for name, n_bytes in sizes.items():
        for _ in range(copies):
            value = sized(n_bytes, source_id := next(ids))
            yield name, "rejected" if n_bytes > LIMIT else "answered", source_id, value
            yield f"{name}, unknown schema", "rejected", next(ids), spoilt(value)
    for _ in range(copies):
        yield f"{LONG_POINTS} points", "answered", (source_id := next(ids)), long_curve(LONG_POINTS, source_id)
    for source_id, value in alerts.build("lsst-deep", deep):
        yield "deep", "answered", source_id, value


@contextmanager
def memory_of_workers() -> Iterator[dict[int, int]]:
    """Peak resident bytes by process of the Python workers of this job, filled while the block runs."""
    peaks: dict[int, int] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(0.05):
            for process in machine.descendants(os.getpid(), machine.processes())[1:]:
                if process.name.startswith("python"):
                    peaks[process.pid] = max(peaks.get(process.pid, 0), machine.peak_memory(process.pid))

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield peaks
    finally:
        ended.set()
        thread.join()


def measure(copies: int, deep: int, folder: str, cores: int) -> dict[str, Any]:
    """All cases in one run, then an empty topic."""
    results: dict[str, Any] = {"machine": machine.describe(), "bar_bytes": BAR_BYTES, "copies": copies, "deep": deep}
    big = {"max.message.bytes": str(MAX_MESSAGE_BYTES)}
    with EmbeddedKafka() as kafka:
        kafka.create_topics({"big": 2, "empty": 2, "out": 4, "out-dead": 4, "none": 4, "none-dead": 4}, big)
        sent = _send(kafka.bootstrap_servers, copies, deep)
        results["full"] = _run(kafka.bootstrap_servers, "big", "out", folder, cores)
        results["empty"] = _run(kafka.bootstrap_servers, "empty", "none", folder, cores)
        answered, rejected = _keys(kafka.bootstrap_servers, "out"), _keys(kafka.bootstrap_servers, "out-dead")
    results["cases"] = {}
    for case in dict.fromkeys(name for name, _ in sent.values()):
        keys = {key: status for key, (name, status) in sent.items() if name == case}
        wrong = [k for k, status in keys.items() if (k in rejected) != (status == "rejected")]
        missing = [k for k in keys if (answered[k] + rejected[k]) != 1]
        results["cases"][case] = {"n": len(keys), "as_expected": not wrong, "one_answer_each": not missing}
        say(f"{case:32s} {len(keys):4d}  as expected: {not wrong}  one answer each: {not missing}")
    peak = max(results["full"]["peaks"], default=0)
    results["peak_bytes"], results["under_bar"] = peak, peak < BAR_BYTES
    say(f"peak of a Python worker: {peak / 1e6:.0f} MB (bar {BAR_BYTES / 1e6:.0f} MB); empty topic: served")
    return results


def _send(servers: str, copies: int, deep: int) -> dict[bytes, tuple[str, str]]:
    """Everything into the topic `big`; case and expectation by key."""
    producer = Producer({"bootstrap.servers": servers, "message.max.bytes": MAX_MESSAGE_BYTES, "linger.ms": 0})
    sent: dict[bytes, tuple[str, str]] = {}
    for i, (case, status, source_id, value) in enumerate(cases(copies, deep)):
        key = str(source_id).encode()  # dead letters keep the alert's key, verdicts have the source id for one
        sent[key] = (case, status)
        producer.produce("big", value, key, partition=i % 2)
        producer.flush(60)
    return sent


def _run(servers: str, topic: str, out: str, folder: str, cores: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as scratch:
        todo = Job(servers, "lsst", topic, out, 0, throughput.BATCH, scratch, folder, cores)
        result, log = Path(scratch) / "result.json", Path(scratch) / "log"
        order = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--job",
            json.dumps(asdict(todo)),
            "--json",
            str(result),
        ]
        with log.open("wb") as output:
            code = subprocess.run(order, stdout=output, stderr=output, check=False).returncode
        if code:
            raise RuntimeError(f"the job over {topic!r} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
        return found


def _keys(servers: str, topic: str) -> Counter[bytes]:
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "keys", "enable.auto.commit": False})
    found: Counter[bytes] = Counter()
    try:
        consumer.assign([TopicPartition(topic, p, 0) for p in range(4)])
        left = throughput.count(servers, topic)
        while left > 0:
            messages = consumer.consume(100, timeout=20)
            if not messages:
                raise RuntimeError(f"{topic}: {left} records can't be read")
            left -= len(messages)
            found.update(message.key() or b"" for message in messages)
    finally:
        consumer.close()
    return found


def main() -> None:
    """Measure and print, or be the child that is measured."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=8, help="alerts of each size")
    parser.add_argument("--deep", type=int, default=1000, help="deep alerts")
    parser.add_argument("--cores", type=int, default=2, help="Spark's task slots")
    parser.add_argument("--model", default="t2b-1", help="released model, or a folder")
    parser.add_argument("--json", type=Path, help="write the results here")
    parser.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        with memory_of_workers() as peaks:
            throughput.product(Job(**given.job))
        results: dict[str, Any] = {"peaks": sorted(peaks.values(), reverse=True)}
    else:
        results = measure(given.copies, given.deep, str(model.find(given.model).resolve()), given.cores)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
    if not given.job and not _passed(results):
        raise SystemExit(1)


def _passed(results: dict[str, Any]) -> bool:
    answered = all(case["as_expected"] and case["one_answer_each"] for case in results["cases"].values())
    return bool(results["under_bar"] and answered)


if __name__ == "__main__":
    main()
