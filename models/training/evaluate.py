"""Figures of a model on the held-out objects, measured through `broker.model`: the code path that serves.

A packet is cut as the survey would send it: the newest point is the n-th detection, and the history reaches back
30 days (ZTF) or 12 months (LSST).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker import lightcurve, scores
from broker.lightcurve import LightCurves
from broker.model import Model
from models.training.dataset import CLASSES, LSST_WINDOW_D, SETS, TEST, UNLABELLED, ZTF_WINDOW_D, TrainingSet

CUTS = (1, 3, 10, 0)  # number of detections at the trigger; 0: all of them
DETECTION_BINS = (1, 2, 4, 10)  # least number of detections of each bin of thresholds
TARGET_ACCURACY = 0.9  # of the answered ones, on the calibration split
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Packets:
    """Labelled packets of one split: curves, label, set index, number of detections in the packet, row in the data."""

    curves: LightCurves
    label: NDArray[np.int8]
    origin: NDArray[np.int8]
    n_detections: NDArray[np.int64]
    row: NDArray[np.int64]


@dataclass(frozen=True)
class Figure:
    """One line of the card: a set at a number of detections, its score, 95 % interval and the level of chance.

    macro_f1 counts all classes of the model as possible answers; `within` only those that the set has. For a set of
    one class both are NaN and `recall` stands: chance is then how often the other sets are given that class.
    """

    name: str
    n_detections: int
    n_objects: int
    macro_f1: float
    low: float
    high: float
    within: float
    chance: float
    recall: float


def cut(data: TrainingSet, rows: NDArray[np.int64], k: int, windows_d: Floats) -> tuple[LightCurves, NDArray[np.int64]]:
    """Packets of these objects at their k-th detection (0: the last), and the rows that have so many."""
    curves = data.curves.take(rows)
    found = np.flatnonzero(curves.detected)
    first = np.searchsorted(found, curves.offsets)
    n_found = np.diff(first)
    enough = np.flatnonzero(n_found >= max(k, 1))
    at = (first[:-1] + (k if k else n_found) - 1)[enough]
    trigger = np.full(len(rows), np.nan)
    trigger[enough] = curves.mjd_tai[found[at]]
    return lightcurve.cut(curves, trigger, windows_d).take(enough), rows[enough]


def packets(data: TrainingSet, side: int, k: int, window_d: float | None = None) -> Packets:
    """All labelled packets of a split at k detections; window_d replaces each set's own window."""
    rows = np.flatnonzero((data.split == side) & (data.about.label != UNLABELLED))
    own = np.array([s.window_d for s in SETS])[data.about.origin[rows]]
    windows = own if window_d is None else np.full(len(rows), window_d)
    curves, rows = cut(data, rows, k, windows)
    n_detections = np.bincount(curves.rows[curves.detected], minlength=len(curves))
    return Packets(curves, data.about.label[rows], data.about.origin[rows], n_detections, rows)


def figures(model: Model, data: TrainingSet) -> Iterator[Figure]:
    """Every set of the test split at 1, 3, 10 and all detections."""
    for k in CUTS:
        test = packets(data, TEST, k)
        probability = model.predict(test.curves)
        answer = probability.argmax(1)
        for i, source in enumerate(SETS):
            rows = np.flatnonzero(test.origin == i)
            if len(rows):
                others = answer[test.origin != i]
                yield _figure(source.name, k, test.label[rows], probability[rows], others)


def _figure(
    name: str, k: int, label: NDArray[np.int8], probability: NDArray[np.float32], others: NDArray[np.intp]
) -> Figure:
    answer = probability.argmax(1)
    present = np.unique(label)
    if len(present) == 1:
        recall = float((answer == label).mean())
        chance = float((others == present[0]).mean()) if len(others) else np.nan
        return Figure(name, k, len(label), np.nan, np.nan, np.nan, np.nan, chance, recall)
    within = present[probability[:, present].argmax(1)]
    matrices = [scores.confusion(label, a, len(CLASSES)) for a in (answer, within)]
    of_all, of_own = (float(scores.macro_f1(m)) for m in matrices)
    low, high = scores.confusion_interval(matrices[0], scores.macro_f1)
    chance = scores.chance_macro_f1(label, answer, len(CLASSES))
    return Figure(name, k, len(label), of_all, low, high, of_own, chance, np.nan)


