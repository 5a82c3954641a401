"""Figures of a classifier from labels and probabilities: plain numpy, one function per figure.

label int (n,): index of the true class; probability float (n, classes), rows sum to 1; answer int (n,): index given.
A confusion is float (..., classes, classes): truth, answer. Only classes that occur as truth count in means over
classes. Formulas: docs/evaluate.md.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 300
N_BINS = 15  # of the top probability, for the calibration error
LEAST_PROBABILITY = 1e-15  # in a logarithm

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]


def confusion(label: Labels, answer: Labels, n_classes: int) -> Floats:
    """Numbers of objects by truth and answer, (n_classes, n_classes)."""
    flat = np.bincount(label.astype(np.int64) * n_classes + answer, minlength=n_classes**2)
    return flat.reshape(n_classes, n_classes).astype(np.float64)


def macro_f1(matrix: Floats) -> Floats:
    """Mean F1 of the classes that occur as truth."""
    hit = np.diagonal(matrix, axis1=-2, axis2=-1)
    truth, answer = matrix.sum(-1), matrix.sum(-2)
    f1 = 2 * hit / np.maximum(truth + answer, 1)
    return np.asarray((f1 * (truth > 0)).sum(-1) / np.maximum((truth > 0).sum(-1), 1))


def accuracy(matrix: Floats) -> Floats:
    """Share of right answers."""
    return np.asarray(np.trace(matrix, axis1=-2, axis2=-1) / np.maximum(matrix.sum((-2, -1)), 1))


def balanced_accuracy(matrix: Floats) -> Floats:
    """Mean recall of the classes that occur as truth."""
    hit, truth = np.diagonal(matrix, axis1=-2, axis2=-1), matrix.sum(-1)
    return np.asarray((hit / np.maximum(truth, 1)).sum(-1) / np.maximum((truth > 0).sum(-1), 1))


def precision(matrix: Floats) -> Floats:
    """Right share of the answers of each class, (classes,); NaN where it was never the answer."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(matrix) / matrix.sum(0))


def recall(matrix: Floats) -> Floats:
    """Share of each class that was found, (classes,); NaN where it does not occur."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(matrix) / matrix.sum(1))


def chance_macro_f1(label: Labels, answer: Labels, n_classes: int) -> float:
    """Macro-F1 of the same answers given to the wrong objects."""
    rng = np.random.default_rng(1)
    shuffled = (confusion(label, rng.permutation(answer), n_classes) for _ in range(30))
    return float(np.mean([macro_f1(matrix) for matrix in shuffled]))


def log_losses(label: Labels, probability: NDArray[np.floating]) -> Floats:
    """-ln of the probability of the true class of each object, (n,)."""
    true = probability[np.arange(len(label)), label].astype(np.float64)
    return np.asarray(-np.log(np.maximum(true, LEAST_PROBABILITY)))


def weighted_log_loss(label: Labels, probability: NDArray[np.floating]) -> float:
    """Flat weighted log-loss: mean over the classes of the mean -ln p(true class); NaN without an object."""
    return float(_class_means(*_loss_columns(label, probability)))


def ece(label: Labels, probability: NDArray[np.floating]) -> float:
    """Expected calibration error of the top probability, N_BINS bins of equal width; NaN without an object."""
    return float(_gap(_bin_columns(label, probability).sum(0), len(label)))


def brier(label: Labels, probability: NDArray[np.floating]) -> float:
    """Mean over the objects of the sum over the classes of (p - truth) squared, 0 to 2; NaN without an object."""
    return float(_brier_column(label, probability).mean()) if len(label) else np.nan


def interval(draws: Floats) -> tuple[float, float]:
    """95 % interval of a figure from its bootstrap draws."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(low), float(high)


def confusion_interval(matrix: Floats, figure: Callable[[Floats], Floats]) -> tuple[float, float]:
    """95 % interval of a figure of a confusion over resampled objects; seeded."""
    n = int(matrix.sum())
    if not n:
        return np.nan, np.nan
    rng = np.random.default_rng(0)
    draws = rng.multinomial(n, matrix.ravel() / n, BOOTSTRAPS).reshape(BOOTSTRAPS, *matrix.shape)
    return interval(figure(draws.astype(np.float64)))


