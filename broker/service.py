"""`broker run`: one streaming query per source, its books checked at every batch, until stopped.

A batch over which a worker dies twice is run again alert by alert; every other failure stops the job. A batch that was
begun and not committed runs again, and leaves out the records that it has written already.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from pyspark.errors import StreamingQueryException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql.streaming.query import StreamingQuery

from broker import checkpoint, job, session, sources
from broker import model as models
from broker.classify import Assignment
from broker.config import Config, Source, kafka_options, spark_kafka_options
from broker.delivery import topics_of
from broker.errors import BrokerError, ConfigError
from broker.java import java
from broker.ledger import Balance, Gap, Span, compare, log_line
from broker.ledger_topic import ROWS_KEPT_MS, LedgerTopic
from broker.leftovers import Notes, find_written
from broker.lock import Lock
from broker.outlets import filters
from broker.signals import heard
from broker.topics import check_topics, find_holes, require_topics, wait_for_kafka, watermarks

_log = logging.getLogger(__name__)

DRAIN_S = 30.0
POLL_S = 0.1
REPORT_TRIES = 10
# What Spark says when our function, or its worker, failed: the alerts of that batch are under suspicion.
_WORKER_FAILED = (
    "Python worker exited unexpectedly",
    "PythonException",
    "Python worker failed to connect back",
    "reading the port number from",  # its parent, while it started
)


@dataclass
class Stream:
    """One source, its query and its books."""

    source: Source
    limits: dict[str, int]
    assignment: Assignment
    query: StreamingQuery | None = None
    alone: list[Gap] = field(default_factory=list)
    failures: Counter[int] = field(default_factory=Counter)
    checked: int = -1


class Service:
    """The streams of one config. once: end when what was there at the start is done."""

    def __init__(self, config: Config, once: bool = False) -> None:
        self.config, self.once = config, once
        self.stopping = threading.Event()
        self.started = threading.Event()
        self.answered: Counter[str] = Counter()  # verdicts by "status/reason" so far
        self._kafka = kafka_options(config)
        self._spark_kafka = spark_kafka_options(config)
        surveys = {source.name: source.survey for source in config.sources}
        further = topics_of(config.outlets, surveys)
        self._outputs = (config.output.classifications, config.output.dead_letters, *further)

    def run(self) -> Counter[str]:
        """Runs until stopped (or done); verdicts by "status/reason". Raises BrokerError where something failed."""
        for source in self.config.sources:
            _check_start(source)
        with ExitStack() as stack:
            locks = [stack.enter_context(Lock(source.checkpoint)) for source in self.config.sources]
            # What is wrong on this machine is told before Kafka is waited for.
            java()
            filters.check(self.config.outlets, models.load(models.find(self.config.model.name)).card)
            wait_for_kafka(self._kafka, self.config.kafka.startup_timeout_s)
            streams = self._streams()
            stack.enter_context(heard(lambda _: self.stopping.set()))
            searches = self._search(stack, streams, locks)
            spark = self._spark(stack, locks)
            for search in searches:
                search.result()
            if self.stopping.is_set():
                return self.answered
            since = min((c.planned_at_ms for c in map(_committed, streams) if c), default=int(time.time() * 1000))
            names = [stream.source.name for stream in streams]
            ledger = stack.enter_context(LedgerTopic(self._kafka, self.config.output.ledger, names, since))
            for stream in streams:
                self._check_last(stream, ledger)
            stack.enter_context(Notes(self._kafka, self._outputs, [stream.source.checkpoint for stream in streams]))
            for stream in streams:
                self._start(spark, stream)
            _log.info("running: %s", ", ".join(f"{s.source.name} ({', '.join(s.source.topics)})" for s in streams))
            self.started.set()
            self._watch(spark, streams, ledger)
        return self.answered

    def _search(self, stack: ExitStack, streams: list[Stream], locks: list[Lock]) -> list[Future[None]]:
        """Look for what unfinished batches have written, which takes 5 s at least, while Spark starts."""
        pool = stack.enter_context(ThreadPoolExecutor(len(streams)))
        stack.callback(self.stopping.set)  # should Spark not start, so that the searches end

        def search(stream: Stream, lock: Lock) -> None:
            lock.wait_for_jvm()
            self._leave_out(stream)

        return [pool.submit(search, stream, lock) for stream, lock in zip(streams, locks, strict=True)]

    def _leave_out(self, stream: Stream) -> None:
        """Have the next query leave out what an unfinished batch has written."""
        model = stream.assignment.passport.model
        further = (topic for outlet in stream.assignment.outlets for topic in outlet.topics.values())
        outputs = [*self._outputs[:2], *further]
        written = find_written(self._kafka, stream.source, outputs, model, self.stopping)
        stream.assignment = replace(stream.assignment, written=written)

    def _spark(self, stack: ExitStack, locks: list[Lock]) -> SparkSession:
        """The session, whose JVM holds the locks until it has stopped."""
        settings = self.config.spark
        spark = session.start("t2-broker", settings.master, settings.driver_memory, settings.extra)
        for lock in locks:
            stack.callback(lock.release_in_jvm)
        stack.callback(spark.stop)
        for lock in locks:
            lock.hold_in_jvm(spark.sparkContext._jvm)
        return spark

    def _streams(self) -> list[Stream]:
        """Topics checked, one stream per source."""
        output = self.config.output
        require_topics(self._kafka, [t for s in self.config.sources for t in s.topics])
        limits = check_topics(
            self._kafka,
            [*output.topics, *self._outputs[2:]],
            create=output.create_topics,
            partitions=output.partitions,
            max_message_bytes=output.max_message_bytes,
            kept_ms={output.ledger: ROWS_KEPT_MS},
        )
        held = watermarks(self._kafka, self._outputs[2:]) if self._outputs[2:] else {}
        counts = {topic: len(partitions) for topic, partitions in held.items()}
        sources = self.config.sources
        return [Stream(source, limits, job.assign(self.config, source, limits, counts)) for source in sources]

    def frames(self, spark: SparkSession, source: Source) -> DataFrame:
        """Rows of a source (sources.FRAME_COLUMNS); the books are held against Kafka's offsets, not against these."""
        return sources.kafka(spark, self._spark_kafka, source.topics, source.start, source.max_alerts_per_batch)

    def _start(self, spark: SparkSession, stream: Stream) -> None:
        source = stream.source
        frames = self.frames(spark, source)
        rows = job.build(frames, job.survey_of(source), stream.assignment, stream.alone)
        writer = rows.writeStream.format("kafka").options(**self._spark_kafka, **_sink_options(stream.limits))
        writer = writer.option("checkpointLocation", str(source.checkpoint)).queryName(source.name)
        if self.once:
            writer = writer.trigger(availableNow=True)
        stream.query = writer.start()

    def _watch(self, spark: SparkSession, streams: list[Stream], ledger: LedgerTopic) -> None:
        """Check each batch once it is committed, restart what may be restarted, until stopped or done."""
        while not self.stopping.wait(POLL_S):
            for stream in streams:
                self._check_books(stream, ledger)
                assert stream.query is not None
                failure = None if stream.query.isActive else stream.query.exception()
                if failure is not None:
                    self._retry(spark, stream, failure)
            if self.once and not any(s.query.isActive for s in streams if s.query):
                break
        _drain(streams)
        for stream in streams:
            self._check_books(stream, ledger)

    def _check_books(self, stream: Stream, ledger: LedgerTopic) -> None:
        """The books of every batch that was committed since the last look, by the offsets in the checkpoint.

        The checkpoint and not a listener: pyspark's takes hundreds of calls into the JVM a batch, a quarter of the
        JVM's time at 100 alerts/s, and an event can get lost where a file can't.
        """
        for late in _unchecked(stream):
            balance = self._balance(stream, late.batch, late.spans, ledger)
            self.answered.update(balance.counts)
            report = _report(stream, late.batch)
            durations, lag = ({}, None) if report is None else (report["durationMs"], _lag(report["sources"][0]))
            _log.info("%s", log_line(stream.source.name, late.batch, balance, durations, lag))

    def _balance(self, stream: Stream, batch: int, batch_spans: list[Span], ledger: LedgerTopic) -> Balance:
        """The books of one batch; raises LedgerError unless they balance."""
        rows = ledger.rows_of(stream.source.name, batch, checkpoint.query_id(stream.source.checkpoint))
        balance = compare(batch_spans, rows)
        if balance.missing:
            balance = balance.with_holes(find_holes(self._kafka, balance.missing))
        balance.check(stream.source.name, batch)
        stream.checked = batch
        return balance

    def _check_last(self, stream: Stream, ledger: LedgerTopic) -> None:
        """Before the start: the newest committed batch of the checkpoint must balance."""
        last = _committed(stream)
        if last is not None:
            self._balance(stream, last.batch, last.spans, ledger)

    def _retry(self, spark: SparkSession, stream: Stream, failure: StreamingQueryException) -> None:
        """Start the query again where alerts may be to blame; raise BrokerError otherwise."""
        text = str(failure)
        planned = checkpoint.planned_spans(stream.source.checkpoint)
        name = stream.source.name
        if planned is None or not any(sign in text for sign in _WORKER_FAILED):
            raise BrokerError(f"source {name!r}: the query failed: {_cause(text)}")
        batch, batch_spans = planned
        stream.failures[batch] += 1
        if stream.failures[batch] > 2:
            raise BrokerError(f"source {name!r}, batch {batch}: failed again, alert by alert: {_cause(text)}")
        _log.warning("%s batch %d: a worker failed (%d): %s", name, batch, stream.failures[batch], _cause(text))
        if stream.failures[batch] == 2:
            stream.alone = [Gap(s.topic, s.partition, s.first, s.last_exclusive - 1) for s in batch_spans]
            _log.warning("%s batch %d: runs again alert by alert, to find the one that kills its reader", name, batch)
        self._leave_out(stream)
        if not self.stopping.is_set():
            self._start(spark, stream)


