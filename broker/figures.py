"""All figures of a model's answers to one group of packets, and of two models' answers to the same ones.

Of labels, probabilities, and what the card asks of a verdict; docs/evaluate.md gives the formulas.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from broker import scores
from broker.errors import UsageError
from broker.lightcurve import Bools, Integers
from broker.scores import Floats, PurityFigure

Figures = dict[str, Any]
OF_CONFUSION = {
    "macro_f1": scores.macro_f1,
    "accuracy": scores.accuracy,
    "balanced_accuracy": scores.balanced_accuracy,
}
OF_PROBABILITY = {"weighted_log_loss": scores.weighted_log_loss, "ece": scores.ece, "brier": scores.brier}
OF_PURITY: dict[str, PurityFigure] = {
    "completeness_at_90_purity": partial(scores.completeness_at, 0.90),
    "completeness_at_95_purity": partial(scores.completeness_at, 0.95),
    "purity_at_50_completeness": partial(scores.purity_at, 0.50),
}


@dataclass(frozen=True)
class Said:
    """What a model said of n objects of one group.

    names: of its classes; row (n,): which objects; label (n,): class; probability (n, classes): NaN without an answer;
    evident (n,): it is sure enough for a verdict.
    """

    names: tuple[str, ...]
    row: Integers
    label: Integers
    probability: Floats
    evident: Bools

    def usable(self) -> Said:
        """Those that have an answer."""
        kept = np.isfinite(self.probability).all(1)
        parts = (getattr(self, name)[kept] for name in ("row", "label", "probability", "evident"))
        return Said(self.names, *parts)

    @property
    def answer(self) -> Integers:
        """Best class of each, int64 (n,)."""
        return np.asarray(self.probability.argmax(1), np.int64)


def prior_shares(prior: str, names: tuple[str, ...], label: Integers) -> NDArray[np.float64]:
    """Share of each class, (classes,): "set" as in the set, "flat", or "SNIa=0.7,SNII=0.3". Raises UsageError."""
    count = np.bincount(label, minlength=len(names)).astype(np.float64)
    if prior == "set":
        shares = count
    elif prior == "flat":
        shares = (count > 0).astype(np.float64)
    else:
        shares = np.zeros(len(names))
        for item in prior.split(","):
            name, _, text = item.partition("=")
            try:
                share = float(text)
            except ValueError:
                share = np.nan
            if name.strip() not in names or not 0 <= share < np.inf:
                allowed = f"set, flat or NAME=SHARE,... with classes {', '.join(names)}"
                raise UsageError(f"--prior {prior!r}: {item!r} is not understood; {allowed}")
            shares[names.index(name.strip())] = share
    return np.asarray(shares / max(shares.sum(), np.finfo(np.float64).tiny))


def of_group(said: Said, shares: Floats) -> Figures:
    """All figures of one group; shares (classes,): of each class in the stream whose purity is meant."""
    n_all, said = len(said.label), said.usable()
    label, probability, evident = said.label, said.probability, said.evident
    matrix = scores.confusion(label, said.answer, len(said.names))
    right = said.answer == label
    found: Figures = {"n": len(label), "n_without_answer": n_all - len(label)}
    for name, figure in OF_CONFUSION.items():
        found[name] = float(figure(matrix)) if len(label) else np.nan
        found[f"{name}_interval"] = scores.confusion_interval(matrix, figure)
    intervals = scores.probability_intervals(label, probability)
    for name, of_all in OF_PROBABILITY.items():
        found[name] = of_all(label, probability)
        found[f"{name}_interval"] = intervals[name]
    for name, share in (("answer_rate", evident), ("answered_accuracy", right[evident])):
        found[name] = float(share.mean()) if len(share) else np.nan
        found[f"{name}_interval"] = scores.share_interval(share)
    n_bin, mean, share_right = scores.reliability(label, probability)
    found["reliability"] = {"n": n_bin.tolist(), "probability": mean.tolist(), "right": share_right.tolist()}
    found["within"] = _within(label, probability)
    found["classes"] = _classes(said, matrix, shares)
    return found


def _within(label: Integers, probability: Floats) -> Figures:
    """The same with answers among the set's own classes only: their probabilities are scaled to sum to 1."""
    present, own = np.unique(label, return_inverse=True)
    share = probability[:, present]
    share = share / np.maximum(share.sum(1, keepdims=True), scores.LEAST_PROBABILITY)
    if not len(label):
        return dict.fromkeys(("macro_f1", "accuracy", "weighted_log_loss", "ece"), np.nan)
    matrix = scores.confusion(own, share.argmax(1), len(present))
    return {
        "macro_f1": float(scores.macro_f1(matrix)),
        "accuracy": float(scores.accuracy(matrix)),
        "weighted_log_loss": scores.weighted_log_loss(own, share),
        "ece": scores.ece(own, share),
    }


def _classes(said: Said, matrix: Floats, shares: Floats) -> Figures:
    label, probability = said.label, said.probability
    weight = scores.prior_weights(label, shares)
    of_answers = {"precision": scores.precision, "recall": scores.recall}
    intervals = {name: scores.per_class_intervals(matrix, figure) for name, figure in of_answers.items()}
    of_curves = scores.purity_intervals(label, probability, shares, OF_PURITY)
    found: Figures = {}
    for i, name in enumerate(said.names):
        n, answered = int(matrix[i].sum()), int(matrix[:, i].sum())
        found[name] = {"n": n, "n_answered": answered, "ece": scores.class_ece(label == i, probability[:, i])}
        for key, figure in of_answers.items():
            found[name] |= {key: figure(matrix)[i], f"{key}_interval": intervals[key][i]}
        if n and weight[label == i].sum() > 0:
            curve = scores.purity_curve(label == i, probability[:, i], weight)
            for key, of_purity in OF_PURITY.items():
                found[name] |= {key: float(of_purity(curve)), f"{key}_interval": of_curves[i][key]}
    return found


def difference(said: Said, other: Said) -> Figures:
    """Macro-F1 and accuracy of `said` minus those of `other` on the objects both have answered, with intervals.

    Nothing where the two have other classes or give an object another label: their figures are of different questions.
    """
    said, other = said.usable(), other.usable()
    _, ours, theirs = np.intersect1d(said.row, other.row, return_indices=True)
    if said.names != other.names or (said.label[ours] != other.label[theirs]).any():
        return {}
    answers = said.answer[ours], other.answer[theirs]
    found: Figures = {"n": len(ours)}
    for name in ("macro_f1", "accuracy"):
        gap, low, high = scores.paired_interval(said.label[ours], answers, len(said.names), OF_CONFUSION[name])
        found |= {name: gap, f"{name}_interval": (low, high)}
    return found