def probability_intervals(label: Labels, probability: NDArray[np.floating]) -> dict[str, tuple[float, float]]:
    """95 % intervals over resampled objects of weighted_log_loss, ece and brier; seeded."""
    n = len(label)
    if not n:
        return dict.fromkeys(("weighted_log_loss", "ece", "brier"), (np.nan, np.nan))
    losses, members = _loss_columns(label, probability)
    bins, square = _bin_columns(label, probability), _brier_column(label, probability)
    rng = np.random.default_rng(0)
    draws = np.empty((3, BOOTSTRAPS))
    for i in range(BOOTSTRAPS):
        times = np.bincount(rng.integers(0, n, n), minlength=n).astype(np.float64)
        draws[:, i] = _class_means(losses, members, times), _gap(times @ bins, n), times @ square / n
    return dict(zip(("weighted_log_loss", "ece", "brier"), map(interval, draws), strict=True))


def _loss_columns(label: Labels, probability: NDArray[np.floating]) -> tuple[Floats, Floats]:
    members = (label[:, None] == np.unique(label)).astype(np.float64)
    return members * log_losses(label, probability)[:, None], members


def _class_means(losses: Floats, members: Floats, times: Floats | None = None) -> np.floating:
    """Mean over the classes that occur of their mean loss; times (n,): how often each object was drawn."""
    weight = np.ones(len(losses)) if times is None else times
    n = weight @ members
    return np.float64(((weight @ losses)[n > 0] / n[n > 0]).mean() if (n > 0).any() else np.nan)


def _bin_columns(label: Labels, probability: NDArray[np.floating]) -> Floats:
    """Top probability minus rightness of each object in the column of its bin, (n, N_BINS)."""
    top = probability.max(1).astype(np.float64)
    place = np.minimum((top * N_BINS).astype(np.int64), N_BINS - 1)
    columns = np.zeros((len(label), N_BINS))
    columns[np.arange(len(label)), place] = top - (probability.argmax(1) == label)
    return columns


def _gap(sums: Floats, n: int) -> np.floating:
    return np.float64(np.abs(sums).sum() / n if n else np.nan)


def _brier_column(label: Labels, probability: NDArray[np.floating]) -> Floats:
    p = probability.astype(np.float64)
    return np.asarray((p**2).sum(1) - 2 * p[np.arange(len(label)), label] + 1)


def prior_weights(label: Labels, prior: Floats) -> Floats:
    """Weight of each object (n,), so that the classes that occur have the shares of `prior` (classes,)."""
    count = np.bincount(label, minlength=len(prior))
    share = np.where(count > 0, prior, 0.0)
    if not share.sum() > 0:
        return np.zeros(len(label))
    return np.asarray((share / share.sum() / np.maximum(count, 1))[label])


def purity_curve(is_class: NDArray[np.bool_], score: NDArray[np.floating], weight: Floats) -> tuple[Floats, Floats]:
    """Completeness and purity of a class for each possible least score, highest first; equal scores go together."""
    order = np.argsort(-score, kind="stable")
    hit = np.cumsum((weight * is_class)[order])
    said = np.cumsum(weight[order])
    last = np.append(np.diff(score[order]) != 0, True) if len(order) else np.zeros(0, np.bool_)
    hit, said = hit[last], said[last]
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / hit[-1:], hit / said


def completeness_at(purity: float, curve: tuple[Floats, Floats]) -> float:
    """Largest completeness that some least score gives at this purity or more; 0 where none does."""
    found, pure = curve
    return float(np.max(found[pure >= purity - 1e-12], initial=0.0))


def purity_at(completeness: float, curve: tuple[Floats, Floats]) -> float:
    """Largest purity that some least score gives at this completeness or more."""
    found, pure = curve
    return float(np.max(pure[found >= completeness - 1e-12], initial=0.0))
