"""Spark's daemon of Python workers, but silent where the JVM has hung up: `python -m broker.worker_daemon`.

A worker whose JVM ends, or takes a task back, tries to say so into a Unix domain socket that is closed: a traceback in
the log of each worker at each end of a job. (Over TCP that write goes nowhere without a word.)
"""

from __future__ import annotations

import socket

from pyspark import daemon

_worker = daemon.worker


def worker(sock: socket.socket, authenticated: bool) -> int:
    """Tasks until there are no more; the exit code, 1 where nobody listens any longer."""
    try:
        code: int = _worker(sock, authenticated)  # type: ignore[no-untyped-call]  # pyspark's daemon has no types
    except BrokenPipeError:
        return 1
    return code


if __name__ == "__main__":
    daemon.worker = worker
    daemon.manager()  # type: ignore[no-untyped-call]
