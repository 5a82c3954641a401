"""Packets for the baselines: what they train on, and what they answered on held-out objects."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker import lightcurve
from broker.lightcurve import LightCurves
from models.training import augment, dataset, evaluate
from models.training.dataset import CALIBRATION, CLASSES, SET_NAMES, SETS, TEST, TRAIN, TrainingSet

MAX_POINTS = 256  # longer packets are thinned, as the released models have it
PACKETS_PER_CALL = 2048
Floats = NDArray[np.float64]
Predict = Callable[[LightCurves], NDArray[np.float64]]  # packets -> probabilities


@dataclass(frozen=True)
class Training:
    """n packets of training objects: curves, label, weight (sums to 1)."""

    curves: LightCurves
    label: NDArray[np.int64]
    weight: Floats


@dataclass(frozen=True)
class Padded:
    """Curves as arrays (n, longest); mjd 0, flux 0, error 1 and keep False behind the end of each."""

    mjd: Floats
    flux: Floats
    flux_err: Floats
    band: NDArray[np.int64]
    detected: NDArray[np.bool_]
    keep: NDArray[np.bool_]


def training(data: TrainingSet, n_cuts: int, seed: int) -> Training:
    """Every labelled training object at its last detection, and at n_cuts log-uniform numbers of detections.

    Packets reach back as far as the set's survey has it; a share of the long ones is cut to 30 days, as the released
    models' batches are. Weights: the released models' share of each class in each set.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero((data.split == TRAIN) & (data.about.label >= 0))
    curves = data.curves.take(rows)
    found = np.flatnonzero(curves.detected)
    first = np.searchsorted(found, curves.offsets)
    n_found = np.diff(first)
    own = np.array([s.window_d for s in SETS])[data.about.origin[rows]]
    weight = augment.class_weights(data)[rows]
    parts, weights = [], []
    for i in range(n_cuts + 1):
        k = np.floor(np.exp(rng.random(len(rows)) * np.log(n_found + 0.999))).astype(np.int64)
        k = n_found if i == 0 else np.clip(k, 1, n_found)
        short = rng.random(len(rows)) < augment.SHORT_WINDOW
        window = np.where(short, dataset.ZTF_WINDOW_D, own)
        newest = curves.mjd_tai[found[first[:-1] + k - 1]]
        parts.append(lightcurve.thin(lightcurve.cut(curves, newest, window), MAX_POINTS))
        last = augment.LAST_DETECTION
        weights.append(weight * (last if i == 0 else (1 - last) / n_cuts))
    label = np.tile(data.about.label[rows].astype(np.int64), n_cuts + 1)
    return Training(LightCurves.concatenate(parts), label, np.concatenate(weights))


def padded(curves: LightCurves) -> Padded:
    """The curves as rectangular arrays."""
    column = np.arange(max(int(curves.counts.max(initial=1)), 1))
    keep = column < curves.counts[:, None]
    at = np.where(keep, curves.offsets[:-1, None] + column, 0)
    return Padded(
        np.where(keep, curves.mjd_tai[at], 0.0),
        np.where(keep, curves.flux[at].astype(np.float64), 0.0),
        np.where(keep, curves.flux_err[at].astype(np.float64), 1.0),
        np.where(keep, curves.band[at], 0).astype(np.int64),
        curves.detected[at] & keep,
        keep,
    )


def chunks(curves: LightCurves, size: int = PACKETS_PER_CALL) -> Iterator[tuple[NDArray[np.int64], Padded]]:
    """Padded parts of similar length, with the row of each curve."""
    order = np.argsort(curves.counts, kind="stable")
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield rows, padded(curves.take(rows))


@dataclass(frozen=True)
class Answers:
    """What a baseline said of held-out packets: by number of detections, name of each object and probabilities."""

    classes: tuple[str, ...]
    keys: dict[int, NDArray[np.str_]]
    probability: dict[int, NDArray[np.float32]]

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        columns: dict[str, NDArray[np.generic]] = {"classes": np.array(self.classes)}
        for k in self.keys:
            columns |= {f"key_{k}": self.keys[k], f"probability_{k}": self.probability[k]}
        np.savez_compressed(path, allow_pickle=False, **columns)

    @staticmethod
    def load(path: Path) -> "Answers":
        """Reads what `save` wrote."""
        with np.load(path) as stored:
            cuts = [int(name.removeprefix("key_")) for name in stored.files if name.startswith("key_")]
            return Answers(
                tuple(stored["classes"].tolist()),
                {k: stored[f"key_{k}"] for k in cuts},
                {k: stored[f"probability_{k}"] for k in cuts},
            )


def keys(data: TrainingSet, rows: NDArray[np.int64]) -> NDArray[np.str_]:
    """Set and name of each object, which stay the same when sets are added to the data."""
    names = zip(data.about.origin[rows].tolist(), data.about.name[rows].tolist(), strict=True)
    found, seen = [], dict[str, int]()
    for origin, name in names:
        key = f"{SET_NAMES[origin]}/{name}"
        seen[key] = seen.get(key, 0) + 1
        found.append(key if seen[key] == 1 else f"{key}#{seen[key]}")
    return np.array(found, np.str_)


def answer(predict: Predict, data: TrainingSet) -> Answers:
    """Answers on the test side at 1, 3, 10 and all detections, with one temperature from the calibration side."""

    def said(side: int, k: int) -> tuple[evaluate.Packets, Floats]:
        p = evaluate.packets(data, side, k)
        return p, np.log(np.maximum(predict(lightcurve.thin(p.curves, MAX_POINTS)), 1e-12))

    known = [said(CALIBRATION, k) for k in evaluate.CUTS]
    label, origin = (np.concatenate([getattr(p, name) for p, _ in known]) for name in ("label", "origin"))
    divisor = temperature(np.concatenate([logit for _, logit in known]), label, 1 / np.bincount(origin)[origin])
    print(f"temperature {divisor:.3f}", flush=True)
    names, probability = {}, {}
    for k in evaluate.CUTS:
        p, logit = said(TEST, k)
        names[k] = keys(data, p.row)
        probability[k] = softmax(logit / divisor).astype(np.float32)
    return Answers(CLASSES, names, probability)


def softmax(logit: Floats) -> Floats:
    """Probabilities (n, classes) of logits."""
    likely = np.exp(logit - logit.max(1, keepdims=True))
    return np.asarray(likely / likely.sum(1, keepdims=True))


def temperature(logit: Floats, label: NDArray[np.integer], weight: Floats) -> float:
    """Divisor of the logits with the least weighted log-loss."""
    grid = np.exp(np.linspace(-1, 1.2, 111))
    true = np.arange(len(label)), label
    losses = [-(weight * np.log(np.maximum(softmax(logit / t)[true], 1e-15))).sum() for t in grid]
    return float(grid[int(np.argmin(losses))])
