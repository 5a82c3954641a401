"""One run of one fault: feed, job, the moments at which something breaks, and the books at the end."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from benchmarks import fault_books, machine
from benchmarks.fault_books import Answers, Moment
from benchmarks.fault_load import PARTITIONS, SHARES, Dress, Feed, Job, Load, config
from broker import checkpoint
from broker.embedded import EmbeddedKafka
from broker.errors import KafkaError
from broker.leftovers import EndOffsets

LAST_RESORT_S = 2400.0  # a run that takes longer, beyond its feed, has failed
ENDED = -signal.SIGKILL  # by us
Aim = Literal["any", "write", "commit"]


@dataclass
class Hit:
    """One fault: when, what, in which phase each source was, how long until a batch was committed again."""

    at_s: float
    what: str
    phases: dict[str, str]
    recovery_s: float | None = None


@dataclass
class Result:
    """One run. duplicates: records too many; audit: its exit code (0: balanced); odd_exits: by itself, not foreseen."""

    fault: str
    seed: int
    alerts: int
    over_s: float
    damaged: float
    away_s: float
    batch: int
    hits: list[Hit] = field(default_factory=list)
    offered: int = 0
    lost: int = 0
    duplicates: int = 0
    outlet_records: int = 0
    outlet_lost: int = 0
    outlet_duplicates: int = 0
    already_written: int = 0
    dead_letters: int = 0
    put_back: int = 0
    starts: int = 0
    limit_stops: int = 0
    restarts: int = 0
    exit_codes: list[int] = field(default_factory=list)
    odd_exits: list[str] = field(default_factory=list)
    audit: int = -1
    summary: str = ""
    wall_s: float = 0.0
    load: dict[str, float] = field(default_factory=dict)
    memory: dict[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    times: how often it is to come in all. per_run: how often in a run at most; 0 where the alerts are the fault, and
    `times` counts runs. strike: breaks something, mends it where it does not mend itself, says what it was. exits:
    codes with which the job may end. around: what is there before the job and after it. disk: folder of the run that
    is a file system of its own. all_phases: kills until each phase was hit three times.
    """

    name: str
    times: int
    per_run: int
    strike: Callable[[Run], str]
    exits: tuple[int, ...] = ()
    about: str = ""
    kafka: Mapping[str, str | int] = field(default_factory=dict)
    around: Callable[[Run], AbstractContextManager[object]] = lambda _: nullcontext()
    damaged: float = 0.01
    slower: float = 1.0  # so much longer is the feed
    disk: str = ""
    all_phases: bool = False
    every_s: float = 0.0  # a fault each so many seconds, in place of random moments
    visits_s: float = 0.0


