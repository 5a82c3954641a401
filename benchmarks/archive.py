"""Archives: CPU per alert of a ZTF night's tar.gz to verdicts, memory while it is read, and the pace of a replay.

    python benchmarks/archive.py [--alerts N] [--rounds R] [--json FILE]

The night is made of the repository's own samples under new ids (`alerts.py`, its seed). The product is `broker
classify`; the baseline one Python process: tarfile, gzip, `fastavro.reader`, and the product's own gathering and model
in batches. Product CPU is the difference between the whole night and its first quarter, so that the start of Spark
drops out. Replay takes turns with a bare librdkafka producer of the same settings that sends the same bytes, preloaded.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import fastavro  # noqa: E402
import pyarrow as pa  # noqa: E402
from confluent_kafka import Producer  # noqa: E402

from benchmarks import alerts, machine  # noqa: E402
from benchmarks.throughput import say  # noqa: E402
from broker import job, model, surveys  # noqa: E402
from broker.archive import Frame, read_frames  # noqa: E402
from broker.config import Policy  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402
from broker.gather import gather  # noqa: E402
from broker.lightcurve import merge, summarise, thin  # noqa: E402
from broker.replay import replay  # noqa: E402
from broker.table_rows import arrow_type  # noqa: E402
from broker.verdict import judge  # noqa: E402

BATCH = 256
REPLAYED = 4_000  # alerts a round, some 300 MB in memory
MARKS = 8  # places at which memory is looked at


def write_night(path: Path, n: int) -> None:
    """A nightly archive: one container per alert, packed as the observatory's are."""
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for source_id, value in alerts.build("ztf", n):
            member = tarfile.TarInfo(f"{source_id}.avro")
            member.size = len(value)
            archive.addfile(member, io.BytesIO(value))


# --- to verdicts --------------------------------------------------------------------------------------------------


def product(path: Path) -> dict[str, float]:
    """CPU seconds of everything that `broker classify` starts, in this process."""
    from broker.files import classify_files

    with tempfile.TemporaryDirectory() as folder:
        classify_files([path], f"{folder}/out.avro", None, "t2b-1", "local[1]")
        with open(f"{folder}/out.avro", "rb") as file:
            n = sum(1 for _ in fastavro.reader(file))
    return {"cpu_s": machine.cpu_of_this_job().total, "n": n}


def baseline(path: Path) -> dict[str, float]:
    """CPU seconds of the plain way, in this process."""
    survey, folder = surveys.find("ztf"), model.find("t2b-1")
    names = ("a", "b", "c")
    work = job.assignment("plain", "ztf", folder, Policy(), 31.4, (1,), names, 2**24, 2**20)
    loaded, struct = model.load(folder), arrow_type(survey.fields)
    before, n = time.process_time(), 0
    for records in _batches(path):
        structs = pa.array(records, struct)
        gathered = gather(structs, survey, work.settings)
        curves, counts = merge(gathered.points, len(structs), gathered.mjd_tai)
        summary = summarise(curves)
        probabilities = loaded.predict(thin(curves, loaded.card.max_points))
        evident = loaded.card.evident("ztf", probabilities, summary)
        n += len(judge(gathered, survey, work.settings, counts, summary, loaded.card.min_points, evident))
    return {"cpu_s": time.process_time() - before, "n": n}


def _batches(path: Path) -> Iterator[list[Any]]:
    records: list[Any] = []
    with tarfile.open(path, "r|gz") as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None
            records += fastavro.reader(io.BytesIO(content.read()))
            if len(records) >= BATCH:
                yield records
                records = []
    if records:
        yield records


def gunzip(path: Path) -> dict[str, float]:
    """CPU seconds of the unpacking alone, which both pay."""
    before = time.process_time()
    with gzip.open(path) as file:
        while file.read(2**20):
            pass
    return {"cpu_s": time.process_time() - before}


