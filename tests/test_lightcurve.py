"""The rules for light curves: the table of the merge rule, thinning, summaries."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import lightcurve
from broker.lightcurve import BANDS, DETECTION, FORCED, TRIGGER, LightCurves, Points, merge, night_of, summarise, thin

STABLE = settings(derandomize=True, deadline=None, max_examples=150, database=None)
NAMES = ("mjd_tai", "band", "flux", "flux_err", "detected")
Rows = list[tuple[float, int, float, float, bool]]


def point(
    mjd_tai: float = 60_000.0,
    flux: float = 100.0,
    flux_err: float = 10.0,
    kind: int = FORCED,
    exposure: int = 1,
    **other: Any,
) -> dict[str, Any]:
    """One measured point; a detection unless it is forced."""
    made = {"alert": 0, "mjd_tai": mjd_tai, "band": 1, "flux": flux, "flux_err": flux_err, "kind": kind}
    return made | {"detected": kind != FORCED, "exposure": exposure, "usable": True} | other


def points_of(rows: list[dict[str, Any]]) -> Points:
    kinds = [np.int64, np.float64, np.int8, np.float64, np.float64, np.int8, np.bool_, np.int64, np.bool_]
    fields = zip(Points.__dataclass_fields__, kinds, strict=True)
    return Points(*(np.array([row[name] for row in rows], kind) for name, kind in fields))


def merged(rows: list[dict[str, Any]], newest: float = math.nan) -> tuple[Rows, tuple[int, int, int]]:
    """The light curve of one alert as rows, and its numbers of points offered, dropped, used."""
    curves, counts = merge(points_of(rows), 1, np.array([newest]))
    assert len(curves) == 1
    return rows_of(curves, 0), (int(counts.offered[0]), int(counts.dropped[0]), int(counts.used[0]))


def rows_of(curves: LightCurves, i: int) -> Rows:
    part = slice(curves.offsets[i], curves.offsets[i + 1])
    return list(zip(*(getattr(curves, name)[part].tolist() for name in NAMES), strict=True))


F1, D1 = point(flux=100.0), point(flux=140.0, flux_err=30.0, kind=DETECTION)
LATER = 60_000.0 + 40 / 86400
MERGE_TABLE: dict[str, tuple[list[dict[str, Any]], float, list[tuple[float, float, bool]], tuple[int, int, int]]] = {
    # what is offered, time of the alert, (MJD, flux, detected) of the curve, (offered, dropped, used)
    "both: forced wins, keeps the flag": ([D1, F1], math.nan, [(60_000.0, 100.0, True)], (2, 0, 1)),
    "both, forced first": ([F1, D1], math.nan, [(60_000.0, 100.0, True)], (2, 0, 1)),
    "forced only": ([F1], math.nan, [(60_000.0, 100.0, False)], (1, 0, 1)),
    "detection only": ([D1], math.nan, [(60_000.0, 140.0, True)], (1, 0, 1)),
    "the alert's own source over its repeat in the history": (
        [D1, point(flux=150.0, kind=TRIGGER)], math.nan, [(60_000.0, 150.0, True)], (2, 0, 1)
    ),
    "forced over the alert's own source": (
        [point(flux=150.0, kind=TRIGGER), F1], math.nan, [(60_000.0, 100.0, True)], (2, 0, 1)
    ),
    "two exposures 40 s apart": (
        [F1, point(LATER, flux=140.0, kind=DETECTION, exposure=2)],
        math.nan,
        [(60_000.0, 100.0, False), (LATER, 140.0, True)],
        (2, 0, 2),
    ),
    "one exposure in two bands": (
        [F1, D1 | {"band": 2}], math.nan, [(60_000.0, 100.0, False), (60_000.0, 140.0, True)], (2, 0, 2)
    ),
    "exact duplicates": ([D1, D1, D1], math.nan, [(60_000.0, 140.0, True)], (3, 0, 1)),
    "unusable forced leaves the detection": (
        [F1 | {"flux": math.nan}, D1], math.nan, [(60_000.0, 140.0, True)], (2, 1, 1)
    ),
    "unusable detection leaves no flag": (
        [F1, D1 | {"flux_err": 0.0}], math.nan, [(60_000.0, 100.0, False)], (2, 1, 1)
    ),
    "a detection below the floor does not count as one": (
        [F1, D1 | {"detected": False}], math.nan, [(60_000.0, 100.0, False)], (2, 0, 1)
    ),
    "withdrawn or not public": ([F1 | {"usable": False}], math.nan, [], (1, 1, 0)),
    "later than the alert": ([F1, point(60_000.5, exposure=2)], 60_000.0, [(60_000.0, 100.0, False)], (2, 1, 1)),
    "as late as the alert": ([F1], 60_000.0, [(60_000.0, 100.0, False)], (1, 0, 1)),
    "no time": ([F1 | {"mjd_tai": math.nan}], math.nan, [], (1, 1, 0)),
    "flux is infinite": ([F1 | {"flux": math.inf}, D1 | {"flux": -math.inf}], math.nan, [], (2, 2, 0)),
    "flux does not fit a float": ([F1 | {"flux": 1e39}], math.nan, [], (1, 1, 0)),
    "error is NaN, infinite, zero, negative": (
        [F1 | {"flux_err": e} for e in (math.nan, math.inf, 0.0, -1.0)], math.nan, [], (4, 4, 0)
    ),
    "error vanishes in a float": ([F1 | {"flux_err": 1e-60}], math.nan, [], (1, 1, 0)),
    "unknown band": ([F1 | {"band": -1}, D1], math.nan, [(60_000.0, 140.0, True)], (2, 1, 1)),
    "negative flux is a point": ([D1 | {"flux": -140.0}], math.nan, [(60_000.0, -140.0, True)], (1, 0, 1)),
    "out of order": (
        [point(60_003.0, exposure=3), point(60_001.0, exposure=1), point(60_002.0, exposure=2, kind=DETECTION)],
        math.nan,
        [(60_001.0, 100.0, False), (60_002.0, 100.0, True), (60_003.0, 100.0, False)],
        (3, 0, 3),
    ),
    "nothing": ([], math.nan, [], (0, 0, 0)),
}  # fmt: skip


@pytest.mark.parametrize("case", MERGE_TABLE)
def test_merge_rule(case: str) -> None:
    offered, newest, curve, counts = MERGE_TABLE[case]
    found, numbers = merged(offered, newest)
    assert [(mjd, flux, detected) for mjd, _, flux, _, detected in found] == curve
    assert numbers == counts


def test_the_winner_gives_flux_and_error_together() -> None:
    ((_, band, flux, flux_err, _),) = merged([D1, F1])[0]
    assert (band, flux, flux_err) == (1, 100.0, 10.0)


def test_alerts_do_not_mix() -> None:
    rows = [D1 | {"alert": 2}, F1 | {"alert": 0}, F1 | {"alert": 2}, point(60_009.0, alert=0, exposure=9)]
    curves, counts = merge(points_of(rows), 4, np.array([60_001.0, math.nan, math.nan, 60_000.0]))
    assert [len(rows_of(curves, i)) for i in range(4)] == [1, 0, 1, 0]
    assert rows_of(curves, 0)[0][4] is False
    assert rows_of(curves, 2)[0][4] is True
    assert counts.offered.tolist() == [2, 0, 2, 0]
    assert counts.dropped.tolist() == [1, 0, 0, 0]


def test_no_alerts_at_all() -> None:
    curves, counts = merge(points_of([]), 0, np.zeros(0))
    assert len(curves) == 0
    assert counts.used.tolist() == []
    assert thin(curves, 5) is curves
    assert summarise(curves).n_nights.tolist() == []


offered_points = st.lists(
    st.builds(
        point,
        mjd_tai=st.sampled_from([60_000.0, 60_000.25, 60_001.0, 60_002.5, math.nan]),
        flux=st.sampled_from([1.0, -7.5, 300.0, math.nan, math.inf]),
        flux_err=st.sampled_from([1.0, 12.5, 0.0, math.nan]),
        kind=st.sampled_from([FORCED, TRIGGER, DETECTION]),
        exposure=st.integers(0, 4),
        band=st.integers(-1, 2),
        alert=st.integers(0, 3),
        usable=st.booleans(),
    ),
    max_size=30,
)


@STABLE
@given(offered_points, st.sampled_from([math.nan, 60_000.5]))
def test_merge_is_the_rule_in_plain_words(rows: list[dict[str, Any]], newest: float) -> None:
    curves, counts = merge(points_of(rows), 4, np.full(4, newest))
    for i in range(4):
        mine = [row for row in rows if row["alert"] == i]
        fit = [r for r in mine if r["usable"] and r["band"] >= 0 and r["flux_err"] > 0 and not math.isnan(r["mjd_tai"])]
        fit = [r for r in fit if math.isfinite(r["flux"]) and not r["mjd_tai"] > newest]
        groups = {(r["exposure"], r["band"]) for r in fit}
        found = rows_of(curves, i)
        assert (counts.offered[i], counts.dropped[i]) == (len(mine), len(mine) - len(fit))
        assert counts.used[i] == len(found) == len(groups)
        assert found == sorted(found, key=lambda row: row[:2])
        assert sum(row[4] for row in found) == sum(
            any(r["detected"] for r in fit if (r["exposure"], r["band"]) == group) for group in groups
        )
        best = [min(r["kind"] for r in fit if (r["exposure"], r["band"]) == group) for group in groups]
        assert {row[2] for row in found} <= {r["flux"] for r in fit if r["kind"] in best}


# --- thinning -----------------------------------------------------------------------------------------------------


@st.composite
def light_curves(draw: st.DrawFn) -> LightCurves:
    """Up to four curves of up to 40 points within some nights; bands, fluxes and detections at random."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    counts = draw(st.lists(st.integers(0, 40), min_size=1, max_size=4))
    nights = draw(st.sampled_from([1, 3, 60]))
    n = sum(counts)
    rows = np.repeat(np.arange(len(counts)), counts)
    mjd = 60_000 + np.floor(rng.uniform(0, nights, n)) + rng.uniform(0, 0.3, n)
    order = np.lexsort((mjd, rows))
    return LightCurves(
        lightcurve.offsets_of(rows, len(counts)),
        mjd[order],
        rng.integers(0, 3, n).astype(np.int8),
        rng.normal(0, 300, n).astype(np.float32),
        (10 ** rng.uniform(-30 if draw(st.booleans()) else 0, 3, n)).astype(np.float32),
        rng.random(n) < draw(st.sampled_from([0.0, 0.1, 1.0])),
    )


