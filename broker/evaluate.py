"""`broker evaluate`: figures of models on a labelled set of light curves, through the code that serves.

Each object is cut to packets as its survey would have sent them: the newest point is a detection, the history reaches
back 30 days (ZTF) or 12 months (LSST). Which detection: the k-th, the last of the k-th night, the newest within so many
days of the first, or the last of all. docs/evaluate.md says what each figure means.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

from broker import classes, figures, labelled, split
from broker import model as models
from broker.errors import UsageError
from broker.figures import Figures, Said
from broker.labelled import Labelled, Options
from broker.lightcurve import RULES_VERSION, WINDOW_D, Integers, LightCurves, cut, night_of, summarise
from broker.model import Card, Model

DETECTIONS = ("1", "2", "3", "5", "10", "all")
NIGHTS = (1, 2, 3, 5, 10)
DAYS = (0, 1, 3, 7, 14, 30)
PACKETS_PER_CALL = 4096


@dataclass(frozen=True)
class Packets:
    """What a model said of m packets: flat index of the newest point, sorted; is it sure enough for a verdict."""

    newest: Integers
    probability: NDArray[np.float32]
    evident: NDArray[np.bool_]


def evaluate(
    folder: Path,
    names: list[str],
    options: Options,
    detections: tuple[str, ...] = DETECTIONS,
    prior: str = "set",
    *,
    held_out: bool = False,
) -> dict[str, Figures]:
    """Figures of each model by group: "1", ..., "all", "nights:3", "days:7", and "about", what they were made of.

    Raises UsageError, ModelError or ArchiveError saying what can't be read or is not known.
    """
    wanted = parse_detections(detections)
    loaded = {name: models.load(models.find(name)) for name in names}
    known = {t.name: t.zero_point for m in loaded.values() for t in m.card.training_data}
    data = labelled.read(folder, options, known)
    found: dict[str, Figures] = {}
    said: dict[str, dict[str, Said]] = {}
    for name, model in loaded.items():
        key = model.card.name if model.card.name not in found else name
        found[key], said[key] = _of_model(data, model, wanted, prior, held_out)
        first = next(iter(said))
        if key != first:
            for group, own in said[key].items():
                found[key][group]["difference"] = {first: figures.difference(own, said[first][group])}
    return found


def parse_detections(wanted: tuple[str, ...]) -> tuple[int, ...]:
    """Numbers of detections, 0 for "all". Raises UsageError for anything else."""
    if not wanted or not all(w == "all" or (w.isascii() and w.isdigit() and int(w) > 0) for w in wanted):
        raise UsageError(f"--detections {','.join(wanted)!r}: numbers from 1 on and all, as {','.join(DETECTIONS)}")
    return tuple(dict.fromkeys(0 if w == "all" else int(w) for w in wanted))


def triggers(curves: LightCurves, detections: tuple[int, ...]) -> dict[str, Integers]:
    """Flat index of the newest point of each object's packet by group, -1 where the object never had such a packet."""
    found = np.flatnonzero(curves.detected)
    first = np.searchsorted(found, curves.offsets)
    n_found = np.diff(first)
    rows, mjd = curves.rows[found], curves.mjd_tai[found]
    night = night_of(mjd)
    is_new = np.ones(len(found), np.bool_)
    is_new[1:] = (np.diff(night) != 0) | (np.diff(rows) != 0)
    total = np.append(0, np.cumsum(is_new))
    ordinal = total[1:] - total[first[:-1]][rows]
    n_nights = np.diff(total[first])
    since = mjd - mjd[np.minimum(first[:-1], max(len(found) - 1, 0))][rows] if len(found) else mjd

    def at(count: Integers, valid: NDArray[np.bool_]) -> Integers:
        place = np.full(len(curves), -1, np.int64)
        rows_with = np.flatnonzero(valid & (count > 0))
        place[rows_with] = found[first[:-1][rows_with] + count[rows_with] - 1]
        return place

    everyone = np.ones(len(curves), np.bool_)
    groups = {str(k) if k else "all": at(np.full(len(curves), k) if k else n_found, n_found >= k) for k in detections}
    for n in NIGHTS:
        groups[f"nights:{n}"] = at(np.bincount(rows[ordinal <= n], minlength=len(curves)), n_nights >= n)
    for d in DAYS:
        groups[f"days:{d}"] = at(np.bincount(rows[since <= d], minlength=len(curves)), everyone)
    return groups


