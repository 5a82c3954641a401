"""Alerts that a topic deleted before they were read (retention, or by hand): found, told, booked in the ledger."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from confluent_kafka import KafkaException, Producer

from broker import checkpoint
from broker.config import Source
from broker.errors import BrokerError, KafkaError
from broker.ledger import Gap, LedgerRow
from broker.topics import TIMEOUT_S, Reach, open_consumer, reaches, reason

NO_TASK = -1  # a row of the driver's


def find_expired(options: Mapping[str, str], source: Source) -> list[Gap]:
    """Offsets that the source's next batch is to begin with and its topics hold no more; none with a new checkpoint.

    Raises KafkaError where a topic can't be read, BrokerError where one ends before what was read of it.
    """
    begins = checkpoint.next_offsets(source.checkpoint)
    if begins is None:
        return []
    gaps = []
    with open_consumer(options) as consumer:
        for topic in source.topics:
            for partition, reach in reaches(consumer, topic).items():
                # A partition that no batch has known is read from its beginning, by Spark's rule.
                begin = begins.get((topic, partition), 0)
                _check_end(source, topic, partition, begin, reach)
                if begin < reach.first:
                    gaps.append(Gap(topic, partition, begin, reach.first - 1))
    return gaps


def expired_of(options: Mapping[str, str], missing: Iterable[Gap]) -> list[Gap]:
    """The part of `missing` that lies before what the topics still hold. Raises KafkaError."""
    missing = list(missing)
    with open_consumer(options) as consumer:
        held = {topic: reaches(consumer, topic) for topic in {gap.topic for gap in missing}}
    cut = [gap._replace(last=min(gap.last, held[gap.topic][gap.partition].first - 1)) for gap in missing]
    return [gap for gap in cut if gap.first <= gap.last]


def refuse(source: Source, gaps: Sequence[Gap]) -> BrokerError:
    """The error for a source that stops where alerts have expired: which, and how to go on."""
    n = sum(gap.last - gap.first + 1 for gap in gaps)
    return BrokerError(
        f"source {source.name!r}: {n} alerts were deleted from the topic before they were read, by its retention or by "
        f'hand: {tell(gaps)}. They can\'t be answered any more. To go on behind them, set on_data_loss = "go_on" for '
        "this source: the ledger then names them as expired. Look at the topic's retention.ms and at the job's lag"
    )


def tell(gaps: Iterable[Gap]) -> str:
    """Gaps in words."""
    parts = (f"{gap.topic} partition {gap.partition}, offsets {gap.first} to {gap.last}" for gap in gaps)
    return "; ".join(parts)


def book(options: Mapping[str, str], ledger: str, source: Source, batch: int, model: str, gaps: Sequence[Gap]) -> None:
    """Write rows with these offsets as expired to the ledger topic, all acknowledged. Raises KafkaError."""
    query = checkpoint.query_id(source.checkpoint)
    once = {"enable.idempotence": True, "message.timeout.ms": int(TIMEOUT_S * 1000)}  # a retry writes no row again
    producer = Producer({"log_level": 0, **options, **once})
    failed: list[str] = []
    for gap in gaps:
        expired = ((gap.first, gap.last),)
        row = LedgerRow(source.name, batch, NO_TASK, gap.topic, gap.partition, (), {}, model, query, expired=expired)
        producer.produce(
            ledger,
            row.to_json(),
            source.name.encode(),
            on_delivery=lambda fault, _: failed.append(fault.str()) if fault is not None else None,
        )
    try:
        producer.flush(TIMEOUT_S + 5)
    except KafkaException as error:
        raise KafkaError(f"ledger topic {ledger!r} can't be written: {reason(error)}") from error
    if failed or len(producer):
        raise KafkaError(f"ledger topic {ledger!r} can't be written: {failed[0] if failed else 'no acknowledgement'}")


def _check_end(source: Source, topic: str, partition: int, begin: int, reach: Reach) -> None:
    if reach.last_exclusive < begin:
        raise BrokerError(
            f"source {source.name!r}: {topic}:{partition} ends at offset {reach.last_exclusive}, and was read up to "
            f"{begin}: the topic was deleted and made again. Start with a new checkpoint and a 'start'"
        )
