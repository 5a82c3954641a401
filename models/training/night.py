"""A night as it is: what the broker would say of real ZTF alerts whose classes are not those of the training sets.

    python -m models.training.night --data ../shared/datasets --model t2b-1 --out models/training

The packets of ztf_fink_labelled go through the broker as they came. Writes NIGHT.md and, per model, night-NAME.png with
the light curve of every alert of the unbiased night that is called a transient. It is a training set of the
released models, so figures of labelled classes are given for the test side apart.
"""

import argparse
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from broker import classes, split
from broker import model as models
from broker.lightcurve import BANDS, LightCurves
from broker.verdict import CLASSIFIED
from models.training import alerts
from models.training.alerts import Judged

SET = "ztf_fink_labelled"
KINDS = {
    "variable stars": ("CEP_DSCT", "CV", "EB", "LPV", "ROT_FLARE", "RRL", "STAR_OTHER", "YSO"),
    "AGN": ("AGN",),
    "asteroids": ("SSO",),
    "supernovae and TDEs": ("SNIa", "SNII", "SNIbc", "SLSN", "TDE"),
    "unlabelled": ("",),
}
NOT_TRANSIENT = ("variable stars", "AGN", "asteroids")
TRANSIENTS = tuple(e.name for e in classes.TABLE if e.level == classes.TRANSIENT)
MOST_PLOTS = 60
COLUMNS = 5
COLOURS = {"g": "tab:green", "r": "tab:red", "i": "tab:brown"}
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class Night:
    """The alerts of the set and what is known of them, (n,) each.

    label: class_broad, "" where there is none; is_test: the object is on the test side; is_negative: the alert itself
    is fainter than the template; called: classified as a transient; would: the model's best class is one, whatever the
    floors; about: rows of the set's metadata.
    """

    judged: Judged
    label: NDArray[np.str_]
    of_night: Flags
    is_test: Flags
    is_negative: Flags
    called: Flags
    would: Flags
    about: pd.DataFrame

    @property
    def without_positive(self) -> Flags:
        """Packets whose detections are all fainter than the template: no new light, whatever the label says."""
        return np.array([r.get("n_positive_detections", 0) == 0 for r in self.judged.records], np.bool_)

    def of_kind(self, kind: str) -> Flags:
        """Alerts whose label is of this kind."""
        return np.isin(self.label, KINDS[kind])


def read(folder: Path, name: str) -> Night:
    """All alerts of the set with the verdicts of a model."""
    judged = alerts.judge(folder / "alerts.parquet", "ztf", models.find(name))
    meta = pd.read_parquet(folder / "metadata.parquet")
    row = pd.Index(meta["object_id"]).get_indexer(pd.Index(judged.alerts.field("objectId").to_pylist()))
    status, best = (np.array(judged.column(column, ""), object) for column in ("status", "class_name"))
    would = np.isin(best.astype(str), TRANSIENTS)
    return Night(
        judged,
        meta["class_broad"].fillna("").to_numpy(str)[row],
        meta["unbiased_night"].to_numpy(bool)[row],
        (alerts.sides(meta, SET) == split.TEST)[row],
        np.array(judged.column("is_negative", False), bool),
        would & (status == CLASSIFIED),
        would,
        meta.iloc[row].reset_index(drop=True),
    )


def labelled_table(night: Night) -> Iterator[str]:
    """Markdown: of each kind, how many are called a transient; test side and all, positive and negative alerts."""
    yield "| labelled | objects' side | alerts | called a transient | 95 % | the model alone would |"
    yield "|---|---|---|---|---|---|"
    kinds = [(kind, night.of_kind(kind)) for kind in NOT_TRANSIENT]
    together = np.logical_or.reduce([flags for _, flags in kinds])
    supernova, dark = night.of_kind("supernovae and TDEs"), night.without_positive
    kinds += [("these three together", together), ("supernovae and TDEs", supernova & ~dark)]
    kinds += [("the same, no positive detection", supernova & dark), ("any, no positive detection", dark)]
    for kind, of_kind in kinds:
        for side, chosen in (("test", night.is_test), ("all", np.ones(len(night.label), np.bool_))):
            yield f"| {kind} | {side} | {_shares(night, of_kind & chosen)} |"
    for sign, chosen in (("positive", ~night.is_negative), ("negative", night.is_negative)):
        yield f"| of the three, {sign} alerts | all | {_shares(night, together & chosen)} |"


