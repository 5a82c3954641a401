"""New writer schemas while the job runs: asked for ahead of time, in a thread, never in the way of the known ones.

Alerts that came before their schema lie among the dead letters (schema_unavailable), and are put back by themselves
once it is known.
"""

from __future__ import annotations

import hashlib
import json
import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from broker.config import Config, kafka_options
from broker.deadletter import Selection, read_letters
from broker.errors import BrokerError, SchemaError
from broker.registry import Writer, by_id, learn
from broker.registry_client import RegistryClient, RegistryError, cache_of, cached
from broker.wire import schema_id_of

_log = logging.getLogger(__name__)

WAITING = "schema_unavailable"
SHORTEST_WAIT_S = 2.0  # between two questions, however many alerts wait


def waiting_file(config: Config) -> Path:
    """Where a job keeps what its alerts wait for: beside the registry's schemas, which may serve several jobs."""
    topic = hashlib.sha256(config.output.dead_letters.encode()).hexdigest()[:12]
    return cache_of(config.registry) / f"waiting-{topic}.json"


class Waiting:
    """Ids of the schemas that alerts wait for: in a file, so that a job that starts again asks for them too."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self._ids: set[int] = set()
        self._tried: set[int] = set()  # whose alerts this job has put back, or could not, since the last came
        try:
            self._ids = {int(schema_id) for schema_id in json.loads(path.read_text())}
        except FileNotFoundError:
            pass
        except (OSError, ValueError, TypeError) as error:
            _log.warning("which schemas alerts wait for can't be read in %s: %s; %s", path, error, _by_hand("FILE"))

    def unknown(self) -> set[int]:
        """Those that nobody knows."""
        with self._lock:
            return {schema_id for schema_id in self._ids if by_id(schema_id) is None}

    def ready(self) -> tuple[Writer, ...]:
        """The others' schemas: their alerts can be put back. Each is given once, until more alerts come."""
        with self._lock:
            known = {i: told[1] for i in sorted(self._ids - self._tried) if (told := by_id(i)) is not None}
            self._tried |= known.keys()
            return tuple(known.values())

    def come(self, ids: set[int]) -> None:
        """Alerts have come with these ids."""
        with self._lock:
            self._tried -= ids
            self._keep(self._ids | ids)

    def done(self, schema_id: int | None) -> None:
        """The alerts of this id were answered."""
        with self._lock:
            if schema_id in self._tried:  # else more have come in the meantime
                self._keep(self._ids - {schema_id})

    def _keep(self, ids: set[int]) -> None:
        if ids == self._ids:
            return
        self._ids = ids
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(".part")
            part.write_text(json.dumps(sorted(ids)))
            part.replace(self._path)
        except OSError as error:
            _log.warning("which schemas alerts wait for can't be kept in %s: %s", self._path, error)


class News(NamedTuple):
    """fresh: writer schemas that nobody knew before. ready: known ones that alerts wait for."""

    fresh: tuple[Writer, ...] = ()
    ready: tuple[Writer, ...] = ()


