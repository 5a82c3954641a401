"""Whether this login may do what the job is about to do: asked of Kafka before anything is read or written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from confluent_kafka import KafkaException, TopicCollection
from confluent_kafka.admin._acl import AclOperation

from broker.errors import KafkaError
from broker.topics import TIMEOUT_S, admin_of, reason

READ, WRITE = AclOperation.READ, AclOperation.WRITE


def check_rights(options: Mapping[str, str], wanted: Mapping[str, Sequence[AclOperation]]) -> None:
    """Raise KafkaError, with the command that grants each, unless the login has these rights on each of these topics.

    A cluster that does not tell is taken at its first refusal instead.
    """
    admin, lacking = admin_of(options), dict[str, list[str]]()
    found = admin.describe_topics(
        TopicCollection(list(wanted)), include_authorized_operations=True, request_timeout=TIMEOUT_S
    )
    for topic, future in found.items():
        try:
            rights = future.result(TIMEOUT_S).authorized_operations
        except KafkaException as error:
            raise KafkaError(f"the rights on topic {topic!r} can't be asked for: {reason(error)}") from error
        if rights and (missing := [right.name.capitalize() for right in wanted[topic] if right not in rights]):
            lacking[topic] = missing
    if not lacking:
        return
    user, servers = options.get("sasl.username", "USER"), options["bootstrap.servers"]
    told = ", ".join(f"{' and '.join(rights)} on {topic!r}" for topic, rights in lacking.items())
    commands = "".join(
        f"\n  kafka-acls.sh --bootstrap-server {servers} --add --allow-principal User:{user} --topic {topic}"
        + "".join(f" --operation {right}" for right in rights)
        for topic, rights in lacking.items()
    )
    raise KafkaError(
        f"Kafka at {servers}: this login lacks the right {told}. Outputs are read too, to leave out what is "
        f"there after a crash. Grant with:{commands}"
    )