@STABLE
@given(light_curves(), st.integers(2, 20))
def test_thinning_keeps_what_it_must(curves: LightCurves, max_points: int) -> None:
    found = thin(curves, max_points)
    assert len(found) == len(curves)
    for i in range(len(curves)):
        before, after = rows_of(curves, i), rows_of(found, i)
        if len(before) <= max_points:
            assert after == before
            continue
        assert 2 <= len(after) <= max_points
        assert after[-1] == before[-1]  # the newest point, bit for bit
        detections = [row for row in before if row[4]]
        assert not detections or detections[0] in after
        assert any(row[4] for row in after) == bool(detections)
        assert [row[0] for row in after] == sorted(row[0] for row in after)
        assert all(math.isfinite(v) for row in after for v in row[:4])
        assert all(row[3] > 0 for row in after)
        assert {row[1] for row in after} <= {row[1] for row in before}
        assert before[0][0] <= after[0][0]


@STABLE
@given(light_curves(), st.integers(2, 20))
def test_points_without_company_keep_their_bits(curves: LightCurves, max_points: int) -> None:
    found = thin(curves, max_points)
    for i in range(len(curves)):
        before, after = rows_of(curves, i), rows_of(found, i)
        groups = [(math.floor(row[0] - 0.75), row[1]) for row in before]
        for row in after:
            if groups.count((math.floor(row[0] - 0.75), row[1])) == 1:
                assert row in before


