"""Throughput: CPU per alert, Kafka to Kafka, of the product and two baselines in one run.

    python benchmarks/throughput.py [--loads ztf,lsst-average] [--alerts 20000] [--json FILE]

Each load is fed to the embedded Kafka once; then the systems answer it one after the other, each in a process of its
own with a JVM of its own, round by round. What was used until the end of the micro-batch in which the 5,000th alert
was answered is dropped as warm-up. Broker and feeder are counted apart.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that `broker` stays the installed package

from confluent_kafka import Consumer, Producer, TopicPartition  # noqa: E402
from confluent_kafka.admin import AdminClient  # noqa: E402

import broker  # noqa: E402
from benchmarks import alerts, baselines, machine  # noqa: E402
from benchmarks.baselines import Job  # noqa: E402
from broker import config, model, service  # noqa: E402
from broker.embedded import MAX_MESSAGE_BYTES, EmbeddedKafka  # noqa: E402

SYSTEMS = ("product", "field", "lean")
WARM_UP = 5_000
SHARES = {("field", "lsst-deep"): 0.1, ("lean", "lsst-deep"): 0.25}  # of the alerts, where a baseline is slow
BATCH = int(config.Source.model_fields["max_alerts_per_batch"].default)


@dataclass
class Clock:
    """CPU and time at the ends of micro-batches: (alerts done, seconds, CPU)."""

    marks: list[tuple[int, float, machine.Cpu]] = field(default_factory=list)

    def mark(self, done: int) -> None:
        """This many alerts are answered now."""
        self.marks.append((done, time.monotonic(), machine.cpu_of_this_job()))

    def after(self, warm_up: int) -> dict[str, float]:
        """Microseconds per alert from the first mark with warm_up alerts or more to the last; alerts per second."""
        first = next((m for m in self.marks if m[0] >= warm_up), self.marks[0])
        last = self.marks[-1]
        n = last[0] - first[0]
        if n <= 0:
            raise RuntimeError(f"no alert was measured: marks at {[m[0] for m in self.marks]}, warm-up {warm_up}")
        used, seconds = last[2] - first[2], last[1] - first[1]
        parts = {f"{kind}_us": round(value / n * 1e6, 1) for kind, value in asdict(used).items()}
        return {
            "measured": n,
            **parts,
            "cpu_us": round(used.total / n * 1e6, 1),
            "per_core_s": round(n / used.total, 1),
            "wall_per_s": round(n / seconds, 1),
        }


@contextmanager
def watching(checkpoint: Path, clock: Clock) -> Iterator[None]:
    """Marks the clock at each commit of a streaming query."""
    ended = threading.Event()

    def watch() -> None:
        seen = -1
        while True:
            last_look = ended.is_set()
            found = [int(p.name) for p in (checkpoint / "commits").glob("*") if p.name.isdigit()]
            if found and max(found) > seen:
                seen = max(found)
                clock.mark(_done(checkpoint, seen))
            if last_look:
                return
            ended.wait(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _done(checkpoint: Path, batch: int) -> int:
    """Alerts up to the end of a batch, of topics read from their start."""
    offsets = json.loads((checkpoint / "offsets" / str(batch)).read_text().splitlines()[-1])
    return sum(sum(partitions.values()) for partitions in offsets.values())


def product(todo: Job, once: bool = True, more: str = "") -> None:
    """The product, as `broker run` runs it, until all is answered (or, not `once`, until SIGTERM).

    more: TOML behind the rest of its config.
    """
    path = Path(todo.folder) / "broker.toml"
    path.write_text(
        f"""
