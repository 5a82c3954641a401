"""Where the time goes: CPU per alert of each stage of the product.

    python benchmarks/stages.py [--loads ztf,lsst-average] [--alerts 8000] [--json FILE]

Outside: streaming queries over one topic that end after one stage more each time (read, decode, hop, python, write),
the first four into a noop sink; what a stage costs is the difference to the one before. Inside: the Arrow batches that
cross to Python are kept, and the parts of the hop are timed over them in this process (thread CPU).
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from functools import wraps
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))

import pyarrow as pa  # noqa: E402
from pyspark.sql import DataFrame, SparkSession  # noqa: E402
from pyspark.sql import functions as F  # noqa: E402

from benchmarks import alerts, machine, throughput  # noqa: E402
from benchmarks.baselines import PRODUCER, Job  # noqa: E402
from benchmarks.throughput import Clock, say, watching  # noqa: E402
from broker import classify, config, decode, job, model, registry, session, sources, surveys  # noqa: E402
from broker.embedded import MAX_MESSAGE_BYTES, EmbeddedKafka  # noqa: E402
from broker.outlets import native  # noqa: E402
from broker.tally import Tally  # noqa: E402

STAGES = ("read", "decode", "hop", "python", "write")
# Parts of the hop: where the name lives, the name. What stands inside another is marked by a dot.
PARTS: tuple[tuple[Any, str, str], ...] = (
    (classify, "_read", "read"),
    (classify, "gather", "gather"),
    (classify, "merge", "merge"),
    (classify, "summarise", "summarise"),
    (classify, "thin", "thin"),
    (model.Model, "predict", "predict"),
    (classify, "judge", "judge"),
    (classify, "_classifications", "rows"),
    (native, "encode", "rows.encode"),
    (Tally, "add", "tally"),
)
PASSES = 3


def outside(todo: Job) -> dict[str, dict[str, float]]:
    """CPU of the job up to each stage, in one JVM that has run the whole query before."""
    spark = session.start("stages", f"local[{todo.cores}]", "2g")
    found = {}
    for number, stage in enumerate(("write", *STAGES)):
        clock = Clock()
        here = replace(todo, folder=f"{todo.folder}/{number}-{stage}")
        with watching(here.checkpoint, clock):
            _run(spark, stage, here)
        found[stage] = clock.after(todo.batch)
    _keep_batches(spark, todo)
    spark.stop()
    return found


def _run(spark: SparkSession, stage: str, todo: Job) -> None:
    rows = _up_to(stage, _frames(spark, todo), todo)
    writer = rows.writeStream.option("checkpointLocation", str(todo.checkpoint)).trigger(availableNow=True)
    if stage == "write":
        options = {"kafka.bootstrap.servers": todo.bootstrap_servers}
        writer.format("kafka").options(**options, **PRODUCER).start().awaitTermination()
    else:
        writer.format("noop").start().awaitTermination()


def _frames(spark: SparkSession, todo: Job) -> DataFrame:
    options = {"kafka.bootstrap.servers": todo.bootstrap_servers}
    return sources.kafka(spark, options, (todo.topic,), "earliest", todo.batch)


def _up_to(stage: str, frames: DataFrame, todo: Job) -> DataFrame:
    survey = surveys.find(todo.survey)
    if stage == "read":
        return frames
    if stage in ("python", "write"):
        return job.build(frames, survey, assignment(todo))
    decoded = decode.decode(frames, survey, registry.writers(survey.name))
    bare = F.col("alert").isNull() | decode.implausible(survey)
    hop = decoded.select(
        "alert", "schema", F.when(bare, F.col("value")).alias("raw"), "topic", "partition", "offset", "timestamp"
    )

    def drain(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        for _ in batches:
            pass
        return iter(())

    return hop if stage == "decode" else hop.mapInArrow(drain, "topic string")


def assignment(todo: Job) -> classify.Assignment:
    """What the product's tasks get, with topics of this measurement."""
    topics = (todo.out, todo.out, todo.out)
    return job.assignment(todo.survey, todo.survey, Path(todo.model), config.Policy(), 31.4, (1,), topics, 2**24, 2**20)