@STABLE
@given(light_curves(), st.integers(2, 20))
def test_thinning_a_curve_does_not_depend_on_the_others(curves: LightCurves, max_points: int) -> None:
    together = thin(curves, max_points)
    for i in range(len(curves)):
        alone = thin(curves.take(np.array([i])), max_points)
        assert rows_of(alone, 0) == rows_of(together, i)
    assert [rows_of(thin(together, max_points), i) for i in range(len(curves))] == [
        rows_of(together, i) for i in range(len(curves))
    ]


def curve(rows: Rows) -> LightCurves:
    columns = [list(column) for column in zip(*rows, strict=True)]
    kinds = (np.float64, np.int8, np.float32, np.float32, np.bool_)
    arrays: list[Any] = [np.array(column, kind) for column, kind in zip(columns, kinds, strict=True)]
    return LightCurves(np.array([0, len(rows)]), arrays[0], arrays[1], arrays[2], arrays[3], arrays[4])


def test_oldest_nights_are_averaged_first_by_inverse_variance() -> None:
    rows: Rows = [(60_000.0, 1, 100.0, 10.0, False), (60_000.1, 1, 200.0, 20.0, False), (60_000.1, 2, 7.0, 1.0, False)]
    rows += [(60_005.0, 1, 1.0, 1.0, True), (60_005.1, 1, 2.0, 1.0, False), (60_009.0, 1, 3.0, 1.0, False)]
    mean, *others = rows_of(thin(curve(rows), 5), 0)
    assert mean[:4] == pytest.approx((60_000.02, 1, 120.0, math.sqrt(80.0)), abs=1e-5)
    assert mean[4] is False
    assert others == rows[2:]


