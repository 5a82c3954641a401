"""Figures of a model on the held-out objects, measured through `broker.model`: the code path that serves.

A packet is cut as the survey would send it: the newest point is the n-th detection, and the history reaches back
30 days (ZTF) or 12 months (LSST).
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from broker import lightcurve, scores
from broker.lightcurve import BANDS, LightCurves
from broker.model import Model
from models.training.dataset import (
    CLASSES,
    LSST_WINDOW_D,
    OUTLIER,
    SETS,
    TEST,
    TRANSIENTS,
    ZTF_WINDOW_D,
    TrainingSet,
)  # fmt: skip

CUTS = (1, 3, 10, 0)  # number of detections at the trigger; 0: all of them
DETECTION_BINS = (1, 2, 4, 10)  # least number of detections of each bin of thresholds
FEW = 4  # from so many detections on, the bins share a threshold of all transients: each alone has too few variables
TARGET_ACCURACY = 0.9  # of the answered ones, on the calibration split
FALSE_TRANSIENTS = 0.02  # share of real variables, AGN and asteroids that may be called a transient
NIGHT = "ztf_fink_labelled"  # the set that holds what a night is made of
# Sets that weigh as much as one: alone, the 49 SNIbc of elasticc2_desc would move the thresholds of all others
FAMILY = np.unique(["elasticc" if s.name.startswith("elasticc") else s.name for s in SETS], return_inverse=True)[1]
ONE_BAND_STARS = "varstars"  # its bands are made up: it says nothing of ZTF's temperature
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Packets:
    """Packets of one split: curves, label (OUTLIER: none of ours), set index, number of detections, row in the data."""

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
    accuracy_within is the share of right answers among the set's own classes, ece the calibration error.
    """

    name: str
    n_detections: int
    n_objects: int
    macro_f1: float
    low: float
    high: float
    within: float
    accuracy_within: float
    ece: float
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


def packets(data: TrainingSet, side: int, k: int, window_d: float | None = None, *, outliers: bool = False) -> Packets:
    """Labelled packets of a split at k detections; window_d replaces each set's own window. Outliers if wanted."""
    rows = np.flatnonzero((data.split == side) & ((data.about.label >= 0) | (outliers & (data.about.label == OUTLIER))))
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
        nan = np.nan
        return Figure(name, k, len(label), nan, nan, nan, nan, nan, nan, chance, recall)
    within = present[probability[:, present].argmax(1)]
    matrices = [scores.confusion(label, a, len(CLASSES)) for a in (answer, within)]
    of_all, of_own = (float(scores.macro_f1(m)) for m in matrices)
    low, high = scores.confusion_interval(matrices[0], scores.macro_f1)
    chance = scores.chance_macro_f1(label, answer, len(CLASSES))
    right, error = float((within == label).mean()), scores.ece(label, probability)
    return Figure(name, k, len(label), of_all, low, high, of_own, right, error, chance, np.nan)


def temperature(model: Model, data: TrainingSet, side: int) -> dict[str, float]:
    """Divisor of the logits per survey with the least log-loss on a split: all cuts, every family of sets with the
    same weight.

    The survey is told from the bands, as the graph tells it. Works on log probabilities, which are the logits up to a
    constant per curve.
    """
    parts = [packets(data, side, k) for k in CUTS]
    logits = np.log(np.maximum(np.concatenate([model.predict(p.curves) for p in parts]), 1e-30)).astype(np.float64)
    label, origin = (np.concatenate([getattr(p, name) for p in parts]) for name in ("label", "origin"))
    is_lsst = np.concatenate([has_other_bands(p.curves) for p in parts])
    measured = origin != [s.name for s in SETS].index(ONE_BAND_STARS)
    found = {}
    for survey, of_survey in (("ztf", ~is_lsst), ("lsst", is_lsst)):
        rows = np.flatnonzero(of_survey & measured)
        found[survey] = _divisor(logits[rows], label[rows], family_weights(origin[rows]))
    return found


def family_weights(origin: NDArray[np.int8]) -> Floats:
    """Weight of each object (n,), so that every family of sets has the same; origin: its set."""
    family = FAMILY[origin]
    return np.asarray(1 / np.bincount(family)[family])


