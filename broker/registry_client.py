"""Writer schemas of LSST that the package lacks: from a cache on disk, else from a registry. For the driver only."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import fastavro
import httpx2
from confluent_kafka.schema_registry import SchemaRegistryClient, SchemaRegistryError
from fastavro.schema import SchemaParseException, UnknownType, to_parsing_canonical_form

from broker import surveys
from broker.decode import schema_pair
from broker.errors import BrokerError, SchemaError
from broker.java import cache_folder
from broker.lookup import Lookup
from broker.registry import Writer, by_id

_log = logging.getLogger(__name__)

MAX_SCHEMA_CHARS = 2**20  # LSST's have up to 60,000
NOT_THERE = 404


class RegistryError(BrokerError):
    """A registry that does not give what it was asked for, which may be different a little later."""


def cache_of(lookup: Lookup) -> Path:
    """Where the schemas of a registry are kept: an id means another schema in another registry."""
    cache = lookup.cache or cache_folder() / "schemas"
    return cache / hashlib.sha256((lookup.url or "").encode()).hexdigest()[:12]


def cached(lookup: Lookup) -> list[Writer]:
    """Everything that is kept of a registry. A damaged file is left out, and fetched again once it is needed."""
    found = []
    for path in sorted(cache_of(lookup).glob("*.avsc")) if lookup.url else ():
        if not path.stem.isdecimal():
            continue
        try:
            found.append(_writer(int(path.stem), path.read_text()))
        except (OSError, UnicodeDecodeError, SchemaError) as error:
            _log.warning("%s in the cache of schemas is left out: %s", path.name, error)
    return found


class RegistryClient:
    """One registry and its cache. The registry is asked only for what neither the package nor the cache holds."""

    def __init__(self, lookup: Lookup) -> None:
        """Raises RegistryError without a url."""
        if lookup.url is None:
            raise RegistryError("no registry is configured: give its address as 'url' in [registry]")
        self.url, self._subjects = lookup.url, lookup.subjects
        self.folder = cache_of(lookup)
        settings = {"url": lookup.url, "timeout": lookup.timeout_s, "max.retries": 0}  # the caller comes again anyway
        self._client = SchemaRegistryClient(settings)
        self._seen: set[tuple[str, int]] = set()  # subjects and versions
        self._left_out: set[tuple[str, int]] = set()

    def fetch(self, schema_id: int) -> Writer:
        """One writer schema by its id: packaged, cached, or from the registry, which puts it into the cache.

        Raises RegistryError where it can't be had now, SchemaError where it is no LSST alert's.
        """
        known = by_id(schema_id)
        if known is not None:
            return known[1]
        path = self._path(schema_id)
        if path.is_file():
            try:
                return _writer(schema_id, path.read_text())
            except (OSError, UnicodeDecodeError, SchemaError) as error:
                _log.warning("%s in the cache of schemas is fetched again: %s", path.name, error)
        with asking(self.url, f"schema {schema_id}"):
            text = self._client.get_schema(schema_id).schema_str
        return self._keep(schema_id, text)

    def ask_subjects(self) -> Iterator[Writer]:
        """Every version of the configured subjects that was not seen before and that nobody knew.

        Raises the first RegistryError once all were asked for. A schema that is no LSST alert's is left out, and named
        once in the log.
        """
        failure: RegistryError | None = None
        for subject in self._subjects:
            try:
                yield from self._ask_subject(subject)
            except RegistryError as error:
                failure = failure or error
        if failure:
            raise failure

    def _ask_subject(self, subject: str) -> Iterator[Writer]:
        with asking(self.url, f"versions of {subject!r}"):
            versions = [int(version) for version in self._client.get_versions(subject)]
        for version in versions:
            if (subject, version) in self._seen:
                continue
            with asking(self.url, f"{subject!r}, version {version}"):
                told = self._client.get_version(subject, version)
                schema_id, text = _whole(told.schema_id), told.schema.schema_str
            try:
                if by_id(schema_id) is None:
                    yield self._keep(schema_id, text)
                self._seen.add((subject, version))
            except SchemaError as error:  # which may be a registry's bad moment, so it is asked for again
                if (subject, version) not in self._left_out:
                    _log.warning("%s, version %d, of the registry is left out: %s", subject, version, error)
                self._left_out.add((subject, version))

    def _keep(self, schema_id: int, text: object) -> Writer:
        writer = _writer(schema_id, text)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".part", delete=False) as file:
                file.write(writer.text)
            os.replace(file.name, self._path(schema_id))
        except OSError as error:
            _log.warning("schema %d can't be kept in %s: %s", schema_id, self.folder, error)
        return writer

    def _path(self, schema_id: int) -> Path:
        return self.folder / f"{schema_id}.avsc"


@contextmanager
def asking(url: str, what: str) -> Iterator[None]:
    """Every way in which a registry can fail, as one RegistryError."""
    try:
        yield
    except SchemaRegistryError as error:
        if error.http_status_code == NOT_THERE:
            raise RegistryError(f"the registry {url} has no {what} (now)") from error
        raise RegistryError(f"the registry {url} refused {what}: {_short(error)}") from error
    except httpx2.TransportError as error:
        raise RegistryError(f"the registry {url} does not answer: {_short(error)}") from error
    except (httpx2.HTTPError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RegistryError(f"the registry {url} answered rubbish when asked for {what}: {_short(error)}") from error


def _writer(schema_id: int, text: object) -> Writer:
    """The writer schema in parsing canonical form. Raises SchemaError where the text is no LSST alert's schema."""
    if not isinstance(text, str):
        raise SchemaError(f"schema {schema_id} is not Avro: {str(text)[:50]!r}")
    if len(text) > MAX_SCHEMA_CHARS:
        raise SchemaError(f"schema {schema_id} has {len(text)} characters (at most {MAX_SCHEMA_CHARS})")
    try:
        parsed = json.loads(text)
        if not isinstance(parsed, dict) or parsed.get("type") != "record":
            raise SchemaError(f"schema {schema_id} is no record's, so no alert's: {text[:50]!r}")
        canonical = to_parsing_canonical_form(fastavro.parse_schema(parsed))
    except (ValueError, KeyError, TypeError, RecursionError, SchemaParseException, UnknownType) as error:
        raise SchemaError(f"schema {schema_id} is not Avro: {_short(error)}") from error
    writer = Writer(str(schema_id), canonical, schema_id)
    schema_pair(writer.schema, surveys.find("lsst"))
    return writer


def _short(error: Exception) -> str:
    said = " ".join(str(error).split())
    return f"{type(error).__name__}: {said[:200]}"


def _whole(number: int | None) -> int:
    """Raises ValueError where a registry leaves an id away."""
    if number is None:
        raise ValueError("an answer without the schema's id")
    return number
