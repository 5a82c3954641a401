"""Released models against the baselines on the same held-out packets, with paired bootstrap intervals.

    python -m models.training.baselines.compare --data ../shared/datasets --baselines build --model t2b-1 \
        --out models/training/BASELINES.md

`--baselines` holds boosted/answers.npz and paper/answers.npz, as `boosted` and `paper` write them; nothing is trained
here, so the table of a new model takes a minute. A second model is compared with the first one, too. Answers are among
all classes of each; classes are matched by name.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker import model as models
from broker import scores
from models.training import dataset, evaluate
from models.training.baselines import packets
from models.training.baselines.packets import Answers
from models.training.dataset import CLASSES, SETS, TEST, TrainingSet

BASELINES = {"LightGBM": "boosted", "t2 replica": "paper"}
SUPERNOVAE = ("SNIa", "SNII", "SNIbc")
CUT_NAMES = {0: "all"}
Labels = NDArray[np.int64]


@dataclass(frozen=True)
class Held:
    """Held-out packets of one set at one number of detections: label (n,), and probabilities (n, classes) by name."""

    source: str
    cut: int
    label: Labels
    probability: dict[str, NDArray[np.float64]]

    def answers(self, name: str) -> Labels:
        """Best class of each packet."""
        return np.asarray(self.probability[name].argmax(1), np.int64)


def held_out(data: TrainingSet, released: dict[str, models.Model], baselines: dict[str, Answers]) -> Iterator[Held]:
    """Every set at 1, 3, 10 and all detections: the objects that all baselines have answered."""
    for k in evaluate.CUTS:
        test = evaluate.packets(data, TEST, k)
        keys = packets.keys(data, test.row)
        found = {name: _in_order(model.predict(test.curves), _names(model)) for name, model in released.items()}
        known = np.ones(len(keys), np.bool_)
        for name, answers in baselines.items():
            place = {key: i for i, key in enumerate(answers.keys[k].tolist())}
            at = np.array([place.get(key, -1) for key in keys.tolist()], np.int64)
            known &= at >= 0
            found[name] = _in_order(answers.probability[k], answers.classes)[at]
        for i, source in enumerate(SETS):
            rows = np.flatnonzero(known & (test.origin == i))
            if len(rows):
                of_set = {name: p[rows] for name, p in found.items()}
                yield Held(source.name, k, test.label[rows].astype(np.int64), of_set)


def _names(model: models.Model) -> tuple[str, ...]:
    return tuple(c.name for c in model.card.classes)


def _in_order(probability: NDArray[np.float32], names: tuple[str, ...]) -> NDArray[np.float64]:
    """Columns in the order of CLASSES; a class that the answerer lacks has probability 0, one that we lack is lost."""
    found = np.zeros((len(probability), len(CLASSES)))
    for i, name in enumerate(CLASSES):
        if name in names:
            found[:, i] = probability[:, names.index(name)]
    return found


def table(held: list[Held], model: str, others: list[str]) -> Iterator[str]:
    """Markdown: figure of the model, and of each baseline with the difference to it."""
    yield f"| set | detections | n | {model} | " + " | ".join(f"{o} | {model} - {o}" for o in others) + " |"
    yield "|---" * (4 + 2 * len(others)) + "|"
    for h in held:
        figure = scores.accuracy if len(np.unique(h.label)) == 1 else scores.macro_f1
        cells = [f"{h.source}{' (recall)' if figure is scores.accuracy else ''}", CUT_NAMES.get(h.cut, str(h.cut))]
        cells += [str(len(h.label)), _figure(h, model)]
        for other in others:
            answers = h.answers(model), h.answers(other)
            difference, low, high = scores.paired_interval(h.label, answers, len(CLASSES), figure)
            mark = "**" if low > 0 or high < 0 else ""
            cells += [_figure(h, other), f"{mark}{difference:+.3f}{mark} [{low:+.3f}, {high:+.3f}]"]
        yield f"| {' | '.join(cells)} |"


def _figure(held: Held, name: str) -> str:
    figure = scores.accuracy if len(np.unique(held.label)) == 1 else scores.macro_f1
    return f"{float(figure(scores.confusion(held.label, held.answers(name), len(CLASSES)))):.3f}"


def losses(held: list[Held], names: list[str]) -> Iterator[str]:
    """Markdown: flat weighted log-loss and calibration error on complete packets of sets of several classes."""
    yield "| set | n | " + " | ".join(f"{name}: loss | ECE" for name in names) + " |"
    yield "|---" * (2 + 2 * len(names)) + "|"
    for h in held:
        if h.cut == 0 and len(np.unique(h.label)) > 1:
            cells = [h.source, str(len(h.label))]
            for name in names:
                loss, gap = (f(h.label, h.probability[name]) for f in (scores.weighted_log_loss, scores.ece))
                cells += [f"{loss:.3f}", f"{gap:.3f}"]
            yield f"| {' | '.join(cells)} |"


def within(held: list[Held], names: list[str]) -> Iterator[str]:
    """Markdown: macro-F1, accuracy and flat log-loss with answers among the set's own classes only."""
    yield "| set | detections | n | " + " | ".join(f"{name}: macro-F1 | accuracy | loss" for name in names) + " |"
    yield "|---" * (3 + 3 * len(names)) + "|"
    for h in held:
        own = tuple(np.unique(h.label).tolist())
        if len(own) > 1:
            yield _within_row(h, names, own, h.source)
            if h.source == "yse_dr1":  # one SLSN or TDE weighs there as much as all SNIa; others publish these three
                three = tuple(CLASSES.index(name) for name in SUPERNOVAE)
                yield _within_row(h, names, three, f"{h.source}, {', '.join(SUPERNOVAE)}")