def has_other_bands(curves: LightCurves) -> NDArray[np.bool_]:
    """Which curves (n,) have a point in a band that is not ZTF's."""
    is_other = np.array([not name.startswith("ztf") for name in BANDS])[curves.band]
    return np.bincount(curves.rows[is_other], minlength=len(curves)) > 0


def _divisor(logits: Floats, label: NDArray[np.int8], weight: Floats) -> float:
    grid = np.exp(np.linspace(-1, 1.2, 111))
    losses = []
    for t in grid:
        scaled = logits / t
        log_sum = np.log(np.exp(scaled - scaled.max(1, keepdims=True)).sum(1)) + scaled.max(1)
        losses.append(((log_sum - scaled[np.arange(len(label)), label]) * weight).sum())
    return float(grid[int(np.argmin(losses))])


@dataclass(frozen=True)
class Evidence:
    """Least probability of a verdict's class, least one of all transients together, and their worth on the test split.

    false_transients: share of the n_steady packets of variables, AGN and asteroids (of NIGHT) answered as a transient.
    """

    survey: str
    min_detections: int
    probability: float
    transient: float
    n_calibration: int
    accuracy: float
    answered: float
    n_test: int
    false_transients: float
    n_steady: int


def evidence(model: Model, data: TrainingSet, calibration: int, test: int) -> Iterator[Evidence]:
    """Thresholds per survey and bin of detections: the least at which 90 % of the answered ones are right.

    For ZTF also at most FALSE_TRANSIENTS of the calibration split's variables, AGN and asteroids become transients: a
    second threshold, of the probability of all transients together, sees to that. It leaves a supernova alone whose
    type is open, and stops an AGN that looks like a TDE by half.
    ZTF's come from real objects only, cut to 30 days; LSST's from simulations and real objects cut to 12 months.
    Every family of sets has the same weight; an answer for an outlier is never right. Where no threshold reaches
    90 %, the one that answers a twentieth stands.
    """
    for survey, window in (("ztf", ZTF_WINDOW_D), ("lsst", LSST_WINDOW_D)):
        cal, held = (_answers(model, data, side, survey, window).bins() for side in (calibration, test))
        confidence = [of_bin.right_enough() for of_bin in cal]
        false = [of_bin.false(least) for of_bin, least in zip(cal, confidence, strict=True)]
        together = [
            range(i, i + 1) if low < FEW else range(len(cal) - 2, len(cal)) for i, low in enumerate(DETECTION_BINS)
        ]
        for i, low in enumerate(DETECTION_BINS):
            n_steady = sum(int(cal[j].steady.sum()) for j in together[i])
            limits = confidence[i], _new_enough(np.concatenate([false[j] for j in together[i]]), n_steady)
            worth, called = held[i].worth(*limits), held[i].called(*limits)
            yield Evidence(survey, low, *limits, len(cal[i].right), *worth, len(held[i].right), *called)


def _new_enough(false: Floats, n_steady: int) -> float:
    """Least probability of all transients together that leaves at most FALSE_TRANSIENTS of the steady ones."""
    highest = np.sort(false)[::-1]
    allowed = int(FALSE_TRANSIENTS * n_steady)
    return float(np.ceil(highest[allowed] * 1000 + 0.5) / 1000) if len(highest) > allowed else 0.0


