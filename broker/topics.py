"""Kafka, as the driver sees it: is it there, do the topics exist, what do they take, how far do they reach.

All clients here are passive: partitions are assigned, no group is joined, nothing is committed, and no topic is made
unless that is asked for. `options` are librdkafka's settings (`config.kafka_options`).
"""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from typing import Any, NamedTuple, cast

from confluent_kafka import Consumer, KafkaException, Message, TopicPartition
from confluent_kafka import KafkaError as Fault
from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._config import ConfigResource
from confluent_kafka.admin._resource import ResourceType
from confluent_kafka.cimpl import NewTopic
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_delay, wait_fixed

from broker.errors import ConfigError, KafkaError
from broker.ledger import Gap
from broker.supervise import Seldom

_log = logging.getLogger(__name__)

TIMEOUT_S = 30.0
_seldom = Seldom(60.0)  # faults as warnings (30), else debug (10): while Kafka is away there are ten a second
_NO_LEADER_YET = (Fault.NOT_LEADER_FOR_PARTITION, Fault.LEADER_NOT_AVAILABLE)


def wait_for_kafka(options: Mapping[str, str], timeout_s: float) -> None:
    """Return once the cluster answers; one log line per failed attempt. Raises KafkaError after `timeout_s`.

    A refused login isn't waited for.
    """
    servers = options["bootstrap.servers"]

    def tell(state: RetryCallState) -> None:
        reason = state.outcome.exception() if state.outcome else None
        _log.warning("Kafka at %s: attempt %d: %s", servers, state.attempt_number, reason)

    attempts = Retrying(
        stop=stop_after_delay(timeout_s),
        wait=wait_fixed(2),
        retry=retry_if_exception_type(_NotYetError),
        after=tell,
        reraise=True,
    )
    try:
        attempts(_reach_out, options, min(5.0, max(1.0, timeout_s)))
    except _NotYetError as error:
        raise KafkaError(
            f"Kafka at {servers} doesn't answer within {timeout_s:g} s: {error}. Start it, or correct "
            "kafka.bootstrap_servers; kafka.startup_timeout_s says how long to wait"
        ) from error


def answers(options: Mapping[str, str], timeout_s: float = 2.0) -> str | None:
    """None where the cluster answers, else why not. Raises KafkaError for a refused login."""
    try:
        _reach_out(options, timeout_s)
    except _NotYetError as error:
        return str(error)
    return None


def find_cluster(options: Mapping[str, str]) -> str:
    """The cluster's id, which it keeps for life. Raises KafkaError."""
    try:
        return str(admin_of(options).list_topics(timeout=TIMEOUT_S).cluster_id)
    except KafkaException as error:
        raise KafkaError(f"Kafka at {options['bootstrap.servers']} does not tell its id: {reason(error)}") from error


