"""`broker demo`: the whole path on real alerts, on one machine, with real parts; what it measures is a demo's."""

from __future__ import annotations

import json
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from broker import config as settings
from broker.archive import Frame, find_files, read_frames, survey_of
from broker.embedded import EmbeddedKafka
from broker.errors import UsageError
from broker.outlets import native
from broker.replay import replay
from broker.service import Service
from broker.topics import read_all

RATE = 40.0  # alerts per second and survey: several micro-batches, over in about 4 s
MAX_ALERT_BYTES = 16_777_216
WAIT_S = 240.0
CONFIG = """
[kafka]
bootstrap_servers = "{servers}"

[output]
create_topics = true

[spark]
master = "local[2]"
"""
SOURCE = """
[[source]]
name = "{survey}"
survey = "{survey}"
topics = ["demo-{survey}"]
start = "earliest"
checkpoint = "checkpoints/{survey}"
max_alerts_per_batch = 200
"""


@dataclass
class _Night:
    """Frames of each survey, and how many of them Kafka has."""

    frames: dict[str, list[Frame]]
    n_sent: int = 0
    failure: list[BaseException] = field(default_factory=list)

    @property
    def n_frames(self) -> int:
        return sum(len(f) for f in self.frames.values())


def run_demo(alerts: Path, output: Path, out: Console) -> None:
    """Runs it, prints what came out, leaves nothing running. Raises BrokerError where a part fails."""
    night = _Night(_frames(alerts))
    sizes = ", ".join(f"{len(f)} {s}" for s, f in night.frames.items())
    out.print(f"[bold]t2-broker demo[/bold]: {night.n_frames} alerts ({sizes}), damaged ones among them")
    with tempfile.TemporaryDirectory(prefix="t2-broker-demo-") as scratch, EmbeddedKafka() as kafka:
        out.print(f"Kafka runs at {kafka.bootstrap_servers}; Spark starts and loads the model ...")
        kafka.create_topics({f"demo-{survey}": 2 for survey in night.frames})
        file = Path(scratch) / "demo.toml"
        file.write_text(
            CONFIG.format(servers=kafka.bootstrap_servers) + "".join(SOURCE.format(survey=s) for s in night.frames)
        )
        service = Service(settings.load(file))
        feeder = threading.Thread(target=_feed, args=(night, kafka.bootstrap_servers, service), daemon=True)
        feeder.start()
        counts = service.run()
        feeder.join()
        if night.failure:
            raise night.failure[0]
        if counts.total() < night.n_frames:
            out.print(f"Interrupted: {counts.total()} of {night.n_frames} alerts were answered.")
            raise KeyboardInterrupt
        records = _records(kafka.bootstrap_servers)
        _show(records, counts, night, out)
        _save(records, output, out)


def _frames(alerts: Path) -> dict[str, list[Frame]]:
    """Alerts by survey; damaged ones, whose survey nobody can tell, go with ZTF's."""
    if not alerts.is_dir():
        raise UsageError(f"no folder {alerts} of sample alerts here; run the demo in a clone, or give --alerts FOLDER")
    frames: dict[str, list[Frame]] = {}
    for file in find_files([alerts]):
        survey = "ztf" if file.parent.name == "damaged" else survey_of(file)
        if survey is not None:
            frames.setdefault(survey, []).extend(read_frames(file, alerts, MAX_ALERT_BYTES))
    return frames


def _feed(night: _Night, servers: str, service: Service) -> None:
    """Replays all surveys at once, waits until every alert is answered, then stops the job."""
    try:
        while not service.started.wait(0.2):
            if service.stopping.is_set():
                return
        threads = [
            threading.Thread(target=replay, args=(frames, servers, f"demo-{survey}", RATE), daemon=True)
            for survey, frames in night.frames.items()
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        night.n_sent = night.n_frames
        deadline = time.monotonic() + WAIT_S
        while service.answered.total() < night.n_sent and not service.stopping.is_set():
            if time.monotonic() > deadline:
                night.failure.append(
                    UsageError(f"only {service.answered.total()} of {night.n_sent} answered in {WAIT_S:g} s")
                )
                break
            time.sleep(0.1)
    finally:
        service.stopping.set()


def _records(servers: str) -> list[dict[str, Any]]:
    """All classifications, each with the time that Kafka has for it."""
    found = []
    for message in read_all({"bootstrap.servers": servers}, settings.Output().classifications):
        found.append(native.read(message.value() or b"") | {"published_ms": message.timestamp()[1]})
    return found


def _show(records: list[dict[str, Any]], counts: Counter[str], night: _Night, out: Console) -> None:
    table = Table("survey", "object", "class", "prob.", "points", "verdict", title="A few classifications")
    chosen = sorted(records, key=lambda r: (r["status"] != "classified", -(r["probability"] or 0)))
    for survey in night.frames:
        # the surest of each class, as far as there are five
        best = {(r["status"], r["class_name"]): r for r in reversed([r for r in chosen if r["survey"] == survey])}
        for r in sorted(best.values(), key=chosen.index)[:5]:
            probability = "-" if r["probability"] is None else f"{r['probability']:.2f}"
            verdict = r["status"] if r["reason"] == "ok" else f"{r['status']}: {r['reason']}"
            cells = (r["object_id"] or "-", r["class_name"] or "-", probability, r["n_points_used"], verdict)
            table.add_row(survey, *map(str, cells))
    out.print(table)
    ledger = Table("verdict", "alerts", title="The ledger")
    for name, n in sorted(counts.items()):
        ledger.add_row(name, str(n))
    ledger.add_section()
    balance = "balanced" if counts.total() == night.n_sent else "NOT BALANCED"
    ledger.add_row(f"answered, of {night.n_sent} alerts in", f"{counts.total()} ({balance})")
    out.print(ledger)
    latencies = sorted(map(_latency_s, records))
    if latencies:
        middle, late = latencies[len(latencies) // 2], latencies[int(len(latencies) * 0.98)]
        out.print(
            f"From alert to classification: median {middle:.1f} s, 98 % within {late:.1f} s, start-up of the first "
            "batches included. A demo on one machine, not a benchmark: those are in benchmarks/."
        )


def _latency_s(record: dict[str, Any]) -> float:
    """From Kafka's time of the alert to Kafka's time of its classification."""
    return float(record["published_ms"] / 1000 - record["alert_timestamp"].timestamp())


def _save(records: list[dict[str, Any]], output: Path, out: Console) -> None:
    output.mkdir(parents=True, exist_ok=True)
    file = output / "classifications.jsonl"
    with file.open("w") as lines:
        for record in records:
            lines.write(json.dumps(record, default=str) + "\n")
    out.print(f"All {len(records)} records: {file} (one JSON object a line, as on the topic t2b-classifications)")
    out.print(f"Read them with: python -c 'import pandas; print(pandas.read_json(\"{file}\", lines=True))'")
