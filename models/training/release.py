"""Writes a model folder (model.onnx, card.toml, golden.npz) from trained weights, and the table of released models.

python -m models.training.release models/t2b-1 --data ../shared/datasets --weights build/t2b-1.npz
python -m models.training.release models/t2b-1 --data ../shared/datasets    measures its thresholds and figures anew
python -m models.training.release models    only writes models/README.md anew from the cards
"""

import argparse
import hashlib
import json
import tempfile
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from broker import lightcurve, model, split
from broker.lightcurve import BANDS, WAVELENGTH_NM, LightCurves
from models.training import augment, compress, dataset, evaluate, export, network, plots
from models.training.dataset import (
    CALIBRATION,
    CLASSES,
    OUTLIER,
    SET_NAMES,
    SETS,
    TAXONOMY_IDS,
    TEST,
    TRAIN,
    UNLABELLED,
    TrainingSet,
)  # fmt: skip
from models.training.evaluate import Compression, Evidence, Figure
from models.training.network import Params, Shape

MAX_POINTS, MIN_POINTS = 256, 1
N_GOLDEN = 200
N_TYPICAL = 4800  # with 1,200 int8 changed .46 % of the answers of the calibration side, with 4,800 .32 %
GOLDEN_SETS = ("spcc", "elasticc_fink_tutorials", "ztf_fink_labelled")  # licences that allow passing light curves on
PLOTS_FILE = "figures.svg"
OF_TRAINING = ("[[classes]]", "[[training_data]]")  # tables of a card
PAPER_BYTES = 60_320  # of the file that the paper shipped
OF_DATA = (
    "The training sets are mostly supernovae; the stream is mostly variable stars, AGN, asteroids and artefacts. "
    "Asteroids, kilonovae, flares of M dwarfs and artefacts have no class of their own.",
    "SLSN and TDE are few in every set: their scores have wide intervals, see n_objects.",
    "One detection tells little: compare the figures at 1 detection with chance.",
    "yse_dr1 holds a handful of SLSN and TDE, which weigh as much in its macro-F1 as all its SNIa; `within` in the "
    "card counts the answers among the set's own classes.",
    "Sets of one class (ztf_snia, many_tde_ztf, sdss_rrl, varstars) tell recall only, and how they were observed gives "
    "the class away: in shortened runs without them, of their held-out objects at all detections .23 of the SNIa are "
    "found in place of .94, none of 17 TDEs in place of 12, .08 of the RR Lyrae and .94 of varstars in place of all. "
    "Expect the like of a stream that no training set resembles.",
    "mallorn was simulated from few real objects without naming them: near-twins may lie on both sides of its split, "
    "and its TDEs probably stem from those of many_tde_ztf.",
    "spcc repeats 45 non-Ia templates on both sides of the split.",
    "varstars has one band of about 550 nm or unnamed; here it counts as ztf-g for half of the stars and as ztf-r "
    "for the others.",
    "The thresholds rest on few real objects, and for lsst partly on simulations: expect fewer right answers than "
    "the card's accuracy on real alerts.",
    "Probabilities assume the training prior; for another mix of classes divide by it and multiply by yours.",
)
OUTLIERS = "The model was taught to be undecided about asteroids, kilonovae and flares; artefacts it has never seen."
WEAKNESSES = {
    "t2b-1": (
        OUTLIERS,
        "Real SNIa of ZTF are mostly missed at one detection.",
        "Most mistaken on the test split at all detections: SNIbc for SNIa and SNII (six in ten are found, in "
        "simulated LSST a sixth), TDE for AGN and supernovae (a third are found), SLSN for SNII.",
        "At one detection of real transients boosted trees do better (real_transients, yse_dr1).",
        "Real AGN of ZTF look like TDEs: from 4 detections on a transient needs a high probability of all transients "
        "together, and a true one is often left without a verdict.",
    ),
    "t2b-1-open": (
        "Not for a real stream. Of its answers to ZTF packets of the test side a third is right, of t2b-1's .85 and "
        "more: what may be passed on has, on the training side, three real supernovae besides SLSNe, one TDE and 39 "
        "AGN. SNIa of ztf_snia are not found from 10 detections on, TDEs never. It is t2b-1's equal on simulated "
        "supernovae of LSST and nearly so on ztf_fink_labelled.",
        OUTLIERS,
    ),
    "t2-paper": (
        "The paper's network: for comparison, not for use. Its grid runs from the first point to the last, so it "
        "doesn't see how long that was; a light curve of 128 points takes it 2 ms, one of 256 points 12 ms.",
    ),
}