@dataclass(frozen=True)
class _Answers:
    """Columns (n,): steady, a variable, AGN or asteroid of NIGHT; new_light, the probability of all transients.

    new_light is infinite where the answer is no transient, and -1 where it is one without a positive detection.
    """

    confidence: Floats
    new_light: Floats
    right: NDArray[np.bool_]
    steady: NDArray[np.bool_]
    n_detections: NDArray[np.int64]
    origin: NDArray[np.int8]

    @property
    def weight(self) -> Floats:
        return family_weights(self.origin)

    def bins(self) -> list["_Answers"]:
        """By number of detections: DETECTION_BINS."""
        place = np.searchsorted(DETECTION_BINS, self.n_detections, side="right") - 1
        names = _Answers.__dataclass_fields__
        return [_Answers(*(getattr(self, name)[place == i] for name in names)) for i in range(len(DETECTION_BINS))]

    def right_enough(self) -> float:
        """Least top probability. As if there were no second threshold: fitted to what that leaves, it missed 90 %."""
        order = np.argsort(-self.confidence)
        weight = np.cumsum(self.weight[order])
        accuracy = np.cumsum((self.weight * self.right)[order]) / weight
        share = weight / weight[-1]
        good = np.flatnonzero((accuracy >= TARGET_ACCURACY) & (share >= 0.05))
        last = good[-1] if len(good) else int(np.searchsorted(share, 0.05))
        return float(np.floor(self.confidence[order][min(last, len(order) - 1)] * 1000) / 1000)

    def false(self, confidence: float) -> Floats:
        """Probability of all transients together, of the steady ones that would be called one."""
        could = self.steady & np.isfinite(self.new_light) & (self.new_light >= 0)
        return self.new_light[could & (self.confidence >= confidence)]

    def said(self, confidence: float, new_light: float) -> NDArray[np.bool_]:
        """Which get an answer."""
        return np.asarray((self.confidence >= confidence) & (self.new_light >= new_light))

    def worth(self, confidence: float, new_light: float) -> tuple[float, float]:
        said = self.said(confidence, new_light)
        total = (self.weight * said).sum()
        right = (self.weight * (said & self.right)).sum()
        return float(right / total) if total else np.nan, float(total / self.weight.sum())

    def called(self, confidence: float, new_light: float) -> tuple[float, int]:
        n = int(self.steady.sum())
        false = self.steady & np.isfinite(self.new_light) & self.said(confidence, new_light)
        return (float(false.sum() / n) if n else np.nan), n


def _answers(model: Model, data: TrainingSet, side: int, survey: str, window_d: float) -> _Answers:
    ztf_like = ["ztf_snia", "many_tde_ztf", NIGHT, "yse_dr1", "real_transients"]
    lsst_like = ["mallorn", "spcc", "elasticc_fink_tutorials", "elasticc_fink_extra", "elasticc2_desc"]
    lsst_like += ["yse_dr1", "real_transients", "sdss_rrl"]
    wanted = [i for i, s in enumerate(SETS) if s.name in (ztf_like if survey == "ztf" else lsst_like)]
    columns = []
    for k in (1, 2, 3, 5, 10, 0):
        p = packets(data, side, k, window_d, outliers=True)
        kept = np.flatnonzero(np.isin(p.origin, wanted))
        curves = p.curves.take(kept)
        probability = model.predict(curves).astype(np.float64)
        answer, label, origin = probability.argmax(1), p.label[kept], p.origin[kept]
        steady = ~np.isin(label, TRANSIENTS) & (origin == [s.name for s in SETS].index(NIGHT))
        brightened = lightcurve.summarise(curves).n_positive > 0
        new_light = np.where(brightened, probability[:, TRANSIENTS].sum(1), -1.0)
        new_light = np.where(np.isin(answer, TRANSIENTS), new_light, np.inf)
        columns.append((probability.max(1), new_light, answer == label, steady, p.n_detections[kept], origin))
    return _Answers(*(np.concatenate(c) for c in zip(*columns, strict=True)))


@dataclass(frozen=True)
class Compression:
    """int8 against float32 weights on all test packets: same answer, macro-F1 of each, largest change of a score."""

    int8_bytes: int
    float32_bytes: int
    agreement: float
    int8_macro_f1: float
    float32_macro_f1: float
    largest_change: float
    n_packets: int


def compression(int8: Model, float32: Model, data: TrainingSet, sizes: tuple[int, int]) -> Compression:
    """What the int8 weights cost; sizes in bytes of both files."""
    parts = [packets(data, TEST, k) for k in CUTS]
    label = np.concatenate([p.label for p in parts])
    found, exact = (np.concatenate([m.predict(p.curves) for p in parts]) for m in (int8, float32))
    answers = found.argmax(1), exact.argmax(1)
    f1 = [float(scores.macro_f1(scores.confusion(label, a, len(CLASSES)))) for a in answers]
    agreement = float((answers[0] == answers[1]).mean())
    return Compression(*sizes, agreement, f1[0], f1[1], float(np.abs(found - exact).max()), len(label))
