"""What a failed query is to do next: which faults pass by themselves, and how often it may start again.

Spark hands failures on as texts, with Java's and Python's stack traces in them, so texts are what is judged here.
Whether a topic is still there, or an alert still held, is not read from them but asked of Kafka (`broker.service`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Literal, NamedTuple

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 60.0

# What Spark says when our function, or its worker, failed: the alerts of that batch are under suspicion.
_RAISED = "PythonException"
_WORKER = (
    "Python worker exited unexpectedly",
    "Python worker failed to connect back",
    "reading the port number from",  # its parent, while it started
    "the query must start anew",  # a second try of its task (classify.run): the first one's worker has failed
)
# Faults that no restart mends, with what to do; the first that fits counts.
_LASTING = {
    "ModelError": "The model folder was changed while the job ran: put it back, or start again with the new one",
    "SchemaError": "An output schema doesn't fit: install the package again",
    "RecordTooLargeException": "Raise max.message.bytes of the output topics; a start takes the new limit up",
    "AuthorizationException": "Grant the login that right (docs/operating.md, Topics), then start again",
    "authorization failed": "Grant the login that right (docs/operating.md, Topics), then start again",
    "AuthenticationException": "Correct the login (the environment variables named in [kafka]), then start again",
    "Authentication fail": "Correct the login (the environment variables named in [kafka]), then start again",
    "InvalidTimestampException": "Set the clock of this machine, or Kafka's: they are an hour apart or more",
    "No space left on device": "Free space on this machine, then start again",
    "Multiple streaming queries are concurrently using": "Another job writes to the checkpoint: stop that one",
    "CONCURRENT_STREAM_LOG_UPDATE": "Another job writes to the checkpoint: stop that one",
}


class Fault(NamedTuple):
    """A failure. worker, raised: an alert may be to blame for its end, or for what our function raised.

    lasting: no restart mends it; passing: worth another try.
    """

    kind: Literal["worker", "raised", "lasting", "passing"]
    cause: str
    advice: str = ""


def judge(text: str) -> Fault:
    """What kind of failure a text of Spark or of a Kafka client tells of, by its telling line."""
    for sign, advice in _LASTING.items():
        if sign in text:
            return Fault("lasting", _cause(text, sign), advice)
    if any(sign in text for sign in _WORKER):
        return Fault("worker", _cause(text))
    return Fault("raised" if _RAISED in text else "passing", _cause(text))


class Budget:
    """So many restarts within any `window_s` seconds; the wait before each doubles, from 1 s to 60 s."""

    def __init__(self, restarts: int, window_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._restarts, self._window_s, self._clock = restarts, window_s, clock
        self._spent: deque[float] = deque()

    def spend(self) -> float | None:
        """Seconds to wait before the restart that this call counts; None where the budget is used up."""
        now = self._clock()
        while self._spent and now - self._spent[0] > self._window_s:
            self._spent.popleft()
        if len(self._spent) >= self._restarts:
            return None
        self._spent.append(now)
        return min(FIRST_WAIT_S * 2.0 ** (len(self._spent) - 1), LONGEST_WAIT_S)

    def __str__(self) -> str:
        return f"{len(self._spent)} of {self._restarts} within {self._window_s:g} s"


class Seldom:
    """Whether something may be told: once in `every_s` seconds for each key."""

    def __init__(self, every_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._every_s, self._clock = every_s, clock
        self._told: dict[object, float] = {}

    def __call__(self, key: object) -> bool:
        now = self._clock()
        if now - self._told.get(key, float("-inf")) < self._every_s:
            return False
        self._told[key] = now
        return True


def _cause(text: str, sign: str = "") -> str:
    """The telling line of Spark's long exception texts."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    causes = [line for line in lines if line.startswith("Caused by:") or "Error:" in line or "Exception:" in line]
    causes = [line for line in causes if sign in line] or [line for line in lines if sign and sign in line] or causes
    return (causes[-1] if causes else lines[0] if lines else "no reason given")[:400]