@dataclass(frozen=True)
class Measured:
    """What goes into a card: divisor of the logits per survey, figures, thresholds, what int8 cost."""

    temperature: Mapping[str, float]
    figures: list[Figure] = field(default_factory=list)
    thresholds: list[Evidence] = field(default_factory=list)
    compression: Compression | None = None


Exported = Callable[[Mapping[str, float]], onnx.ModelProto]  # a graph, by the divisor of its logits per survey


def release(folder: Path, data: TrainingSet, graph: Exported, exact: Exported | None = None) -> None:
    """Calibrates, exports and measures; writes the files of a model folder named name-version or name.

    exact: the same in float32, for what its compression costs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    undivided = {"ztf": 1.0, "lsst": 1.0}
    write(folder, graph(undivided), data, Measured(undivided))
    measured = Measured(evaluate.temperature(model.load(folder), data, CALIBRATION))
    print(f"temperature {measured.temperature}", flush=True)
    size = write(folder, graph(measured.temperature), data, measured)
    calibrated = model.load(folder)
    figures = list(evaluate.figures(calibrated, data))
    thresholds = list(evaluate.evidence(calibrated, data, CALIBRATION, TEST))
    cost = None
    if exact:
        with tempfile.TemporaryDirectory() as other:
            float32_size = write(Path(other), exact(measured.temperature), data, measured)
            cost = evaluate.compression(calibrated, model.load(Path(other)), data, (size, float32_size))
    for line in (*figures, *thresholds, *([cost] if cost else [])):
        print(line, flush=True)
    whole = Measured(measured.temperature, figures, thresholds, cost)
    write(folder, graph(measured.temperature), data, whole)
    write_golden(model.load(folder), data, folder / "golden.npz")
    (folder / PLOTS_FILE).write_text(plots.svg(model.load(folder), data, figures))


def exports(params: Params, shape: Shape, data: TrainingSet) -> tuple[Exported, Exported]:
    """Our network in int8, rounded to suit the training packets, and in float32."""
    wavelengths = {b: WAVELENGTH_NM[b] for b in BANDS}

    def exact(temperature: Mapping[str, float]) -> onnx.ModelProto:
        return export.graph(params, shape, wavelengths, temperature, int8=False)

    inputs = list(compress.inputs_of_matrices(exact({"ztf": 1.0, "lsst": 1.0}), _typical(data)))

    def int8(temperature: Mapping[str, float]) -> onnx.ModelProto:
        return export.graph(params, shape, wavelengths, temperature, inputs=inputs)

    return int8, exact


def remeasure(folder: Path, data: TrainingSet) -> None:
    """Thresholds and figures anew in the card of a released model; what its training and its export left stays."""
    text = (folder / model.CARD_FILE).read_text()
    card = tomllib.loads(text)
    released = model.load(folder)
    figures = list(evaluate.figures(released, data))
    thresholds = list(evaluate.evidence(released, data, CALIBRATION, TEST))
    for line in (*figures, *thresholds):
        print(line, flush=True)
    cost = [Compression(**{k: v for k, v in c.items() if k != "paper_bytes"}) for c in card.get("compression", [])]
    temperature = {survey: card[f"temperature_{survey}"] for survey in ("ztf", "lsst")}
    measured = Measured(temperature, figures, thresholds, next(iter(cost), None))
    # priors and numbers of objects are those of the training, which the data of today may not repeat
    kept = iter([block for block in text.split("\n\n") if block.startswith(OF_TRAINING)])
    blocks = "\n".join(card_lines(folder.name, card["sha256"], data, measured)).split("\n\n")
    blocks = [next(kept).rstrip("\n") if block.startswith(OF_TRAINING) else block for block in blocks]
    (folder / model.CARD_FILE).write_text("\n\n".join(blocks) + "\n")
    (folder / PLOTS_FILE).write_text(plots.svg(released, data, figures))


def _typical(data: TrainingSet) -> LightCurves:
    """Training packets of every set and length, N_TYPICAL at most: what int8 rounding is fitted to."""
    rng = np.random.default_rng(0)
    parts = [evaluate.packets(data, TRAIN, k) for k in evaluate.CUTS]
    chosen = []
    for part in parts:
        weight = 1 / np.bincount(part.origin)[part.origin]
        n = min(N_TYPICAL // len(parts), len(weight))
        chosen.append(part.curves.take(np.sort(rng.choice(len(weight), n, replace=False, p=weight / weight.sum()))))
    return LightCurves.concatenate(chosen)


def write(folder: Path, graph: onnx.ModelProto, data: TrainingSet, measured: Measured) -> int:
    """Writes graph and card; returns the bytes of the graph."""
    path = folder / model.MODEL_FILE
    size = export.write(graph, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    (folder / model.CARD_FILE).write_text("\n".join(card_lines(folder.name, digest, data, measured)) + "\n")
    return size


def card_lines(name: str, digest: str, data: TrainingSet, measured: Measured) -> Iterator[str]:
    """The card as lines of TOML. Without thresholds (not yet measured) every verdict passes."""
    head: dict[str, Any] = {"name": name, "version": "1", "sha256": digest, "rules_version": lightcurve.RULES_VERSION}
    head |= {"max_points": MAX_POINTS, "min_points": MIN_POINTS, "split_rule": split.RULE}
    head |= {f"temperature_{survey}": round(divisor, 4) for survey, divisor in measured.temperature.items()}
    yield "# Model card, written by models.training.release. Figures are of held-out objects only."
    yield from (f"{key} = {_toml(value)}" for key, value in head.items())
    yield f"weaknesses = {_toml([*WEAKNESSES.get(name, ()), *OF_DATA])}"
    weight = augment.class_weights(data) * (data.about.label >= 0)
    for i, c in enumerate(CLASSES):
        prior = float(weight[data.about.label == i].sum() / weight.sum())
        yield from _table("classes", {"name": c, "taxonomy_id": TAXONOMY_IDS[c], "prior": round(prior, 4)})
    for band in BANDS:
        yield from _table("bands", {"name": band, "wavelength_nm": WAVELENGTH_NM[band]})
    unknown = [Evidence(s, 1, 0.0, 0.0, 0, np.nan, np.nan, 0, np.nan, 0) for s in ("ztf", "lsst")]
    for e in measured.thresholds or unknown:
        row: dict[str, Any] = {"survey": e.survey, "min_detections": e.min_detections, "probability": e.probability}
        row |= {
            "transient": e.transient,
            "n_calibration": e.n_calibration,
            "test_accuracy": e.accuracy,
            "test_answered": e.answered,
        }
        row |= {"n_test": e.n_test, "test_false_transients": e.false_transients, "n_test_steady": e.n_steady}
        yield from _table("not_enough_evidence", row)
    if measured.compression:
        yield from _table("compression", asdict(measured.compression) | {"paper_bytes": PAPER_BYTES})
    yield from _training_data(data)
    for f in measured.figures:
        row = {"set": f.name, "n_detections": f.n_detections or "all", "n_objects": f.n_objects}
        keys = ("macro_f1", "low", "high", "within", "accuracy_within", "ece", "recall", "chance")
        yield from _table("figures", row | {k: getattr(f, k) for k in keys if np.isfinite(getattr(f, k))})


def _training_data(data: TrainingSet) -> Iterator[str]:
    label = data.about.label
    for i, source in enumerate(SETS):
        of_set = (data.about.origin == i) & (data.split == TRAIN)
        row: dict[str, Any] = {"name": source.name, "licence": source.licence}
        if isinstance(source.permitted, str) and data.about.permitted[of_set].all():
            row["part"] = source.permitted  # nothing else of the set taught
        row |= {"zero_point": source.zero_point}
        row |= {"positions": source.has_positions, "n_labelled": int((of_set & (label >= 0)).sum())}
        row |= {"n_outliers": int((of_set & (label == OUTLIER)).sum())}
        if not of_set.any():
            continue
        yield from _table("training_data", row | {"n_unlabelled": int((of_set & (label == UNLABELLED)).sum())})


def _table(key: str, row: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"[[{key}]]"
    yield from (f"{k} = {_toml(v)}" for k, v in row.items() if not (isinstance(v, float) and np.isnan(v)))


def _toml(value: Any) -> str:
    """TOML of strings, numbers and lists; JSON's spelling is the same for them."""
    if isinstance(value, list):
        return "[\n" + "".join(f"  {_toml(v)},\n" for v in value) + "]"
    return repr(round(value, 4)) if isinstance(value, float) else json.dumps(value)


