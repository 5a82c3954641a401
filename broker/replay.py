"""An archive back onto a Kafka topic: bytes, keys and headers as they were, at a pace."""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from confluent_kafka import KafkaError as Fault
from confluent_kafka import KafkaException, Message, Producer

from broker.errors import ConfigError, KafkaError
from broker.pace import pace_of
from broker.signals import heard
from broker.topics import check_topics, reason, require_topics, wait_for_kafka

# The largest alert that a source takes (16 MiB) and room for key, headers and the batch around it.
MAX_MESSAGE_BYTES = 16_777_216 + 1_048_576
_WAIT_S = 5.0
_FLUSH_TIMEOUT_S = 60.0
_FAILURES_ENOUGH = 100
_TELL_EVERY_S = 0.2
_USUAL_LIMIT = 1_000_000


class Alert(Protocol):
    """What is sent: `archive.Frame`, or anything else with these; topic and offset say where it came from."""

    @property
    def key(self) -> bytes | None: ...
    @property
    def value(self) -> bytes | None: ...
    @property
    def headers(self) -> list[tuple[str, bytes]]: ...
    @property
    def topic(self) -> str: ...
    @property
    def offset(self) -> int: ...


Sent = TypeVar("Sent", bound=Alert)


class _Note(Protocol):
    def write(self, n: int, last: str, at_once: bool = False) -> None: ...


@dataclass(frozen=True)
class Replayed:
    """Alerts acknowledged by Kafka, their bytes, and the time it took; `last` is the alert sent last.

    was_interrupted: Ctrl-C came; everything up to `last` is on the topic.
    """

    n: int
    n_bytes: int
    seconds: float
    last: str = ""
    was_interrupted: bool = False


def replay(
    frames: Iterable[Sent],
    options: Mapping[str, str] | str,
    topic: str,
    rate: float | None = None,
    progress: Callable[[int, int], None] | None = None,
    *,
    due: Callable[[int, Sent], float] | None = None,
    note: _Note | None = None,
    n_before: int = 0,
) -> Replayed:
    """Send every frame to an existing topic, and return once all are acknowledged.

    options: librdkafka's settings, or just HOST:PORT. rate: alerts per second, None as fast as Kafka takes them.
    progress: called with (alerts, bytes) acknowledged, a few times a second and at the end. An alert without a key goes
    to any partition, as in the archive's own night. due: in place of a rate, when each is due (see `pace`). note: is
    told how many alerts are on the topic without a gap, and n_before, those that an earlier replay sent.
    Raises KafkaError when the topic is missing or alerts are refused.
    """
    if rate is not None:
        pace_of(rate, None, None)  # refuses what is no rate
        per_s = rate
        due = due or (lambda number, _: number / per_s)
    settings = {"bootstrap.servers": options} if isinstance(options, str) else dict(options)
    wait_for_kafka(settings, _WAIT_S)
    require_topics(settings, [topic])
    sender = _Sender(settings, topic, _limit(settings, topic), progress, _Acknowledged(note, n_before))
    interrupted = threading.Event()
    start = time.monotonic()
    # An exception out of a delivery callback comes back from librdkafka's poll as a SystemError: no KeyboardInterrupt.
    with heard(lambda _: interrupted.set(), signal.SIGINT):
        for n_sent, frame in enumerate(frames):
            if due is not None:
                sender.wait_until(start + due(n_sent, frame), interrupted)
            if interrupted.is_set():
                break
            sender.send(frame)
            if sender.n_failed >= _FAILURES_ENOUGH:
                break
    sender.finish()
    return Replayed(sender.n, sender.n_bytes, time.monotonic() - start, sender.last, interrupted.is_set())


def _limit(options: Mapping[str, str], topic: str) -> int | None:
    """Largest message of the topic, or None for a login that may write there and not look."""
    try:
        return check_topics(options, [topic])[topic]
    except KafkaError:
        return None


@dataclass
class _Acknowledged:
    """How many alerts are on the topic without a gap: partitions acknowledge in no common order."""

    note: _Note | None
    n: int
    _ahead: dict[int, str] = field(default_factory=dict)

    def add(self, number: int, place: str) -> None:
        """The alert with this number, from 0 and with those of earlier replays, is on the topic."""
        if self.note is None:
            return
        self._ahead[number] = place
        last = ""
        while self.n in self._ahead:
            last = self._ahead.pop(self.n)
            self.n += 1
        if last:
            self.note.write(self.n, last)