def _within_row(held: Held, names: list[str], own: tuple[int, ...], title: str) -> str:
    rows = np.flatnonzero(np.isin(held.label, own))
    label = np.searchsorted(own, held.label[rows])
    cells = [title, CUT_NAMES.get(held.cut, str(held.cut)), str(len(rows))]
    for name in names:
        share = held.probability[name][rows][:, own]
        share = share / np.maximum(share.sum(1, keepdims=True), scores.LEAST_PROBABILITY)
        matrix = scores.confusion(label, share.argmax(1), len(own))
        figures = scores.macro_f1(matrix), scores.accuracy(matrix), scores.weighted_log_loss(label, share)
        cells += [f"{float(figure):.3f}" for figure in figures]
    return f"| {' | '.join(cells)} |"


def completeness(held: list[Held], names: list[str]) -> Iterator[str]:
    """Markdown: real transients at their last packet, the classes as frequent as in the set."""
    yield "| real_transients, last packet | SNIa complete at 90 % purity | SLSN found | macro-F1 |"
    yield "|---|---|---|---|"
    for h in (h for h in held if h.source == "real_transients" and h.cut == 0):
        shares = np.bincount(h.label, minlength=len(CLASSES)) / len(h.label)
        weight = scores.prior_weights(h.label, shares)
        i, j = CLASSES.index("SNIa"), CLASSES.index("SLSN")
        for name in names:
            p = h.probability[name]
            curve = scores.purity_curve(h.label == i, p[:, i], weight)
            at_90 = partial(scores.completeness_at, 0.90)
            low, high = scores.purity_intervals(h.label, p, shares, {"": at_90})[i][""]
            matrix = scores.confusion(h.label, h.answers(name), len(CLASSES))
            cells = [f"{float(at_90(curve)):.3f} [{low:.3f}, {high:.3f}]"]
            low, high = scores.per_class_intervals(matrix, scores.recall)[j]
            cells.append(f"{scores.recall(matrix)[j]:.3f} [{low:.3f}, {high:.3f}] of {int(matrix[j].sum())}")
            low, high = scores.confusion_interval(matrix, scores.macro_f1)
            cells.append(f"{float(scores.macro_f1(matrix)):.3f} [{low:.3f}, {high:.3f}]")
            yield f"| {name} | {' | '.join(cells)} |"


def verdict(held: list[Held], model: str, other: str) -> str:
    """In one line: where the model is clearly better or worse, by paired intervals of sets of several classes."""
    better, worse, n = [], [], 0
    for h in held:
        if len(np.unique(h.label)) > 1:
            n += 1
            answers = h.answers(model), h.answers(other)
            _, low, high = scores.paired_interval(h.label, answers, len(CLASSES), scores.macro_f1)
            name = f"{h.source} at {CUT_NAMES.get(h.cut, h.cut)}"
            better += [name] if low > 0 else []
            worse += [name] if high < 0 else []
    listed = f": {', '.join(worse)}" if worse else ""
    return f"- {model} against {other}: clearly better in {len(better)} of {n} rows, worse in {len(worse)}{listed}."


HEAD = """# Baselines on the held-out objects

Written by `python -m models.training.baselines.compare` (its first lines say how). Same objects, same packets, same
classes for all: the test side of the split, newest point at the 1st, 3rd, 10th or last detection, histories of 30 days
(ZTF) or 12 months. Macro-F1 with every class of a model as a possible answer, recall for sets of one class; differences
with a 95 % interval over 300 resamplings of the objects as pairs, bold where it leaves out zero.

- **LightGBM**: 129 hand-made features, trees trained on the same objects' packets at their last and at four log-uniform
  numbers of detections, number of trees by the calibration side (`boosted.py`; log in `logs/boosted.log`).
- **t2 replica**: the paper's network (1 block, width 32, 16 heads, 13,159 parameters here) on a grid of 100 times x 6
  bands by a Gaussian process with fixed length scales, trained on the same objects at their last and at one log-uniform
  number of detections (`paper.py` says where this is kinder to it than the paper; log in `logs/paper.log`). Released as
  `t2-paper` by `replica.py`, with a temperature per survey.

Both got one temperature from the calibration side here.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--baselines", type=Path, required=True, help="folder of boosted/ and paper/")
    parser.add_argument("--model", action="append", required=True, help="released model or folder; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    released = {m.card.name: m for m in (models.load(models.find(name)) for name in arguments.model)}
    found = {n: arguments.baselines / folder / "answers.npz" for n, folder in BASELINES.items()}
    baselines = {name: Answers.load(path) for name, path in found.items() if path.is_file()}
    others = list(baselines)
    held = sorted(
        held_out(dataset.load(arguments.data), released, baselines),
        key=lambda h: [s.name for s in SETS].index(h.source),
    )
    lines = [HEAD.rstrip("\n")]
    first = next(iter(released))
    for name in released:
        beside = others if name == first else [first, *others]
        lines += ["", f"## {name}", "", *(verdict(held, name, other) for other in beside)]
        lines += ["", *table(held, name, beside)]
    everyone = [*released, *others]
    lines += ["", "## Probabilities, last packets", "", *losses(held, everyone)]
    lines += ["", "## Answers among the set's own classes", "", *within(held, everyone)]
    lines += ["", "## Completeness", "", *completeness(held, everyone)]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
