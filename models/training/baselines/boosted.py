"""Boosted trees (LightGBM) on hand-made features, the yardstick that light-curve networks often fail to beat.

    python -m models.training.baselines.boosted --data ../shared/datasets --out build/boosted

Trains on packets of the training side cut at several numbers of detections; the number of trees is the one with the
least loss on the calibration side. Writes model.txt and answers.npz, the probabilities of the held-out packets.

    python -m models.training.baselines.boosted --data ../shared/datasets --without ztf_snia

does without a set of one class, and prints how many of its held-out objects the trees find then, and how often they
give its class to objects of other sets.
"""

import argparse
import time
from pathlib import Path

import lightgbm
import numpy as np
from numpy.typing import NDArray

from broker import lightcurve
from broker.lightcurve import LightCurves
from models.training import dataset, evaluate
from models.training.baselines import features, packets
from models.training.dataset import CALIBRATION, CLASSES, SETS, TEST, TrainingSet

SEED = 0
N_CUTS = 4  # packets of each object besides its last one: 96,000 packets, trained in minutes
MOST_TREES = 800  # per class
PATIENCE = 40  # trees without a smaller loss on the calibration side
SETTINGS = {
    "objective": "multiclass",
    "num_class": len(CLASSES),
    "metric": "multi_logloss",
    "learning_rate": 0.06,
    "num_leaves": 24,  # small trees and half of the features each: rare classes have a few hundred objects
    "min_data_in_leaf": 20,
    "bagging_fraction": 0.7,
    "bagging_freq": 1,
    "feature_fraction": 0.5,
    "lambda_l2": 3.0,
    "seed": SEED,
    "deterministic": True,
    "force_row_wise": True,
    "verbose": -1,
}


def train(data: TrainingSet, most_trees: int = MOST_TREES, n_cuts: int = N_CUTS) -> lightgbm.Booster:
    """The trees."""
    started = time.monotonic()
    packed = packets.training(data, n_cuts, SEED)
    table = features.of_curves(packed.curves)
    weight = packed.weight * len(packed.label) / packed.weight.sum()
    learn = lightgbm.Dataset(table, packed.label, weight=weight)
    print(f"{table.shape[0]} packets, {table.shape[1]} features, {time.monotonic() - started:.0f} s", flush=True)
    known, label, known_weight = _calibration(data)
    check = lightgbm.Dataset(known, label, reference=learn, weight=known_weight)
    model = lightgbm.train(
        SETTINGS, learn, most_trees, [check], ["calibration"],
        callbacks=[lightgbm.early_stopping(PATIENCE, verbose=False), lightgbm.log_evaluation(50)],
    )  # fmt: skip
    loss = model.best_score["calibration"]["multi_logloss"]
    seconds = time.monotonic() - started
    print(f"{model.best_iteration} trees per class, loss {loss:.4f} on calibration, {seconds:.0f} s", flush=True)
    return model


def _calibration(data: TrainingSet) -> tuple[NDArray[np.float32], NDArray[np.int8], NDArray[np.float64]]:
    """Features, labels and weights of the calibration packets; each set weighs what it weighs in training.

    With the same weight for all, the smallest sets end the training at 144 trees instead of 270.
    """
    parts = [evaluate.packets(data, CALIBRATION, k) for k in evaluate.CUTS]
    curves = lightcurve.thin(LightCurves.concatenate([p.curves for p in parts]), packets.MAX_POINTS)
    label, origin = (np.concatenate([getattr(p, name) for p in parts]) for name in ("label", "origin"))
    weight = np.array([s.weight for s in SETS])[origin] / np.bincount(origin)[origin]
    return features.of_curves(curves), label, weight


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--out", type=Path, help="folder to write model.txt and answers.npz to")
    what.add_argument("--without", choices=dataset.ONE_CLASS, help="set of one class to leave out, then to ask about")
    arguments = parser.parse_args()
    data = dataset.load(arguments.data)
    if arguments.without:
        print("\n".join(left_out(data, arguments.without)))
        return
    arguments.out.mkdir(parents=True, exist_ok=True)
    model = train(data)
    model.save_model(arguments.out / "model.txt")
    print(f"{(arguments.out / 'model.txt').stat().st_size:,} bytes", flush=True)

    def predict(curves: LightCurves) -> NDArray[np.float64]:
        return np.asarray(model.predict(features.of_curves(curves)), np.float64)

    packets.answer(predict, data).save(arguments.out / "answers.npz")


def left_out(data: TrainingSet, name: str, most_trees: int = MOST_TREES) -> list[str]:
    """Rows of Markdown: set, detections, objects, recall without the set, chance: that class given to other sets."""
    of_set = data.about.origin == dataset.SET_NAMES.index(name)
    model = train(dataset.withhold(data, of_set), most_trees)
    rows = []
    for k in evaluate.CUTS:
        held = evaluate.packets(data, TEST, k)
        said = np.asarray(model.predict(features.of_curves(lightcurve.thin(held.curves, packets.MAX_POINTS))))
        mine = of_set[held.row]
        (label,) = np.unique(held.label[mine])
        is_class = said.argmax(1) == label
        shown = f"{mine.sum()} | {is_class[mine].mean():.2f} | {is_class[~mine].mean():.2f}"
        rows.append(f"| {name} | {k or 'all'} | {shown} |")
    return rows


if __name__ == "__main__":
    main()
