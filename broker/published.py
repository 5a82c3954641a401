"""Schemas put into a registry and read from it: our own record's by the driver, alerts' by a replay."""

from __future__ import annotations

import json

from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, SchemaRegistryError
from fastavro.schema import parse_schema, to_parsing_canonical_form

from broker.config import Output
from broker.errors import SchemaError
from broker.outlets import native
from broker.registry import by_id
from broker.registry_client import NOT_THERE, asking

TIMEOUT_S = 10.0
RETRIES = 2  # of the client, a second or two apart


def publish(output: Output) -> int | None:
    """Id of the record's schema, None without a registry. Raises RegistryError where it can't be had.

    The schema is registered only where the subject lacks it, so that a login-free registry that is read-only will do
    once somebody has put it there.
    """
    return None if output.registry is None else _publish(output.registry, output.classifications, native.schema_text())


class Publisher:
    """Ids of alerts' schemas by their text, each published once under the subject of a topic's values."""

    def __init__(self, url: str, topic: str) -> None:
        self._url, self._topic, self._known = url, topic, dict[str, int]()

    def __call__(self, text: str) -> int:
        """Raises RegistryError where it can't be had, SchemaError where the id means another schema to this package."""
        if text not in self._known:
            schema_id = _publish(self._url, self._topic, text)
            known = by_id(schema_id)
            if known is not None and _canonical(known[1].text) != _canonical(text):
                raise SchemaError(
                    f"the registry {self._url} has the schema under id {schema_id}, by which this package knows one of "
                    "Rubin's: frames of it would be misread. Use a registry that gives other ids"
                )
            self._known[text] = schema_id
        return self._known[text]


def _canonical(text: str) -> str:
    return to_parsing_canonical_form(parse_schema(json.loads(text)))


def _publish(url: str, topic: str, text: str) -> int:
    """The subject is that of the topic's values."""
    subject, schema = f"{topic}-value", Schema(text, "AVRO")
    client = _client(url)
    with asking(url, f"subject {subject!r}"):
        try:
            found = client.lookup_schema(subject, schema).schema_id
        except SchemaRegistryError as error:
            if error.http_status_code != NOT_THERE:
                raise
            found = client.register_schema(subject, schema)
        if not isinstance(found, int) or not 0 < found < 2**31:
            raise ValueError(f"the id {found!r}")
    return found


class Published:
    """Texts of schemas by the id in a frame, each asked for once.

    Without a registry, the schema of this version stands for every id: right for what this version has written.
    """

    def __init__(self, url: str | None) -> None:
        self._url, self._known = url, dict[int, str]()

    def __call__(self, schema_id: int) -> str:
        """Raises SchemaError where the registry has no such id, RegistryError where it does not tell."""
        if self._url is None:
            return native.of_this_version(schema_id)
        if schema_id not in self._known:
            with asking(self._url, f"schema {schema_id}"):
                try:
                    self._known[schema_id] = str(_client(self._url).get_schema(schema_id).schema_str)
                except SchemaRegistryError as error:
                    if error.http_status_code != NOT_THERE:
                        raise
                    raise SchemaError(f"the registry {self._url} has no schema {schema_id}") from error
        return self._known[schema_id]


def _client(url: str) -> SchemaRegistryClient:
    return SchemaRegistryClient({"url": url, "timeout": TIMEOUT_S, "max.retries": RETRIES})