def test_protected_points_are_not_averaged_away() -> None:
    night: Rows = [(60_000.0 + i / 100, 1, float(i), 1.0, i >= 2) for i in range(6)]
    found = rows_of(thin(curve(night), 3), 0)
    assert len(found) == 3
    assert night[2] in found
    assert found[-1] == night[5]
    (mean,) = [row for row in found if row not in night]
    # of points 0, 1, 3 and 4: point 2 is the first detection
    assert mean[:4] == pytest.approx((60_000.02, 1, 2.0, 0.5), abs=1e-5)
    assert mean[4] is True


def test_what_averaging_cannot_shorten_loses_every_other_of_its_oldest() -> None:
    single: Rows = [(60_000.0 + i, 1, float(i), 1.0, False) for i in range(10)]
    found = [row[2] for row in rows_of(thin(curve(single), 8), 0)]
    assert len(found) == 8
    assert found[-6:] == [4.0, 5.0, 6.0, 7.0, 8.0, 9.0]


def test_a_night_ends_in_daytime_at_both_observatories() -> None:
    ut_hours = np.array([18.5, 23.0, 24 + 3.0, 24 + 12.5])  # Chile observes 23 to 10 h UT, Palomar 2 to 13 h
    assert len(set(night_of(60_000 + ut_hours / 24).tolist())) == 1
    assert len(set(night_of(np.array([60_000 + 17.5 / 24, 60_000 + 18.5 / 24])).tolist())) == 2


# --- the rest -----------------------------------------------------------------------------------------------------


def test_band_table_is_only_appended_to() -> None:
    assert BANDS[:23] == (
        "lsst-u", "lsst-g", "lsst-r", "lsst-i", "lsst-z", "lsst-y", "ztf-g", "ztf-r", "ztf-i",
        "ps1-g", "ps1-r", "ps1-i", "ps1-z", "ps1-y", "des-g", "des-r", "des-i", "des-z",
        "sdss-u", "sdss-g", "sdss-r", "sdss-i", "sdss-z",
    )  # fmt: skip
    assert all(300 < nm < 1100 for nm in lightcurve.WAVELENGTH_NM.values())
    assert lightcurve.RULES_VERSION == 1


