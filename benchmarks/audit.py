"""How fast `broker audit` reads: a night of verdicts, beside a bare consumer loop over the same topics in the same run.

    python benchmarks/audit.py [--alerts N] [--json FILE]

The records are as the job writes them (headers, an Avro container of the usual length, every 100th a dead letter); the
source's records are empty, since the audit reads no alert. Rounds alternate between the two; the bar is a million
verdicts in under a minute.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

from confluent_kafka import Producer, TopicPartition  # noqa: E402

from benchmarks.throughput import say  # noqa: E402
from broker import config  # noqa: E402
from broker.audit import audit  # noqa: E402
from broker.audit_report import last_line  # noqa: E402
from broker.collected import FETCH  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402
from broker.ledger import LedgerRow  # noqa: E402
from broker.outlets import native  # noqa: E402
from broker.topics import open_consumer, reaches  # noqa: E402

PARTITIONS = 4
BODY_BYTES = 700  # of a verdict, besides the container's header with the schema
ROW = 1_000  # alerts in a ledger row
OUTPUT = {"classifications": "t2b-classifications", "dead_letters": "t2b-dead-letters", "ledger": "t2b-ledger"}


def fill(servers: str, n: int) -> None:
    """A source with n alerts, and what a job would have written of them."""
    producer = Producer({"bootstrap.servers": servers, "linger.ms": 50, "queue.buffering.max.messages": 200_000})

    def put(topic: str, value: bytes | None, headers: list[tuple[str, bytes]], partition: int) -> None:
        while True:
            try:
                producer.produce(topic, value=value, headers=list(headers), partition=partition)
                return
            except BufferError:
                producer.poll(0.1)

    value = native.container(os.urandom(BODY_BYTES // 2) + bytes(BODY_BYTES - BODY_BYTES // 2))
    for i in range(n):
        offset, partition = divmod(i, PARTITIONS)
        topic = "dead_letters" if i % 100 == 99 else "classifications"
        marks = [("alert", f"ztf:night:{partition}:{offset}".encode()), ("model", b"t2b-1@1")]
        put("night", b"", [], partition)
        put(OUTPUT[topic], value, marks, i % PARTITIONS)
        producer.poll(0)
    for partition in range(PARTITIONS):
        end = len(range(partition, n, PARTITIONS))
        for first in range(0, end, ROW):
            run = (first, min(first + ROW, end) - 1)
            counts = {"classified/ok": run[1] - run[0] + 1}
            row = LedgerRow("ztf", first // ROW, partition, "night", partition, (run,), counts, "t2b-1@1", "q")
            put(OUTPUT["ledger"], row.to_json(), [], 0)
    if producer.flush(120):
        raise RuntimeError("not all records were delivered")


def bare_loop(servers: str) -> tuple[int, float]:
    """Records and wall seconds of a consumer that does nothing with the records of the two output topics."""
    started, n = time.monotonic(), 0
    for topic in (OUTPUT["classifications"], OUTPUT["dead_letters"]):
        with open_consumer({"bootstrap.servers": servers}) as consumer:
            held = reaches(consumer, topic)
            consumer.assign([TopicPartition(topic, p, reach.first) for p, reach in held.items()])
            ended = 0
            while ended < len(held):
                messages = consumer.consume(FETCH, timeout=0.2)
                ends = sum(message.error() is not None for message in messages)
                n, ended = n + len(messages) - ends, ended + ends
    return n, time.monotonic() - started


def measure(n: int, rounds: int) -> dict[str, object]:
    """Wall and CPU seconds of both, by round; CPU of this process, so without Kafka's own."""
    with tempfile.TemporaryDirectory() as folder, EmbeddedKafka(folder=Path(folder) / "kafka") as kafka:
        servers = kafka.bootstrap_servers
        kafka.create_topics(dict.fromkeys(["night", *OUTPUT.values()], PARTITIONS))
        started = time.monotonic()
        fill(servers, n)
        say(f"{n} alerts and their verdicts written in {time.monotonic() - started:.0f} s")
        file = Path(folder) / "audit.toml"
        file.write_text(
            f'[kafka]\nbootstrap_servers = "{servers}"\n[[source]]\nname = "ztf"\nsurvey = "ztf"\n'
            'topics = ["night"]\ncheckpoint = "none"\nstart = "earliest"\n'
        )
        settings, bare, ours, bare_cpu, our_cpu = config.load(file), [], [], [], []
        for _ in range(rounds):
            before = time.process_time()
            n_read, seconds = bare_loop(servers)
            between = time.process_time()
            found = audit(settings)
            bare.append(seconds)
            ours.append(found.seconds)
            bare_cpu.append(between - before)
            our_cpu.append(time.process_time() - between)
            summary = last_line(found)
            if not found.is_balanced or n_read != n or found.n_records != n:
                raise RuntimeError(f"{n_read} records read, the audit read {found.n_records}: {summary}")
            say(f"bare loop {seconds:.1f} s, audit {found.seconds:.1f} s: {summary}")
    per_million = statistics.median(ours) * 1_000_000 / n
    return {
        "alerts": n,
        "bare_s": [round(s, 2) for s in bare],
        "audit_s": [round(s, 2) for s in ours],
        "bare_cpu_s": [round(s, 2) for s in bare_cpu],
        "audit_cpu_s": [round(s, 2) for s in our_cpu],
        "ratio": round(statistics.median(ours) / statistics.median(bare), 2),
        "audit_s_per_million": round(per_million, 1),
        "bar_s_per_million": 60,
        "load": round(os.getloadavg()[0], 1),
    }


def main() -> int:
    """0 if the bar is reached."""
    parser = argparse.ArgumentParser(description="How fast broker audit reads.")
    parser.add_argument("--alerts", type=int, default=1_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    result = measure(given.alerts, given.rounds)
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    return int(float(str(result["audit_s_per_million"])) > 60)


if __name__ == "__main__":
    raise SystemExit(main())
