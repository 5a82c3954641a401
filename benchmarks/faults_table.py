"""The table of docs/reliability.md, from the result files of benchmarks/faults.py."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "faults"
PAGE = ROOT / "docs" / "reliability.md"
BEGIN, END = "<!-- begin: python benchmarks/faults.py --table -->", "<!-- end -->"
PHASES = ("plan", "decode", "write", "commit")
NAMES = {
    "job": "SIGKILL of the whole job (driver, JVM, workers)",
    "driver": "SIGKILL of the driver alone",
    "workers": "SIGKILL of all Python workers",
    "kafka": "Kafka killed, {away} s away, started again",
    "damaged-1": "1 % of the alerts damaged",
    "damaged-60": "60 % of the alerts damaged",
}


def read(folder: Path) -> list[dict[str, Any]]:
    """All runs, in the order of the table."""
    runs = [json.loads(path.read_text()) for path in folder.glob("*.json")]
    return sorted(runs, key=lambda run: (list(NAMES).index(run["fault"]), run["seed"]))


def table(runs: Sequence[dict[str, Any]]) -> str:
    """Two tables in Markdown: what came of each fault, and the phases that the kills hit."""
    lines = [
        "| fault | runs | times | alerts | lost | duplicates | left out as already written | dead letters | audits "
        "balanced | recovery s, median | max |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for fault, name in NAMES.items():
        mine = [run for run in runs if run["fault"] == fault]
        if not mine:
            continue
        hits = [hit for run in mine for hit in run["hits"]]
        times = [hit["recovery_s"] for hit in hits if hit["recovery_s"] is not None]
        sums = [sum(run[key] for run in mine) for key in ("alerts", "lost", "duplicates", "already_written")]
        away = sorted({f"{run['away_s']:g}" for run in mine})
        cells = [name.format(away=", ".join(away)), len(mine), len(hits), *(f"{n:,}" for n in sums)]
        cells += [f"{sum(run['dead_letters'] for run in mine):,}", sum(run["audit"] == 0 for run in mine)]
        cells += [f"{statistics.median(times):.1f}", f"{max(times):.1f}"] if times else ["", ""]
        lines.append(f"| {' | '.join(map(str, cells))} |")
    lines += ["", f"| phase that the batch of a source was in | {' | '.join(PHASES)} |", "|---|---|---|---|---|"]
    for fault in ("job", "driver"):
        phases = Counter(p for run in runs if run["fault"] == fault for h in run["hits"] for p in h["phases"].values())
        lines.append(f"| {NAMES[fault]} | {' | '.join(str(phases[phase]) for phase in PHASES)} |")
    return "\n".join([*lines, "", _about(runs)])


def _about(runs: Sequence[dict[str, Any]]) -> str:
    """How large the runs were, and how busy the machine."""
    sizes = sorted({(run["alerts"], run["over_s"], run["batch"]) for run in runs})
    told = [
        f"{alerts:,} alerts over {over_s:g} s, at most {batch} a batch and source" for alerts, over_s, batch in sizes
    ]
    loads = [run["load"]["load_after"] for run in runs]
    busy = f"; load average at their ends: median {statistics.median(loads):.1f}" if loads else ""
    starts = sum(run["starts"] for run in runs)
    stops = sum(run.get("limit_stops", 0) for run in runs)
    limit = f" At 60 % damage the limit on rejections ended it (so often: {stops})." if stops else ""
    return f"Runs of {'; '.join(told)}. The job was started {starts} times{busy}.{limit}"


def write(runs: Sequence[dict[str, Any]]) -> None:
    """Put the table into its place on the page."""
    head, rest = PAGE.read_text().split(BEGIN)
    tail = rest.split(END, 1)[1]
    PAGE.write_text(f"{head}{BEGIN}\n\n{table(runs)}\n\n{END}{tail}")
