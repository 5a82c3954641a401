"""The light curve behind a record: the alert is fetched from its own topic, and drawn in the terminal or as PNG."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from broker import surveys
from broker.config import Policy
from broker.deadletter import letter_of, record_at, struct_of
from broker.errors import UsageError
from broker.gather import gather
from broker.lightcurve import AB_ZERO_POINT_NJY, BANDS, Floats, LightCurves, merge
from broker.outlets.native import SchemaOf
from broker.reading import decode
from broker.recognise import survey_of_value
from broker.reconcile import place_of
from broker.second_reader import Refusal, read
from broker.topics import read_all

MAX_ALERT_BYTES = 2**25  # the job has its own limit; what it has answered may be drawn
_COLOURS = {"u": "magenta", "g": "green", "r": "red", "i": "darkorange", "z": "brown", "y": "black"}
_EXTRA = "drawing needs two libraries more: pip install 't2-broker[plot]'"


@dataclass(frozen=True)
class Drawing:
    """One light curve and what was said of it."""

    title: str
    curve: LightCurves

    def days(self) -> Floats:
        """Days of each point before the newest one."""
        days: Floats = self.curve.mjd_tai - self.curve.mjd_tai.max(initial=-np.inf)
        return days


def drawing(options: Mapping[str, str], topic: str, object_id: str, schema_of: SchemaOf) -> Drawing:
    """Of the newest record of an object. Raises UsageError where there is none, or its alert can't be had."""
    newest = None
    for message in read_all(options, topic):
        record = decode(message, schema_of)
        if object_id in _ids(record) and (newest is None or message.timestamp()[1] >= newest[0].timestamp()[1]):
            newest = message, record
    if newest is None:
        raise UsageError(f"topic {topic!r} has no record of object {object_id!r}")
    letter = letter_of(newest[0])
    alert, model = letter.text("alert"), letter.text("model")
    curve = _curve(options, alert, str(newest[1].get("survey") or ""))
    said = (newest[1].get(name) for name in ("class_name", "probability", "status"))
    return Drawing(", ".join((object_id, *(_short(word) for word in said if word is not None), model, alert)), curve)


def _ids(record: Mapping[str, Any]) -> set[str]:
    """By what an object is called in the forms that name it."""
    inner = record.get("diaObject") or {}
    found = (record.get("object_id"), record.get("objectId"), inner.get("diaObjectId"))
    return {str(name) for name in found if name is not None}


def _short(word: object) -> str:
    return f"{word:.2f}" if isinstance(word, float) else str(word)


def _curve(options: Mapping[str, str], alert: str, survey: str) -> LightCurves:
    """Points of an alert by its coordinates, as the model saw them but for thinning."""
    where, _, offset = alert.rpartition(":")
    place = place_of(where.encode())
    if place is None or not offset.isdecimal():
        raise UsageError(f"the record does not say which alert it is of (header alert = {alert!r})")
    message = record_at(options, place.topic, place.partition, int(offset))
    if message is None:
        raise UsageError(f"the alert of the record, {alert}, is on its topic no more")
    value, key = message.value() or b"", message.key()
    name = survey if survey in surveys.NAMES else survey_of_value(value, key)
    if name is None:
        raise UsageError(f"whose alert {alert} is can't be told from its bytes")
    table = surveys.find(name)
    found = read(value, table, MAX_ALERT_BYTES, struct_of(table), key)
    if isinstance(found, Refusal):
        raise UsageError(f"alert {alert} can't be read: {found.reason}: {found.detail}")
    settings = Policy().model_dump() | {"zero_point": AB_ZERO_POINT_NJY, "programids": (1, 2, 3)}
    gathered = gather(found.alert, table, settings)
    return merge(gathered.points, 1, gathered.mjd_tai)[0]


def in_terminal(drawn: Drawing) -> str:
    """Flux in nJy over days as characters: capitals are detections, small letters forced photometry."""
    try:
        import plotext
    except ImportError as error:
        raise UsageError(_EXTRA) from error
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(100, 26)
    plotext.title(drawn.title)
    plotext.xlabel("days from the newest point; capitals: detections, small letters: forced photometry")
    plotext.ylabel("difference flux, nJy")
    curve, days = drawn.curve, drawn.days()
    for code, band in enumerate(BANDS):
        for detected in (False, True):
            mine = (curve.band == code) & (curve.detected == detected)
            if mine.any():
                letter = band[-1].upper() if detected else band[-1]
                plotext.scatter(days[mine].tolist(), curve.flux[mine].tolist(), marker=letter)
    return str(plotext.uncolorize(plotext.build()))


def as_png(drawn: Drawing, file: Path) -> None:
    """The same with errors, one colour a band; filled: detections. Raises UsageError."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UsageError(_EXTRA) from error
    figure = Figure(figsize=(9, 5), dpi=120, layout="constrained")
    axes = figure.subplots()
    curve, days = drawn.curve, drawn.days()
    for code, band in enumerate(BANDS):
        colour = _COLOURS[band[-1]]
        for detected, face in ((False, "none"), (True, colour)):
            mine = (curve.band == code) & (curve.detected == detected)
            if mine.any():
                axes.errorbar(
                    days[mine], curve.flux[mine], curve.flux_err[mine],
                    fmt="o", markersize=4, color=colour, markerfacecolor=face, linewidth=0.8,
                    linestyle="none", label=f"{band}{'' if detected else ', forced'}",
                )  # fmt: skip
    axes.axhline(0, color="0.7", linewidth=0.8, zorder=0)
    axes.set(title=drawn.title, xlabel="days from the newest point", ylabel="difference flux, nJy")
    axes.title.set_fontsize(9)
    if len(curve.mjd_tai):
        axes.legend(fontsize=8)
    try:
        figure.savefig(file)
    except OSError as error:
        raise UsageError(f"--output {file}: can't be written: {error}") from error