def memory(path: Path) -> dict[str, Any]:
    """Resident MB of a process that reads the archive, at even distances, and its slope in MB per 100 MB read."""
    seen: list[tuple[float, float]] = []
    read = 0
    for number, frame in enumerate(read_frames(path, path, 2**24)):
        read += len(frame.value or b"")
        if number % 100 == 99:
            seen.append((read / 1e6, _resident_mb()))
    seen = seen[len(seen) % MARKS :: max(1, len(seen) // MARKS)]
    settled = seen[1:]  # the first buffers are there by then
    slope = (settled[-1][1] - settled[0][1]) / (settled[-1][0] - settled[0][0]) * 100
    return {"at_mb": [round(mb) for mb, _ in seen], "resident_mb": [round(mb, 1) for _, mb in seen], "slope": slope}


def _resident_mb() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS:"))


CHILDREN = {"product": product, "baseline": baseline, "gunzip": gunzip, "memory": memory}


def _child(name: str, path: Path) -> dict[str, Any]:
    order = [sys.executable, "-P", str(Path(__file__).resolve()), "--child", name, "--archive", str(path)]
    done = subprocess.run(order, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} ended with {done.returncode}:\n{done.stderr[-4000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def to_verdicts(n: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Microseconds of CPU per alert, systems in turn."""
    quarter, whole = folder / "quarter.tar.gz", folder / "night.tar.gz"
    write_night(quarter, n // 4)
    write_night(whole, n)
    say(f"{n} alerts in {whole.stat().st_size / 1e6:.0f} MB")
    found: dict[str, list[float]] = {"product": [], "baseline": [], "gunzip": []}
    for _ in range(rounds):
        for name, costs in found.items():
            ends = [_child(name, path) for path in (quarter, whole)]
            assert name == "gunzip" or [end["n"] for end in ends] == [n // 4, n]
            costs.append((ends[1]["cpu_s"] - ends[0]["cpu_s"]) / (n - n // 4) * 1e6)
            say(f"{name:9s} {costs[-1]:6.0f} us of CPU an alert")
    us = {name: statistics.median(costs) for name, costs in found.items()}
    return {
        "alerts": n,
        "archive_mb": round(whole.stat().st_size / 1e6),
        "us": {name: [round(cost) for cost in costs] for name, costs in found.items()},
        "ratio": round(us["baseline"] / us["product"], 2),
        "ratio_without_gunzip": round((us["baseline"] - us["gunzip"]) / (us["product"] - us["gunzip"]), 2),
        "memory": _child("memory", whole),
    }


# --- replay -------------------------------------------------------------------------------------------------------


def bare(servers: str, topic: str, values: list[bytes]) -> float:
    """Wall seconds of a producer with the replay's settings and nothing around it."""
    producer = Producer(
        {"bootstrap.servers": servers, "message.max.bytes": 18_000_000, "enable.idempotence": True, "linger.ms": 20,
         "batch.size": 1_000_000, "queue.buffering.max.kbytes": 131_072}
    )  # fmt: skip
    started = time.monotonic()
    for value in values:
        while True:
            try:
                producer.produce(topic, value)
                break
            except BufferError:
                producer.poll(0.1)
        producer.poll(0)
    if producer.flush(120):
        raise RuntimeError("not all alerts were delivered")
    return time.monotonic() - started


def replays(n: int, rounds: int, folder: Path) -> dict[str, Any]:
    """Alerts per second of both, in turn, each onto a topic of its own."""
    values = [value for _, value in alerts.build("ztf", n)]
    speeds: dict[str, list[float]] = {"bare": [], "replay": []}
    with EmbeddedKafka(folder=folder / "kafka") as kafka:
        for number in range(rounds):
            for name in (*speeds,) if number % 2 == 0 else (*reversed(speeds),):
                topic = f"{name}-{number}"
                kafka.create_topics({topic: 4})
                frames = [Frame(None, value, [], "night", 0, i) for i, value in enumerate(values)]
                if name == "bare":
                    seconds = bare(kafka.bootstrap_servers, topic, values)
                else:
                    started = time.monotonic()
                    replay(frames, kafka.bootstrap_servers, topic)
                    seconds = time.monotonic() - started
                speeds[name].append(n / seconds)
                say(f"{name:7s} {speeds[name][-1]:6.0f} alerts/s")
    ratio = statistics.median(speeds["replay"]) / statistics.median(speeds["bare"])
    return {"alerts": n, **{k: [round(s) for s in v] for k, v in speeds.items()}, "ratio": round(ratio, 2)}


def main() -> int:
    """0 if the bars are reached: 1.5 and 3 times the baseline, 0.8 of the bare producer."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=CHILDREN)
    parser.add_argument("--archive", type=Path)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(CHILDREN[given.child](given.archive)))
        return 0
    before = machine.moment()
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as folder:
        result = machine.describe() | {"to_verdicts": to_verdicts(given.alerts, given.rounds, Path(folder))}
        result["replay"] = replays(min(given.alerts, REPLAYED), given.rounds, Path(folder))
    result["machine"] = machine.between(before, machine.moment())
    print(json.dumps(result, indent=1))
    if given.json:
        given.json.parent.mkdir(parents=True, exist_ok=True)
        given.json.write_text(json.dumps(result, indent=1) + "\n")
    verdicts: dict[str, Any] = result["to_verdicts"]  # type: ignore[assignment]
    sent: dict[str, Any] = result["replay"]  # type: ignore[assignment]
    reached = verdicts["ratio"] >= 1.5 and verdicts["ratio_without_gunzip"] >= 3 and sent["ratio"] >= 0.8
    return int(not reached)


if __name__ == "__main__":
    raise SystemExit(main())