def _shares(night: Night, chosen: Flags) -> str:
    n, called, would = int(chosen.sum()), night.called[chosen], night.would[chosen]
    if not n:
        return "0 | - | - | -"
    low, high = wilson(int(called.sum()), n)
    cells = (f"{int(flags.sum())} ({flags.mean():.1%})" for flags in (called, would))
    return f"{n} | {next(cells)} | {low:.1%} to {high:.1%} | {next(cells)}"


def wilson(k: int, n: int) -> tuple[float, float]:
    """95 % interval of a share by Wilson's score: resampling gives none where nothing or everything was found."""
    z, share = 1.96, k / n
    centre = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    return max(float((centre - half) / (1 + z**2 / n)), 0.0), float((centre + half) / (1 + z**2 / n))


def night_table(night: Night) -> Iterator[str]:
    """Markdown: what becomes of the alerts of the unbiased night, by the sign of the alert."""
    yield "| verdict | positive alerts | negative alerts |"
    yield "|---|---|---|"
    verdicts = [
        f"classified as {r['class_name']}" if r["status"] == CLASSIFIED else f"{r['status']}: {r['reason']}"
        for r in night.judged.records
    ]
    count = Counter(
        (v, bool(s)) for v, s, here in zip(verdicts, night.is_negative, night.of_night, strict=True) if here
    )
    for verdict in sorted({v for v, _ in count}, key=lambda v: (not v.startswith("classified"), v)):
        yield f"| {verdict} | {count[verdict, False]} | {count[verdict, True]} |"
    sums = [int((night.of_night & (night.is_negative == sign)).sum()) for sign in (False, True)]
    yield f"| all | {sums[0]} | {sums[1]} |"
    called = night.of_night & night.called
    sums = [int((called & (night.is_negative == sign)).sum()) for sign in (False, True)]
    yield f"| called a transient | {sums[0]} | {sums[1]} |"
    sums = [int((called & night.without_positive & (night.is_negative == sign)).sum()) for sign in (False, True)]
    yield f"| of these, without a positive detection in the packet | {sums[0]} | {sums[1]} |"


def called_table(night: Night, rows: NDArray[np.intp]) -> Iterator[str]:
    """Markdown: every alert of the night that is called a transient."""
    yield "| | object, side | label | called | prob. | detections (positive) | nights, days | sgscore1, parallax |"
    yield "|---|---|---|---|---|---|---|---|"
    for number, row in enumerate(rows.tolist(), 1):
        r = night.judged.records[row]
        side = "test" if night.is_test[row] else "other"
        star, parallax = (float(night.about[column].iloc[row]) for column in ("sgscore1", "parallax"))
        called = f"{night.label[row] or '-'} | {r['class_name']} | {r['probability']:.2f}"
        counts = f"{r['n_detections']} ({r['n_positive_detections']}) | {r['n_nights']}, {r['span_days']:.0f}"
        nearest = f"{star:.2f}, {'-' if np.isnan(parallax) else f'{parallax:.2f}'}"
        yield f"| {number} | {r['object_id']}, {side} | {called} | {counts} | {nearest} |"


def called_rows(night: Night) -> NDArray[np.intp]:
    """Alerts of the unbiased night that are called a transient, most probable first."""
    rows = np.flatnonzero(night.of_night & night.called)
    probability = np.array([night.judged.records[i]["probability"] for i in rows])
    return rows[np.argsort(-probability, kind="stable")]