class Learner:
    """What one registry has to tell.

    A registry that is away, empty, slow or talks rubbish costs one line in the log; the next question follows after
    2, 4, 8 ... seconds, at most refresh_s.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._refresh_s = config, config.registry.refresh_s
        self._client = RegistryClient(config.registry)
        self._waiting = Waiting(waiting_file(config))
        self._foreign: set[int] = set()  # ids whose schema is no LSST alert's
        # When the oldest batch with an alert that waits was planned, of those whose letters were not read; and of those
        # whose letters are being read
        self._unread_ms: int | None = None
        self._reading_ms: int | None = None
        self._answer: Future[list[Writer]] | None = None
        self._due = 0.0
        self._failures = 0

    def begin(self) -> None:
        """Know the cache, and ask once; a registry that does not answer is no reason not to start."""
        learn(cached(self._config.registry))
        try:
            self._take_in(self._ask(None))
        except RegistryError as error:
            self._failed(error)

    def wait_for(self, since_ms: int) -> None:
        """Alerts of a batch planned at this time (ms since 1970) have no schema: ask soon."""
        self._unread_ms = since_ms if self._unread_ms is None else min(self._unread_ms, since_ms)
        if not self._failures:
            self._due = min(self._due, time.monotonic() + SHORTEST_WAIT_S)

    def look(self, pool: ThreadPoolExecutor) -> News:
        """Never waits. What is new since the last look; asks again when it is time."""
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            try:
                return News(self._take_in(answer.result()), self._waiting.ready())
            except RegistryError as error:
                self._failed(error)
            except BrokerError as error:  # the dead letters can't be read now
                self._failed(RegistryError(str(error)))
                if self._reading_ms is not None:
                    self.wait_for(self._reading_ms)
        if self._answer is None and time.monotonic() >= self._due:
            self._reading_ms, self._unread_ms = self._unread_ms, None
            self._answer = pool.submit(self._ask, self._reading_ms)
        return News(ready=self._waiting.ready())

    def put_back(self, ready: Iterable[Writer], stopping: threading.Event) -> None:
        """Have the alerts that waited for these schemas answered, in their order, by `broker dead-letters replay`.

        In a process of its own: what kills its reader must not kill the job. One that is broken off is done again by
        the next start.
        """
        for writer in ready:
            if _put_back(self._config, writer, stopping):
                self._waiting.done(writer.schema_id)

    def _ask(self, unread_ms: int | None) -> list[Writer]:
        """Writer schemas that nobody knew. unread_ms: see what ids alerts have come with since then."""
        if unread_ms is not None:
            self._waiting.come(self._ids_of_letters(unread_ms))
        found: list[Writer] = []
        failures: list[RegistryError] = []
        try:
            for writer in self._client.ask_subjects():
                found.append(writer)
        except RegistryError as error:
            failures.append(error)
        told = {writer.schema_id for writer in found}
        for schema_id in sorted(self._waiting.unknown() - told):
            try:
                found.append(self._client.fetch(schema_id))
            except SchemaError as error:  # which may be a registry's bad moment, so it is asked for again
                if schema_id not in self._foreign:
                    _log.warning("alerts wait for a schema that is none of ours: %s", error)
                self._foreign.add(schema_id)
            except RegistryError as error:
                failures.append(error)
        if failures and not found:
            raise failures[0]
        for failure in failures:
            _log.warning("%s", failure)
        return found

    def _ids_of_letters(self, since_ms: int) -> set[int]:
        """Ids that the alerts came with."""
        config = self._config
        selection = Selection(reason=WAITING, since=datetime.fromtimestamp(since_ms / 1000, UTC))
        letters = read_letters(kafka_options(config), config.output.dead_letters, selection)
        ids = (schema_id_of(letter.value or b"") for letter in letters)
        return {schema_id for schema_id in ids if schema_id is not None}

    def _take_in(self, found: list[Writer]) -> tuple[Writer, ...]:
        if self._failures:
            _log.info("the registry %s answers again", self._client.url)
        self._failures = 0
        fresh = learn(found)
        self._due = time.monotonic() + self._refresh_s
        if fresh:
            _log.info("learnt from the registry: schema %s", _names(fresh))
        return fresh

    def _failed(self, error: RegistryError) -> None:
        self._failures += 1
        wait_s = min(self._refresh_s, SHORTEST_WAIT_S**self._failures)
        self._due = time.monotonic() + wait_s
        if self._failures == 1:
            _log.warning("%s; known schemas are not concerned; asked again in %g s, then less often", error, wait_s)


def _put_back(config: Config, writer: Writer, stopping: threading.Event) -> bool:
    """Whether all that waited for one schema was answered."""
    command = [sys.executable, "-P", "-m", "broker", "dead-letters", "replay", "--config", str(config.file.absolute())]
    try:
        process = subprocess.Popen(
            [*command, "--reason", WAITING, "--schema", writer.label],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    except OSError as error:
        _not_put_back(config, writer, str(error))
        return False
    while process.poll() is None:
        try:
            process.wait(0.2)
        except subprocess.TimeoutExpired:
            if stopping.is_set():
                process.terminate()
    said = " ".join((process.stdout.read() if process.stdout else "").split())
    if process.returncode == 0:
        _log.info("alerts that waited for schema %s: %s", writer.label, said)
    elif not stopping.is_set():
        _not_put_back(config, writer, said)
    return process.returncode == 0


def _not_put_back(config: Config, writer: Writer, reason: str) -> None:
    what = f"alerts that wait for schema {writer.label} were not put back"
    _log.warning("%s: %s; %s", what, reason, _by_hand(str(config.file)))


def _by_hand(file: str) -> str:
    return f"`broker dead-letters replay --config {file} --reason {WAITING}` does it"


def _names(writers: Iterable[Writer]) -> str:
    return ", ".join(writer.label for writer in writers)
