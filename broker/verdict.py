"""A verdict: status, reason and probabilities of one alert. The lists are closed: appended to, never renamed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from broker.gather import Gathered, Settings
from broker.lightcurve import Bools, Integers, LightCurves, PointCounts, Summary
from broker.surveys import Survey

CLASSIFIED, ABSTAINED, REJECTED = "classified", "abstained", "rejected"
REASONS: dict[str, tuple[str, ...]] = {
    CLASSIFIED: ("ok",),
    ABSTAINED: (
        "no_photometry",
        "too_few_points",
        "not_enough_evidence",
        "out_of_distribution",
        "low_reliability",
        "bad_pixels",
        "injected",
        "withdrawn",
        "solar_system",
        "maybe_moving",
        "not_public",
    ),
    REJECTED: (
        "schema_unavailable",
        "damaged",
        "wrong_survey",
        "implausible_values",
        "empty",
        "too_large",
        "kills_reader",
    ),
}
EMPTY = f"{REJECTED}/empty"
_ANSWERS = (*REASONS[CLASSIFIED], *REASONS[ABSTAINED])  # reason codes of alerts that were read


def uncounted(learns_schemas: bool) -> frozenset[str]:
    """Rejections ("status/reason") that the limits on rejections pass over: they tell of nothing that is broken here.

    A value that is empty on purpose (a tombstone); an alert whose schema is not known yet, where the job asks for it.
    """
    return frozenset({EMPTY, f"{REJECTED}/schema_unavailable"} if learns_schemas else {EMPTY})


@dataclass(frozen=True)
class Coordinates:
    """Where each of n alerts came from: Arrow columns topic, partition, offset and timestamp (microseconds)."""

    topic: pa.Array
    partition: pa.Array
    offset: pa.Array
    timestamp: pa.Array


@dataclass(frozen=True)
class Verdicts:
    """What is known of n alerts that were read; reason int64 (n,): index into `answers`.

    gathered, curves, counts, summary: see lightcurve and gather; used int64 (n,): points that the model saw;
    probabilities float32 (n, classes), rows of NaN where the model did not run; schemas: labels of writer schemas;
    repeats: coordinates of an earlier alert of the same source, None without one (empty: nobody looked).
    """

    survey: Survey
    coordinates: Coordinates
    schemas: pa.Array
    gathered: Gathered
    curves: LightCurves
    counts: PointCounts
    used: Integers
    summary: Summary
    probabilities: npt.NDArray[np.float32]
    reason: Integers
    repeats: Sequence[str | None] = ()

    def __len__(self) -> int:
        return len(self.reason)

    def reasons(self) -> list[str]:
        """Reason of each verdict."""
        return [_ANSWERS[code] for code in self.reason]

    def statuses(self) -> list[str]:
        """Status of each verdict."""
        return [CLASSIFIED if code == 0 else ABSTAINED for code in self.reason]


def judge(
    gathered: Gathered,
    survey: Survey,
    settings: Settings,
    counts: PointCounts,
    summary: Summary,
    min_points: int,
    evident: Bools,
) -> Integers:
    """Reason code of each of n alerts, int64 (n,): the first of these that holds, else ok.

    The survey's floors in their order, no points, too few of them, maybe moving, not enough evidence (`evident`:
    the card's thresholds are reached, see `model.Card.evident`).
    """
    reason = np.zeros(len(counts.used), np.int64)

    def give(name: str, where: Bools) -> None:
        reason[(reason == 0) & where] = _ANSWERS.index(name)

    for index, floor in enumerate(survey.floors):
        give(floor.reason, gathered.floor == index)
    give("no_photometry", counts.used == 0)
    give("too_few_points", counts.used < min_points)
    span_minutes = (summary.last_detection - summary.first_detection) * 1440
    give("maybe_moving", ~(span_minutes >= settings["moving_min_minutes"]))
    give("not_enough_evidence", ~evident)
    return reason


def points_hashes(curves: LightCurves) -> list[str]:
    """Hash of the points of each curve, 16 hex digits: equal exactly when times, bands, fluxes and errors are."""
    columns = np.empty(
        len(curves.mjd_tai),
        [("mjd_tai", "<f8"), ("flux", "<f4"), ("flux_err", "<f4"), ("band", "i1"), ("detected", "?")],
    )
    for name in columns.dtype.names or ():
        columns[name] = getattr(curves, name)
    data, size = columns.tobytes(), columns.dtype.itemsize
    ends = curves.offsets * size
    return [hashlib.blake2b(data[a:b], digest_size=8).hexdigest() for a, b in pairwise(ends)]