def answer(model: Model, curves: LightCurves, newest: Integers, survey: str) -> Packets:
    """The model's answers to the survey's packets whose newest points are these (flat indices, sorted, no repeats)."""
    rows = curves.rows[newest]
    probability = np.empty((len(newest), len(model.card.classes)), np.float32)
    evident = np.empty(len(newest), np.bool_)
    for start in range(0, len(newest), PACKETS_PER_CALL):
        part = slice(start, start + PACKETS_PER_CALL)
        packets = cut(curves.take(rows[part]), curves.mjd_tai[newest[part]], WINDOW_D[survey])
        probability[part] = model.predict(packets)
        evident[part] = model.card.evident(survey, probability[part], summarise(packets))
        evident[part] &= packets.counts >= model.card.min_points
    return Packets(newest, probability, evident)


def _of_model(
    data: Labelled, model: Model, detections: tuple[int, ...], prior: str, held_out: bool
) -> tuple[Figures, dict[str, Said]]:
    started = time.monotonic()
    names = tuple(c.name for c in model.card.classes)
    index, left_out = _labels(data, names)
    is_seen = np.bincount(data.curves.rows[data.curves.detected], minlength=len(data.curves)) > 0
    left_out["never detected"] = int(((index >= 0) & ~is_seen).sum())
    kept = (index >= 0) & is_seen
    side, warning = _sides(data, model.card)
    if held_out:
        if side is None:
            raise UsageError(f"--held-out: {warning}")
        left_out["not held out"] = int((kept & (side != split.TEST)).sum())
        kept &= side == split.TEST
    rows = np.flatnonzero(kept)
    curves, label = data.curves.take(rows), index[rows]
    groups = triggers(curves, detections)
    newest = np.unique(np.concatenate(list(groups.values())))
    packets = answer(model, curves, newest[newest >= 0], data.survey)
    shares = figures.prior_shares(prior, names, label)
    about = _about(data, model, left_out, {n: s for n, s in zip(names, shares.tolist(), strict=True) if s > 0})
    about |= {"n_objects": len(rows), "held_out": held_out}
    about["warnings"] = [] if held_out or warning is None else [_trained_on(data, model.card, side, kept, warning)]
    found: Figures = {}
    said: dict[str, Said] = {}
    for group, point in groups.items():
        chosen = np.flatnonzero(point >= 0)
        place = np.searchsorted(packets.newest, point[chosen])
        probability = packets.probability[place].astype(np.float64)
        said[group] = Said(names, rows[chosen], label[chosen], probability, packets.evident[place])
        found[group] = figures.of_group(said[group], shares)
    about["seconds"] = round(time.monotonic() - started, 1)
    return found | {"about": about}, said


def _labels(data: Labelled, names: tuple[str, ...]) -> tuple[Integers, dict[str, int]]:
    """Index among the model's classes of each object, -1 where it has none; and how many have none, by reason."""
    index = {name: classes.in_model(name, names) for name in set(data.label) if name is not None}
    found = np.array([-1 if name is None else index[name] for name in data.label], np.int64)
    lost = Counter(
        "unlabelled" if ours is None else f"class {written if ours == '?' else ours}: the model has none such"
        for ours, written, i in zip(data.label, data.written, found.tolist(), strict=True)
        if i < 0
    )
    return found, dict(lost.most_common())


def _sides(data: Labelled, card: Card) -> tuple[NDArray[np.int8] | None, str | None]:
    """Side of each object in the model's split, or None and why it is not known; (None, None): not a training set."""
    if not card.training_data:
        return None, f"the card of {card.name} names no training sets"
    source = next((t for t in card.training_data if t.name == data.name), None)
    if source is None:
        sets = ", ".join(t.name for t in card.training_data)
        return None, f"{card.name} was trained on {sets}; {data.name} is none of them by its name"
    if card.split_rule != split.RULE:
        return None, f"the card's split rule is {card.split_rule!r}, this broker knows {split.RULE!r}"
    nowhere = np.full(len(data.ra), np.nan)
    ra, dec = (data.ra, data.dec) if source.has_positions else (nowhere, nowhere)
    return split.sides(data.object_name, ra, dec), ""


def _trained_on(data: Labelled, card: Card, side: NDArray[np.int8] | None, kept: NDArray[np.bool_], reason: str) -> str:
    if side is None:
        return f"{reason}. Objects that are in them under another name can't be told apart"
    n_train, n_calibration, n_test = (
        int((side[kept] == s).sum()) for s in (split.TRAIN, split.CALIBRATION, split.TEST)
    )
    return (
        f"{data.name} is a training set of {card.name}. By its split ({split.RULE}) {n_train} of these objects are of "
        f"the training side and {n_calibration} of calibration: if the model was trained on them, the figures are too "
        f"good. --held-out keeps the {n_test} of the test side"
    )


