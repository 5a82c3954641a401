"""How a running job is, in a file that is replaced once a second: for probes of an orchestrator, and for people.

A file and no port: it needs no server thread, no address that is free and no login, and exec probes of Docker,
Kubernetes and systemd read it by `broker health`. Alive: the loop that watches the queries has turned lately. Ready:
all queries run, and the books of the last committed batch of each balance.
"""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

_log = logging.getLogger(__name__)

EVERY_S = 1.0
State = Literal["starting", "running", "draining", "stopped", "failed"]


@dataclass
class SourceHealth:
    """One source, or one night of it; `waiting` for a night's topic.

    batch, committed_at, lag (alerts that wait): of the last batch whose books were checked.
    """

    state: Literal["waiting", "starting", "running", "restarting", "done"] = "starting"
    restarts: int = 0
    batch: int | None = None
    committed_at: str | None = None
    lag: int | None = None
    balanced: bool = True
    cause: str | None = None  # of the last restart


@dataclass
class Health:
    """What the file says; without one, nothing is written. Leaving it writes the end: stopped, or failed and why."""

    file: Path | None
    state: State = "starting"
    why: str | None = None
    sources: dict[str, SourceHealth] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._written_at, self._was_told, self._was_ready = float("-inf"), False, False

    @property
    def is_ready(self) -> bool:
        """Whether all queries run (or are done) and the last books balance."""
        ok = (source.state in ("running", "waiting", "done") and source.balanced for source in self.sources.values())
        return self.state == "running" and all(ok)

    def tell(self, state: State | None = None) -> None:
        """Write the file if it is a second old, or says what is no longer so. A disk that is full stops no alert."""
        is_news = state not in (None, self.state)
        self.state = state or self.state
        is_news |= self.is_ready != self._was_ready
        if self.file is None or not (is_news or time.monotonic() - self._written_at >= EVERY_S):
            return
        self._written_at, self._was_ready = time.monotonic(), self.is_ready
        text = json.dumps({"health": 1, "time": _now(), "pid": os.getpid(), "ready": self.is_ready} | self._fields())
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            new = self.file.with_name(f".{self.file.name}.new")
            new.write_text(text + "\n", encoding="utf-8")
            new.replace(self.file)
            self._was_told = False
        except OSError as error:
            if not self._was_told:
                _log.warning("the health file %s can't be written: %s", self.file, error.strerror)
            self._was_told = True

    def _fields(self) -> dict[str, Any]:
        sources = {name: asdict(source) for name, source in self.sources.items()}
        return {"state": self.state, "why": self.why, "sources": sources}

    def __enter__(self) -> Self:
        self._written_at = float("-inf")
        self.tell()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.why = None if error is None else str(error)
        self.tell("stopped" if error is None else "failed")


def complaint(file: Path, within_s: float, wants_ready: bool = False) -> str | None:
    """Why the job of this health file is not alive (or not ready); None where it is."""
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        if found["health"] != 1:
            return f"{file}: version {found['health']!r}, this broker reads 1"
        age_s = (datetime.now(UTC) - datetime.fromisoformat(found["time"])).total_seconds()
        state, is_ready = str(found["state"]), bool(found["ready"])
        sources = {name: dict(source) for name, source in found["sources"].items()}
    except OSError as error:
        return f"{file}: {error.strerror}: the job has not started, or writes another file"
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{file}: not a health file: {error!r}"
    if state in ("stopped", "failed"):
        return f"the job has {state}" + (f": {found.get('why')}" if found.get("why") else "")
    if abs(age_s) > within_s:
        return f"the job ({state}) last wrote {file} {age_s:.0f} s ago; {within_s:g} s are allowed"
    if wants_ready and not is_ready:
        told = (f"{name} {s.get('state')}{'' if s.get('balanced') else ', books open'}" for name, s in sources.items())
        return f"the job is {state}, not ready: {', '.join(told) or 'no source yet'}"
    return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
