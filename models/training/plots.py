"""One SVG per released model, by hand: score against the number of detections, reliability, confusion.

Everything is of held-out objects. Plain strings, because three small panels need no plotting package.
"""

from collections.abc import Iterator, Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from broker import scores
from broker.model import Model
from models.training import evaluate
from models.training.dataset import CLASSES, TEST, TrainingSet
from models.training.evaluate import Figure

SIDE, GAP, TOP, LEFT = 300, 90, 40, 60  # of a panel and around it, in pixels
N_BINS = 10  # of the winning probability
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")  # told apart by everybody
Floats = NDArray[np.float64]


def svg(model: Model, data: TrainingSet, figures: Sequence[Figure]) -> str:
    """The page: width 3 panels."""
    parts = [evaluate.packets(data, TEST, k) for k in evaluate.CUTS]
    probability = [model.predict(p.curves) for p in parts]
    is_lsst = np.concatenate([evaluate.has_other_bands(p.curves) for p in parts])
    label = np.concatenate([p.label for p in parts])
    matrix = scores.confusion(parts[-1].label, probability[-1].argmax(1), len(CLASSES))
    panels = [_scores(figures), _reliability(np.concatenate(probability), label, is_lsst), _confusion(matrix)]
    width, height = LEFT + 3 * (SIDE + GAP), TOP + SIDE + 110
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" font-family="sans-serif">']
    lines.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for i, panel in enumerate(panels):
        lines += [f'<g transform="translate({LEFT + i * (SIDE + GAP)},{TOP})" font-size="11">', *panel, "</g>"]
    return "\n".join([*lines, "</svg>"]) + "\n"


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "black", more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"{more}>{escape(text)}</text>'


def _frame(title: str, below: str) -> Iterator[str]:
    """A square from 0 to 1, with ticks at the left."""
    yield f'<rect width="{SIDE}" height="{SIDE}" fill="none" stroke="#888"/>'
    yield _text(SIDE / 2, -14, title, more=' font-size="13"')
    yield _text(SIDE / 2, SIDE + 36, below)
    for tick in (0, 0.25, 0.5, 0.75, 1):
        yield _text(-6, SIDE * (1 - tick) + 4, f"{tick:g}", "end")


def _line(x: Sequence[float], y: Sequence[float], colour: str) -> str:
    points = " ".join(f"{a * SIDE:.1f},{(1 - b) * SIDE:.1f}" for a, b in zip(x, y, strict=True))
    return f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>'


def _legend(names: Sequence[str]) -> Iterator[str]:
    for i, name in enumerate(names[: len(COLOURS)]):
        yield _text((i % 2) * SIDE / 2, SIDE + 54 + 14 * (i // 2), name, "start", COLOURS[i])


def _scores(figures: Sequence[Figure]) -> Iterator[str]:
    """Macro-F1 with its interval at 1, 3, 10 and all detections of each set with several classes."""
    yield from _frame("macro-F1, 95 % intervals", "detections")
    several = [f for f in figures if np.isfinite(f.macro_f1)]
    names = list(dict.fromkeys(f.name for f in several))
    places: dict[int, float] = dict(zip(evaluate.CUTS, (0.08, 0.36, 0.64, 0.92), strict=True))
    for k, place in places.items():
        yield _text(place * SIDE, SIDE + 16, str(k or "all"))
    for i, name in enumerate(names[: len(COLOURS)]):
        colour = COLOURS[i]
        found = [f for f in several if f.name == name]
        x = [places[f.n_detections] + 0.012 * (i - len(names) / 2) for f in found]
        yield _line(x, [f.macro_f1 for f in found], colour)
        for a, f in zip(x, found, strict=True):
            yield _line((a, a), (f.low, f.high), colour)
    yield from _legend(names)


def _reliability(
    probability: NDArray[np.float32], label: NDArray[np.int8], is_lsst: NDArray[np.bool_]
) -> Iterator[str]:
    """Share of right answers against the winning probability, per survey; all numbers of detections together."""
    yield from _frame("right answers against probability", "winning probability, 0 to 1")
    yield _line((0, 1), (0, 1), "#bbb")
    for rows, colour in ((~is_lsst, COLOURS[0]), (is_lsst, COLOURS[1])):
        top, right = probability[rows].max(1), probability[rows].argmax(1) == label[rows]
        place = np.minimum((top * N_BINS).astype(np.int64), N_BINS - 1)
        n = np.bincount(place, minlength=N_BINS)
        filled = np.flatnonzero(n >= 10)
        x = np.bincount(place, top, N_BINS)[filled] / n[filled]
        yield _line(x.tolist(), (np.bincount(place, right, N_BINS)[filled] / n[filled]).tolist(), colour)
    yield from _legend(("bands of ZTF only", "other bands"))


def _confusion(matrix: Floats) -> Iterator[str]:
    """Rows: truth, columns: answer, at all detections; share of the row."""
    size = SIDE / len(CLASSES)
    yield _text(SIDE / 2, -14, "truth (rows) and answer, all detections", more=' font-size="13"')
    for i, name in enumerate(CLASSES):
        yield _text(-6, (i + 0.5) * size + 4, name, "end")
        yield _text((i + 0.5) * size, SIDE + 16, name)
        for j, share in enumerate(matrix[i] / max(matrix[i].sum(), 1)):
            shade = round(255 * (1 - 0.8 * share))
            place = f'x="{j * size:.1f}" y="{i * size:.1f}" width="{size:.1f}" height="{size:.1f}"'
            yield f'<rect {place} fill="rgb({shade},{shade},255)" stroke="white"/>'
            yield _text(
                (j + 0.5) * size, (i + 0.5) * size + 4, f"{share:.2f}", colour="black" if share < 0.6 else "white"
            )
    yield _text(SIDE / 2, SIDE + 36, f"{int(matrix.sum())} objects of all sets")
