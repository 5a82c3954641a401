"""SN Ia against SN II on the alerts of one simulated night, beside the scores that Fink gave to the same alerts.

    python -m models.training.fink_scores --data ../shared/datasets --model t2b-1 --out models/training/FINK_SCORES.md

Every packet of elasticc_fink_tutorials goes through the broker as it came. Score of a model: p(SNIa) / (p(SNIa) +
p(SNII)). A Fink score of 0 means that the alert was not scored: it is left out on both sides. Only alerts of objects on
the test side count, for the set is a training set of the released models.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from broker import model as models
from broker import scores, split
from models.training import alerts

SET = "elasticc_fink_tutorials"
BINS = ((1, 1), (2, 2), (3, 3), (4, 9), (10, 10**6))  # detections in the packet, the alert's own included
SNIA_OF_CATS = 111
Floats = NDArray[np.float64]
Draws = NDArray[np.int64]


@dataclass(frozen=True)
class Night:
    """Alerts of held-out objects: truth, object, detections in the packet, and scores by name, NaN where not scored."""

    is_snia: NDArray[np.bool_]
    obj: NDArray[np.int64]
    n_detections: NDArray[np.int64]
    score: dict[str, Floats]


def read(folder: Path, names: list[str]) -> tuple[Night, list[str]]:
    """The night with the scores of these models and of Fink, and what was left out, in words."""
    table = pd.read_parquet(folder / "alert_scores.parquet")
    meta = pd.read_parquet(folder / "metadata.parquet")
    side = pd.Series(alerts.sides(meta, SET), meta["object_id"])
    held = (side.loc[table["object_id"]] == split.TEST).to_numpy()
    order = pd.read_parquet(folder / "alerts.parquet", columns=["alertId"])["alertId"]
    place = pd.Index(order).get_indexer(pd.Index(table["alert_id"]))
    found = fink(table)
    n_detections, is_read = np.zeros(len(table), np.int64), np.ones(len(table), np.bool_)
    for name in names:
        judged = alerts.judge(folder / "alerts.parquet", "elasticc", models.find(name))
        ours, theirs = (judged.probability(c)[place] for c in ("SNIa", "SNII"))
        found[name] = ours / (ours + theirs)
        n_detections = np.array(judged.column("n_detections", 0))[place]
        is_read &= ~np.isnan(found[name])
    kept = np.flatnonzero(held & is_read)
    words = [f"{len(table)} alerts, {int(held.sum())} of objects on the test side"]
    if (held & ~is_read).any():
        words.append(f"{int((held & ~is_read).sum())} of these rejected by the broker")
    night = Night(
        (table["class_broad"] == "SNIa").to_numpy()[kept],
        table["object_id"].to_numpy(np.int64)[kept],
        n_detections[kept],
        {name: score[kept] for name, score in found.items()},
    )
    return night, words


def fink(table: pd.DataFrame) -> dict[str, Floats]:
    """Fink's scores of SN Ia, NaN where it did not score."""

    def scored(column: str) -> Floats:
        values = table[column].to_numpy(np.float64)
        return np.where(values == 0, np.nan, values)

    sure = scored("fink_cats_fine_max_prob")
    is_snia = table["fink_cats_fine_class"].to_numpy() == SNIA_OF_CATS
    return {
        "Fink SuperNNova, SN Ia": scored("fink_snn_snia_vs_nonia"),
        "Fink random forest, SN Ia": scored("fink_rf_snia_vs_nonia"),
        "Fink CATS, SN Ia or its best class": np.where(is_snia, sure, -sure),
    }


def roc_auc(is_positive: NDArray[np.bool_], score: Floats, weight: Floats) -> float:
    """Share of pairs in which the positive has the higher score, ties half; weight (n,): how often each counts."""
    _, rank = np.unique(score, return_inverse=True)
    up = np.bincount(rank, weight * is_positive)
    down = np.bincount(rank, weight * ~is_positive)
    pairs = up.sum() * down.sum()
    return float((up * (np.cumsum(down) - 0.5 * down)).sum() / pairs) if pairs else np.nan