def plot(night: Night, rows: NDArray[np.intp], path: Path) -> None:
    """One panel per alert: difference flux of all its points against days before the alert."""
    rows = rows[:MOST_PLOTS]
    curves = night.judged.curves(rows.tolist())
    n_lines = max(-(-len(rows) // COLUMNS), 1)
    figure = Figure(figsize=(2.2 * COLUMNS, 1.75 * n_lines), layout="constrained")
    for number, (row, i) in enumerate(zip(rows.tolist(), range(len(curves)), strict=True), 1):
        axes = figure.add_subplot(n_lines, COLUMNS, number)
        _panel(axes, curves.take(np.array([i])))
        axes.set_title(_title(number, night.judged.records[row], str(night.label[row])), fontsize=6.5)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _panel(axes: Axes, curve: LightCurves) -> None:
    days = curve.mjd_tai - curve.mjd_tai[-1]
    for letter, colour in COLOURS.items():
        for detected, marker in ((True, "o"), (False, "x")):
            here = np.array([BANDS[b][-1] == letter for b in curve.band], np.bool_) & (curve.detected == detected)
            if here.any():
                flux, error = curve.flux[here] / 1e3, curve.flux_err[here] / 1e3
                axes.errorbar(days[here], flux, error, fmt=marker, color=colour, markersize=2.5, linewidth=0.7)
    axes.axhline(0, color="0.7", linewidth=0.5)
    axes.set_xlim(-31, 1)
    axes.tick_params(labelsize=5)


def _title(number: int, record: dict[str, Any], label: str) -> str:
    return f"{number}: {record['object_id']} ({label or '-'})\n{record['class_name']} {record['probability']:.2f}"


HEAD = """# A night as it is

Written by `python -m models.training.night` (its first lines say how). Real ZTF alerts with catalogue labels
(ztf_fink_labelled, Apache-2.0), as packets of 30 days, through the broker with its default policy; "called a transient"
is status `classified` with a class of the first level transient (SN, SLSN, TDE, kilonova). "The model alone would": its
best class is one, before the floors (solar system, too short a time between detections, reliability, evidence).
Intervals: 95 % by Wilson's score, as if alerts were independent; most objects have one. Some catalogue labels are
wrong, and a supernova that shines in the reference image leaves a steady negative difference for years: packets without
a positive detection are given apart, and calling one a transient is a mistake whatever its label. Objects of the
training side are known to the model: the test side is what counts.
"""
NIGHT = """
## {name}: the unbiased night

All public alerts of 2024-01-15 that the set holds, their mix of classes as it came: {n} alerts of {objects} objects,
{unlabelled} of the alerts unlabelled. {called} of the {n} ({share:.1%}) are called a transient{shown}.
In the page: difference flux in uJy against days before the alert; crosses are points that do not count as detections.
"""
CALLED = """
sgscore1 is PS1's score of the nearest source, 1 for a star and 0 for a galaxy; parallax (mas) that of Gaia's nearest.
"""


def report(night: Night, name: str, folder: Path) -> Iterator[str]:
    """Markdown of one model; writes its page of plots into the folder."""
    yield f"\n## {name}: labelled alerts\n"
    yield from labelled_table(night)
    mistaken = np.logical_or.reduce([night.of_kind(kind) for kind in NOT_TRANSIENT]) & night.called
    if mistaken.any():
        yield "\nThe variable stars, AGN and asteroids that are called a transient:\n"
        yield from called_table(night, np.flatnonzero(mistaken))
    rows = called_rows(night)
    picture = folder / f"night-{name}.png"
    picture.unlink(missing_ok=True)
    if len(rows):
        plot(night, rows, picture)
    here = night.of_night
    objects = {r.get("object_id") for r, inside in zip(night.judged.records, here, strict=True) if inside}
    yield NIGHT.format(
        name=name, n=int(here.sum()), objects=len(objects), unlabelled=int((here & (night.label == "")).sum()),
        called=len(rows), share=len(rows) / here.sum(),
        shown=f": [their light curves]({picture.name})" if len(rows) else "",
    )  # fmt: skip
    yield from night_table(night)
    if len(rows):
        yield CALLED
        yield from called_table(night, rows)


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of the labelled sets")
    parser.add_argument("--model", action="append", required=True, help="released model or folder; may be repeated")
    parser.add_argument("--out", type=Path, required=True, help="folder to write NIGHT.md and the pages of plots to")
    arguments = parser.parse_args()
    lines = [HEAD.rstrip("\n")]
    for name in arguments.model:
        lines += report(read(arguments.data / SET, name), Path(name).name, arguments.out)
    (arguments.out / "NIGHT.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
