"""Time per light curve of released models beside the baselines, one thread, all in one run.

    python -m models.training.baselines.timing --data ../shared/datasets --baselines build --model t2b-1

The replica's network is timed alone in ONNX Runtime, from its finished grid on, and its grid apart; a released model
through `broker.model` and as a graph alone, both from raw points on; LightGBM with its features. Rounds alternate, so
that a busy machine is busy for all; the least time counts.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import lightgbm
import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from broker import model as models
from broker.lightcurve import LightCurves
from models.training import dataset
from models.training.baselines import features, grid, paper, replica

BATCH = 32
POINTS = (32, 64)
ROUNDS, CALLS = 40, 10  # a few calls in a row, as a stream makes them: after another system's call the caches are cold


def session(graph: onnx.ModelProto) -> ort.InferenceSession:
    """One thread, as released models run."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return ort.InferenceSession(graph.SerializeToString(), options, providers=["CPUExecutionProvider"])


def of_length(curves: LightCurves, n_points: int) -> LightCurves:
    """BATCH curves of exactly so many points: the newest of curves that have at least as many."""
    rows = np.flatnonzero(curves.counts >= n_points)[:BATCH]
    some = curves.take(rows)
    place = np.arange(len(some.mjd_tai)) - some.offsets[:-1][some.rows]
    return some.select(place >= (some.counts - n_points)[some.rows])


def least(calls: dict[str, Callable[[], object]], rounds: int = ROUNDS) -> dict[str, float]:
    """Least microseconds per light curve of each call, which is for BATCH of them."""
    found = dict.fromkeys(calls, np.inf)
    for _ in range(rounds):
        for name, call in calls.items():
            for _ in range(CALLS):
                started = time.perf_counter()
                call()
                found[name] = min(found[name], (time.perf_counter() - started) / BATCH * 1e6)
    return found


def _boosted(trees: lightgbm.Booster, curves: LightCurves) -> object:
    return trees.predict(features.of_curves(curves), num_threads=1)


def _feed(curves: LightCurves, n_points: int) -> dict[str, NDArray[np.generic]]:
    """What a released graph takes, of curves of exactly so many points."""
    columns = {name: getattr(curves, name) for name in ("flux", "flux_err", "detected")}
    columns |= {"mjd": curves.mjd_tai, "band": curves.band.astype(np.int32)}
    return {name: column.reshape(BATCH, n_points) for name, column in columns.items()}


def measure(names: list[str], baselines: Path, curves: LightCurves) -> dict[str, float]:
    """Microseconds per light curve by what was timed."""
    trees = lightgbm.Booster(model_file=baselines / "boosted" / "model.txt")
    params, by = paper.load(baselines / "paper" / "weights.npz")
    graph = replica.network(params)
    print(f"t2 replica in fp32: {len(graph.SerializeToString()):,} bytes", flush=True)
    running = session(graph)
    calls: dict[str, Callable[[], object]] = {}
    for n in POINTS:
        part = of_length(curves, n)
        assert len(part) == BATCH
        for name in names:
            released = models.load(models.find(name))
            calls[f"{released.card.name}, {n} points"] = partial(released.predict, part)
            alone = session(onnx.load(models.find(name) / models.MODEL_FILE))
            calls[f"graph of {released.card.name} alone, {n} points"] = partial(alone.run, None, _feed(part, n))
        calls[f"LightGBM with its features, {n} points"] = partial(_boosted, trees, part)
        calls[f"Gaussian process of the t2 replica, {n} points"] = partial(grid.grids, part)
    ready = paper.scaled(grid.grids(part), np.zeros(BATCH, np.bool_), by)
    calls["network of the t2 replica alone"] = partial(running.run, None, {"grid": ready})
    return least(calls)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--baselines", type=Path, required=True, help="folder of boosted/ and paper/")
    parser.add_argument("--model", action="append", required=True, help="released model or folder; may be repeated")
    arguments = parser.parse_args()
    curves = dataset.load(arguments.data, tuple(s for s in dataset.SETS if s.name == "spcc")).curves
    found = measure(arguments.model, arguments.baselines, curves)
    print(f"us per light curve, batch {BATCH}, least of {ROUNDS} rounds; load of the machine {os.getloadavg()[0]:.1f}")
    for name, microseconds in found.items():
        print(f"{microseconds:9.1f}  {name}")


if __name__ == "__main__":
    main()