def with_interval(night: Night, rows: NDArray[np.intp], names: tuple[str, ...]) -> Iterator[tuple[float, float, float]]:
    """AUC of each score on these alerts and 95 % over resampled objects; with two names also of first minus second."""
    _, member = np.unique(night.obj[rows], return_inverse=True)
    n = int(member.max(initial=-1)) + 1
    rng = np.random.default_rng(0)
    times = [np.ones(n), *(np.bincount(rng.integers(0, n, n), minlength=n) for _ in range(scores.BOOTSTRAPS))]
    columns = [
        np.array([roc_auc(night.is_snia[rows], night.score[name][rows], t[member].astype(float)) for t in times])
        for name in names
    ]
    if len(columns) == 2:
        columns.append(columns[0] - columns[1])
    for column in columns:
        yield (float(column[0]), *scores.interval(column[1:]))


def tables(night: Night, model: str) -> Iterator[str]:
    """Markdown: the model alone, then on the alerts that each of Fink's scores covers."""
    yield "| detections in the packet | alerts | SN Ia | objects | AUC, 95 % |"
    yield "|---|---|---|---|---|"
    for low, high in BINS:
        rows = np.flatnonzero(_within(night, low, high))
        (auc,) = with_interval(night, rows, (model,))
        n_objects = len(np.unique(night.obj[rows]))
        yield f"| {_range(low, high)} | {len(rows)} | {int(night.is_snia[rows].sum())} | {n_objects} | {_cell(auc)} |"
    yield ""
    yield f"| score of Fink | detections | scored | not scored | Fink | {model} | difference |"
    yield "|---|---|---|---|---|---|---|"
    for name in night.score:
        if name.startswith("Fink"):
            yield from _against(night, model, name)


def _against(night: Night, model: str, name: str) -> Iterator[str]:
    for low, high in BINS:
        inside = _within(night, low, high)
        scored = inside & ~np.isnan(night.score[name])
        rows = np.flatnonzero(scored)
        head = f"| {name} | {_range(low, high)} | {len(rows)} | {int(inside.sum()) - len(rows)}"
        kinds = np.bincount(night.is_snia[rows], minlength=2)
        if kinds.min() < 10:
            yield f"{head} | - | - | - |"
            continue
        ours, theirs, gap = with_interval(night, rows, (model, name))
        yield f"{head} | {_cell(theirs)} | {_cell(ours)} | {_cell(gap, '+')} |"


def _within(night: Night, low: int, high: int) -> NDArray[np.bool_]:
    return (night.n_detections >= low) & (night.n_detections <= high)


def _range(low: int, high: int) -> str:
    return str(low) if low == high else f"{low} or more" if high > 1000 else f"{low} to {high}"


def _cell(found: tuple[float, float, float], sign: str = "") -> str:
    return f"{found[0]:{sign}.3f} [{found[1]:{sign}.3f}, {found[2]:{sign}.3f}]"


HEAD = """# Alerts of a simulated night, beside Fink's scores

Written by `python -m models.training.fink_scores` (its first lines say how). ELAsTiCC alerts of one night, SN Ia and
SN II alone, as packets, through the broker as it serves. Fink's scores are those of December 2022 (fink_science
3.10.1); our models have learned from other objects of the same simulated night. One night, two classes, an old score: a
check, not a claim. ROC AUC of SN Ia against SN II; 95 % over 300 resamplings of the objects,
which have several alerts each; cells with fewer than 10 alerts of a class are left empty.
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--model", action="append", required=True, help="released model or folder; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    night, words = read(arguments.data / SET, arguments.model)
    lines = [HEAD.rstrip("\n"), "", "; ".join(words) + "."]
    for name in arguments.model:
        lines += ["", f"## {Path(name).name}", "", *tables(night, name)]
    arguments.out.write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
