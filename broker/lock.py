"""One job at a time on a checkpoint: a lock file that its driver and its JVM both hold, each for itself.

The driver's lock refuses a second job. The JVM's outlives a driver that is killed: under `local[N]` the JVM is what
writes to Kafka, so once its lock is free nothing of an earlier job can write any more.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from py4j.protocol import Py4JError

from broker.errors import BrokerError, UsageError

_log = logging.getLogger(__name__)

FILE = "lock"
JVM_ENDS_S = 30.0
_DRIVER, _JVM = 0, 1  # bytes of the file; POSIX record locks, since Java's are those too


class Lock:
    """The lock of one checkpoint folder, which it makes. Raises UsageError where another driver has it."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._in_jvm: Any = None  # its Java object: without a reference Java would close the file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"checkpoint {folder}: can't be written: {error.strerror}; correct 'checkpoint'"
            ) from error
        if not self._try(_DRIVER):
            owner = self._owner()
            os.close(self._file)
            raise UsageError(
                f"checkpoint {folder}: another job runs on it ({owner}): stop that one, or give this source a "
                "checkpoint of its own"
            )

    def wait_for_jvm(self, timeout_s: float = JVM_ENDS_S) -> None:
        """Return once the JVM of an earlier driver is gone. Raises BrokerError if it isn't within `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        while not self._try(_JVM):
            if time.monotonic() > deadline:
                raise BrokerError(
                    f"checkpoint {self._path.parent}: the driver of an earlier job is gone, but its JVM still runs "
                    f"after {timeout_s:g} s and may write ({self._owner()}): end that process, then start again"
                )
            time.sleep(0.1)
        fcntl.lockf(self._file, fcntl.LOCK_UN, 1, _JVM)

    def hold_in_jvm(self, jvm: Any) -> None:
        """Have the JVM (py4j's view of it) hold its part until `release_in_jvm` or its own end."""
        file = jvm.java.io.RandomAccessFile(str(self._path.absolute()), "rw")
        if file.getChannel().tryLock(_JVM, 1, False) is None:
            raise BrokerError(f"checkpoint {self._path.parent}: the JVM of another job holds it")
        self._in_jvm = file
        about = {
            "driver": os.getpid(),
            "jvm": jvm.java.lang.ProcessHandle.current().pid(),
            "host": socket.gethostname(),
        }
        os.ftruncate(self._file, 0)
        os.pwrite(self._file, json.dumps(about).encode(), 0)

    def release_in_jvm(self) -> None:
        """To be called after Spark has stopped: the JVM may live on, and serve a later job of this process."""
        if self._in_jvm is not None:
            with suppress(Py4JError, OSError):  # a JVM that has died holds nothing
                self._in_jvm.close()
            self._in_jvm = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._file)  # a POSIX lock goes with any descriptor of its file

    def _try(self, byte: int) -> bool:
        try:
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except (BlockingIOError, PermissionError):
            return False
        except OSError as error:
            _log.warning("checkpoint %s: this file system has no locks (%s)", self._path.parent, error.strerror)
        return True

    def _owner(self) -> str:
        try:
            about = json.loads(os.pread(self._file, 4096, 0))
            return f"driver {about['driver']}, JVM {about['jvm']}, on {about['host']}"
        except (OSError, ValueError, KeyError, TypeError):
            return f"{self._path} does not name it"