class Run:
    """One run of one fault."""

    def __init__(self, kind: Kind, kafka: EmbeddedKafka, folder: Path, result: Result, per_run: int) -> None:
        self.kind, self.kafka, self.folder, self.result, self.per_run = kind, kafka, folder, result, per_run
        self.run = f"{result.fault}-{result.seed}"
        self.options = {"bootstrap.servers": kafka.bootstrap_servers, "log_level": "0"}
        self.rng = random.Random(f"{result.fault} {result.seed}")
        self.config = folder / "job.toml"
        self.config.write_text(config(kafka.bootstrap_servers, self.run, result.batch))
        self.outputs = [f"{self.run}-classifications", f"{self.run}-dead-letters"]
        self.environment: dict[str, str] = {}
        self.dress: Dress = lambda _, value: value
        self.extra: object = None  # what a kind needs from strike to strike
        self.job: Job | None = None
        self.moment: Moment | None = None
        self.next_hit: float | None = None
        self.aim: Aim = "any"
        self.ends: dict[str, dict[int, int]] | None = None
        self.hurt: list[tuple[Hit, float, dict[str, int]]] = []  # faults from which nothing has recovered yet

    def go(self) -> Result:
        """The whole run."""
        began, before, r = time.monotonic(), machine.moment(), self.result
        self.kafka.create_topics({f"{self.run}-{name}": PARTITIONS for name in SHARES})
        with self.kind.around(self):
            load = Load(r.alerts, r.over_s, r.damaged, r.seed, self.kind.visits_s)
            feed = Feed(self.kafka.bootstrap_servers, self.run, load, lambda name, value: self.dress(name, value))
            self.feed = feed
            self.start()
            self.wait_until_running()
            self.look_anew()
            self.last_s = time.monotonic()
            feed.start()
            while feed.is_alive() or not self.all_committed(feed.sent):
                self.look_after()
                if len(r.hits) < self.per_run and self.is_time:
                    self.hit(began)
                if time.monotonic() - began > LAST_RESORT_S + r.over_s:
                    raise RuntimeError(f"{self.run}: takes too long; log: {self.job and self.job.log}")
                time.sleep(0.02)
            self.end()
            self.count(feed.sent)
        r.wall_s = round(time.monotonic() - began, 1)
        r.load = machine.between(before, machine.moment())
        return r

    def look_anew(self) -> None:
        """The output topics are there (again)."""
        self.asker = EndOffsets(self.options, [*self.outputs, f"{self.run}-ledger"])
        self.answers = Answers(self.options)
        self.next_hit = None

    # --- when ---------------------------------------------------------------------------------------------------------

    @property
    def running(self) -> bool:
        """Whether the job's queries run."""
        return self.job is not None and self.job.process.poll() is None and self.job.is_running

    @property
    def is_time(self) -> bool:
        """Whether the moment of the next fault has come, by the seed.

        A random time after the queries (last) started, so that a batch that is being repeated is broken off as well.
        One of four comes then. One waits for the next record on an output topic, and comes within 1.5 s of it. Two wait
        for the next row in the ledger, which a task writes at its end, and come within 0.4 s: the commit is near.
        """
        if not self.running:
            return False
        now = time.monotonic()
        if self.kind.every_s:
            if now < self.last_s + self.kind.every_s:
                return False
            self.last_s = now
            return True
        if self.next_hit is None:
            (self.aim,) = self.rng.choices(("any", "write", "commit"), (1, 1, 2))
            self.next_hit, self.ends = now + self.rng.uniform(0.3, 12 if self.aim == "any" else 4), None
        if now < self.next_hit:
            return False
        if self.aim == "any":
            return True
        ends = self._watched()
        self.ends = self.ends or ends
        if ends and ends != self.ends:
            wait_s = self.rng.uniform(0, 1.5 if self.aim == "write" else 0.4)
            self.next_hit, self.aim = time.monotonic() + wait_s, "any"
        return False

    def _watched(self) -> dict[str, dict[int, int]]:
        try:
            ends = self.asker.now()
        except KafkaError:
            return {}
        ledger = f"{self.run}-ledger"
        return {topic: parts for topic, parts in ends.items() if (topic == ledger) == (self.aim == "commit")}

    def hit(self, began: float) -> None:
        """Break something; see what was hit, and when it was."""
        at_s = round(time.monotonic() - began, 2)
        self.moment = None
        what = self.kind.strike(self)
        since, commits = time.monotonic(), self.commits()
        moment: Moment | None = self.moment
        if not what:
            return  # nothing was there to be hit
        self.look_after()
        phases = self.answers.phases(moment) if moment else dict.fromkeys(SHARES, "unknown")
        hit = Hit(at_s, what, phases)
        self.result.hits.append(hit)
        self.next_hit = None
        self.hurt = [(hit, since, commits)]  # what was not recovered from by now has no time of its own
        print(f"  {self.run}: {what} at {at_s:.1f} s: {phases}", flush=True)

    def snap(self) -> None:
        """Now it is broken: remember what the checkpoints and the topics are like."""
        ends = self._ends()
        self.moment = Moment(fault_books.planned(self.folder), {topic: ends[topic] for topic in self.outputs})

    def _ends(self, limit_s: float = 60.0) -> dict[str, dict[int, int]]:
        """End offsets, also where Kafka was away a moment ago."""
        deadline = time.monotonic() + limit_s
        while True:
            try:
                return self.asker.now()
            except KafkaError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)

    # --- the job ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start the job, as a supervisor does."""
        self.next_hit = None
        self.job = Job(self.config, self.folder / "job.log", self.environment)
        self.result.starts += 1

    def wait_until_running(self) -> None:
        """Spark takes its time."""
        deadline = time.monotonic() + 600
        while not self.running:
            self.look_after()
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.run}: the job does not start; log: {self.job and self.job.log}")
            time.sleep(0.1)

    def look_after(self) -> None:
        """Start the job again where it has ended; see whether a batch was committed since the last fault."""
        assert self.job is not None
        code = self.job.process.poll()
        if code is not None:
            self.ended(code)
            if len(self.result.odd_exits) > 20:
                raise RuntimeError(f"{self.run}: the job ends again and again; log: {self.job.log}")
            self.start()
        now = self.commits() if self.hurt else {}
        for hit, since, commits in list(self.hurt):
            if all(now[name] > commits[name] for name in commits if hit.phases[name] != "plan") and now != commits:
                hit.recovery_s = round(time.monotonic() - since, 2)
                self.hurt.remove((hit, since, commits))

    def ended(self, code: int) -> None:
        """Book an end of the job."""
        assert self.job is not None
        self.result.exit_codes.append(code)
        if self.job.has_said("were rejected"):
            self.result.limit_stops += 1
            if self.result.limit_stops == 1:
                self.config.write_text(self.config.read_text() + "[limits]\nmax_rejected_ratio = 1.0\n")
        elif code not in (ENDED, *self.kind.exits):
            said = self.job.said().strip().splitlines() or ["nothing"]
            self.result.odd_exits.append(f"{code}: {said[-1][:300].replace(str(self.folder), '...')}")

    def wait_for_end(self, code: int, words: str, limit_s: float = 300) -> None:
        """The job must end with this code and say this; raises RuntimeError."""
        assert self.job is not None
        deadline = time.monotonic() + limit_s
        while self.job.process.poll() is None:
            if time.monotonic() > deadline:
                raise RuntimeError(f"{self.run}: the job does not end; log: {self.job.log}")
            time.sleep(0.1)
        last = (self.job.said().strip().splitlines() or [""])[-1]
        if self.job.process.returncode != code or words not in last:
            raise RuntimeError(f"{self.run}: ended with {self.job.process.returncode}, not {code}: {last}")

    def wait(self, seconds: float, until: Callable[[], bool] = lambda: False) -> None:
        """Look after the job meanwhile."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not until():
            self.look_after()
            time.sleep(0.1)

    def commits(self) -> dict[str, int]:
        """Newest committed batch of each source, -1 without."""
        found = {name: checkpoint.committed_batches(self.folder / "checkpoints" / name) for name in SHARES}
        return {name: numbers[-1] if numbers else -1 for name, numbers in found.items()}

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
        code = self.job.process.wait(90)
        self.result.exit_codes.append(code)
        if code:
            self.result.odd_exits.append(f"{code} at SIGTERM")

    def count(self, sent: Counter[str]) -> None:
        """The books, from the topics."""
        for name, n in fault_books.count(self.options, self.run).items():
            setattr(self.result, name, n)
        if not self.result.offered == sent.total() == self.result.alerts:
            raise RuntimeError(f"{self.run}: {self.result.offered} offered, {sent.total()} sent")
        text = (self.folder / "job.log").read_text(errors="replace")
        self.result.restarts = text.count("the query failed; restart") + text.count("a worker failed (")
        self.result.audit, self.result.summary = fault_books.audit(self.config)


def kill(processes: list[machine.Process], number: int = signal.SIGKILL) -> None:
    """A signal to each of them."""
    for process in processes:
        with suppress(ProcessLookupError):  # it went with its parent
            os.kill(process.pid, number)