def temperature(model: Model, data: TrainingSet, side: int) -> float:
    """Divisor of the logits with the least log-loss on a split, all cuts, every set with the same weight.

    Works on log probabilities, which are the logits up to a constant per curve.
    """
    parts = [packets(data, side, k) for k in CUTS]
    logits = np.log(np.maximum(np.concatenate([model.predict(p.curves) for p in parts]), 1e-30)).astype(np.float64)
    label = np.concatenate([p.label for p in parts])
    origin = np.concatenate([p.origin for p in parts])
    weight = 1 / np.bincount(origin)[origin]
    grid = np.exp(np.linspace(-1, 1.2, 111))
    losses = []
    for t in grid:
        scaled = logits / t
        log_sum = np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1)
        losses.append(((log_sum - scaled[np.arange(len(label)), label]) * weight).sum())
    return float(grid[int(np.argmin(losses))])


@dataclass(frozen=True)
class Evidence:
    """Least winning probability of a verdict, and what it was worth on the test split."""

    survey: str
    min_detections: int
    probability: float
    n_calibration: int
    accuracy: float
    answered: float
    n_test: int


def evidence(model: Model, data: TrainingSet, calibration: int, test: int) -> Iterator[Evidence]:
    """Thresholds per survey and bin of detections: the least at which 90 % of the answered ones are right.

    ZTF's come from real objects only, cut to 30 days; LSST's from simulations and real objects cut to 12 months.
    Every set has the same weight. Where no threshold reaches 90 %, the one that answers a twentieth stands.
    """
    for survey, window in (("ztf", ZTF_WINDOW_D), ("lsst", LSST_WINDOW_D)):
        sides = [_answers(model, data, side, survey, window) for side in (calibration, test)]
        for low, high in zip(DETECTION_BINS, (*DETECTION_BINS[1:], np.inf), strict=True):
            cal, held = (s.within(low, high) for s in sides)
            limit = cal.limit()
            accuracy, answered = held.worth(limit)
            yield Evidence(survey, low, limit, len(cal.right), accuracy, answered, len(held.right))


@dataclass(frozen=True)
class _Answers:
    confidence: Floats
    right: NDArray[np.bool_]
    n_detections: NDArray[np.int64]
    weight: Floats

    def within(self, low: float, high: float) -> "_Answers":
        rows = (self.n_detections >= low) & (self.n_detections < high)
        return _Answers(self.confidence[rows], self.right[rows], self.n_detections[rows], self.weight[rows])

    def limit(self) -> float:
        order = np.argsort(-self.confidence)
        weight = np.cumsum(self.weight[order])
        accuracy = np.cumsum((self.weight * self.right)[order]) / weight
        share = weight / weight[-1]
        good = np.flatnonzero((accuracy >= TARGET_ACCURACY) & (share >= 0.05))
        last = good[-1] if len(good) else int(np.searchsorted(share, 0.05))
        return float(np.floor(self.confidence[order][min(last, len(order) - 1)] * 1000) / 1000)

    def worth(self, limit: float) -> tuple[float, float]:
        said = self.confidence >= limit
        total = (self.weight * said).sum()
        right = (self.weight * (said & self.right)).sum()
        return float(right / total) if total else np.nan, float(total / self.weight.sum())


def _answers(model: Model, data: TrainingSet, side: int, survey: str, window_d: float) -> _Answers:
    ztf_like = ["ztf_snia", "many_tde_ztf", "ztf_fink_labelled", "yse_dr1", "real_transients"]
    lsst_like = ["mallorn", "spcc", "elasticc_fink_tutorials", "yse_dr1", "real_transients", "sdss_rrl"]
    wanted = [i for i, s in enumerate(SETS) if s.name in (ztf_like if survey == "ztf" else lsst_like)]
    columns = []
    for k in (1, 2, 3, 5, 10, 0):
        p = packets(data, side, k, window_d)
        kept = np.flatnonzero(np.isin(p.origin, wanted))
        probability = model.predict(p.curves.take(kept)).astype(np.float64)
        right = probability.argmax(1) == p.label[kept]
        columns.append((probability.max(1), right, p.n_detections[kept], p.origin[kept]))
    confidence, right, n_detections, origin = (np.concatenate(c) for c in zip(*columns, strict=True))
    return _Answers(confidence, right, n_detections, 1 / np.bincount(origin)[origin])
