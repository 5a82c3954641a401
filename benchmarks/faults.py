"""Faults in mid-stream (`make faults`): what breaks the job, and whether every alert has exactly one record then.

A run streams a mix of alerts of all three surveys, three sources and six outlets in one job, 1 % of them damaged,
breaks something at random moments (by the seed), starts the job again whenever it has ended, as a supervisor would, and
waits until all is committed. What the job goes on from by itself is counted as `restarts`; where it must stop
(fault_kinds), it is started again once the cause is mended. Then the records of each alert are counted on every output
topic, and `broker audit` is asked. One result file a run, in benchmarks/results/faults; runs go on, by the next seed,
until each fault came as often as it is to. `--table` writes docs/reliability.md. Linux; full disks need root.
"""

from __future__ import annotations

import argparse
import json
import shutil
import signal
import sys
import tempfile
from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # last, so that `broker` stays the installed package

from confluent_kafka import KafkaException  # noqa: E402

from benchmarks import faults_table  # noqa: E402
from benchmarks.fault_kinds import KINDS, small_disk  # noqa: E402
from benchmarks.fault_run import Kind, Result, Run, kill  # noqa: E402
from broker.embedded import EmbeddedKafka, free_port  # noqa: E402
from broker.errors import BrokerError  # noqa: E402

PER_PHASE = 3
MOST_RUNS = 30  # of one kind, that something ends


def one(kind: Kind, seed: int, args: argparse.Namespace) -> Result:
    """A run with a Kafka of its own, whose data go afterwards; the job's log stays where a run fails."""
    per_run = args.hits if args.hits is not None and kind.per_run else kind.per_run
    day = bool(kind.visits_s)
    alerts, over_s = (args.day_alerts, args.day_s) if day else (args.alerts, args.over_s * kind.slower)
    away_s = min(args.away_s, 15.0) if day else args.away_s
    result = Result(kind.name, seed, alerts, over_s, kind.damaged, away_s, args.batch)
    scratch = Path(tempfile.mkdtemp(prefix=f"t2-faults-{kind.name}-{seed}-"))
    print(f"{kind.name}, seed {seed}: {alerts} alerts over {over_s:g} s; log: {scratch / 'job.log'}", flush=True)
    with ExitStack() as stack:
        if kind.disk:
            stack.enter_context(small_disk(scratch / kind.disk))
        else:
            stack.callback(shutil.rmtree, scratch / "kafka", ignore_errors=True)
        kafka = stack.enter_context(EmbeddedKafka(free_port(), scratch / "kafka", kind.kafka))
        run = Run(kind, kafka, scratch, result, per_run)
        stack.callback(lambda: kill(run.job.below()) if run.job is not None else None)
        run.go()
    if is_good(asdict(result)):
        shutil.rmtree(scratch, ignore_errors=True)
    return result


def is_done(kind: Kind, runs: list[dict[str, Any]]) -> bool:
    """Whether the fault came as often as it is to, in every phase that it is to hit."""
    mine = [run for run in runs if run["fault"] == kind.name]
    phases = Counter(phase for run in mine for hit in run["hits"] for phase in hit["phases"].values())
    enough = faults_table.times(kind, runs) >= kind.times
    return enough and (not kind.all_phases or all(phases[phase] >= PER_PHASE for phase in faults_table.PHASES))


def is_good(run: dict[str, Any]) -> bool:
    """Nothing lost, nothing twice, no end that was not foreseen."""
    wrong = ("lost", "duplicates", "outlet_lost", "outlet_duplicates", "audit")
    return not any(run[key] for key in wrong) and not run["odd_exits"]


def go(args: argparse.Namespace) -> int:
    """Round by round, one run of each kind that still lacks some; how many came to no result."""
    n_broken_off = 0
    for _ in range(MOST_RUNS):
        for name in args.faults:
            kind, found = KINDS[name], faults_table.read(args.results)
            if is_done(kind, found):
                continue
            seed = next(s for s in range(1, 1000) if not (args.results / f"{name}-{s}.json").exists())
            try:
                result = one(kind, args.seed or seed, args)
            except (RuntimeError, KafkaException, BrokerError) as error:
                print(f"FAILED: {error}", flush=True)
                faults_table.note(args.results, name, args.seed or seed, str(error))
                n_broken_off += 1
                continue
            row = asdict(result)
            (args.results / f"{name}-{result.seed}.json").write_text(json.dumps(row, indent=1) + "\n")
            print(f"  {'ok' if is_good(row) else 'WRONG'}: {faults_table.in_short(row)}", flush=True)
        if args.once or all(is_done(KINDS[name], faults_table.read(args.results)) for name in args.faults):
            break
    return n_broken_off


def main() -> int:
    """Runs what is missing; 1 if an alert was lost, a record repeated, the job ended unforeseen, or a run broke off."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--faults", nargs="*", default=list(KINDS), choices=list(KINDS))
    parser.add_argument("--once", action="store_true", help="one run of each, not as many as it takes")
    parser.add_argument("--seed", type=int, help="in place of the next one")
    parser.add_argument("--alerts", type=int, default=20_000)
    parser.add_argument("--over-s", type=float, default=60.0)
    parser.add_argument("--batch", type=int, default=500, help="max_alerts_per_batch of each source")
    parser.add_argument("--hits", type=int, help="faults a run, in place of each kind's own number")
    parser.add_argument("--away-s", type=float, default=60.0, help="how long Kafka stays away, and the job stopped")
    parser.add_argument("--day-alerts", type=int, default=300_000)
    parser.add_argument("--day-s", type=float, default=1440.0, help="a minute of this for each hour of the day")
    parser.add_argument("--results", type=Path, default=faults_table.RESULTS)
    parser.add_argument("--table", action="store_true", help="write the table into docs/reliability.md, run nothing")
    args = parser.parse_args()
    args.results.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that job, Kafka and disks go with it
    n_broken_off = 0 if args.table else go(args)
    found = faults_table.read(args.results)
    print(faults_table.table(found, faults_table.broken_off(args.results)))
    if args.results == faults_table.RESULTS:
        faults_table.write(found, faults_table.broken_off(args.results))
    unstopped = [run for run in found if run["fault"] == "damaged-60" and not run["limit_stops"]]
    return int(bool(unstopped) or n_broken_off > 0 or not all(map(is_good, found)))


if __name__ == "__main__":
    raise SystemExit(main())
