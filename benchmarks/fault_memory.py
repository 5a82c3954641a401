"""Memory of driver, JVM and workers over a long run, and how it grows."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from benchmarks import machine

if TYPE_CHECKING:
    from benchmarks.fault_run import Run

PARTS = ("driver", "jvm", "workers")
EVERY_S = 5.0
# Of a process, before its growth counts. The JVM takes up to 6 minutes to touch the whole heap that it was given:
# longer than most starts of a day with faults.
WARM_UP_S = {"day": 120.0, "calm": 480.0}


@contextmanager
def around_day(run: Run) -> Iterator[None]:
    """Samples while the day lasts, and puts slopes and samples into its result."""
    samples: list[list[float]] = []
    left = threading.Event()

    def sample() -> None:
        began = time.monotonic()
        while not left.wait(EVERY_S):
            job = run.job
            if job is not None and job.process.poll() is None:
                sizes = resident(job.below(), job.process.pid)
                samples.append([round(time.monotonic() - began, 1), run.result.starts, *(sizes[p] for p in PARTS)])

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        left.set()
        thread.join()
        growth = slopes(samples, WARM_UP_S[run.kind.name])
        run.result.memory = {"parts": PARTS, "samples": samples, "mb_per_hour": growth}


def resident(processes: Sequence[machine.Process], driver: int) -> dict[str, float]:
    """Resident memory in MB: the driver, the JVM, all others together."""
    sizes: dict[str, float] = defaultdict(float)
    for process in processes:
        kind = "driver" if process.pid == driver else "jvm" if process.name == "java" else "workers"
        try:
            pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
        except OSError:  # it has just ended
            continue
        sizes[kind] += pages * 4096 / 1e6
    return {part: round(sizes[part], 1) for part in PARTS}


def slopes(samples: Sequence[Sequence[float]], warm_up_s: float) -> dict[str, float | None]:
    """Growth in MB an hour of each part: one slope, an intercept for each start of the job, after its warm-up."""
    lives: dict[float, list[Sequence[float]]] = defaultdict(list)
    for row in samples:
        lives[row[1]].append(row)
    found: dict[str, float | None] = {}
    for at, part in enumerate(PARTS, start=2):
        top = bottom = 0.0
        for life in lives.values():
            late = np.array([(row[0], row[at]) for row in life if row[0] - life[0][0] >= warm_up_s])
            if len(late) > 1:
                off = late - late.mean(axis=0)
                top, bottom = top + float((off[:, 0] * off[:, 1]).sum()), bottom + float((off[:, 0] ** 2).sum())
        found[part] = round(3600 * top / bottom, 1) if bottom else None
    return found


def figure(memory: Mapping[str, object], width: int = 72, height: int = 12) -> str:
    """Resident memory over time as text, one mark a part."""
    rows = np.array(memory["samples"], dtype=float)
    if not len(rows):
        return ""
    top, end = float(rows[:, 2:].max()), float(rows[-1, 0])
    grid = [[" "] * width for _ in range(height)]
    for at, part in enumerate(PARTS, start=2):
        for moment, size in rows[:, (0, at)]:
            y = height - 1 - min(int(size / top * (height - 1) + 0.5), height - 1)
            grid[y][min(int(moment / end * (width - 1)), width - 1)] = part[0]
    lines = [f"{top * (height - 1 - y) / (height - 1):6.0f} |{''.join(row).rstrip()}" for y, row in enumerate(grid)]
    return "\n".join([*lines, f"    MB +{'-' * width}", f"        0 s{f'{end:.0f} s':>{width - 3}}"])
