"""Judging: closed lists, the order of reasons, hashes of points."""

import math
from typing import Any

import numpy as np
import pytest
from decoding import policy
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import surveys
from broker.gather import Gathered
from broker.lightcurve import LightCurves, PointCounts, Points, Summary
from broker.verdict import ABSTAINED, CLASSIFIED, REASONS, REJECTED, Verdicts, judge, points_hashes, uncounted


def test_lists_are_closed() -> None:
    """Appended to, never renamed: consumers match on these words."""
    assert REASONS == {
        "classified": ("ok",),
        "abstained": (
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
        "rejected": (
            "schema_unavailable",
            "damaged",
            "wrong_survey",
            "implausible_values",
            "empty",
            "too_large",
            "kills_reader",
        ),
    }
    assert tuple(REASONS) == (CLASSIFIED, ABSTAINED, REJECTED)
    floors = {floor.reason for name in surveys.NAMES for floor in surveys.find(name).floors}
    assert floors <= set(REASONS[ABSTAINED])


# --- the order of reasons -----------------------------------------------------------------------------------------


def judged(
    survey: str, floor: int = -1, used: int = 5, minutes: float = 600.0, evident: bool = True, min_points: int = 3
) -> str:
    """Reason of one alert with these properties."""
    n = np.zeros(1, np.int64)
    time, empty = np.array([60_000.0]), np.zeros(0)
    nothing: list[Any] = [np.zeros(0)] * len(Points.__dataclass_fields__)
    gathered = Gathered(Points(*nothing), {}, time, np.zeros(1, np.int8), empty, empty, np.array([floor]))
    counts = PointCounts(n, n, np.array([used]))
    summary = Summary(n, n, n, time, time + minutes / 1440, time, time, n)
    table = surveys.find(survey)
    code = int(judge(gathered, table, policy(), counts, summary, min_points, np.array([evident]))[0])
    return (*REASONS[CLASSIFIED], *REASONS[ABSTAINED])[code]


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({}, "ok"),
        ({"evident": False}, "not_enough_evidence"),
        ({"minutes": 29.9}, "maybe_moving"),
        ({"minutes": 30.1}, "ok"),
        ({"minutes": math.nan}, "maybe_moving"),  # no detection, or a single one
        ({"minutes": 0.0, "evident": False}, "maybe_moving"),
        ({"used": 2}, "too_few_points"),
        ({"used": 2, "minutes": 0.0, "evident": False}, "too_few_points"),
        ({"used": 0}, "no_photometry"),
        ({"used": 0, "minutes": math.nan, "evident": False}, "no_photometry"),
    ],
)
def test_order_of_reasons(facts: dict[str, Any], reason: str) -> None:
    assert judged("ztf", **facts) == reason
    assert judged("ztf", floor=0, **facts) == "not_public"


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_every_floor_comes_before_the_model(survey: str) -> None:
    for index, floor in enumerate(surveys.find(survey).floors):
        assert judged(survey, floor=index, used=0, evident=False) == floor.reason


# --- hashes -------------------------------------------------------------------------------------------------------


def curve(**changes: float) -> LightCurves:
    values: dict[str, Any] = {
        "mjd_tai": 60_000.25,
        "band": 7,
        "flux": 10.0,
        "flux_err": 1.0,
        "detected": True,
    } | changes
    kinds = {"mjd_tai": np.float64, "band": np.int8, "flux": np.float32, "flux_err": np.float32, "detected": np.bool_}
    arrays: list[Any] = [np.array([values[name]], kind) for name, kind in kinds.items()]
    return LightCurves(np.array([0, 1]), *arrays)


def test_hash_changes_with_every_value() -> None:
    base = curve()
    changes: list[dict[str, float]] = [
        {"mjd_tai": 60_000.25 + 1e-9},
        {"band": 8},
        {"flux": 10.00001},
        {"flux_err": 1.0001},
        {"detected": 0},
    ]
    others = [curve(**change) for change in changes]
    hashes = points_hashes(LightCurves.concatenate([base, curve(), *others]))
    assert hashes[0] == hashes[1]
    assert len(set(hashes)) == len(others) + 1
    assert all(len(text) == 16 and int(text, 16) >= 0 for text in hashes)
    assert hashes == [h for one in (base, curve(), *others) for h in points_hashes(one)]


def test_hash_is_the_same_on_every_machine_and_in_every_version() -> None:
    two = LightCurves.concatenate([curve(), curve(flux=-1.5, band=0, detected=0)])
    joined = LightCurves(np.array([0, 2, 2]), two.mjd_tai, two.band, two.flux, two.flux_err, two.detected)
    assert points_hashes(joined) == ["8a56e9072b1fe9e0", "e4a6a0577479b2b4"]


POINT = st.tuples(
    st.floats(50_000, 70_000),
    st.integers(0, 8),
    st.floats(-1e6, 1e6, width=32),
    st.floats(2.0**-10, 1e5, width=32),
    st.booleans(),
)
Point = tuple[float, int, float, float, bool]


def curves_of(lists: list[list[Point]]) -> LightCurves:
    points = [point for one in lists for point in one]
    offsets = np.cumsum([0, *map(len, lists)])
    kinds = (np.float64, np.int8, np.float32, np.float32, np.bool_)
    columns: list[Any] = [np.array([p[i] for p in points], kind) for i, kind in enumerate(kinds)]
    return LightCurves(offsets, *columns)


@given(st.lists(st.lists(POINT, max_size=4), min_size=1, max_size=6))
@settings(deadline=None)
def test_hashes_are_equal_exactly_where_the_points_are(lists: list[list[Point]]) -> None:
    doubled = [*lists, *lists[::-1]]
    hashes = points_hashes(curves_of(doubled))
    assert hashes == [points_hashes(curves_of([one]))[0] for one in doubled]
    for i, one in enumerate(doubled):
        for j, other in enumerate(doubled):
            same = [tuple(map(repr, point)) for point in one] == [tuple(map(repr, point)) for point in other]
            assert (hashes[i] == hashes[j]) == same


# --- what the limits pass over, and verdicts in words -------------------------------------------------------------


def test_the_limits_pass_over_tombstones_and_schemas_that_are_still_to_come() -> None:
    assert uncounted(learns_schemas=False) == {"rejected/empty"}
    assert uncounted(learns_schemas=True) == {"rejected/empty", "rejected/schema_unavailable"}
    known = {f"{status}/{reason}" for status, reasons in REASONS.items() for reason in reasons}
    assert uncounted(learns_schemas=True) <= known


def test_codes_become_the_words_of_the_lists() -> None:
    """Code 0 is a classification, the others are abstentions in the order of their list."""
    n = 1 + len(REASONS[ABSTAINED])
    parts: list[Any] = [*[None] * 9, np.arange(n)]  # the reason codes alone matter
    verdicts = Verdicts(*parts)
    assert len(verdicts) == n
    assert verdicts.reasons() == ["ok", *REASONS[ABSTAINED]]
    assert verdicts.statuses() == [CLASSIFIED] + [ABSTAINED] * (n - 1)