def _check_start(source: Source) -> None:
    if source.start is None and not checkpoint.has_offsets(source.checkpoint):
        raise ConfigError(
            f"source {source.name!r}: the checkpoint {source.checkpoint} is new, so 'start' must be given: 'earliest', "
            "'latest' or a time such as 2026-11-20T00:00:00Z (Spark would silently begin at the latest alert)"
        )


def _committed(stream: Stream) -> checkpoint.Committed | None:
    return checkpoint.committed_spans(stream.source.checkpoint)


def _unchecked(stream: Stream) -> list[checkpoint.Committed]:
    """Committed batches with alerts whose books were not looked at in this run."""
    folder = stream.source.checkpoint
    late = [batch for batch in checkpoint.committed_batches(folder) if batch > stream.checked]
    told = [c for c in (checkpoint.committed_spans(folder, batch) for batch in late) if c is not None]
    return [c for c in told if any(span.last_exclusive > span.first for span in c.spans)]


def _sink_options(limits: dict[str, int]) -> dict[str, str]:
    """Producer settings: as large as the largest topic takes, acknowledged by all replicas, short waits."""
    largest = max(limits.values())
    return {
        "kafka.max.request.size": str(largest + 65_536),
        "kafka.buffer.memory": str(max(33_554_432, 2 * largest)),
        "kafka.linger.ms": "5",
        "kafka.acks": "all",
    }