def check_topics(
    options: Mapping[str, str],
    names: Iterable[str],
    create: bool = False,
    partitions: int = 4,
    max_message_bytes: int | None = None,
    kept_ms: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Largest message in bytes that each topic takes; missing topics are made if `create`.

    `partitions`, `max_message_bytes` and `kept_ms` (retention by topic) hold for topics that are made now. Otherwise
    KafkaError names the missing ones, each with the command that makes it.
    """
    names = list(dict.fromkeys(names))
    admin = admin_of(options)
    missing = find_missing(options, names)
    settings: dict[str, dict[str, str]] = {name: {} for name in missing}
    for name in missing:
        if max_message_bytes is not None:
            settings[name]["max.message.bytes"] = str(max_message_bytes)
        if name in (kept_ms or {}):
            settings[name]["retention.ms"] = str((kept_ms or {})[name])
    if missing and not create:
        raise _missing(options, missing, partitions, settings)
    if missing:
        # Replication -1: the cluster's own default.
        new = [NewTopic(name, partitions, -1, config=settings[name]) for name in missing]
        for name, future in admin.create_topics(new, request_timeout=TIMEOUT_S).items():
            result_of(future, f"topic {name!r} can't be created", allowed=Fault.TOPIC_ALREADY_EXISTS)
        deadline = time.monotonic() + TIMEOUT_S
        while find_missing(options, missing) and time.monotonic() < deadline:
            time.sleep(0.1)  # other brokers of a cluster hear of a new topic a moment later
    return _max_message_bytes(admin, names)


def require_topics(options: Mapping[str, str], names: Iterable[str]) -> None:
    """Raise KafkaError, with the command that makes each, unless all these topics are there."""
    missing = find_missing(options, names)
    if missing:
        raise _missing(options, missing, None, {})


def find_missing(options: Mapping[str, str], names: Iterable[str]) -> list[str]:
    """Those of `names` that this login can't see."""
    known = list_topics(options)
    return [name for name in dict.fromkeys(names) if name not in known]


def list_topics(options: Mapping[str, str]) -> set[str]:
    """All topics that this login can see. Raises KafkaError."""
    try:
        # All topics: asking for one by name creates it where brokers allow that.
        return set(admin_of(options).list_topics(timeout=TIMEOUT_S).topics)
    except KafkaException as error:
        raise KafkaError(f"topics of {options['bootstrap.servers']} can't be listed: {reason(error)}") from error


class Reach(NamedTuple):
    """Offsets held by a partition: [first, last_exclusive)."""

    first: int
    last_exclusive: int


def watermarks(options: Mapping[str, str], topics: Iterable[str]) -> dict[str, dict[int, Reach]]:
    """Offsets held now, by topic and partition. Raises KafkaError if a topic is missing."""
    consumer = open_consumer(options)
    try:
        return {topic: reaches(consumer, topic) for topic in topics}
    finally:
        consumer.close()


def find_holes(options: Mapping[str, str], gaps: Iterable[Gap]) -> list[Gap]:
    """Those offsets of `gaps` that hold no record (transaction markers, compaction), by reading the source itself.

    What retention has deleted may have held a record, so it is no hole. Raises KafkaError if the source can't be read.
    """
    gaps = list(gaps)
    consumer = open_consumer(options)
    try:
        held = {topic: reaches(consumer, topic) for topic in {gap.topic for gap in gaps}}
        return [hole for gap in gaps for hole in _holes_in(consumer, gap, held[gap.topic][gap.partition].first)]
    finally:
        consumer.close()


def read_all(options: Mapping[str, str], topic: str, since_ms: int | None = None) -> Iterator[Message]:
    """Every record that the topic holds now (or from a time on), partition by partition.

    Raises KafkaError if it can't be read.
    """
    with open_consumer(options) as consumer:
        held = reaches(consumer, topic)
        starts = {} if since_ms is None else offsets_at(consumer, topic, held, since_ms)
        for partition, reach in held.items():
            position, deadline = starts.get(partition, reach.first), time.monotonic() + TIMEOUT_S
            consumer.assign([TopicPartition(topic, partition, position)])
            while position < reach.last_exclusive:
                if time.monotonic() > deadline:
                    raise KafkaError(f"{topic}:{partition}: can't be read within {TIMEOUT_S:g} s; at offset {position}")
                for message in consumer.consume(500, timeout=0.5):
                    position = (message.offset() or 0) + (0 if end_of(message) else 1)
                    deadline = time.monotonic() + TIMEOUT_S
                    if not end_of(message):
                        yield message


def open_consumer(options: Mapping[str, str], reset: str = "error") -> Consumer:
    """A consumer that is given partitions and joins no group. Raises ConfigError for a setting that librdkafka refuses.

    It tells the end of a partition by an error record (`end_of`); `reset` is for offsets that retention has deleted.
    """
    settings = {
        "isolation.level": "read_uncommitted",  # as Spark reads, unless the options say otherwise
        **_quiet(options),
        # Clusters that tie groups to logins ask for the user's name in front, even of clients that join none.
        "group.id": options.get("group.id", options.get("sasl.username", "t2-broker")),
        "enable.auto.commit": False,
        "enable.partition.eof": True,
        "auto.offset.reset": reset,
        "error_cb": lambda fault: _log.log(30 if _seldom(fault.code()) else 10, "Kafka: %s", fault.str()),
    }
    try:
        return Consumer(settings)
    except KafkaException as error:
        raise ConfigError(
            f"[kafka] options: librdkafka says: {reason(error)}; correct or remove the setting"
        ) from error


def reaches(consumer: Consumer, topic: str) -> dict[int, Reach]:
    """Offsets held now by each partition of a topic. Raises KafkaError if it is missing or doesn't answer.

    A topic that was made a moment ago may have no leader yet: that is waited for.
    """
    deadline = time.monotonic() + TIMEOUT_S
    while True:
        try:
            return _reaches_now(consumer, topic)
        except KafkaException as error:
            if error.args[0].code() not in _NO_LEADER_YET or time.monotonic() > deadline:
                raise KafkaError(f"topic {topic!r}: its offsets can't be read: {reason(error)}") from error
            time.sleep(0.1)


def _reaches_now(consumer: Consumer, topic: str) -> dict[int, Reach]:
    metadata = consumer.list_topics(topic, timeout=TIMEOUT_S).topics[topic]
    if metadata.error is not None or not metadata.partitions:
        raise KafkaError(f"topic {topic!r} can't be read: {metadata.error or 'no partitions'}; is its name right?")
    return {
        partition: Reach(*consumer.get_watermark_offsets(TopicPartition(topic, partition), timeout=TIMEOUT_S))
        for partition in sorted(metadata.partitions)
    }


def offsets_at(consumer: Consumer, topic: str, held: Mapping[int, Reach], time_ms: int) -> dict[int, int]:
    """The first offset of each partition whose time stamp is not before `time_ms`; its end where all are.

    Raises KafkaError if the topic can't be searched.
    """
    wanted = [TopicPartition(topic, partition, max(time_ms, 0)) for partition in held]
    try:
        found = consumer.offsets_for_times(wanted, timeout=TIMEOUT_S)
    except KafkaException as error:
        raise KafkaError(f"topic {topic!r} can't be searched by time: {reason(error)}") from error
    for place in found:
        if place.error is not None:  # its offset is then anything, such as the time that was asked for
            raise KafkaError(f"{topic}:{place.partition} can't be searched by time: {place.error.str()}")
    return {
        place.partition: held[place.partition].last_exclusive if place.offset < 0 else place.offset for place in found
    }


def end_of(message: Message) -> bool:
    """Whether this is the sign of a partition's end; its offset is the end. Raises KafkaError for any other error."""
    fault = message.error()
    if fault is None:
        return False
    if fault.code() == Fault._PARTITION_EOF:
        return True
    raise KafkaError(f"{message.topic()}:{message.partition()}: can't be read: {fault.str()}")


def reason(error: KafkaException) -> str:
    """What librdkafka says, without its repr."""
    fault = error.args[0] if error.args else error
    return fault.str() if isinstance(fault, Fault) else str(fault)


class _NotYetError(Exception):
    """Kafka doesn't answer yet."""


def _reach_out(options: Mapping[str, str], timeout_s: float) -> None:
    """One attempt. It ends with the first fault that librdkafka reports: its own call goes on trying until the end."""
    faults: list[Fault] = []
    admin = admin_of({**options, "error_cb": faults.append})
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            admin.list_topics(timeout=0.5)
            return
        except KafkaException as error:
            admin.poll(0)
            if not faults and time.monotonic() < deadline:
                continue
            refused = [fault for fault in faults if fault.code() == Fault._AUTHENTICATION]
            if refused:
                raise KafkaError(
                    f"Kafka at {options['bootstrap.servers']} refuses the login of {options.get('sasl.username')!r}: "
                    f"{refused[0].str()}; check the two environment variables and sasl.mechanism in [kafka]"
                ) from error
            raise _NotYetError(faults[0].str() if faults else reason(error)) from error


def admin_of(options: Mapping[str, Any]) -> AdminClient:
    """A client for questions to the cluster. Raises ConfigError for a setting that librdkafka refuses."""
    try:
        return AdminClient({key: value for key, value in _quiet(options).items() if key != "group.id"})
    except KafkaException as error:
        raise ConfigError(
            f"[kafka] options: librdkafka says: {reason(error)}; correct or remove the setting"
        ) from error


def _quiet(options: Mapping[str, Any]) -> dict[str, Any]:
    # librdkafka writes each failed connection to stderr; we report errors ourselves, once.
    return {"log_level": 0, **options}


def _holes_in(consumer: Consumer, gap: Gap, held_from: int) -> Iterator[Gap]:
    free = max(gap.first, held_from)
    for message in messages_in(consumer, gap._replace(first=free)):
        offset = cast(int, message.offset())
        if offset > free:
            yield gap._replace(first=free, last=offset - 1)
        free = offset + 1
    if free <= gap.last:
        yield gap._replace(first=free)


def messages_in(consumer: Consumer, gap: Gap) -> Iterator[Message]:
    """Records in the gap, ascending."""
    consumer.assign([TopicPartition(gap.topic, gap.partition, gap.first)])
    deadline = time.monotonic() + TIMEOUT_S
    position = gap.first
    while position <= gap.last:
        if time.monotonic() > deadline:
            raise KafkaError(f"{gap}: the source can't be read within {TIMEOUT_S:g} s; at offset {position}")
        for message in consumer.consume(500, timeout=0.5):
            offset = message.offset()
            if offset is None or position > gap.last:
                continue
            deadline = time.monotonic() + TIMEOUT_S
            if end_of(message):
                position = max(position, offset)
                if position <= gap.last:  # an offset that Spark read, past the end: the topic was made anew
                    return
            else:
                position = offset + 1
                if gap.first <= offset <= gap.last:
                    yield message


def _max_message_bytes(admin: AdminClient, names: list[str]) -> dict[str, int]:
    resources = [ConfigResource(ResourceType.TOPIC, name) for name in names]
    limits = {}
    for resource, future in admin.describe_configs(resources, request_timeout=TIMEOUT_S).items():
        entries = result_of(
            future, f"settings of topic {resource.name!r} can't be read (the login needs DescribeConfigs)"
        )
        limits[str(resource.name)] = int(entries["max.message.bytes"].value)
    return limits


def result_of(future: "Future[Any]", what: str, allowed: int | None = None) -> Any:
    """What an admin client answers, None for the code that is allowed. Raises KafkaError."""
    try:
        return future.result(TIMEOUT_S)
    except KafkaException as error:
        if error.args[0].code() == allowed:
            return None
        raise KafkaError(f"{what}: {reason(error)}") from error


def _missing(
    options: Mapping[str, str], names: list[str], partitions: int | None, settings: Mapping[str, Mapping[str, str]]
) -> KafkaError:
    servers = options["bootstrap.servers"]
    start = f"kafka-topics.sh --bootstrap-server {servers} "
    if "sasl.username" in options:
        start += "--command-config client.properties "
    count = "" if partitions is None else f" --partitions {partitions}"
    commands = [
        f"{start}--create --topic {name}{count}"
        + "".join(f" --config {key}={value}" for key, value in settings.get(name, {}).items())
        for name in names
    ]
    ours = "" if partitions is None else "set output.create_topics = true, or "
    return KafkaError(
        f"Kafka at {servers} lacks the topic {', '.join(names)} (or hides it from this login). "
        f"Correct the name, or {ours}create with:\n  " + "\n  ".join(commands)
    )