def _keep_batches(spark: SparkSession, todo: Job) -> None:
    """The Arrow batches of the first micro-batch, as the product's hop gets them, into files."""
    folder = f"{todo.folder}/batches"
    Path(folder).mkdir()

    def keep(_: classify.Assignment) -> Callable[[Iterable[pa.RecordBatch]], Iterator[pa.RecordBatch]]:
        def run(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            import os

            for number, batch in enumerate(batches):
                with pa.ipc.new_file(f"{folder}/{os.getpid()}-{number}.arrow", batch.schema) as file:
                    file.write_batch(batch)
            return iter(())

        return run

    task = getattr(job, "task")  # noqa: B009  # its place is taken for a moment: what it would get is kept
    setattr(job, "task", keep)  # noqa: B010
    try:
        reader = spark.read.format("kafka").option("kafka.bootstrap.servers", todo.bootstrap_servers)
        reader = reader.option("subscribe", todo.topic).option("includeHeaders", "true")
        half = todo.batch // 2
        ends = json.dumps({todo.topic: {"0": half, "1": half}})
        frames = reader.option("endingOffsets", ends).load().select(*sources.FRAME_COLUMNS)
        job.build(frames, surveys.find(todo.survey), assignment(todo)).collect()
    finally:
        setattr(job, "task", task)  # noqa: B010


def inside(todo: Job) -> dict[str, float]:
    """Thread CPU of the hop and its parts over the kept batches, microseconds per alert."""
    batches = [pa.ipc.open_file(path).read_all().to_batches()[0] for path in Path(todo.folder).glob("batches/*")]
    n, work = sum(map(len, batches)), assignment(todo)
    spent: dict[str, float] = {}

    def once() -> None:
        tally = Tally(todo.survey, "", 0, 0, "")
        for batch in batches:
            for _ in classify._answered(batch, work, tally, {}):
                pass
        tally.rows()

    once()
    before = time.thread_time()
    for _ in range(PASSES):
        once()
    found = {"hop": time.thread_time() - before}
    for owner, name, label in PARTS:
        if hasattr(owner, name):
            setattr(owner, name, _timed(getattr(owner, name), label, spent))
    for _ in range(PASSES):
        once()
    return {label: round(seconds / n / PASSES * 1e6, 1) for label, seconds in (found | spent).items()}


def _timed(function: Callable[..., Any], label: str, spent: dict[str, float]) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **named: Any) -> Any:
        before = time.thread_time()
        try:
            return function(*args, **named)
        finally:
            spent[label] = spent.get(label, 0.0) + time.thread_time() - before

    return run


def measure(plan: throughput.Plan) -> dict[str, Any]:
    """All loads, each in a process of its own."""
    results: dict[str, Any] = throughput.about(plan) | {"loads": {}}
    with EmbeddedKafka(properties={"log.segment.bytes": 2**28, "file.delete.delay.ms": 1000}) as kafka:
        for load in plan.loads:
            topic = f"alerts-{load}"
            kafka.create_topics({topic: 2, f"out-{load}": 4}, {"max.message.bytes": str(MAX_MESSAGE_BYTES)})
            throughput.feed(kafka.bootstrap_servers, topic, load, plan.n)
            before = machine.moment()
            results["loads"][load] = found = _child(kafka.bootstrap_servers, plan, load, topic)
            found["machine"] = machine.between(before, machine.moment())
            _print(load, found)
    return results


def _child(servers: str, plan: throughput.Plan, load: str, topic: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="t2-broker-bench-") as folder:
        survey = alerts.LOADS[load].survey
        todo = Job(servers, survey, topic, f"out-{load}", plan.n, plan.batch, folder, plan.model, plan.cores)
        result = Path(folder) / "result.json"
        order = [
            sys.executable,
            str(Path(__file__).resolve()),
            "--job",
            json.dumps(asdict(todo)),
            "--json",
            str(result),
        ]
        done = subprocess.run(order, capture_output=True, check=False)
        if done.returncode:
            raise RuntimeError(f"stages of {load} ended with {done.returncode}:\n{done.stderr.decode()[-4000:]}")
        found: dict[str, Any] = json.loads(result.read_text())
        shutil.rmtree(f"{folder}/batches", ignore_errors=True)
        return found


def _print(load: str, found: dict[str, Any]) -> None:
    reached, last = found["outside"], 0.0
    for stage in STAGES:
        now = reached[stage]
        say(
            f"{load:13s} {stage:7s} {now['cpu_us']:8.0f} us/alert so far, {now['cpu_us'] - last:+8.0f}  "
            f"(jvm {now['jvm_us']:.0f} workers {now['workers_us']:.0f})"
        )
        last = now["cpu_us"]
    say(f"{load:13s} inside the hop: " + "  ".join(f"{k} {v:.0f}" for k, v in found["inside"].items()))


def main() -> None:
    """Measure and print, or be the child that is measured."""
    parser = throughput.parser()
    parser.description = __doc__
    parser.set_defaults(alerts=8_000)
    given = parser.parse_args()
    if given.job:
        todo = Job(**given.job)
        results: dict[str, Any] = {"outside": outside(todo), "inside": inside(todo)}
    else:
        results = measure(throughput.plan_of(given))
    if given.json:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
