"""Where a replay was, so that it can go on there; and that one replay at a time sends to a topic, on this machine."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any, Self

from broker.errors import UsageError
from broker.java import cache_folder

WRITE_EVERY_S = 1.0


class Bookmark:
    """The note of one replay, by what is sent (`about`) and where to (`target`), held while it runs.

    Raises UsageError where another replay of this machine sends to the target.
    """

    def __init__(self, target: str, about: object, folder: Path | None = None) -> None:
        folder = folder or cache_folder() / "replays"
        folder.mkdir(parents=True, exist_ok=True)
        self._note = folder / f"{_digest([target, about])}.json"
        self._written = 0.0
        self._lock = os.open(folder / f"{_digest(target)}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.pread(self._lock, 20, 0).decode(errors="replace") or "unknown"
            os.close(self._lock)
            raise UsageError(
                f"another replay (process {owner}) sends to {target}: two would mix there; wait for it or stop it"
            ) from None
        os.ftruncate(self._lock, 0)
        os.pwrite(self._lock, str(os.getpid()).encode(), 0)

    def read(self) -> tuple[int, str] | None:
        """How many alerts were on the topic when it stopped, and the last one's place; None where nothing is left."""
        try:
            note: dict[str, Any] = json.loads(self._note.read_text())
            return int(note["n"]), str(note["last"])
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, n: int, last: str, at_once: bool = False) -> None:
        """Note it, once a second or at once."""
        now = time.monotonic()
        if at_once or now - self._written >= WRITE_EVERY_S:
            self._written = now
            new = self._note.with_suffix(".new")
            new.write_text(json.dumps({"n": n, "last": last}))
            new.replace(self._note)

    def remove(self) -> None:
        """The replay is done."""
        self._note.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)


def _digest(what: object) -> str:
    return hashlib.blake2b(json.dumps(what, default=str).encode(), digest_size=8).hexdigest()
