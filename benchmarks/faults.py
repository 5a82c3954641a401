"""Faults in mid-stream (`make faults`): what breaks the job, and whether every alert has exactly one record afterwards.

A run streams a mix of alerts of all three surveys, three sources in one job, 1 % of them damaged, breaks something at
random moments (by the seed), starts the job again whenever it has ended, as a supervisor would, and waits until all is
committed. What the job goes on from by itself is counted as `restarts`; at 60 % damage it must stop by its own limit,
and gets a higher one. Then it counts the records of each alert on both output topics, and asks `broker audit`. One
result file a run, in benchmarks/results/faults; a run whose file is there is not run again. `--table` writes
docs/reliability.md.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that `broker` stays the installed package

from confluent_kafka import KafkaException  # noqa: E402
from confluent_kafka.admin import AdminClient  # noqa: E402

from benchmarks import faults_table, machine  # noqa: E402
from benchmarks.fault_load import PARTITIONS, SHARES, Feed, Job, Load  # noqa: E402
from broker import audit, checkpoint  # noqa: E402
from broker.collected import collect  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402
from broker.topics import EndOffsets, watermarks  # noqa: E402

DAMAGED = 0.01
FAULTS = ("job", "driver", "workers", "kafka", "damaged-1", "damaged-60")
LAST_RESORT_S = 900.0  # a run that takes longer has failed
CONFIG = """
[kafka]
bootstrap_servers = "{servers}"
[output]
classifications = "{run}-classifications"
dead_letters = "{run}-dead-letters"
ledger = "{run}-ledger"
create_topics = true
[spark]
master = "local[2]"
driver_memory = "1500m"
"""
SOURCE = """
[[source]]
name = "{name}"
survey = "{name}"
topics = ["{run}-{name}"]
checkpoint = "checkpoints/{name}"
start = "earliest"
max_alerts_per_batch = {batch}
"""


@dataclass
class Hit:
    """One fault: when, in which phase each source was, how long until a batch was committed again."""

    at_s: float
    phases: dict[str, str]
    recovery_s: float | None = None


@dataclass
class Result:
    """One run. duplicates: records too many; audit: its exit code (0: balanced)."""

    fault: str
    seed: int
    alerts: int
    over_s: float
    damaged: float
    away_s: float
    batch: int
    hits: list[Hit] = field(default_factory=list)
    lost: int = 0
    duplicates: int = 0
    already_written: int = 0
    dead_letters: int = 0
    starts: int = 0
    limit_stops: int = 0
    restarts: int = 0
    exit_codes: list[int] = field(default_factory=list)
    audit: int = -1
    wall_s: float = 0.0
    load: dict[str, float] = field(default_factory=dict)


class Run:
    """One run of one fault."""

    def __init__(self, kafka: EmbeddedKafka, folder: Path, result: Result, n_hits: int, away_s: float) -> None:
        self.kafka, self.folder, self.result, self.n_hits, self.away_s = kafka, folder, result, n_hits, away_s
        self.run = f"{result.fault}-{result.seed}"
        self.options = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": "0"}
        self.rng = random.Random(f"{result.fault} {result.seed}")
        self.config = folder / "job.toml"
        text = CONFIG.format(servers=kafka.bootstrap_servers, run=self.run)
        self.config.write_text(
            text + "".join(SOURCE.format(name=name, run=self.run, batch=result.batch) for name in SHARES)
        )
        self.outputs = [f"{self.run}-classifications", f"{self.run}-dead-letters"]
        self.job: Job | None = None
        self.next_hit: float | None = None
        self.draws_near = False
        self.ends: dict[str, dict[int, int]] | None = None
        self.hurt: list[tuple[Hit, float, dict[str, int]]] = []  # faults from which nothing has recovered yet

    def go(self) -> Result:
        """The whole run."""
        began, before, r = time.monotonic(), machine.moment(), self.result
        self.kafka.create_topics({f"{self.run}-{name}": PARTITIONS for name in SHARES})
        feed = Feed(self.kafka.bootstrap_servers, self.run, Load(r.alerts, r.over_s, r.damaged, r.seed))
        self.start()
        self.wait_until_running()
        feed.start()
        self.asker = EndOffsets(self.options, self.outputs)
        while not (len(self.result.hits) == self.n_hits and not feed.is_alive() and self.all_committed(feed.sent)):
            self.look_after()
            if len(self.result.hits) < self.n_hits and self.is_time:
                self.hit(time.monotonic() - began)
            if time.monotonic() - began > LAST_RESORT_S:
                raise RuntimeError(f"{self.run}: not done after {LAST_RESORT_S:g} s; log: {self.job and self.job.log}")
            time.sleep(0.02)
        self.end()
        self.count(feed.sent)
        self.result.wall_s = round(time.monotonic() - began, 1)
        self.result.load = machine.between(before, machine.moment())
        return self.result

    @property
    def running(self) -> bool:
        """Whether the job's queries run."""
        return self.job is not None and self.job.process.poll() is None and self.job.is_running

    @property
    def is_time(self) -> bool:
        """Whether the moment of the next fault has come, by the seed.

        A random time after the queries (last) started, so that a batch that is being repeated is broken off as well.
        Two times of three this only draws near: the fault comes within 1.5 s of the next record on an output topic.
        """
        if not self.running:
            return False
        now = time.monotonic()
        if self.next_hit is None:
            self.next_hit, self.draws_near = now + self.rng.uniform(0.3, 12), self.rng.random() < 2 / 3
            self.ends = None
        if now < self.next_hit:
            return False
        if not self.draws_near:
            return True
        ends = self.asker.now()
        self.ends = self.ends or ends
        if ends != self.ends:
            self.next_hit, self.draws_near = time.monotonic() + self.rng.uniform(0, 1.5), False
        return False

    def start(self) -> None:
        """Start the job, as a supervisor does."""
        self.next_hit = None
        self.job = Job(self.config, self.folder / "job.log")
        self.result.starts += 1

    def wait_until_running(self) -> None:
        """Spark takes its time."""
        while not self.running:
            self.look_after()
            time.sleep(0.1)

    def look_after(self) -> None:
        """Start the job again where it has ended; see whether a batch was committed since the last fault."""
        assert self.job is not None
        code = self.job.process.poll()
        if code is not None:
            self.result.exit_codes.append(code)
            if self.job.has_said("were rejected"):
                self.result.limit_stops += 1
                if self.result.limit_stops == 1:
                    self.config.write_text(self.config.read_text() + "[limits]\nmax_rejected_ratio = 1.0\n")
            self.start()
        for hit, since, commits in list(self.hurt):
            now = self.commits()
            if all(now[name] > commits[name] for name in commits if hit.phases[name] != "plan") and now != commits:
                hit.recovery_s = round(time.monotonic() - since, 2)
                self.hurt.remove((hit, since, commits))

    def commits(self) -> dict[str, int]:
        """Newest committed batch of each source, -1 without."""
        found = {name: checkpoint.committed_batches(self.folder / "checkpoints" / name) for name in SHARES}
        return {name: numbers[-1] if numbers else -1 for name, numbers in found.items()}

    def hit(self, at_s: float) -> None:
        """Break something; start again what has ended, and see what was hit."""
        job, fault, commits, since = self.job, self.result.fault, self.commits(), time.monotonic()
        assert job is not None
        if fault == "job":
            _kill(job.below())
        elif fault == "driver":
            job.process.kill()
        elif fault == "workers":
            workers = [p for p in job.below() if p.pid != job.process.pid and p.name != "java"]
            if not workers:
                return
            _kill(workers)
        elif fault == "kafka":
            _kill([p for p in machine.descendants(os.getpid(), machine.processes()) if _is_kafka(p)])
            self.kafka.stop()
            self.wait_away()
            self.kafka.start()
            since = time.monotonic()
        if fault in ("job", "driver"):
            job.process.wait()
            self.look_after()
            commits = self.commits()  # one more may have come
        hit = Hit(round(at_s, 2), self.phases())
        self.result.hits.append(hit)
        self.next_hit = None
        self.hurt = [(hit, since, commits)]  # what was not recovered from by now has no time of its own
        print(f"  {self.run}: hit at {hit.at_s:.1f} s: {hit.phases}", flush=True)

    def wait_away(self) -> None:
        """Kafka is away; a job that gives up is started again, as ever."""
        end = time.monotonic() + self.away_s
        while time.monotonic() < end:
            self.look_after()
            time.sleep(0.1)

    def phases(self) -> dict[str, str]:
        """Where the batch of each source was when the job died: plan, decode, write or commit; else plan or running.

        plan: the newest planned batch is committed. decode: none of its alerts has a record, write: some, commit: all.
        """
        found, answered, has_died = {}, self.answered(), self.result.fault in ("job", "driver")
        for name in SHARES:
            planned = checkpoint.planned_spans(self.folder / "checkpoints" / name)
            if planned is None:
                found[name] = "plan"
            elif not has_died:
                found[name] = "running"
            else:
                places = [(s.topic, s.partition, o) for s in planned[1] for o in range(s.first, s.last_exclusive)]
                n_written = sum((name, *place) in answered for place in places)
                found[name] = "decode" if n_written == 0 else "write" if n_written < len(places) else "commit"
        return found

    def answered(self) -> Counter[tuple[str, str, int, int]]:
        """Records of each alert over both output topics."""
        found: Counter[tuple[str, str, int, int]] = Counter()
        for topic in self.outputs:
            for (prefix, _), offsets in collect(self.options, topic).offsets.items():
                source, name, partition = prefix.decode().split(":")
                found.update((source, name, int(partition), offset) for offset in offsets)
        return found

    def all_committed(self, sent: Counter[str]) -> bool:
        """Whether the committed batches reach the end of what was sent."""
        for name in SHARES:
            last = checkpoint.committed_spans(self.folder / "checkpoints" / name)
            if last is None or sum(span.last_exclusive for span in last.spans) < sent[name]:
                return False
        return True

    def end(self) -> None:
        """SIGTERM, which must end it cleanly."""
        self.wait_until_running()
        assert self.job is not None
        self.job.process.send_signal(signal.SIGTERM)
        self.result.exit_codes.append(self.job.process.wait(60))

    def count(self, sent: Counter[str]) -> None:
        """The books, from the topics."""
        answered = self.answered()
        everything = {
            (name, f"{self.run}-{name}", partition, offset)
            for name in SHARES
            for partition, reach in _ends(self.options, f"{self.run}-{name}").items()
            for offset in range(reach)
        }
        assert len(everything) == sum(sent.values()) == self.result.alerts
        self.result.lost = len(everything - answered.keys())
        self.result.duplicates = sum(answered.values()) - len(answered)
        letters = collect(self.options, self.outputs[1])
        self.result.dead_letters = letters.n_records
        rows = audit.ledger_rows(self.options, f"{self.run}-ledger", None)
        self.result.already_written = sum(row.already_written for found in rows.values() for row in found)
        command = [sys.executable, "-P", "-m", "broker", "audit", "--config", str(self.config)]
        text = (self.folder / "job.log").read_text(errors="replace")
        self.result.restarts = text.count("the query failed; restart") + text.count("a worker failed (")
        self.result.audit = subprocess.run(command, capture_output=True, check=False).returncode
        AdminClient(self.options).delete_topics([*self.outputs, *(f"{self.run}-{name}" for name in SHARES)])