class _Sender:
    """A producer with its acknowledgements counted."""

    def __init__(
        self,
        options: Mapping[str, str],
        topic: str,
        limit: int | None,
        progress: Callable[[int, int], None] | None,
        acknowledged: _Acknowledged,
    ) -> None:
        self._acknowledged, self._number = acknowledged, acknowledged.n
        self.n = self.n_bytes = self.n_failed = 0
        self.last = ""
        self._first_failure = ""
        self._topic, self._progress = topic, progress
        is_compressed = options.keys() & {"compression.type", "compression.codec"}
        self._limit = MAX_MESSAGE_BYTES if is_compressed or limit is None else limit
        self._told = 0.0
        defaults = {
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "message.timeout.ms": 60_000,
            "enable.idempotence": True,  # a retry neither repeats nor reorders alerts
            "linger.ms": 20,
            # Kafka refuses a batch above the topic's limit whole, with all the small alerts in it.
            "batch.size": min(limit or _USUAL_LIMIT, 1_000_000),
            "queue.buffering.max.kbytes": 131_072,
            "log_level": 0,  # failures are counted and raised here
        }
        try:
            self._producer = Producer(
                {**defaults, **{key: value for key, value in options.items() if key != "group.id"}}
            )
        except KafkaException as error:
            raise ConfigError(f"[kafka] options: librdkafka says: {reason(error)}; correct the setting") from error

    def wait_until(self, moment: float, interrupted: threading.Event) -> None:
        """Serve acknowledgements until then, or until interrupted."""
        while (left := moment - time.monotonic()) > 0 and not interrupted.is_set():
            self._producer.poll(min(left, 0.1))
            self._tell()

    def send(self, frame: Alert) -> None:
        """Queue one alert; waits while the queue is full, which is how a slow cluster slows the reading down."""
        place = f"{frame.topic}:{frame.offset}"
        size, number = len(frame.value or b""), self._number
        self._number += 1

        def count(fault: Fault | None, _: Message) -> None:
            if fault is None:
                self.n += 1
                self.n_bytes += size
                self._acknowledged.add(number, place)
            else:
                self._fail(place, size, fault)

        if size > self._limit:
            self._fail(place, size, Fault(Fault.MSG_SIZE_TOO_LARGE))
            return
        while True:
            try:
                self._producer.produce(
                    self._topic, value=frame.value, key=frame.key, headers=list(frame.headers), on_delivery=count
                )
            except BufferError:
                self._producer.poll(0.1)
                self._tell()
            except KafkaException as error:  # refused on the spot, such as one above message.max.bytes
                self._fail(place, size, error.args[0])
                break
            else:
                break
        self.last = place
        self._producer.poll(0)
        self._tell()

    def finish(self) -> None:
        """Wait for all acknowledgements. Raises KafkaError if an alert was refused or stays unanswered."""
        unanswered = self._producer.flush(_FLUSH_TIMEOUT_S)
        self._tell(at_once=True)
        if self._acknowledged.note is not None and self.last:
            self._acknowledged.note.write(self._acknowledged.n, self.last, at_once=True)
        if unanswered:
            self.n_failed += unanswered
            self._first_failure = self._first_failure or f"no answer within {_FLUSH_TIMEOUT_S:g} s"
        if self.n_failed:
            gave_up = "; gave up" if self.n_failed >= _FAILURES_ENOUGH else ""
            raise KafkaError(
                f"topic {self._topic!r}: {self.n} alerts delivered, {self.n_failed} not{gave_up}. "
                f"The first: {self._first_failure}. The last alert sent was {self.last}"
            )

    def _fail(self, place: str, size: int, fault: Fault) -> None:
        self.n_failed += 1
        hint = ": raise the topic's max.message.bytes" if fault.code() == Fault.MSG_SIZE_TOO_LARGE else ""
        self._first_failure = self._first_failure or f"{place}, {size} bytes: {fault.str()}{hint}"

    def _tell(self, at_once: bool = False) -> None:
        now = time.monotonic()
        if self._progress is not None and (at_once or now - self._told >= _TELL_EVERY_S):
            self._told = now
            self._progress(self.n, self.n_bytes)
