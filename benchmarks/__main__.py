"""All measurements, one after the other (`make bench`): about half an hour on two quiet cores.

Results go into benchmarks/results/, one JSON file each.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCRIPTS = ("throughput", "stages", "latency", "limits", "audit", "archive", "outlets", "nights")


def main() -> int:
    """Runs every script; 1 if one of them failed."""
    codes = []
    for name in SCRIPTS:
        print(f"== {name}", flush=True)
        order = [sys.executable, str(HERE / f"{name}.py"), "--json", str(HERE / "results" / f"{name}.json")]
        codes.append(subprocess.run(order, check=False).returncode)
    return int(any(codes))


if __name__ == "__main__":
    raise SystemExit(main())
