"""`broker run`: one streaming query per source, its books checked at every batch, until stopped.

A query that fails starts again where the fault may pass, and leaves out the records that it has written already; a
batch over which a worker dies twice is run alert by alert. What no restart mends stops the job.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from datetime import UTC, datetime

from py4j.protocol import Py4JError
from pyspark.sql import DataFrame, SparkSession

from broker import bounds, checkpoint, excess, job, retention, session, sources
from broker.config import Config, Source, kafka_options, spark_kafka_options
from broker.drain import drain
from broker.errors import BrokerError, KafkaError, RejectionError
from broker.health import Health
from broker.imprint import imprint, take_over
from broker.java import java
from broker.learning import WAITING, Learner
from broker.ledger import Balance, Gap, Span, compare, log_line
from broker.ledger_topic import LedgerTopic
from broker.leftovers import Notes, check_ends, find_written
from broker.lock import Lock
from broker.outputs import Outputs
from broker.rejections import Rejections, recent
from broker.signals import heard
from broker.stream import Stream, check_start
from broker.supervise import Budget, Fault, Seldom, judge
from broker.topics import answers, find_cluster, find_holes, find_missing, require_topics, wait_for_kafka

_log = logging.getLogger(__name__)

POLL_S = 0.1
MISSING_S = 5.0  # a topic that is gone so long is gone, and not a cluster that is only coming up


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
        self._notes: Notes | None = None
        self._health = Health(config.service.health_file)
        self._was_asked = False
        self._learner = Learner(config) if config.registry.url else None

    def run(self) -> Counter[str]:
        """Runs until stopped (or done); verdicts by "status/reason". Raises BrokerError where something failed."""
        for source in self.config.sources:
            check_start(source)
        with ExitStack() as stack:
            locks = [stack.enter_context(Lock(source.checkpoint)) for source in self.config.sources]
            stack.enter_context(self._health)
            # What is wrong on this machine is told before Kafka is waited for.
            java()
            job.check_outlets(self.config)
            wait_for_kafka(self._kafka, self.config.kafka.startup_timeout_s)
            if self._learner:
                self._learner.begin()
            streams = self._streams()
            stack.enter_context(heard(self._hear))
            pool = stack.enter_context(ThreadPoolExecutor(len(streams) + 2))  # for the registry and nights
            stack.callback(self.stopping.set)  # whatever happens, so that the pool's work ends
            searches = self._search(pool, streams, locks)
            spark = self._spark(stack, locks)
            for search in searches:
                search.result()
            if self.stopping.is_set():
                return self.answered
            lately = {stream.name: recent(stream.source.checkpoint, self.config.limits) for stream in streams}
            since = min((c.planned_at_ms for found in lately.values() for c in found), default=int(time.time() * 1000))
            names = [stream.name for stream in streams]
            ledger = stack.enter_context(LedgerTopic(self._kafka, self.config.output.ledger, names, since))
            for stream in streams:
                self._check_last(stream, lately[stream.name], ledger)
            notes = Notes(self._kafka, self._outputs.names, [stream.source.checkpoint for stream in streams])
            self._notes = stack.enter_context(notes)
            for stream in streams:
                self._start(spark, stream)
            _log.info("running: %s", ", ".join(f"{s.name} ({', '.join(s.source.topics)})" for s in streams))
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

    def _search(self, pool: ThreadPoolExecutor, streams: list[Stream], locks: list[Lock]) -> list[Future[None]]:
        """Look for what unfinished batches have written, which takes 5 s at least, while Spark starts."""

        def search(stream: Stream, lock: Lock) -> None:
            lock.wait_for_jvm()
            self._look_for_expired(stream)
            self._leave_out(stream)

        return [pool.submit(search, stream, lock) for stream, lock in zip(streams, locks, strict=True)]

    def _look_for_expired(self, stream: Stream) -> None:
        """Stop, or book it and go on, where alerts were deleted before they were read. Raises BrokerError."""
        gaps = retention.find_expired(self._kafka, stream.source)
        if gaps and stream.source.on_data_loss == "stop":
            raise retention.refuse(stream.source, gaps)
        if gaps:
            planned, last = checkpoint.planned_spans(stream.source.checkpoint), stream.committed()
            batch = planned[0] if planned else last.batch + 1 if last else 0
            _log.warning("%s: deleted before they were read, goes on behind: %s", stream.name, retention.tell(gaps))
            self._book(stream, batch, gaps)

    def _book(self, stream: Stream, batch: int, gaps: list[Gap]) -> None:
        model = stream.assignment.passport.model
        retention.book(self._kafka, self.config.output.ledger, stream.source, batch, model, gaps)

    def _leave_out(self, stream: Stream) -> None:
        """Have the next query leave out what an unfinished batch has written."""
        model = stream.assignment.passport.model
        further = (topic for outlet in stream.assignment.outlets for topic in outlet.names())
        outputs = (*self.config.output.topics[:2], *further)
        written = find_written(self._kafka, stream.source, outputs, model, self.stopping)
        stream.assignment = replace(stream.assignment, written=written)

    def _spark(self, stack: ExitStack, locks: list[Lock]) -> SparkSession:
        """The session, whose JVM holds the locks until it has stopped."""
        settings = self.config.spark
        spark = session.start("t2-broker", settings.master, settings.driver_memory, settings.extra)
        for lock in locks:
            stack.callback(lock.release_in_jvm)
        stack.callback(_stop, spark)
        for lock in locks:
            lock.hold_in_jvm(spark.sparkContext._jvm)
        return spark

    def _streams(self) -> list[Stream]:
        """Topics checked, one stream per source."""
        output, upkeep = self.config.output, self.config.service
        require_topics(self._kafka, [t for s in self.config.sources for t in s.topics])
        for source in self.config.sources:
            check_ends(self._kafka, source, self._outputs.names)
        self._outputs.open()
        streams, cluster = [], find_cluster(self._kafka)
        for source in self.config.sources:
            assignment = self._outputs.assign(source)
            take_over(source.checkpoint, imprint(source, output.topics, cluster, assignment.passport))
            budget = Budget(upkeep.restarts, upkeep.restart_window_s)
            rejections = Rejections(self.config.limits, assignment.uncounted)
            streams.append(Stream(source, self._outputs.limits, assignment, budget, rejections))
            self._health.sources[source.name] = streams[-1].health
            if source.on_data_loss == "stop":
                self._look_for_expired(streams[-1])
        return streams

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
            self._health.tell()
            if self.once and all(stream.health.state == "done" for stream in streams):
                break
        self._health.tell("draining")
        drain(spark, {s.name: s.query for s in streams if s.query is not None and s.recovery is None})
        for stream in streams:
            self._check_books(stream, ledger)
        if unchecked := [stream.name for stream in streams if not stream.health.balanced]:
            told = f"{', '.join(unchecked)}: the books of the last batch aren't checked: the next start does it"
            if self.once:
                raise KafkaError(told)
            _log.warning("%s", told)

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
                    self._failed(pool, stream, judge(str(failure)))
        elif stream.recovery.done():
            recovery, stream.recovery = stream.recovery, None
            try:
                recovery.result()
            except KafkaError as error:
                self._failed(pool, stream, judge(str(error)))
                return
            if not self.stopping.is_set():
                self._start(spark, stream)

    def _take_up(
        self, spark: SparkSession, pool: ThreadPoolExecutor, mine: list[Stream], ledger: LedgerTopic, what: str
    ) -> None:
        """Start these queries again, between two batches, with writer schemas and topics as they are known by now."""
        for stream in mine:
            self._renew(stream)
        running = {s.name: s for s in mine if s.query is not None and s.query.isActive and s.recovery is None}
        since = time.monotonic()
        is_clean = drain(spark, {name: stream.query for name, stream in running.items() if stream.query is not None})
        for name, stream in running.items():
            self._check_books(stream, ledger)
            if is_clean:
                self._start(spark, stream)
                _log.info("%s: its query knows %s after a pause of %.1f s", name, what, time.monotonic() - since)
            else:
                stream.recovery = pool.submit(self._recover, stream, 0.0)

    def _renew(self, stream: Stream) -> None:
        now = self._outputs.assign(stream.source)
        stream.assignment = replace(stream.assignment, learnt=now.learnt, outlets=now.outlets)
        stream.limits = self._outputs.limits
        if self._notes:
            try:
                self._notes.follow(self._outputs.names)
            except KafkaError as error:  # no more than a longer search after the next crash
                _log.warning("the ends of the topics of the nights can't be noted: %s", error)

    def _failed(self, pool: ThreadPoolExecutor, stream: Stream, fault: Fault) -> None:
        """Have the query start again in a while; raises BrokerError where that is of no use, or was done too often."""
        if fault.kind == "lasting":
            raise BrokerError(f"source {stream.name!r}: the query failed: {fault.cause}. {fault.advice}")
        planned = checkpoint.planned_spans(stream.source.checkpoint)
        if fault.kind == "worker" and planned is not None:
            self._suspect(stream, *planned, fault.cause)
            wait_s = 0.0
        else:
            allowed = stream.budget.spend()
            if allowed is None:
                raise BrokerError(
                    f"source {stream.name!r}: the query failed again, after its restarts ({stream.budget}): "
                    f"{fault.cause}. Mend the cause, then start again; 'restarts' and 'restart_window_s' of [service] "
                    "say how often is too often"
                )
            wait_s = allowed
            told = (stream.name, stream.budget, wait_s, fault.cause)
            _log.warning("%s: the query failed; restart %s follows in %g s: %s", *told)
        stream.health.state, stream.health.cause = "restarting", fault.cause
        stream.health.restarts += 1
        stream.recovery = pool.submit(self._recover, stream, wait_s)

    def _suspect(self, stream: Stream, batch: int, batch_spans: list[Span], cause: str) -> None:
        """A worker died over a planned batch: once may be chance, after the second time each alert runs alone."""
        name = stream.name
        stream.failures[batch] += 1
        if stream.failures[batch] > 2:
            raise BrokerError(f"source {name!r}, batch {batch}: failed again, alert by alert: {cause}")
        _log.warning("%s batch %d: a worker failed (%d): %s", name, batch, stream.failures[batch], cause)
        if stream.failures[batch] == 2:
            stream.alone = [Gap(s.topic, s.partition, s.first, s.last_exclusive - 1) for s in batch_spans]
            _log.warning("%s batch %d: runs again alert by alert, to find the one that kills its reader", name, batch)

    def _recover(self, stream: Stream, wait_s: float) -> None:
        """What comes before a restart, in a thread: wait, for Kafka too, see what is there and what is written."""
        if self.stopping.wait(wait_s) or not self._is_kafka_back(stream):
            return
        if stream.source.survey in self._outputs.by_night:
            self._outputs.refresh()  # the topic of an old night may be gone
            self._renew(stream)
        topics = [*stream.source.topics, self.config.output.ledger, *self._outputs.names]
        missing = find_missing(self._kafka, topics)
        if missing and not self.stopping.wait(MISSING_S) and (missing := find_missing(self._kafka, topics)):
            raise BrokerError(
                f"source {stream.name!r}: the query failed, and Kafka lacks the topic {', '.join(missing)} (or hides "
                "it from this login). Let this login see it, then start again. What was on a topic that was deleted is "
                "gone: to answer those alerts once more, start with a new checkpoint, a 'start' and new output topics; "
                f"to go on without them, make it again, and remove {stream.source.checkpoint / bounds.FOLDER}"
            )
        check_ends(self._kafka, stream.source, self._outputs.names)
        self._look_for_expired(stream)
        self._leave_out(stream)

    def _is_kafka_back(self, stream: Stream) -> bool:
        """Waits for Kafka; False where the job is to end first. Raises BrokerError once it has waited too long."""
        since, seldom = time.monotonic(), Seldom(60.0)
        while (reason := answers(self._kafka)) is not None:
            now, limit_s = time.monotonic(), self.config.service.kafka_away_s
            if now - since > limit_s:
                raise BrokerError(f"source {stream.name!r}: Kafka has been away for {limit_s:g} s: {reason}")
            if seldom("away"):
                _log.warning("%s: waits for Kafka, for %.0f s now: %s", stream.name, now - since, reason)
            if self.stopping.wait(1.0):
                return False
        return not self.stopping.is_set()

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
                _log.info("%s", log_line(stream.name, one.batch, balance, durations, lag))
                self._limit(stream, one, balance)
            health.balanced = True
        except KafkaError as error:
            if judge(str(error)).kind == "lasting":
                raise
            if health.balanced:
                _log.warning("%s: books can't be checked now, and will be: %s", stream.name, error)
            health.balanced = False

    def _balance(self, stream: Stream, batch: int, batch_spans: list[Span], ledger: LedgerTopic) -> Balance:
        """The books of one batch; raises LedgerError unless they balance."""
        rows = ledger.rows_of(stream.name, batch, checkpoint.query_id(stream.source.checkpoint))
        balance = compare(batch_spans, rows)
        if balance.missing:
            booked = [Gap(row.topic, row.partition, *run) for row in rows for run in row.expired]
            balance = balance.with_expired(booked)
        if balance.missing:
            balance = balance.with_holes(find_holes(self._kafka, balance.missing))
        if balance.missing and stream.source.on_data_loss == "go_on":
            expired = retention.expired_of(self._kafka, balance.missing)
            self._book(stream, batch, expired)
            balance = balance.with_expired(expired)
        balance.check(stream.name, batch)
        stream.checked = batch
        return balance

    def _check_last(self, stream: Stream, lately: list[checkpoint.Committed], ledger: LedgerTopic) -> None:
        """Before the start: the newest committed batch must balance, and not too much be rejected up to it."""
        query = checkpoint.query_id(stream.source.checkpoint) if lately else ""
        for earlier in lately[:-1]:
            rows = ledger.rows_of(stream.name, earlier.batch, query)
            stream.rejections.add(compare(earlier.spans, rows).rows, earlier.planned_at_ms)
        for last in lately[-1:]:
            self._limit(stream, last, self._balance(stream, last.batch, last.spans, ledger))

    def _limit(self, stream: Stream, committed: checkpoint.Committed, balance: Balance) -> None:
        """Raise RejectionError where too much is rejected, with what the letters have in common; tell the learner."""
        if self._learner and balance.counts.get(f"rejected/{WAITING}"):
            self._learner.wait_for(committed.planned_at_ms)
        found = stream.rejections.add(balance.rows, committed.planned_at_ms)
        if found is not None:
            raise RejectionError(excess.tell(self.config, stream.name, committed.batch, found))


def _stop(spark: SparkSession) -> None:
    with suppress(Py4JError, ConnectionError):  # a JVM that has died
        spark.stop()