def _about(data: Labelled, model: Model, left_out: dict[str, int], prior: Mapping[str, float]) -> Figures:
    card = model.card
    return {
        "dataset": data.name,
        "model": f"{card.name}@{card.version}",
        "sha256": card.sha256,
        "rules_version": RULES_VERSION,
        "survey": data.survey,
        "window_d": WINDOW_D[data.survey],
        "zero_point": data.zero_point,
        "label_column": data.label_column,
        "prior": prior,
        "left_out": {reason: n for reason, n in left_out.items() if n},
        "notes": list(data.notes),
    }


def check_output(path: Path) -> None:
    """Raises UsageError when there is no folder for this file: before the work, not after it."""
    if not path.absolute().parent.is_dir() or path.is_dir():
        raise UsageError(f"--json {str(path)!r}: needs a file name in a folder that exists")


def save(measured: Mapping[str, Figures], path: Path) -> None:
    """Writes the figures as JSON; what is not defined (a precision of a class never answered) is null."""
    path.write_text(json.dumps(_plain(measured), indent=1, allow_nan=False) + "\n")


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float | np.floating):
        return round(float(value), 5) if np.isfinite(value) else None
    return value


def show(measured: Mapping[str, Figures], out: Console) -> None:
    """Prints how the set was read, what was left out, warnings, the groups, and the classes at the last packet."""
    for name, of_model in measured.items():
        about = of_model["about"]
        reading = [*about["notes"], f"packets of {about['survey']}: {about['window_d']:g} days"]
        lines = [f"{name} on {about['dataset']}: {about['n_objects']} objects", *(f"  {note}" for note in reading)]
        lines += [f"  left out: {n} {reason}" for reason, n in about["left_out"].items()]
        lines += [f"warning: {text}" for text in about["warnings"]]
        out.print("\n".join(lines), markup=False, highlight=False)
        groups = {key: value for key, value in of_model.items() if key != "about"}
        titles = ("packet", "n", "macro-F1", "95 % of it", "loss", "acc.", "ECE", "answered", "right")
        table = Table(*(Column(title, no_wrap=True) for title in titles), box=None, pad_edge=False)
        for group, f in groups.items():
            low, high = f["macro_f1_interval"]
            columns = ("weighted_log_loss", "accuracy", "ece", "answer_rate", "answered_accuracy")
            row = (group, str(f["n"]), _cell(f["macro_f1"]), f"{_cell(low)} {_cell(high)}")
            table.add_row(*row, *(_cell(f[column]) for column in columns))
        out.print(table)
        _show_differences(name, groups, out)
        last = list(groups)[-1] if "all" not in groups else "all"
        out.print(_classes_table(last, groups[last]["classes"], about["prior"]))


def _show_differences(name: str, groups: Mapping[str, Figures], out: Console) -> None:
    """How much better the model is than the first one, where both have the same classes."""
    others = {other for f in groups.values() for other, gap in f.get("difference", {}).items() if gap}
    for other in sorted(others):
        titles = ("packet", f"macro-F1 of {name} - {other}", "95 %", "accuracy", "95 %")
        table = Table(*titles, box=None, pad_edge=False)
        for group, f in groups.items():
            gap = f["difference"][other]
            cells = ([f"{gap[key]:+.3f}", _signed(gap[f"{key}_interval"])] for key in ("macro_f1", "accuracy"))
            table.add_row(group, *(cell for pair in cells for cell in pair))
        out.print(table)


def _signed(pair: tuple[float, float]) -> str:
    return f"{pair[0]:+.3f} {pair[1]:+.3f}"


def _classes_table(group: str, found: Figures, prior: Mapping[str, float]) -> Table:
    columns = (
        "precision",
        "recall",
        "completeness_at_90_purity",
        "completeness_at_95_purity",
        "purity_at_50_completeness",
    )
    titles = ("precision", "recall", "complete at 90 % pure", "complete at 95 %", "pure at 50 % complete")
    table = Table(f"class ({group})", "prior", "n", *titles, box=None, pad_edge=False)
    for name, f in found.items():
        shares = [name, f"{prior.get(name, 0):.3f}", str(f["n"])]
        table.add_row(*shares, *(_cell(f.get(column, np.nan)) for column in columns))
    return table


def _cell(value: float) -> str:
    return f"{value:.3f}" if np.isfinite(value) else "-"
