"""The ledger topic, read by the driver: which rows belong to a batch."""

import logging
import time
from collections import defaultdict
from collections.abc import Collection, Mapping

from confluent_kafka import KafkaException, Message, TopicPartition

from broker.errors import KafkaError, LedgerError
from broker.ledger import LedgerRow
from broker.topics import TIMEOUT_S, Reach, end_of, open_consumer, reaches, reason

_log = logging.getLogger(__name__)

ROWS_KEPT_MS = 30 * 86_400_000  # a job may stand still for a month and still prove its last batch
# A batch that was planned while the clock was an hour ahead may have rows from after it was set right.
_CLOCKS_APART_MS = 2 * 3_600_000


class LedgerTopic:
    """Reads the ledger topic onwards, and keeps the rows of the batches that may still be asked for.

    Give `since_ms` (when the oldest batch of interest was planned) to spare reading the whole topic; rows of other
    `sources` are dropped.
    """

    def __init__(
        self, options: Mapping[str, str], topic: str, sources: Collection[str], since_ms: int | None = None
    ) -> None:
        self._topic = topic
        self._sources = frozenset(sources)
        self._rows: dict[tuple[str, str], dict[int, list[LedgerRow]]] = defaultdict(lambda: defaultdict(list))
        self._consumer = open_consumer(options, reset="earliest")
        # Questions go by a second connection: on the reading one they queue behind a fetch that waits for 500 ms.
        self._asker = open_consumer(options)
        held = reaches(self._asker, topic)
        self._next = {partition: reach.first for partition, reach in held.items()}
        if since_ms is not None:
            self._skip_to(since_ms - _CLOCKS_APART_MS, held)
        self._consumer.assign([TopicPartition(topic, partition, offset) for partition, offset in self._next.items()])

    def rows_of(self, source: str, batch: int, query: str, timeout_s: float = TIMEOUT_S) -> list[LedgerRow]:
        """All rows of one committed batch; rows of earlier batches of this query are forgotten.

        Complete without waiting: a committed batch's rows were acknowledged before its commit, so reading up to the
        topic's end as of now is enough. Raises KafkaError if that end isn't reached within `timeout_s`.
        """
        self._read_to_end(timeout_s)
        batches = self._rows[source, query]
        for earlier in [number for number in batches if number < batch]:
            del batches[earlier]
        return list(batches.get(batch, []))

    def close(self) -> None:
        """Leave the cluster."""
        self._consumer.close()
        self._asker.close()

    def __enter__(self) -> "LedgerTopic":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _skip_to(self, time_ms: int, held: Mapping[int, Reach]) -> None:
        wanted = [TopicPartition(self._topic, partition, max(time_ms, 0)) for partition in self._next]
        try:
            found = self._asker.offsets_for_times(wanted, timeout=TIMEOUT_S)
        except KafkaException as error:
            raise KafkaError(f"ledger topic {self._topic!r} can't be searched by time: {reason(error)}") from error
        for place in found:
            # A negative offset: no row that young, so there is nothing to read but what comes from now on.
            offset = held[place.partition].last_exclusive if place.offset < 0 else place.offset
            self._next[place.partition] = max(offset, self._next[place.partition])

    def _read_to_end(self, timeout_s: float) -> None:
        deadline = time.monotonic() + timeout_s
        ends = {partition: reach.last_exclusive for partition, reach in reaches(self._asker, self._topic).items()}
        if ends.keys() != self._next.keys():
            self._take_up(ends.keys() - self._next.keys())
        while any(self._next[partition] < end for partition, end in ends.items()):
            if time.monotonic() > deadline:
                raise KafkaError(
                    f"ledger topic {self._topic!r}: its end isn't reached within {timeout_s:g} s: {self._next}"
                )
            message = self._consumer.poll(0.2)
            if message is not None:
                self._take(message)

    def _take_up(self, partitions: Collection[int]) -> None:
        """Partitions were added to the topic."""
        self._next |= dict.fromkeys(partitions, 0)
        self._consumer.incremental_assign([TopicPartition(self._topic, partition, 0) for partition in partitions])

    def _take(self, message: Message) -> None:
        partition, offset = message.partition(), message.offset()
        if partition is None or offset is None:
            return
        if end_of(message):
            self._next[partition] = max(self._next[partition], offset)
            return
        self._next[partition] = offset + 1
        try:
            row = LedgerRow.from_json(message.value())
        except LedgerError as error:
            # Anyone may write to a topic. A row that was ours and is unreadable now shows up as missing verdicts.
            _log.warning("%s:%d:%d: passed over: %s", self._topic, partition, offset, error)
            return
        if row.source in self._sources:
            self._rows[row.source, row.query][row.batch].append(row)
