"""What comes before a query starts, at first or again: is Kafka there, are all topics, what is written already."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from broker import bounds, checkpoint, retention
from broker.config import Config
from broker.errors import BrokerError, KafkaError
from broker.ledger import Gap, Span
from broker.leftovers import Notes, check_ends, find_written
from broker.outputs import Outputs
from broker.stream import Stream
from broker.supervise import Fault, Seldom
from broker.topics import answers, find_missing

_log = logging.getLogger(__name__)

SUSPICIONS = 2  # failures of a worker over a batch, until its alerts run alone
MISSING_S = 5.0  # a topic that is gone so long is gone, and not a cluster that is only coming up


class Recovery:
    """For all streams of a job. notes: from when there are any."""

    def __init__(self, config: Config, kafka: Mapping[str, str], outputs: Outputs, stopping: threading.Event) -> None:
        self.notes: Notes | None = None
        self._config, self._kafka, self._outputs, self._stopping = config, kafka, outputs, stopping

    def look_for_expired(self, stream: Stream) -> None:
        """Stop, or book it and go on, where alerts were deleted before they were read. Raises BrokerError."""
        gaps = retention.find_expired(self._kafka, stream.source)
        if gaps and stream.source.on_data_loss == "stop":
            raise retention.refuse(stream.source, gaps)
        if gaps:
            planned, last = checkpoint.planned_spans(stream.source.checkpoint), stream.committed()
            batch = planned[0] if planned else last.batch + 1 if last else 0
            _log.warning("%s: deleted before they were read, goes on behind: %s", stream.label, retention.tell(gaps))
            self.book(stream, batch, gaps)

    def book(self, stream: Stream, batch: int, gaps: list[Gap]) -> None:
        """Have the ledger say that these offsets have expired."""
        model = stream.assignment.passport.model
        retention.book(self._kafka, self._config.output.ledger, stream.source, batch, model, gaps)

    def leave_out(self, stream: Stream) -> None:
        """Have the next query leave out what an unfinished batch has written."""
        model = stream.assignment.passport.model
        further = (topic for outlet in stream.assignment.outlets for topic in outlet.names())
        outputs = (*self._config.output.topics[:2], *further)
        written = find_written(self._kafka, stream.source, outputs, model, self._stopping)
        stream.assignment = replace(stream.assignment, written=written)

    def renew(self, stream: Stream) -> None:
        """Have its next query know writer schemas and topics as they are known by now."""
        now = self._outputs.assign(stream.source)
        stream.assignment = replace(stream.assignment, learnt=now.learnt, outlets=now.outlets)
        stream.limits = self._outputs.limits
        if self.notes:
            try:
                self.notes.follow(self._outputs.names)
            except KafkaError as error:  # no more than a longer search after the next crash
                _log.warning("the ends of the topics of the nights can't be noted: %s", error)

    def prepare(self, pool: ThreadPoolExecutor, stream: Stream, wait_s: float = 0.0) -> None:
        """Have all of this done in a thread, in a while; the stream's query may start once its `recovery` is done."""
        stream.recovery = pool.submit(self._prepare, stream, wait_s)

    def after(self, pool: ThreadPoolExecutor, stream: Stream, fault: Fault) -> None:
        """Have a query that failed start again; raises BrokerError where that is of no use, or was done too often."""
        if fault.kind == "lasting":
            raise BrokerError(f"source {stream.label!r}: the query failed: {fault.cause}. {fault.advice}")
        planned = checkpoint.planned_spans(stream.source.checkpoint)
        if planned is not None and fault.kind in {"worker", "raised"} and not _is_cleared(stream, planned[0], fault):
            _suspect(stream, *planned, fault.cause)
            wait_s = 0.0
        else:
            allowed = stream.budget.spend()
            if allowed is None:
                raise BrokerError(
                    f"source {stream.label!r}: the query failed again, after its restarts ({stream.budget}): "
                    f"{fault.cause}. Mend the cause, then start again; 'restarts' and 'restart_window_s' of [service] "
                    "say how often is too often"
                )
            wait_s = allowed
            told = (stream.label, stream.budget, wait_s, fault.cause)
            _log.warning("%s: the query failed; restart %s follows in %g s: %s", *told)
        stream.health.state, stream.health.cause = "restarting", fault.cause
        stream.health.restarts += 1
        self.prepare(pool, stream, wait_s)

    def _prepare(self, stream: Stream, wait_s: float) -> None:
        if self._stopping.wait(wait_s) or not self._is_kafka_back(stream):
            return
        if stream.source.survey in self._outputs.by_night:
            self._outputs.refresh()  # the topic of an old night may be gone
            self.renew(stream)
        topics = [*stream.source.topics, self._config.output.ledger, *self._outputs.names]
        missing = find_missing(self._kafka, topics)
        if missing and not self._stopping.wait(MISSING_S) and (missing := find_missing(self._kafka, topics)):
            raise BrokerError(
                f"source {stream.label!r}: the query failed, and Kafka lacks the topic {', '.join(missing)} (or hides "
                "it from this login). Let this login see it, then start again. What was on a topic that was deleted is "
                "gone: to answer those alerts once more, start with a new checkpoint, a 'start' and new output topics; "
                f"to go on without them, make it again, and remove {stream.source.checkpoint / bounds.FOLDER}"
            )
        check_ends(self._kafka, stream.source, self._outputs.names)
        self.look_for_expired(stream)
        self.leave_out(stream)
        if self.notes:
            self.notes.add(stream.source.checkpoint)

    def _is_kafka_back(self, stream: Stream) -> bool:
        """Waits for Kafka; False where the job is to end first. Raises BrokerError once it has waited too long."""
        since, seldom = time.monotonic(), Seldom(60.0)
        while (reason := answers(self._kafka)) is not None:
            now, limit_s = time.monotonic(), self._config.service.kafka_away_s
            if now - since > limit_s:
                raise BrokerError(f"source {stream.label!r}: Kafka has been away for {limit_s:g} s: {reason}")
            if seldom("away"):
                _log.warning("%s: waits for Kafka, for %.0f s now: %s", stream.label, now - since, reason)
            if self._stopping.wait(1.0):
                return False
        return not self._stopping.is_set()


def _is_cleared(stream: Stream, batch: int, fault: Fault) -> bool:
    """Whether no alert can be to blame: alone, in a process of its own, none takes the worker with it."""
    return fault.kind == "worker" and stream.failures[batch] >= SUSPICIONS


def _suspect(stream: Stream, batch: int, batch_spans: list[Span], cause: str) -> None:
    """A worker failed over a planned batch: once may be chance, after the second time each alert runs alone."""
    name = stream.label
    stream.failures[batch] += 1
    if stream.failures[batch] > SUSPICIONS:
        raise BrokerError(f"source {name!r}, batch {batch}: failed again, alert by alert: {cause}")
    _log.warning("%s batch %d: a worker failed (%d): %s", name, batch, stream.failures[batch], cause)
    if stream.failures[batch] == SUSPICIONS:
        stream.alone = [Gap(s.topic, s.partition, s.first, s.last_exclusive - 1) for s in batch_spans]
        _log.warning("%s batch %d: runs again alert by alert, to find the one that kills its reader", name, batch)
