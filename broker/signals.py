"""SIGINT and SIGTERM as something to be asked about, not an exception in the middle of a library's C code."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STOPS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def heard(hear: Callable[[int], object], *numbers: signal.Signals) -> Iterator[None]:
    """These signals (SIGINT and SIGTERM) call `hear` with their number and do nothing else; afterwards as before.

    Python delivers signals to its main thread alone: called from any other, nothing changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, lambda number, _: hear(number)) for number in numbers or STOPS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