def _kill(processes: list[machine.Process]) -> None:
    for process in processes:
        with suppress(ProcessLookupError):  # it went with its parent
            os.kill(process.pid, signal.SIGKILL)


def _is_kafka(process: machine.Process) -> bool:
    try:
        return b"kafka.Kafka" in Path(f"/proc/{process.pid}/cmdline").read_bytes() and process.name == "java"
    except OSError:
        return False


def _ends(options: dict[str, str], topic: str) -> dict[int, int]:
    return {partition: reach.last_exclusive for partition, reach in watermarks(options, [topic])[topic].items()}


def one(fault: str, seed: int, args: argparse.Namespace) -> Result:
    """A run with a Kafka of its own."""
    share = {"damaged-60": 0.6}.get(fault, DAMAGED)
    result = Result(fault, seed, args.alerts, args.over_s, share, args.away_s, args.batch)
    n_hits = 0 if fault.startswith("damaged") else 1 if fault == "kafka" else args.hits
    scratch = Path(tempfile.mkdtemp(prefix=f"t2-faults-{fault}-{seed}-"))
    print(f"{fault}, seed {seed}: {args.alerts} alerts over {args.over_s:g} s; log: {scratch / 'job.log'}", flush=True)
    with EmbeddedKafka(folder=scratch / "kafka") as kafka:
        kafka = _on_its_port(kafka)
        run = Run(kafka, scratch, result, n_hits, args.away_s)
        try:
            return run.go()
        finally:
            if run.job is not None:
                _kill(run.job.below())
            kafka.stop()


