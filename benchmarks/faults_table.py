"""The table of docs/reliability.md, from the result files of benchmarks/faults.py."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import fault_memory
from benchmarks.fault_kinds import KINDS
from benchmarks.fault_run import Kind

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: python benchmarks/faults.py --table -->", "<!-- end -->"
BROKEN_OFF = "broken-off.jsonl"
PHASES = ("plan", "decode", "write", "commit")
SUMS = ("alerts", "lost", "duplicates", "outlet_records", "outlet_lost", "outlet_duplicates", "already_written")


def read(folder: Path) -> list[dict[str, Any]]:
    """All runs, in the order of the table."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(runs, key=lambda run: (list(KINDS).index(run["fault"]), run["seed"]))


def note(folder: Path, fault: str, seed: int, why: str) -> None:
    """Keep that a run came to no result: the job did not do what it must, or the run itself failed."""
    with (folder / BROKEN_OFF).open("a") as file:
        file.write(json.dumps({"fault": fault, "seed": seed, "why": why[:500]}) + "\n")


def broken_off(folder: Path) -> list[dict[str, Any]]:
    """The runs that came to no result."""
    path = folder / BROKEN_OFF
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def in_short(run: Mapping[str, Any]) -> str:
    """One line of a run."""
    told = ", ".join(f"{key.replace('_', ' ')} {run[key]}" for key in (*SUMS, "audit", "restarts", "wall_s"))
    return f"{told}, exits {run['exit_codes']} {run['odd_exits'] or ''} {run['summary'] if run['audit'] else ''}"


def table(runs: Sequence[dict[str, Any]], broken: Sequence[dict[str, Any]] = ()) -> str:
    """Two tables in Markdown: what came of each fault, and the phases that the kills hit."""
    lines = [
        "| fault | runs | times | alerts | lost | duplicates | on outlets | lost | duplicates | left out as already "
        "written | audits balanced | restarts by itself | recovery s, median | max |",
        "|---|---|---|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS.values():
        mine = [run for run in runs if run["fault"] == kind.name]
        if not mine:
            continue
        hits = [hit for run in mine for hit in run["hits"]]
        waits = [hit["recovery_s"] for hit in hits if hit["recovery_s"] is not None]
        away = sorted({f"{run['away_s']:g}" for run in mine})
        cells = [kind.about.format(away=", ".join(away)), len(mine), len(hits) if kind.per_run else ""]
        cells += [f"{sum(run[key] for run in mine):,}" for key in SUMS]
        cells += [sum(run["audit"] == 0 for run in mine), sum(run["restarts"] for run in mine)]
        cells += [f"{statistics.median(waits):.1f}", f"{max(waits):.1f}"] if waits else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"| phase that the batch of a source was in | {' | '.join(PHASES)} |", "|---|---|---|---|---|"]
    for kind in KINDS.values():
        mine = [run for run in runs if run["fault"] == kind.name]
        phases = Counter(p for run in mine for h in run["hits"] for p in h["phases"].values())
        if phases and kind.all_phases:
            lines.append(f"| {kind.about} | {' | '.join(str(phases[phase]) for phase in PHASES)} |")
    ends = Counter(run["fault"] for run in broken)
    told = f" Came to no result: {', '.join(f'{name} {n}' for name, n in ends.items())}." if ends else ""
    return "\n".join([*lines, "", _about(runs) + told, *_memory(runs)])


def _about(runs: Sequence[dict[str, Any]]) -> str:
    """How large the runs were, and how busy the machine."""
    sizes = sorted({(run["alerts"], run["over_s"], run["batch"]) for run in runs})
    told = [
        f"{alerts:,} alerts over {over_s:g} s, at most {batch} a batch and source" for alerts, over_s, batch in sizes
    ]
    loads = [run["load"]["load_after"] for run in runs]
    busy = f"; load average at their ends: median {statistics.median(loads):.1f}" if loads else ""
    starts, stops = (sum(run[key] for run in runs) for key in ("starts", "limit_stops"))
    limit = f" At 60 % damage the limit on rejections ended it (so often: {stops})." if stops else ""
    short = [f"{name} {n} of {kind.times}" for name, kind in KINDS.items() if (n := times(kind, runs)) < kind.times]
    missing = f" Less often than meant so far: {', '.join(short)}." if short else ""
    return f"Runs of {'; '.join(told)}. The job was started {starts} times{busy}.{limit}{missing}"


def times(kind: Kind, runs: Sequence[Mapping[str, Any]]) -> int:
    """How often a fault came; runs, where the alerts are the fault, or the day."""
    mine = [run for run in runs if run["fault"] == kind.name]
    return sum(len(run["hits"]) for run in mine) if kind.per_run and not kind.every_s else len(mine)


def _memory(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Growth and figure of the day."""
    lines = []
    for run in runs:
        if run["memory"]:
            grown = run["memory"]["mb_per_hour"]
            told = ", ".join(f"{part} {'unknown' if mb is None else f'{mb:+.0f}'}" for part, mb in grown.items())
            about, late = KINDS[run["fault"]].about, fault_memory.WARM_UP_S[run["fault"]] / 60
            lines += ["", f"Memory ({about}), growth in MB an hour after {late:g} minutes of each start: {told}."]
            lines += ["", "```text", fault_memory.figure(run["memory"]), "```"]
    return lines


def write(runs: Sequence[dict[str, Any]], broken: Sequence[dict[str, Any]]) -> None:
    """Put the table into its place on the page."""
    head, rest = PAGE.read_text().split(BEGIN)
    tail = rest.split(END, 1)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(runs, broken)}\n\n{END}{tail}")
