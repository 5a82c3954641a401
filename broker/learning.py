"""New writer schemas while the job runs: asked for ahead of time, in a thread, never in the way of the known ones."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor

from broker.errors import SchemaError
from broker.registry import Writer, by_id, learn
from broker.registry_client import RegistryClient, RegistryError

_log = logging.getLogger(__name__)

SHORTEST_WAIT_S = 2.0  # between two questions, however many alerts wait


class Learner:
    """What one registry has to tell.

    A registry that is away, empty, slow or talks rubbish costs one line in the log; the next question follows after
    2, 4, 8 ... seconds, at most refresh_s.
    """

    def __init__(self, client: RegistryClient, refresh_s: float) -> None:
        self._client, self._refresh_s = client, refresh_s
        self._missing: set[int] = set()  # ids that alerts came with and that nobody knows
        self._answer: Future[list[Writer]] | None = None
        self._due = 0.0
        self._failures = 0

    def begin(self) -> None:
        """Know the cache, and ask once; a registry that does not answer is no reason not to start."""
        learn(self._client.cached())
        try:
            self._take_in(self._ask())
        except RegistryError as error:
            self._failed(error)

    def miss(self, ids: Iterable[int]) -> None:
        """Ask soon for these too: alerts wait for them."""
        new = {schema_id for schema_id in ids if by_id(schema_id) is None} - self._missing
        if new:
            self._missing |= new
            self._due = min(self._due, time.monotonic())

    def look(self, pool: ThreadPoolExecutor) -> tuple[Writer, ...]:
        """Never waits. Writer schemas that are new since the last look; asks again when it is time."""
        if self._answer is not None and self._answer.done():
            answer, self._answer = self._answer, None
            try:
                return self._take_in(answer.result())
            except RegistryError as error:
                self._failed(error)
        if self._answer is None and time.monotonic() >= self._due:
            self._answer = pool.submit(self._ask)
        return ()

    def _ask(self) -> list[Writer]:
        found = self._client.ask_subjects()
        told = {writer.schema_id for writer in found}
        for schema_id in sorted(self._missing - told):
            try:
                found.append(self._client.fetch(schema_id))
            except SchemaError as error:
                _log.warning("alerts wait for a schema that is none of ours: %s", error)
        return found

    def _take_in(self, found: list[Writer]) -> tuple[Writer, ...]:
        if self._failures:
            _log.info("the registry %s answers again", self._client.url)
        self._failures = 0
        fresh = learn(found)
        self._missing = {schema_id for schema_id in self._missing if by_id(schema_id) is None}
        self._due = time.monotonic() + self._refresh_s
        if fresh:
            _log.info("learnt from the registry: schema %s", ", ".join(writer.label for writer in fresh))
        return fresh

    def _failed(self, error: RegistryError) -> None:
        self._failures += 1
        wait_s = min(self._refresh_s, SHORTEST_WAIT_S**self._failures)
        self._due = time.monotonic() + wait_s
        if self._failures == 1:
            _log.warning("%s; known schemas are not concerned; asked again in %g s, then less often", error, wait_s)