def write_golden(released: model.Model, data: TrainingSet, path: Path) -> None:
    """Light curves of permissively licensed test objects with the probabilities of the released file."""
    rng = np.random.default_rng(0)
    parts = []
    for k in evaluate.CUTS:
        p = evaluate.packets(data, TEST, k)
        rows = np.flatnonzero(np.isin(p.origin, [SET_NAMES.index(s) for s in GOLDEN_SETS]))
        parts.append(p.curves.take(np.sort(rng.permutation(rows)[: N_GOLDEN // len(evaluate.CUTS)])))
    curves = LightCurves.concatenate(parts)
    columns = {name: getattr(curves, name) for name in LightCurves.__dataclass_fields__}
    np.savez_compressed(path, allow_pickle=False, **columns, probabilities=released.predict(curves))


def readme_table(folder: Path) -> Iterator[str]:
    """Markdown table of a model's figures, from its card."""
    card = tomllib.loads((folder / model.CARD_FILE).read_text())
    size = (folder / model.MODEL_FILE).stat().st_size
    yield f"## {card['name']}, version {card['version']}"
    yield ""
    yield f"![Scores, reliability, confusion of {card['name']}]({folder.name}/{PLOTS_FILE})"
    yield ""
    yield f"{size:,} bytes, {len(card['classes'])} classes: {', '.join(c['name'] for c in card['classes'])}."
    for cost in card.get("compression", []):
        yield from _cost_of_int8(cost)
    yield ""
    yield "| held-out set | objects | 1 detection | 3 | 10 | all | chance (all) |"
    yield "|---|---|---|---|---|---|---|"
    for name in dict.fromkeys(f["set"] for f in card["figures"]):
        cells = {f["n_detections"]: f for f in card["figures"] if f["set"] == name}
        shown = [_cell(cells.get(k)) for k in (1, 3, 10, "all")]
        last = cells["all"]
        yield f"| {name} | {last['n_objects']} | {' | '.join(shown)} | {last['chance']:.2f} |"
    yield ""
    yield "| held-out set, all detections | macro-F1 within its classes | accuracy within | calibration error |"
    yield "|---|---|---|---|"
    for f in card["figures"]:
        if f["n_detections"] == "all" and "within" in f:
            yield f"| {f['set']} | {f['within']:.2f} | {f['accuracy_within']:.2f} | {f['ece']:.3f} |"
    yield ""
    yield "| survey | detections | probability | of all transients | right | answered | packets | false transients |"
    yield "|---|---|---|---|---|---|---|---|"
    for e in card["not_enough_evidence"]:
        right = f"{e['test_accuracy']:.2f}" if "test_accuracy" in e else "-"
        false = f"{e['test_false_transients']:.3f} of {e['n_test_steady']}" if e["n_test_steady"] else "-"
        worth = f"{right} | {e.get('test_answered', 0):.2f} | {e['n_test']} | {false}"
        least = f"{e['probability']:.3f} | {e['transient']:.3f}"
        yield f"| {e['survey']} | from {e['min_detections']} | {least} | {worth} |"


def _cost_of_int8(c: Mapping[str, Any]) -> Iterator[str]:
    sizes = f"{c['int8_bytes']:,} bytes against {c['float32_bytes']:,} (the paper's file has {c['paper_bytes']:,})"
    same = f"the same class in {c['agreement']:.1%} of {c['n_packets']:,} held-out packets"
    f1 = f"macro-F1 over all of them {c['int8_macro_f1']:.4f} against {c['float32_macro_f1']:.4f}"
    yield f"int8 against float32 weights: {sizes}; {same};"
    yield f"{f1}; largest change of a probability {c['largest_change']:.2f}."


def _cell(figure: Mapping[str, Any] | None) -> str:
    if figure is None:
        return "-"
    if "recall" in figure:
        return f"recall {figure['recall']:.2f}"
    return f"{figure['macro_f1']:.2f} [{figure['low']:.2f}, {figure['high']:.2f}]"


README = """# Released models

`t2b-1` is the one to use. `t2b-1-open` is its twin, taught by light curves under MIT, Apache-2.0 or BSD alone, for
those to whom that matters: as good on simulated LSST, not fit for a real stream. `t2-paper` is the network of the paper
that this project starts from (arXiv:2303.08951), retrained on today's objects, so that it can be compared. It takes raw
points, too: its grid of 100 times and 6 bands, by a Gaussian process (Matern-3/2 in time and wavelength, 20 days and
600 nm), is made inside the graph.

One folder per model: `model.onnx` (all preprocessing inside), `card.toml` (what it needs and promises), `golden.npz`
(light curves of permissively licensed sets with the probabilities they must give), `figures.svg`. This page is
generated from the cards by `python -m models.training.release models`; how they are made and what was tried is in
[training/](training/README.md).

Score: macro-F1 with all classes of the model as possible answers, [95 % interval over objects]; recall for sets of
one class. The newest point of each packet is its n-th detection; histories reach back 30 days (ztf sets) or 12
months. Chance: the same answers given to the wrong objects; for recall, how often the other sets get that class.
Within: only the set's own classes count as possible answers. False transients: share of the packets of real variable
stars, AGN and asteroids (ztf_fink_labelled) that would be answered as a supernova or TDE.

Probabilities assume the training prior of each class, which is in the card. For a stream with prior q, multiply each
probability by q / prior and divide by the sum over the classes:
[a worked example](../docs/python.md#another-mix-of-classes).
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder to write, or the folder of released models")
    parser.add_argument("--data", type=Path, help="folder of the labelled sets")
    parser.add_argument("--weights", type=Path, help="what models.training.train wrote")
    arguments = parser.parse_args()
    models = arguments.folder
    if arguments.data:
        shape = Shape(len(CLASSES))
        data = dataset.load_for(arguments.folder.name, arguments.data)
        if arguments.weights:
            params = network.restore(arguments.weights, shape)
            release(arguments.folder, data, *exports(params, shape, data))
        else:
            remeasure(arguments.folder, data)
        models = arguments.folder.parent
    lines = [README.rstrip("\n")]
    for card in sorted(models.glob(f"*/{model.CARD_FILE}")):
        lines += ["", *readme_table(card.parent)]
    (models / "README.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
