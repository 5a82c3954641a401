"""New writer schemas while the job runs: asked for ahead of time, in a thread, never in the way of the known ones.

Alerts that came before their schema lie among the dead letters (schema_unavailable), and are put back by themselves
once it is known. Until they are, a note in a checkpoint says since when alerts wait, so that a job that ends before
that sees to them when it starts again.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime

from broker.config import Config, kafka_options
from broker.deadletter import Selection, read_letters
from broker.errors import BrokerError, SchemaError
from broker.registry import Writer, by_id, learn
from broker.registry_client import RegistryClient, RegistryError, cached
from broker.wire import schema_id_of

_log = logging.getLogger(__name__)

WAITING = "schema_unavailable"
NOTE = "waiting"
SHORTEST_WAIT_S = 2.0  # between two questions, however many alerts wait


class Learner:
    """What one registry has to tell.

    A registry that is away, empty, slow or talks rubbish costs one line in the log; the next question follows after
    2, 4, 8 ... seconds, at most refresh_s.
    """

    def __init__(self, config: Config) -> None:
        self._config, self._refresh_s = config, config.registry.refresh_s
        self._client = RegistryClient(config.registry)
        self._since_ms: int | None = None  # when the oldest batch with an alert that waits was planned
        self._note = next((s.checkpoint / NOTE for s in config.sources if s.survey == "lsst"), None)
        self._is_owed = False  # letters of an earlier run may wait for schemas that are known by now
        self._waiting: set[int] = set()  # ids of the letters, as of the last question
        self._answered: set[int] = set()  # ids whose letters were put back
        self._news = threading.Event()  # alerts have come to wait since then
        self._answer: Future[tuple[list[Writer], list[Writer]]] | None = None
        self._due = 0.0
        self._failures = 0

    def begin(self) -> None:
        """Know the cache, and ask once; a registry that does not answer is no reason not to start."""
        learn(cached(self._config.registry))
        try:
            self._take_in(self._ask()[0])
        except RegistryError as error:
            self._failed(error)
        self._since_ms = self._noted()
        if self._since_ms is not None:
            self._is_owed, self._due = True, 0.0

    def wait_for(self, since_ms: int) -> None:
        """Alerts of a batch planned at this time (ms since 1970) have no schema: ask soon."""
        self._news.set()
        if self._since_ms is None or since_ms < self._since_ms:
            self._since_ms = since_ms
            self._write_note(since_ms)
        if not self._failures:
            self._due = min(self._due, time.monotonic() + SHORTEST_WAIT_S)

    def look(self, pool: ThreadPoolExecutor) -> tuple[Writer, ...]:
        """Never waits. Writer schemas that alerts may wait for, new since the last look; asks when it is time."""
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            try:
                found, known = answer.result()
                fresh = self._take_in(found)
                self._is_owed = False
                return (*fresh, *known)
            except RegistryError as error:
                self._failed(error)
            except BrokerError as error:  # the dead letters can't be read now
                self._failed(RegistryError(str(error)))
        if self._answer is None and time.monotonic() >= self._due:
            self._answer = pool.submit(self._ask)
        return ()

    def _ask(self) -> tuple[list[Writer], list[Writer]]:
        """Writer schemas that nobody knew, and known ones that alerts of an earlier run wait for."""
        self._news.clear()
        self._waiting = self._ids() - self._answered
        known = {n: told[1] for n in self._waiting if (told := by_id(n)) is not None}
        found = self._client.ask_subjects()
        told_now = {writer.schema_id for writer in found}
        for schema_id in sorted(self._waiting - known.keys() - told_now):
            try:
                found.append(self._client.fetch(schema_id))
            except SchemaError as error:
                _log.warning("alerts wait for a schema that is none of ours: %s", error)
            except RegistryError as error:
                if not found:
                    raise
                _log.warning("%s", error)
        return found, list(known.values()) if self._is_owed else []

    def _ids(self) -> set[int]:
        """Ids that the alerts that wait came with."""
        if self._since_ms is None:
            return set()
        config = self._config
        selection = Selection(reason=WAITING, since=datetime.fromtimestamp(self._since_ms / 1000, UTC))
        letters = read_letters(kafka_options(config), config.output.dead_letters, selection)
        ids = {schema_id_of(letter.value or b"") for letter in letters}
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

    def put_back(self, fresh: Iterable[Writer], stopping: threading.Event) -> None:
        """Have the alerts that waited for these schemas answered, in their order, by `broker dead-letters replay`.

        In a process of its own: what kills its reader must not kill the job. One that is broken off can be done again.
        """
        for writer in fresh:
            if self._put_back(writer, stopping) and writer.schema_id is not None:
                self._answered.add(writer.schema_id)
        if self._waiting <= self._answered and not self._news.is_set():
            self._since_ms = None
            if self._note is not None:
                self._note.unlink(missing_ok=True)

    def _put_back(self, writer: Writer, stopping: threading.Event) -> bool:
        file = self._config.file
        command = [sys.executable, "-P", "-m", "broker", "dead-letters", "replay", "--config", str(file.absolute())]
        process = subprocess.Popen(
            [*command, "--reason", WAITING, "--schema", writer.label],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
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
            again = f"`broker dead-letters replay --config {file} --reason {WAITING}`"
            _log.warning("alerts that wait for schema %s were not put back: %s; %s does it", writer.label, said, again)
        return process.returncode == 0

    def _noted(self) -> int | None:
        """Since when alerts of an earlier run wait, ms since 1970."""
        try:
            return None if self._note is None else int(self._note.read_text())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            told = (self._note, error, WAITING)
            _log.warning("%s: can't be used: %s; see `broker dead-letters list --reason %s`", *told)
            return None

    def _write_note(self, since_ms: int) -> None:
        if self._note is not None:
            try:
                new = self._note.with_suffix(".new")
                new.write_text(str(since_ms))
                new.replace(self._note)
            except OSError as error:
                _log.warning("%s: can't be written: %s", self._note, error)


def _names(writers: Iterable[Writer]) -> str:
    return ", ".join(writer.label for writer in writers)