[kafka]
bootstrap_servers = "{todo.bootstrap_servers}"
[model]
name = "{todo.model}"
[output]
classifications = "{todo.out}"
dead_letters = "{todo.out}-dead"
ledger = "{todo.out}-ledger"
create_topics = true
[spark]
master = "local[{todo.cores}]"
[[source]]
name = "{todo.survey}"
survey = "{todo.survey}"
topics = ["{todo.topic}"]
checkpoint = "{todo.checkpoint}"
start = "earliest"
max_alerts_per_batch = {todo.batch}
{more}"""
    )
    service.Service(config.load(path), once=once).run()


def child(system: str, todo: Job, warm_up: int) -> dict[str, float]:
    """One system over one topic, in this process."""
    clock = Clock()
    if system == "lean":
        clock.mark(0)
        step = max(1, todo.n // 20)

        def at(done: int) -> None:
            if done // step > clock.marks[-1][0] // step or done == todo.n:
                clock.mark(done)

        baselines.lean(todo, at)
    else:
        run: Callable[[Job], None] = product if system == "product" else baselines.field
        with watching(todo.checkpoint, clock):
            run(todo)
    return clock.after(warm_up)


def feed(servers: str, topic: str, load: str, n: int) -> float:
    """n alerts into partitions 0 and 1 of a topic; CPU seconds of feeding."""
    made = alerts.build(load, n)
    return send(servers, topic, ((str(source_id).encode(), value) for source_id, value in made))


def send(servers: str, topic: str, records: Iterable[tuple[bytes, bytes]]) -> float:
    """Keys and values into partitions 0 and 1 of a topic, by librdkafka; CPU seconds."""
    before = time.process_time()
    producer = Producer(
        {
            "bootstrap.servers": servers,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "queue.buffering.max.kbytes": 131_072,
            "linger.ms": 20,
            "batch.size": 4 * 2**20,
        }
    )
    for i, (key, value) in enumerate(records):
        while True:
            try:
                producer.produce(topic, value, key, partition=i % 2)
                break
            except BufferError:
                producer.poll(0.05)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError(f"{topic}: not all records were delivered in 120 s")
    return time.process_time() - before


def count(servers: str, topic: str) -> int:
    """Records in a topic."""
    consumer = Consumer({"bootstrap.servers": servers, "group.id": "count"})
    try:
        partitions = consumer.list_topics(topic, timeout=10).topics[topic].partitions
        ends = [consumer.get_watermark_offsets(TopicPartition(topic, p), timeout=10) for p in partitions]
        return sum(high - low for low, high in ends)
    finally:
        consumer.close()


@dataclass(frozen=True)
class Plan:
    """What is to be measured."""

    loads: tuple[str, ...]
    systems: tuple[str, ...]
    n: int
    warm_up: int
    batch: int
    rounds: int
    cores: int
    model: str


def about(plan: Any) -> dict[str, Any]:
    """Machine, model and plan, as results carry them (no folder of this machine)."""
    card = model.read_card(Path(plan.model) / model.CARD_FILE)
    named = {"model": f"{card.name}@{card.version}", "model_sha256": card.sha256, "broker": broker.__version__}
    return {"machine": machine.describe(), "plan": asdict(plan) | named}


def measure(plan: Plan) -> dict[str, Any]:
    """Every load with every system, plan.rounds times."""
    results = about(plan) | {"seed": alerts.SEED, "loads": {}}
    with EmbeddedKafka(properties={"log.segment.bytes": 2**28, "file.delete.delay.ms": 1000}) as kafka:
        for load in plan.loads:
            results["loads"][load] = _measure_load(kafka, plan, load)
    return results


def _measure_load(kafka: EmbeddedKafka, plan: Plan, load: str) -> dict[str, Any]:
    topic = f"alerts-{load}"
    kafka.create_topics({topic: 2}, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
    fed = feed(kafka.bootstrap_servers, topic, load, plan.n)
    kinds = alerts.templates(load)
    found: dict[str, Any] = {
        "mean_bytes": round(sum(len(k.value) for k in kinds) / len(kinds)),
        "mean_points": round(sum(k.points for k in kinds) / len(kinds), 1),
        "feeder_us": round(fed / plan.n * 1e6, 1),
        "runs": [],
    }
    for number in range(plan.rounds):
        for system in plan.systems:
            run = _run(kafka, plan, load, system, topic, f"{load}-{system}-{number}")
            found["runs"].append(run)
            say(_line(load, run))
    found |= summary(found["runs"])
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})  # held: the futures end with it
    for future in admin.delete_topics([topic]).values():
        future.result(30)
    return found


def _line(load: str, run: dict[str, Any]) -> str:
    parts = "  ".join(f"{part} {run[f'{part}_us']:.0f}" for part in ("jvm", "jit", "workers", "driver", "broker"))
    busy = f"load {run['machine']['load_after']} steal {run['machine']['steal']}"
    return (
        f"{load:13s} {run['system']:8s} {run['cpu_us']:7.0f} us/alert {run['per_core_s']:6.0f}/s/core  {parts}  {busy}"
    )


def _run(kafka: EmbeddedKafka, plan: Plan, load: str, system: str, topic: str, out: str) -> dict[str, Any]:
    """One system in a process of its own."""
    servers, n, warm_up = kafka.bootstrap_servers, plan.n, plan.warm_up
    batch = plan.batch
    share = SHARES.get((system, load), 1.0)
    n, warm_up, batch = int(n * share), int(warm_up * share), max(1, int(batch * share))
    kafka.create_topics({out: 4})
    if n < plan.n:
        topic = f"{topic}-{system}-{n}"
        kafka.create_topics({topic: 2}, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
        feed(servers, topic, load, n)
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as folder:
        survey = alerts.LOADS[load].survey
        todo = Job(servers, survey, topic, out, n, batch, folder, plan.model, plan.cores)
        before, broker_before = machine.moment(), _broker_cpu()
        result = run_child(system, todo, warm_up)
        broker = _broker_cpu() - broker_before
        busy = machine.between(before, machine.moment())
    written = count(servers, out) + (count(servers, f"{out}-dead") if system == "product" else 0)
    if written != n:
        raise RuntimeError(f"{system} on {load}: {n} alerts in, {written} answers out")
    return {"system": system, "n": n, **result, "broker_us": round(broker / n * 1e6, 1), "machine": busy}


def run_child(system: str, todo: Job, warm_up: int) -> dict[str, float]:
    """`child` in a fresh Python."""
    result = Path(todo.folder) / "result.json"
    order = [sys.executable, str(Path(__file__).resolve()), "--child", system, "--warm-up", str(warm_up)]
    order += ["--job", json.dumps(asdict(todo)), "--json", str(result)]
    log = Path(todo.folder) / "log"
    with log.open("wb") as output:
        code = subprocess.run(order, stdout=output, stderr=output, check=False).returncode
    if code:
        raise RuntimeError(f"{system} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
    found: dict[str, float] = json.loads(result.read_text())
    return found


def _broker_cpu() -> float:
    """CPU seconds of what this process keeps running (the embedded Kafka; children that ended are not in it)."""
    below = machine.descendants(os.getpid(), machine.processes())[1:]
    return sum(p.cpu_s for p in below)


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median CPU per alert of each system, and ratios to the product's, round by round."""
    by_system: dict[str, list[float]] = {}
    for run in runs:
        by_system.setdefault(run["system"], []).append(run["cpu_us"])
    middle = {system: sorted(values)[len(values) // 2] for system, values in by_system.items()}
    found: dict[str, Any] = {"cpu_us": middle}
    ours = by_system.get("product")
    if ours and "field" in by_system:
        found["field_over_product"] = [round(b / a, 2) for a, b in zip(ours, by_system["field"], strict=True)]
    if ours and "lean" in by_system:
        found["product_over_lean"] = [round(a / b, 2) for a, b in zip(ours, by_system["lean"], strict=True)]
    return found


def table(results: dict[str, Any]) -> str:
    """The results as Markdown."""
    here = results["machine"]
    lines = [
        f"{here['date']}, {here['processor']}, {here['cores']} cores{', virtual machine' if here['virtual'] else ''}; "
        f"{results['plan']['n']} alerts, {results['plan']['warm_up']} dropped as warm-up.",
        "CPU in us per alert; JIT is part of JVM.",
        "",
        "| load | system | alerts | CPU | /s/core | JVM | JIT | workers | driver | broker | load average | steal |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for load, found in results["loads"].items():
        for r in found["runs"]:
            cells = [load, r["system"], r["measured"], round(r["cpu_us"]), round(r["per_core_s"])]
            cells += [round(r[f"{part}_us"]) for part in ("jvm", "jit", "workers", "driver", "broker")]
            cells += [r["machine"]["load_after"], r["machine"]["steal"]]
            lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "| load | field / product | product / lean |", "|---|---|---|"]
    for load, found in results["loads"].items():
        ratios = (", ".join(map(str, found.get(key, []))) for key in ("field_over_product", "product_over_lean"))
        lines.append(f"| {load} | {' | '.join(ratios)} |")
    return "\n".join(lines) + "\n"


def say(line: str) -> None:
    """One line on the terminal, at once."""
    print(line, flush=True)


def parser() -> argparse.ArgumentParser:
    """Command line."""
    found = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--loads", default=",".join(alerts.LOADS), help="which kinds of alerts, joined by commas")
    found.add_argument("--systems", default=",".join(SYSTEMS), help="which of product, field, lean")
    found.add_argument("--alerts", type=int, default=20_000, help="alerts of each load")
    found.add_argument("--warm-up", type=int, help="alerts dropped at the start (5,000; a quarter of fewer alerts)")
    found.add_argument("--batch", type=int, default=BATCH, help="max_alerts_per_batch (the default of the config)")
    found.add_argument("--rounds", type=int, default=1, help="how often the systems take turns")
    found.add_argument("--cores", type=int, default=2, help="Spark's task slots")
    found.add_argument("--model", default="t2b-1", help="released model, or a folder")
    found.add_argument("--json", type=Path, help="write the results here")
    found.add_argument("--child", choices=SYSTEMS, help=argparse.SUPPRESS)
    found.add_argument("--job", type=json.loads, help=argparse.SUPPRESS)
    return found


def plan_of(given: argparse.Namespace) -> Plan:
    """The plan; with few alerts micro-batches shrink, so that two of them remain."""
    warm_up = min(WARM_UP, given.alerts // 4) if given.warm_up is None else given.warm_up
    return Plan(
        loads=tuple(given.loads.split(",")),
        systems=tuple(given.systems.split(",")),
        n=given.alerts,
        warm_up=warm_up,
        batch=max(1, min(given.batch, given.alerts // 2)),
        rounds=given.rounds,
        cores=given.cores,
        model=str(model.find(given.model).resolve()),
    )


def main() -> None:
    """Measure and print, or be the child that is measured."""
    given = parser().parse_args()
    if given.child:
        logging.basicConfig(level=logging.WARNING)
        results: dict[str, Any] = dict(child(given.child, Job(**given.job), given.warm_up))
    else:
        results = measure(plan_of(given))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")
        if not given.child:
            given.json.with_suffix(".md").write_text(table(results))


if __name__ == "__main__":
    main()
