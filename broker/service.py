"""`broker run`: one streaming query per source, or per night of it, its books checked at every batch, until stopped.

A query that fails starts again where the fault may pass, and leaves out the records that it has written already; a
batch over which a worker dies twice is run alert by alert. What no restart mends stops the job.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from datetime import UTC, datetime

from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, SparkSession

from broker import checkpoint, excess, job, retention, session, sources
from broker.config import Config, Source, kafka_options, spark_kafka_options
from broker.drain import drain
from broker.errors import BrokerError, KafkaError, RejectionError
from broker.health import Health, SourceHealth
from broker.imprint import imprint, take_over
from broker.java import java
from broker.learning import WAITING, Learner
from broker.ledger import Balance, Gap, Span, compare, log_line
from broker.ledger_topic import LedgerTopic
from broker.leftovers import Notes, check_ends
from broker.lock import Lock
from broker.nights import Held, Nights, check_start
from broker.outputs import Outputs
from broker.recovery import Recovery
from broker.rejections import Rejections, recent
from broker.signals import heard
from broker.stream import Stream
from broker.supervise import Budget, judge
from broker.topics import answers, find_cluster, find_holes, require_topics, wait_for_kafka

_log = logging.getLogger(__name__)

POLL_S = 0.1
THREADS = 32  # made as they are needed: for the registry, the look for nights, and each stream that is to start again


class Service:
    """The streams of one config. once: end when what was there at the start is done."""

    def __init__(self, config: Config, once: bool = False) -> None:
        self.config, self.once = config, once
        self.stopping = threading.Event()
        self.started = threading.Event()
        self.answered: Counter[str] = Counter()  # verdicts by "status/reason" so far
        self._kafka = kafka_options(config)
        self._spark_kafka = spark_kafka_options(config)
        self._outputs = Outputs(config, self._kafka)
        self._health = Health(config.service.health_file)
        self._was_asked = False
        self._learner = Learner(config) if config.registry.url else None
        self._recovery = Recovery(config, self._kafka, self._outputs, self.stopping)
        self._nights = [Nights(source, self._kafka) for source in config.sources if source.is_live]

    def run(self) -> Counter[str]:
        """Runs until stopped (or done); verdicts by "status/reason". Raises BrokerError where something failed."""
        for source in self.config.sources:
            check_start(source)
        with ExitStack() as stack:
            locks = {s.name: stack.enter_context(Lock(s.checkpoint)) for s in self.config.sources}
            stack.enter_context(self._health)
            # What is wrong on this machine is told before Kafka is waited for.
            java()
            job.check_outlets(self.config)
            wait_for_kafka(self._kafka, self.config.kafka.startup_timeout_s)
            if self._learner:
                self._learner.begin()
            streams = self._streams()
            stack.enter_context(heard(self._hear))
            pool = stack.enter_context(ThreadPoolExecutor(THREADS))
            stack.callback(self.stopping.set)  # whatever happens, so that the pool's work ends
            searches = self._search(pool, streams, locks)
            spark = self._spark(stack, list(locks.values()))
            for search in searches:
                search.result()
            if self.stopping.is_set():
                return self.answered
            lately = {stream.label: recent(stream.source.checkpoint, self.config.limits) for stream in streams}
            since = min((c.planned_at_ms for found in lately.values() for c in found), default=int(time.time() * 1000))
            names = [source.name for source in self.config.sources]
            ledger = stack.enter_context(LedgerTopic(self._kafka, self.config.output.ledger, names, since))
            notes = self._recovery.notes = Notes(self._kafka, self._outputs.names)
            for stream in streams:
                self._check_last(stream, lately[stream.label], ledger)
                notes.add(stream.source.checkpoint)
            stack.enter_context(notes)
            for stream in streams:
                self._start(spark, stream)
            told = ", ".join(f"{s.label} ({', '.join(s.source.topics)})" for s in streams)
            _log.info("running: %s", told or "no query yet")
            self.started.set()
            try:
                self._watch(spark, pool, streams, ledger)
            except (Py4JError, ConnectionError) as error:
                raise BrokerError(
                    "Spark's JVM is gone: killed, or out of memory (then raise driver_memory in [spark]). Start again: "
                    "what the unfinished batches have written is left out"
                ) from error
        return self.answered

    def _hear(self, number: int) -> None:
        """A first signal has the job end between two batches, a second one at once."""
        if self._was_asked:
            _log.warning("asked a second time to end: leaving at once, with the batch under way unfinished")
            os._exit(128 + number)  # the JVM and its workers end with this process
        self._was_asked = True
        self.stopping.set()

    def _search(self, pool: ThreadPoolExecutor, streams: list[Stream], locks: Mapping[str, Lock]) -> list[Future[None]]:
        """Look for what unfinished batches have written, which takes 5 s at least, while Spark starts."""

        def search(stream: Stream, lock: Lock) -> None:
            lock.wait_for_jvm()
            self._recovery.look_for_expired(stream)
            self._recovery.leave_out(stream)

        return [pool.submit(search, stream, locks[stream.source.name]) for stream in streams]

    def _spark(self, stack: ExitStack, locks: list[Lock]) -> SparkSession:
        """The session, whose JVM holds the locks until it has stopped."""
        settings = self.config.spark
        sockets = stack.enter_context(session.worker_sockets(settings.master))
        spark = session.start("t2-broker", settings.master, settings.driver_memory, sockets | settings.extra)
        for lock in locks:
            stack.callback(lock.release_in_jvm)
        stack.callback(_stop, spark)
        for lock in locks:
            lock.hold_in_jvm(spark.sparkContext._jvm)
        return spark

    def _streams(self) -> list[Stream]:
        """Topics checked, one stream per source, or per night of it that is there now."""
        now, fixed = datetime.now(UTC), [source for source in self.config.sources if not source.is_live]
        require_topics(self._kafka, [topic for source in fixed for topic in source.topics])
        held = [nights.ask(now) for nights in self._nights]
        for nights, topics in zip(self._nights, held, strict=True):
            nights.begin(topics)
        for source in (*fixed, *(night for nights in self._nights for night in nights.unfinished())):
            check_ends(self._kafka, source, self._outputs.names)
        self._outputs.open([topic for topics in (*(s.topics for s in fixed), *held) for topic in topics])
        self._cluster = find_cluster(self._kafka)
        streams = [self._stream(source, source.name) for source in fixed]
        for nights, topics in zip(self._nights, held, strict=True):
            streams += self._open(nights, topics, now)
        for stream in streams:
            if stream.source.on_data_loss == "stop":
                self._recovery.look_for_expired(stream)
        return streams

    def _stream(self, source: Source, label: str) -> Stream:
        assignment = self._outputs.assign(source)
        take_over(source.checkpoint, imprint(source, self.config.output.topics, self._cluster, assignment.passport))
        budget = Budget(self.config.service.restarts, self.config.service.restart_window_s)
        rejections = Rejections(self.config.limits, assignment.uncounted)
        stream = Stream(source, label, self._outputs.limits, assignment, budget, rejections)
        self._health.sources[label] = stream.health
        return stream

    def frames(self, spark: SparkSession, source: Source) -> DataFrame:
        """Rows of a source (sources.FRAME_COLUMNS); the books are held against Kafka's offsets, not against these."""
        fails = source.on_data_loss == "stop"
        return sources.kafka(spark, self._spark_kafka, source.topics, source.start, source.max_alerts_per_batch, fails)

    def _start(self, spark: SparkSession, stream: Stream) -> None:
        frames = self.frames(spark, stream.source)
        rows = job.build(frames, job.survey_of(stream.source), stream.assignment, stream.alone)
        stream.start(rows, self._spark_kafka, self.once)

    # --- while it runs ------------------------------------------------------------------------------------------------

    def _watch(self, spark: SparkSession, pool: ThreadPoolExecutor, streams: list[Stream], ledger: LedgerTopic) -> None:
        """Check each batch once it is committed, restart what may be restarted, until stopped or done."""
        self._health.tell("running")
        while not self.stopping.wait(POLL_S):
            for stream in streams:
                self._turn(spark, pool, stream, ledger)
            self._look_around(spark, pool, streams, ledger)
            self._health.tell()
            if self.once and all(stream.health.state == "done" for stream in streams):
                break
        self._health.tell("draining")
        drain(spark, {s.label: s.query for s in streams if s.query is not None and s.recovery is None})
        for stream in streams:
            self._check_books(stream, ledger)
        if unchecked := [stream.label for stream in streams if not stream.health.balanced]:
            told = f"{', '.join(unchecked)}: the books of the last batch aren't checked: the next start does it"
            if self.once:
                raise KafkaError(told)
            _log.warning("%s", told)
        elif self.once and not self.stopping.is_set():
            for nights in self._nights:
                for topic in nights.to_close(nights.ask(now := datetime.now(UTC)), now, quiet_s=0):
                    nights.finish(topic, now)

    def _look_around(
        self, spark: SparkSession, pool: ThreadPoolExecutor, streams: list[Stream], ledger: LedgerTopic
    ) -> None:
        """Take up what is new: writer schemas, topics of outlets, nights."""
        if self._learner:
            news = self._learner.look(pool)
            if news.fresh:
                mine = [stream for stream in streams if stream.source.survey == "lsst"]
                self._take_up(spark, pool, mine, ledger, "the new schemas")
            if news.ready:
                pool.submit(self._learner.put_back, news.ready, self.stopping)
        if self._outputs.look(pool):
            mine = [stream for stream in streams if stream.source.survey in self._outputs.by_night]
            self._take_up(spark, pool, mine, ledger, "the topics of the nights")
        if not self.once:
            self._follow(spark, pool, streams, ledger)

    def _turn(self, spark: SparkSession, pool: ThreadPoolExecutor, stream: Stream, ledger: LedgerTopic) -> None:
        """A look at one stream: its books, whether its query has failed, whether a failed one may start again."""
        if stream.recovery is None:
            batch = stream.health.batch
            self._check_books(stream, ledger)
            if stream.health.batch != batch:
                session.forget_readers(spark)
            if stream.query is not None and not stream.query.isActive:
                failure = stream.query.exception()
                if failure is None:
                    stream.health.state = "done"
                else:
                    session.restart_daemons(spark, str(failure))
                    self._recovery.after(pool, stream, judge(str(failure)))
        elif stream.recovery.done():
            recovery, stream.recovery = stream.recovery, None
            try:
                recovery.result()
            except KafkaError as error:
                self._recovery.after(pool, stream, judge(str(error)))
                return
            if not self.stopping.is_set():
                self._start(spark, stream)

    def _take_up(
        self, spark: SparkSession, pool: ThreadPoolExecutor, mine: list[Stream], ledger: LedgerTopic, what: str
    ) -> None:
        """Start these queries again, between two batches, with writer schemas and topics as they are known by now."""
        for stream in mine:
            self._recovery.renew(stream)
        running = {s.label: s for s in mine if s.query is not None and s.query.isActive and s.recovery is None}
        since = time.monotonic()
        is_clean = drain(spark, {name: stream.query for name, stream in running.items() if stream.query is not None})
        for name, stream in running.items():
            self._check_books(stream, ledger)
            if is_clean:
                self._start(spark, stream)
                _log.info("%s: its query knows %s after a pause of %.1f s", name, what, time.monotonic() - since)
            else:
                self._recovery.prepare(pool, stream)

    # --- nights -------------------------------------------------------------------------------------------------------

    def _open(self, nights: Nights, held: Held, now: datetime) -> list[Stream]:
        """Streams of the nights that are to get one."""
        name = nights.source.name
        streams = [self._stream(source, f"{name}/{source.topics[0]}") for source in nights.to_open(held, now)]
        if nights.open:
            self._health.sources.pop(name, None)
        elif name not in self._health.sources:
            self._health.sources[name] = SourceHealth("waiting")
            _log.info("%s: no night is open; waits for %s", name, nights.next_topics(now))
        return streams

    def _follow(
        self, spark: SparkSession, pool: ThreadPoolExecutor, streams: list[Stream], ledger: LedgerTopic
    ) -> None:
        """Start a query for each night whose topic has come, and end those of nights that are done."""
        for nights in self._nights:
            held = nights.look(pool, now := datetime.now(UTC))
            if held is None:
                continue
            for stream in self._open(nights, held, now):
                last = stream.committed()
                stream.checked = -1 if last is None else last.batch  # before it was done
                self._recovery.prepare(pool, stream)
                streams.append(stream)
                _log.info("%s: opened", stream.label)
            done = nights.to_close(held, now)
            for stream in [s for s in streams if s.source.name == nights.source.name and s.source.topics[0] in done]:
                if self._close(spark, pool, stream, ledger):
                    streams.remove(stream)
                    nights.finish(stream.source.topics[0], now)
                    quiet_s = stream.source.night_quiet_s
                    _log.info("%s: done: over, and nothing was left to read for %g s", stream.label, quiet_s)

    def _close(self, spark: SparkSession, pool: ThreadPoolExecutor, stream: Stream, ledger: LedgerTopic) -> bool:
        """End the query of a night that is over; False where that has to be tried again."""
        if stream.recovery is not None or stream.query is None:
            return False
        if not drain(spark, {stream.label: stream.query}):
            self._recovery.prepare(pool, stream)
            return False
        self._check_books(stream, ledger)
        if stream.health.balanced:
            if self._recovery.notes:
                self._recovery.notes.remove(stream.source.checkpoint)
            del self._health.sources[stream.label]
        return stream.health.balanced

    # --- books --------------------------------------------------------------------------------------------------------

    def _check_books(self, stream: Stream, ledger: LedgerTopic) -> None:
        """The books of every batch that was committed since the last look, by the offsets in the checkpoint.

        The checkpoint and not a listener: pyspark's takes hundreds of calls into the JVM a batch, a quarter of the
        JVM's time at 100 alerts/s, and an event can get lost where a file can't.
        """
        late, health = stream.unchecked(), stream.health
        if not late or (not health.balanced and answers(self._kafka) is not None):
            return
        try:
            for one in late:
                balance = self._balance(stream, one.batch, one.spans, ledger)
                self.answered.update(balance.counts)
                durations, lag = stream.report(one.batch)
                health.batch, health.committed_at, health.lag = one.batch, datetime.now(UTC).isoformat(), lag
                _log.info("%s", log_line(stream.label, one.batch, balance, durations, lag))
                self._limit(stream, one, balance)
            health.balanced = True
        except KafkaError as error:
            if judge(str(error)).kind == "lasting":
                raise
            if health.balanced:
                _log.warning("%s: books can't be checked now, and will be: %s", stream.label, error)
            health.balanced = False

    def _balance(self, stream: Stream, batch: int, batch_spans: list[Span], ledger: LedgerTopic) -> Balance:
        """The books of one batch; raises LedgerError unless they balance."""
        rows = ledger.rows_of(stream.source.name, batch, checkpoint.query_id(stream.source.checkpoint))
        balance = compare(batch_spans, rows)
        if balance.missing:
            booked = [Gap(row.topic, row.partition, *run) for row in rows for run in row.expired]
            balance = balance.with_expired(booked)
        if balance.missing:
            balance = balance.with_holes(find_holes(self._kafka, balance.missing))
        if balance.missing and stream.source.on_data_loss == "go_on":
            expired = retention.expired_of(self._kafka, balance.missing)
            self._recovery.book(stream, batch, expired)
            balance = balance.with_expired(expired)
        balance.check(stream.label, batch)
        stream.checked = batch
        return balance

    def _check_last(self, stream: Stream, lately: list[checkpoint.Committed], ledger: LedgerTopic) -> None:
        """Before the start: the newest committed batch must balance, and not too much be rejected up to it."""
        query = checkpoint.query_id(stream.source.checkpoint) if lately else ""
        for earlier in lately[:-1]:
            rows = ledger.rows_of(stream.source.name, earlier.batch, query)
            stream.rejections.add(compare(earlier.spans, rows).rows, earlier.planned_at_ms)
        for last in lately[-1:]:
            self._limit(stream, last, self._balance(stream, last.batch, last.spans, ledger))

    def _limit(self, stream: Stream, committed: checkpoint.Committed, balance: Balance) -> None:
        """Raise RejectionError where too much is rejected, with what the letters have in common; tell the learner."""
        if self._learner and balance.counts.get(f"rejected/{WAITING}"):
            self._learner.wait_for(committed.planned_at_ms)
        found = stream.rejections.add(balance.rows, committed.planned_at_ms)
        if found is not None:
            raise RejectionError(excess.tell(self.config, stream.source.name, committed.batch, found))


def _stop(spark: SparkSession) -> None:
    with suppress(Py4JError, ConnectionError):  # a JVM that has died
        spark.stop()
