"""What a figure owes to a set of light curves: training without it, with a part of it, or with nothing else.

    python -m models.training.ablations --data ../shared/datasets --work build/ablations \
        --out models/training/ABLATIONS.md

Every run starts from nothing and takes the same few steps (no pre-training, no teachers), but for two; its figures are
to be compared with those of the run with all sets, not with a released model's. They are of held-out objects, through
`broker.model` on the exported file in float32. What a run found stays in `--work`, so that a broken-off call goes on.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from broker import model
from broker.lightcurve import BANDS, WAVELENGTH_NM
from models.training import dataset, evaluate, export, network, release, train
from models.training.dataset import CLASSES, ONE_CLASS, SET_NAMES, TRAIN, TrainingSet
from models.training.evaluate import Figure
from models.training.network import Shape

STEPS = 4000  # the text was made by AdamW in steps of 128 (revision f7dd481): eleven runs took 21 minutes on two cores
PARTS = {"spcc": (0.5, 0.25, 0.125), "mallorn": (0.5, 0.25)}  # learning curves of the sets that are below their goals
ALONE = ("spcc",)
LONG = (12_000, 36_000)  # steps of further runs alone: what this network can reach there
Mask = NDArray[np.bool_]


def runs(data: TrainingSet) -> Iterator[tuple[str, Mask, int]]:
    """Name of each run, the objects (n,) withheld from it, and its steps."""
    origin = data.about.origin
    yield "all", np.zeros(len(data), np.bool_), STEPS
    for name in ONE_CLASS:
        yield f"without {name}", origin == SET_NAMES.index(name), STEPS
    rank = np.random.default_rng(0).random(len(data))
    for name, shares in PARTS.items():
        for share in shares:
            yield f"{share:g} of {name}", (origin == SET_NAMES.index(name)) & (rank >= share), STEPS
    for name in ALONE:
        for steps in (STEPS, *LONG):
            yield f"{name} alone {steps}", origin != SET_NAMES.index(name), steps


def figures(data: TrainingSet, withheld: Mask, steps: int, size: int = train.BATCH) -> list[Figure]:
    """Of a network that has learnt from what is left."""
    shape = Shape(len(CLASSES))
    left = dataset.withhold(data, withheld)
    params = train.finetune(left, network.initial(train.SEED, shape), replace(train.LABELS, steps=steps), size)
    undivided = {"ztf": 1.0, "lsst": 1.0}
    graph = export.graph(params, shape, {b: WAVELENGTH_NM[b] for b in BANDS}, undivided, int8=False)
    with tempfile.TemporaryDirectory() as folder:
        release.write(Path(folder), graph, left, release.Measured(undivided))
        return list(evaluate.figures(model.load(Path(folder)), data))


def table(found: dict[str, list[Figure]], data: TrainingSet) -> Iterator[str]:
    """Markdown."""
    yield "## A set left out"
    yield ""
    yield "Recall of held-out objects, with the set in training and without it. Chance: how often, without it, objects"
    yield "of other sets are given the class."
    yield ""
    yield "| set | detections | objects | with | without | chance |"
    yield "|---|---|---|---|---|---|"
    for name in ONE_CLASS:
        for f, g in zip(_of(found["all"], name), _of(found[f"without {name}"], name), strict=True):
            shown = f"{f.n_objects} | {f.recall:.2f} | {g.recall:.2f} | {g.chance:.2f}"
            yield f"| {name} | {f.n_detections or 'all'} | {shown} |"
    yield ""
    yield "## Learning curves"
    yield ""
    yield "Macro-F1 of held-out objects; all other sets are in training."
    yield ""
    yield "| set | labelled objects to learn from | 1 detection | 3 | 10 | all |"
    yield "|---|---|---|---|---|---|"
    for name, shares in PARTS.items():
        of_set = (data.about.origin == SET_NAMES.index(name)) & (data.split == TRAIN) & (data.about.label >= 0)
        rows = {f"{share:g} of {name}": share for share in reversed(shares)} | {"all": 1.0}
        rows |= {f"{name} alone {steps}": 1.0 for steps in (STEPS, *LONG) if name in ALONE}
        for run, share in rows.items():
            scores = " | ".join(f"{f.macro_f1:.3f}" for f in _of(found[run], name))
            alone = f", and from nothing else, {run.split()[-1]} steps" if "alone" in run else ""
            yield f"| {name} | {round(share * of_set.sum())}{alone} | {scores} |"


def _of(found: list[Figure], name: str) -> list[Figure]:
    return [f for f in found if f.name == name]


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--work", type=Path, required=True, help="folder for what the runs find")
    parser.add_argument("--out", type=Path, required=True, help="Markdown file to write")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    data = dataset.load(arguments.data)
    found = {}
    for name, withheld, steps in runs(data):
        path = arguments.work / f"{name.replace(' ', '-')}.json"
        if not path.exists():
            print(name, flush=True)
            path.write_text(json.dumps([asdict(f) for f in figures(data, withheld, steps)]))
        found[name] = [Figure(**row) for row in json.loads(path.read_text())]
    head = (
        "# What figures owe to the sets\n\nWritten by `python -m models.training.ablations`; its first lines say how."
    )
    arguments.out.write_text("\n".join([head, "", *table(found, data)]) + "\n")


if __name__ == "__main__":
    main()