@STABLE
@given(light_curves())
def test_take_and_concatenate_are_inverse(curves: LightCurves) -> None:
    alone = [curves.take(np.array([i])) for i in range(len(curves))]
    joined = LightCurves.concatenate(alone)
    assert [rows_of(joined, i) for i in range(len(joined))] == [rows_of(curves, i) for i in range(len(curves))]
    backwards = curves.take(np.arange(len(curves))[::-1])
    assert [rows_of(backwards, i) for i in range(len(curves))] == [rows_of(curves, i) for i in range(len(curves))][::-1]
    chosen = curves.select(curves.detected)
    assert len(chosen) == len(curves)
    assert chosen.detected.all()
    assert chosen.counts.sum() == curves.detected.sum()


def test_summary() -> None:
    rows: Rows = [(60_000.0, 1, -5.0, 1.0, True), (60_000.1, 2, 50.0, 10.0, False), (60_003.0, 1, 9.0, 1.0, True)]
    empty = curve(rows).take(np.array([], np.int64))
    two = LightCurves.concatenate([curve(rows), LightCurves(np.zeros(2, np.int64), *(
        getattr(empty, name) for name in NAMES
    ))])  # fmt: skip
    found = summarise(two)
    assert found.n_detections.tolist() == [2, 0]
    assert found.n_positive.tolist() == [1, 0]
    assert found.n_nights.tolist() == [2, 0]
    assert (found.first_detection[0], found.last_detection[0]) == (60_000.0, 60_003.0)
    assert (found.first_point[0], found.last_point[0]) == (60_000.0, 60_003.0)
    assert math.isnan(found.first_detection[1])
    assert math.isnan(found.last_point[1])
    assert found.per_band.shape == (2, len(BANDS))
    assert found.per_band[0, :4].tolist() == [0, 2, 1, 0]
    assert found.per_band[1].sum() == 0


def test_table_of_a_training_set() -> None:
    columns = np.array([0, 0, 1]), np.array([60_000.0, 60_001.0, 60_000.0]), np.array([1, 1, 1], np.int8)
    flux, flux_err = np.array([50.0, -49.0, -80.0]), np.array([10.0, 10.0, 10.0])
    guessed, _ = merge(Points.of_table(*columns, flux, flux_err), 2, np.full(2, np.nan))
    assert guessed.detected.tolist() == [True, False, True]
    told, _ = merge(Points.of_table(*columns, flux, flux_err, np.array([False, True, False])), 2, np.full(2, np.nan))
    assert told.detected.tolist() == [False, True, False]


def test_units() -> None:
    positive = np.array([True, False, True])
    flux = lightcurve.flux_of_magnitude(np.array([31.4, 31.4, 23.9]), positive)
    assert flux.tolist() == pytest.approx([1.0, -1.0, 1000.0])
    mjd = lightcurve.mjd_tai_of_jd_utc(np.array([2_460_000.5]), np.array([30.0]))
    assert (mjd[0] - 60_000.0) * 86400 == pytest.approx(37 + 15, abs=1e-4)


def test_an_average_before_the_first_detection_does_not_take_its_place() -> None:
    # one night: a deep forced point, the first detection, a shallow second one; then 40 nights of single points
    mjd = np.concatenate([[60000.80, 60000.90, 60000.95], 60002.8 + np.arange(40)])
    flux_err = np.concatenate([[1.0, 5.0, 50.0], np.full(40, 5.0)]).astype(np.float32)
    detected = np.concatenate([[False, True, True], np.zeros(40, np.bool_)])
    n = len(mjd)
    curves = LightCurves(np.array([0, n]), mjd, np.zeros(n, np.int8), np.full(n, 60.0, np.float32), flux_err, detected)
    for max_points in range(2, 42):
        found = thin(curves, max_points)
        assert 60000.90 in found.mjd_tai, max_points
        assert found.mjd_tai[-1] == mjd[-1]
        assert len(found.mjd_tai) <= max_points