def _on_its_port(kafka: EmbeddedKafka) -> EmbeddedKafka:
    """The same Kafka, that comes back where it was."""
    port = int(kafka.bootstrap_servers.rpartition(":")[2])
    kafka._wanted_port = port
    return kafka


def main() -> int:
    """Runs what is missing; 1 if an alert was lost or a record repeated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="*", default=FAULTS, choices=FAULTS)
    parser.add_argument("--seeds", type=int, nargs="*", default=range(1, 11))
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--over-s", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=1000, help="max_alerts_per_batch of each source")
    parser.add_argument("--hits", type=int, default=3, help="faults a run, where they don't take long")
    parser.add_argument("--away-s", type=float, default=60.0, help="how long Kafka stays away")
    parser.add_argument("--results", type=Path, default=faults_table.RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table into docs/reliability.md, run nothing")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    for seed in () if args.table else args.seeds:
        for fault in args.faults:
            path = args.results / f"{fault}-{seed}.json"
            if path.exists():
                continue
            try:
                result = one(fault, seed, args)
            except (RuntimeError, KafkaException) as error:
                print(f"FAILED: {error}", flush=True)
                continue
            path.write_text(json.dumps(asdict(result), indent=1) + "\n")
            print(
                f"  lost {result.lost}, duplicates {result.duplicates}, already written {result.already_written}, "
                f"audit {result.audit}, restarts {result.restarts}, exits {result.exit_codes}, {result.wall_s:g} s",
                flush=True,
            )
    found = faults_table.read(args.results)
    print(faults_table.table(found))
    if args.results == faults_table.RESULTS:
        faults_table.write(found)
    unstopped = [run for run in found if run["fault"] == "damaged-60" and not run.get("limit_stops")]
    return int(bool(unstopped) or any(run["lost"] or run["duplicates"] or run["audit"] for run in found))


if __name__ == "__main__":
    raise SystemExit(main())
