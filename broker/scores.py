"""Figures of a classifier from labels and probabilities: plain numpy, one function per figure.

label int (n,): index of the true class; probability float (n, classes), rows sum to 1; answer int (n,): index given.
A confusion is float (..., classes, classes): truth, answer. Only classes that occur as truth count in means over
classes. Formulas: docs/evaluate.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

BOOTSTRAPS = 300
N_BINS = 15  # of the top probability, for the calibration error
LEAST_PROBABILITY = 1e-15  # in a logarithm
MOST_DRAWN = 1_000_000  # objects in the resamples held at one time

Floats = NDArray[np.float64]
Labels = NDArray[np.integer]
PurityFigure = Callable[[tuple[Floats, Floats]], Floats]


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
    """Right share of the answers of each class, (..., classes); NaN where it was never the answer."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(matrix, axis1=-2, axis2=-1) / matrix.sum(-2))


def recall(matrix: Floats) -> Floats:
    """Share of each class that was found, (..., classes); NaN where it does not occur."""
    with np.errstate(invalid="ignore"):
        return np.asarray(np.diagonal(matrix, axis1=-2, axis2=-1) / matrix.sum(-1))


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
    return interval(figure(_resampled(matrix))) if matrix.sum() else (np.nan, np.nan)


def per_class_intervals(matrix: Floats, figure: Callable[[Floats], Floats]) -> list[tuple[float, float]]:
    """The same for a figure per class; of the resamples in which the class has one, (NaN, NaN) where none has."""
    if not matrix.sum():
        return [(np.nan, np.nan)] * len(matrix)
    known = (column[np.isfinite(column)] for column in figure(_resampled(matrix)).T)
    return [interval(draws) if len(draws) else (np.nan, np.nan) for draws in known]


def share_interval(flags: NDArray[np.bool_]) -> tuple[float, float]:
    """95 % interval of the share of true ones over resampled objects; seeded."""
    n = len(flags)
    return interval(np.random.default_rng(0).binomial(n, flags.mean(), BOOTSTRAPS) / n) if n else (np.nan, np.nan)


def _resampled(matrix: Floats) -> Floats:
    n = int(matrix.sum())
    draws = np.random.default_rng(0).multinomial(n, matrix.ravel() / n, BOOTSTRAPS)
    return draws.reshape(BOOTSTRAPS, *matrix.shape).astype(np.float64)


def paired_interval(
    label: Labels, answers: tuple[Labels, Labels], n_classes: int, figure: Callable[[Floats], Floats]
) -> tuple[float, float, float]:
    """Figure of the first answers minus that of the second, and its 95 % interval over objects resampled as pairs.

    answers: int (n,) each, to the same objects, whose hard cases are then the same for both; seeded. NaN without one.
    """
    n = len(label)
    if not n:
        return np.nan, np.nan, np.nan
    cell = (label.astype(np.int64) * n_classes + answers[0]) * n_classes + answers[1]
    kinds, count = np.unique(cell, return_counts=True)
    rng = np.random.default_rng(0)
    draws = np.vstack([count, rng.multinomial(n, count / n, BOOTSTRAPS)]).astype(np.float64)
    flat = np.zeros((len(draws), n_classes**3))
    flat[:, kinds] = draws
    cube = flat.reshape(-1, n_classes, n_classes, n_classes)
    difference = figure(cube.sum(3)) - figure(cube.sum(2))
    return float(difference[0]), *interval(difference[1:])


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


def reliability(label: Labels, probability: NDArray[np.floating]) -> tuple[Labels, Floats, Floats]:
    """Of each bin of the top probability (N_BINS,): objects, mean top probability, share of right ones (NaN: none)."""
    top = probability.max(1).astype(np.float64)
    place = _bin(top)
    n = np.bincount(place, minlength=N_BINS)
    with np.errstate(invalid="ignore"):
        mean = np.bincount(place, top, N_BINS) / n
        right = np.bincount(place, probability.argmax(1) == label, N_BINS) / n
    return n, mean, right


def class_ece(is_class: NDArray[np.bool_], score: NDArray[np.floating]) -> float:
    """Expected calibration error of one class's probability, right where the object is of it; NaN without an object."""
    place = _bin(score.astype(np.float64))
    sums = np.bincount(place, score - is_class, N_BINS)
    return float(np.abs(sums).sum() / len(score)) if len(score) else np.nan


def _bin(probability: Floats) -> Labels:
    return np.minimum((probability * N_BINS).astype(np.int64), N_BINS - 1)


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
    place = _bin(top)
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
    """Completeness and purity of a class for each possible least score, highest first; equal scores go together.

    is_class, score (n,); weight (n,), or (draws, n) for as many curves: of the objects.
    """
    order = np.argsort(-score, kind="stable")
    last = np.append(np.diff(score[order]) != 0, True) if len(order) else np.zeros(0, np.bool_)
    hit = np.cumsum(weight[..., order] * is_class[order], -1)[..., last]
    said = np.cumsum(weight[..., order], -1)[..., last]
    with np.errstate(invalid="ignore", divide="ignore"):
        return hit / hit[..., -1:], hit / said


def completeness_at(purity: float, curve: tuple[Floats, Floats]) -> Floats:
    """Largest completeness that some least score gives at this purity or more; 0 where none does."""
    found, pure = curve
    return np.asarray(np.max(np.where(pure >= purity - 1e-12, found, 0.0), axis=-1, initial=0.0))


def purity_at(completeness: float, curve: tuple[Floats, Floats]) -> Floats:
    """Largest purity that some least score gives at this completeness or more."""
    found, pure = curve
    return np.asarray(np.max(np.where(found >= completeness - 1e-12, pure, 0.0), axis=-1, initial=0.0))


def purity_intervals(
    label: Labels,
    probability: NDArray[np.floating],
    prior: Floats,
    figures: Mapping[str, PurityFigure],
    most_drawn: int = MOST_DRAWN,
) -> list[dict[str, tuple[float, float]]]:
    """Of each class, 95 % intervals of figures of its purity curve; the classes' shares are held at `prior`; seeded.

    (NaN, NaN) for a class without an object. A resample that has none of the class counts for nothing.
    """
    n, n_classes = probability.shape
    rng = np.random.default_rng(0)
    draws: list[dict[str, list[Floats]]] = [{name: [] for name in figures} for _ in range(n_classes)]
    size = max(1, min(BOOTSTRAPS, most_drawn // max(n, 1)))
    for start in range(0, BOOTSTRAPS if n else 0, size):
        times = rng.multinomial(n, np.full(n, 1 / n), min(size, BOOTSTRAPS - start)).astype(np.float64)
        count = np.stack([times[:, label == i].sum(1) for i in range(n_classes)], 1)
        with np.errstate(divide="ignore", invalid="ignore"):
            weight = times * np.where(count > 0, prior / count, 0)[:, label]
        for i in np.flatnonzero(count.any(0)).tolist():
            curve = purity_curve(label == i, probability[:, i], weight[count[:, i] > 0])
            for name, figure in figures.items():
                draws[i][name].append(figure(curve))
    return [
        {name: interval(np.concatenate(found)) if found else (np.nan, np.nan) for name, found in of_class.items()}
        for of_class in draws
    ]