def _report(stream: Stream, batch: int) -> dict[str, Any] | None:
    """Spark's report of a batch, which follows its commit; None where a later one has taken its place."""
    for _ in range(REPORT_TRIES):
        report = None if stream.query is None else stream.query.lastProgress
        if report is not None and report.batchId >= batch:
            return json.loads(report.json) if report.batchId == batch else None
        time.sleep(0.02)
    return None


def _lag(place: dict[str, Any]) -> int | None:
    """Alerts that wait behind the batch, by the latest offsets that Spark saw."""
    latest, end = place.get("latestOffset"), place["endOffset"]
    if not latest:
        return None
    return sum(int(o) - int(end.get(t, {}).get(p, 0)) for t, ps in latest.items() for p, o in ps.items())


def _cause(text: str) -> str:
    """The telling line of Spark's long exception texts."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:") or "Error:" in line or "Exception:" in line]
    return (causes[-1] if causes else lines[0] if lines else "no reason given")[:400]


def _drain(streams: list[Stream]) -> None:
    """Stop each query between two batches: one stopped in the middle would be run again, and repeat its rows.

    While alerts stream in, the next batch follows at once, so that a query is not only stopped where it is idle but
    also right after a commit: planning the next batch takes longer than stopping.
    """
    deadline = time.monotonic() + DRAIN_S
    waiting = [(stream, stream.query, _newest_commit(stream)) for stream in streams if stream.query is not None]
    while waiting:
        for entry in list(waiting):
            stream, query, newest = entry
            is_committed = _newest_commit(stream) > newest
            if is_committed:
                time.sleep(0.05)  # the report of the batch comes right after its commit
            is_idle = not query.isActive or not query.status["isTriggerActive"]
            if is_committed or is_idle or time.monotonic() > deadline:
                query.stop()
                waiting.remove(entry)
        time.sleep(0.01)


def _newest_commit(stream: Stream) -> int:
    last = _committed(stream)
    return -1 if last is None else last.batch
