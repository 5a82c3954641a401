"""What outlets cost: CPU per alert, Kafka to Kafka, with each outlet, with all of them, and with none beside native.

    python benchmarks/outlets.py [--loads lsst-shallow,elasticc] [--systems "native alone,all"] [--alerts 20000]
        [--rounds 2] [--json FILE]

One job after the other answers the same topic, each in a process and JVM of its own, round by round; see throughput.py.
Each outlet takes every verdict on an alert that was read, which is the most that it can cost. Beside `fastdb` stands
what librdkafka alone needs to send the same records: cheaper than that no outlet of whole alerts can be.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that `broker` stays the installed package

from confluent_kafka import Consumer, TopicPartition  # noqa: E402

from benchmarks import alerts, machine, throughput  # noqa: E402
from benchmarks.baselines import Job  # noqa: E402
from broker import model  # noqa: E402
from broker.embedded import MAX_MESSAGE_BYTES, EmbeddedKafka  # noqa: E402

TOPICS = {
    "json": "{}-json",
    "lasair": "anno_{}",
    "hop": "{}-hop",
    "elasticc": "{}-elasticc",
    "fink-ai": "fink_ai_{}",
    "fink": "{}-fink",
    "fastdb": "{}-fastdb",
}
NOT = {"elasticc": ("fink", "fastdb"), "ztf": ("fastdb",)}
BARE, TIMES = 2_000, 5  # records that librdkafka sends, and how often
WHERE = "p_SNIa >= 0 AND n_detections >= 0"  # true for what the model saw


def kinds(survey: str) -> list[str]:
    """The outlets that a survey has."""
    return [kind for kind in TOPICS if kind not in NOT.get(survey, ())]


def systems(survey: str) -> dict[str, str]:
    """What is compared: its name and the [[outlet]] blocks of its job."""
    one = {kind: block(kind) for kind in kinds(survey)}
    told = {"native alone": "", **one, "json with where": block("json", WHERE), "all": "".join(one.values())}
    if "fastdb" in one:  # the only one that sends whole alerts
        told["all but fastdb"] = "".join(text for kind, text in one.items() if kind != "fastdb")
    return told


def block(kind: str, where: str | None = None) -> str:
    """One outlet that takes everything."""
    text = f'[[outlet]]\nname = "{kind}"\nkind = "{kind}"\ntopic = "{TOPICS[kind]}"\n'
    text += 'class_name = "SNIa"\n' if kind == "fink-ai" else ""
    text += '[outlet.filter]\nstatuses = ["classified", "abstained"]\n'
    return text + (f'where = "{where}"\n' if where else "")


def source_settings(blocks: str) -> str:
    """What a source needs for them: a fastdb record is larger than its alert, and must fit its topic."""
    return "max_alert_bytes = 8388608\n" if 'kind = "fastdb"' in blocks else ""


def measure(loads: list[str], chosen: list[str], n: int, warm_up: int, rounds: int) -> dict[str, Any]:
    """The chosen systems (all if none is given) over every load, in turns; native alone is always among them."""
    results: dict[str, Any] = {"machine": machine.describe(), "alerts": n, "warm_up": warm_up, "loads": {}}
    with EmbeddedKafka(properties={"log.segment.bytes": 2**28, "file.delete.delay.ms": 1000}) as kafka:
        for load in loads:
            topic, survey = f"alerts-{load}", alerts.LOADS[load].survey
            kafka.create_topics({topic: 2}, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
            throughput.feed(kafka.bootstrap_servers, topic, load, n)
            runs: dict[str, list[dict[str, float]]] = {
                name: [] for name in systems(survey) if not chosen or name in ("native alone", *chosen)
            }
            for number in range(rounds):
                for name, found in runs.items():
                    out = f"{load}-{name.replace(' ', '-')}-{number}"
                    found.append(_run(kafka.bootstrap_servers, survey, topic, out, name, n, warm_up))
                    print(f"{load:13s} {name:16s} {found[-1]['cpu_us']:7.0f} us/alert", flush=True)
                    if name == "fastdb":
                        found[-1]["bare_us"] = bare(kafka, TOPICS[name].format(out))
                        print(f"{load:13s} librdkafka alone {found[-1]['bare_us']:7.0f} us/alert", flush=True)
            results["loads"][load] = {name: summary(found, runs["native alone"]) for name, found in runs.items()}
    return results


def bare(kafka: EmbeddedKafka, topic: str) -> float:
    """CPU of librdkafka, in us a record, for sending the first records of a topic again, from memory."""
    consumer = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": "bare"})
    consumer.assign([TopicPartition(topic, 0, 0)])
    records: list[tuple[bytes, bytes]] = []
    while len(records) < BARE:
        message = consumer.poll(30)
        if message is None or message.error():
            raise RuntimeError(f"{topic} has only {len(records)} records in its first partition")
        records.append((message.key() or b"", message.value() or b""))
    consumer.close()
    kafka.create_topics({f"{topic}-bare": 2}, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
    return round(throughput.send(kafka.bootstrap_servers, f"{topic}-bare", records * TIMES) / (BARE * TIMES) * 1e6, 1)


def summary(found: list[dict[str, float]], alone: list[dict[str, float]]) -> dict[str, Any]:
    """Medians, and the loss of throughput per core against native alone in the same round."""
    losses = [1 - a["cpu_us"] / f["cpu_us"] for f, a in zip(found, alone, strict=True)]
    return {
        "cpu_us": statistics.median(f["cpu_us"] for f in found),
        "workers_us": statistics.median(f["workers_us"] for f in found),
        "jvm_us": statistics.median(f["jvm_us"] for f in found),
        "loss": round(statistics.median(losses), 3),
        "runs": found,
    }


def _run(servers: str, survey: str, topic: str, out: str, name: str, n: int, warm_up: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as folder:
        todo = Job(servers, survey, topic, out, n, throughput.BATCH // 2, folder, str(model.find("t2b-1")))
        result, log = Path(folder) / "result.json", Path(folder) / "log"
        order = [sys.executable, str(Path(__file__).resolve()), "--child", name, "--job", json.dumps(asdict(todo))]
        with log.open("wb") as output:
            code = subprocess.run(
                [*order, "--warm-up", str(warm_up), "--json", str(result)], stdout=output, stderr=output, check=False
            ).returncode
        if code:
            raise RuntimeError(f"{name} ended with {code}:\n{log.read_text(errors='replace')[-4000:]}")
        found: dict[str, float] = json.loads(result.read_text())
        return found


def child(name: str, todo: Job, warm_up: int) -> dict[str, float]:
    """One system over one topic, in this process."""
    clock, blocks = throughput.Clock(), systems(todo.survey)[name].replace("{}", todo.out)
    with throughput.watching(todo.checkpoint, clock):
        throughput.product(replace(todo), more=source_settings(blocks) + blocks)
    return clock.after(warm_up)


def main() -> None:
    """The command line."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--loads", default="lsst-shallow,elasticc")
    options.add_argument("--systems", default="")
    options.add_argument("--alerts", type=int, default=20_000)
    options.add_argument("--warm-up", type=int, default=5_000)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--json", type=Path)
    options.add_argument("--child")
    options.add_argument("--job")
    asked = options.parse_args()
    if asked.child:
        asked.json.write_text(json.dumps(child(asked.child, Job(**json.loads(asked.job)), asked.warm_up)))
        return
    chosen = [name for name in asked.systems.split(",") if name]
    found = measure(asked.loads.split(","), chosen, asked.alerts, asked.warm_up, asked.rounds)
    if asked.json:
        asked.json.write_text(json.dumps(found, indent=1) + "\n")
    for load, rows in found["loads"].items():
        print(f"\n| {load} | CPU, us per alert | workers | JVM | throughput lost |\n|---|---|---|---|---|")
        for name, row in rows.items():
            print(
                f"| {name} | {row['cpu_us']:.0f} | {row['workers_us']:.0f} | {row['jvm_us']:.0f} | {row['loss']:.1%} |"
            )


if __name__ == "__main__":
    main()
