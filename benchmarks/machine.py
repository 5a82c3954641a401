"""What the machine does while something is measured: CPU time of processes, load, stolen time; from /proc (Linux)."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Process:
    """One line of /proc/PID/stat; cpu_s includes children that have ended and were waited for."""

    pid: int
    parent: int
    name: str
    cpu_s: float


@dataclass(frozen=True)
class Cpu:
    """CPU seconds used so far by a Spark job: its JVM, its Python workers, and the Python process that started it.

    jit: the part of jvm that its compiler threads took, which dwindles with the hours that a job runs.
    """

    jvm: float
    workers: float
    driver: float
    jit: float = 0.0

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(
            self.jvm - before.jvm, self.workers - before.workers, self.driver - before.driver, self.jit - before.jit
        )

    @property
    def total(self) -> float:
        """JVM, workers and driver, seconds."""
        return self.jvm + self.workers + self.driver


def processes() -> dict[int, Process]:
    """All processes that can be seen."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            head, _, tail = (folder / "stat").read_text().rpartition(")")
        except OSError:  # it has just ended
            continue
        fields = tail.split()
        times = sum(int(t) for t in fields[11:15])
        found[int(folder.name)] = Process(int(folder.name), int(fields[1]), head.partition("(")[2], times * _TICK_S)
    return found


def descendants(pid: int, among: dict[int, Process]) -> list[Process]:
    """The process and everything below it."""
    found = [among[pid]]
    for one in found:  # grows while it is walked
        found += [p for p in among.values() if p.parent == one.pid]
    return found


def cpu_of_this_job() -> Cpu:
    """CPU of this process and what it started, by kind."""
    seconds = {"jvm": 0.0, "workers": 0.0, "driver": 0.0, "jit": 0.0}
    for process in descendants(os.getpid(), processes()):
        kind = "driver" if process.pid == os.getpid() else "jvm" if process.name == "java" else "workers"
        seconds[kind] += process.cpu_s
        if kind == "jvm":
            seconds["jit"] += _compiler_threads(process.pid)
    return Cpu(**seconds)


def _compiler_threads(pid: int) -> float:
    """CPU seconds of a JVM's compiler threads."""
    found = 0.0
    for thread in Path(f"/proc/{pid}/task").glob("*/stat"):
        try:
            name, _, fields = thread.read_text().rpartition(")")
        except OSError:
            continue
        if "CompilerThre" in name:  # the kernel keeps 15 characters of a thread's name
            found += sum(int(t) for t in fields.split()[11:13]) * _TICK_S
    return found


def peak_memory(pid: int) -> int:
    """Largest resident set of a process so far, bytes; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:")), 0)


@dataclass(frozen=True)
class Moment:
    """Load average of the last minute, and CPU seconds of the whole machine so far: all, idle, stolen by its host."""

    load: float
    all_s: float
    idle_s: float
    steal_s: float


def moment() -> Moment:
    """The machine now."""
    fields = [int(f) * _TICK_S for f in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return Moment(os.getloadavg()[0], sum(fields), fields[3] + fields[4], fields[7])


def between(before: Moment, after: Moment) -> dict[str, float]:
    """How busy the machine was: load at both ends, and shares of all its CPU time that were used and stolen."""
    span = max(after.all_s - before.all_s, 1e-9)
    return {
        "load_before": round(before.load, 2),
        "load_after": round(after.load, 2),
        "busy": round(1 - (after.idle_s - before.idle_s) / span, 3),
        "steal": round((after.steal_s - before.steal_s) / span, 4),
    }


def describe() -> dict[str, object]:
    """Date, processor, cores and memory, versions of Python and kernel."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.now(UTC).isoformat(timespec="minutes"),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * _PAGE / 2**30, 1),
        "virtual": any("hypervisor" in line for line in lines if line.startswith("flags")),
        "python": platform.python_version(),
        "kernel": platform.release(),
    }
