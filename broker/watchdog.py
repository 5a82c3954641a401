"""Runs commands one after the other and ends them with the process that started it, however that one ends.

Started as a script of its own: `python watchdog.py GRACE_S SCRATCH COMMANDS`. Its standard input is a pipe that its
parent never writes to: the end of that pipe, by closing it or by any death of the parent, means stop. (Linux's
PR_SET_PDEATHSIG would follow the thread that started the process, not the process, and exists nowhere else.)
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading


class Watchdog:
    """One command at a time, and a thread that waits for the end of standard input."""

    def __init__(self, grace_s: float) -> None:
        self.grace_s = grace_s
        self.stopped = threading.Event()
        self.running: subprocess.Popen[bytes] | None = None
        self.lock = threading.Lock()

    def run(self, command: list[str]) -> int:
        """Run a command to its end; its exit code, or 0 when it was stopped from outside."""
        with self.lock:
            if self.stopped.is_set():
                return 0
            self.running = subprocess.Popen(command, stdin=subprocess.DEVNULL)
        code = self.running.wait()
        return 0 if self.stopped.is_set() else code

    def stop_at_end_of_input(self) -> None:
        """Block until standard input ends, then end the running command: politely, then for good."""
        sys.stdin.buffer.read()
        with self.lock:
            self.stopped.set()
        if self.running is None:
            return
        self.running.terminate()
        try:
            self.running.wait(self.grace_s)
        except subprocess.TimeoutExpired:
            self.running.kill()


def main(grace_s: str, scratch: str, commands: str) -> int:
    """Run the commands (JSON: a list of lists) until one fails or the input ends, then remove the scratch folder."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which the JVM would inherit, and never stop
    watchdog = Watchdog(float(grace_s))
    threading.Thread(target=watchdog.stop_at_end_of_input, daemon=True).start()
    code = 0
    for command in json.loads(commands):
        code = watchdog.run(command)
        if code or watchdog.stopped.is_set():
            break
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)
    return code


if __name__ == "__main__":
    exit_code = main(*sys.argv[1:])
    sys.stdout.flush()
    os._exit(exit_code & 0xFF)  # at once: the thread may still sit in its read
