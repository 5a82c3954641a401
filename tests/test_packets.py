"""Which packets `broker evaluate` cuts out of light curves, by hand."""

import numpy as np
import pytest

from broker import evaluate, model
from broker.evaluate import DAYS, NIGHTS
from broker.lightcurve import LightCurves, Points, merge, summarise

MODEL = model.load(model.find("t2b-1"))


def curves_of(objects: list[list[tuple[float, bool]]]) -> LightCurves:
    """Light curves of these (mjd, detected) in one band."""
    rows = np.repeat(np.arange(len(objects)), [len(o) for o in objects])
    mjd = np.array([m for o in objects for m, _ in o])
    found = np.array([d for o in objects for _, d in o])
    p = len(mjd)
    points = Points.of_table(rows, mjd, np.full(p, 7, np.int8), np.full(p, 900.0), np.full(p, 10.0), found)
    return merge(points, len(objects), np.full(len(objects), np.nan))[0]


def test_newest_points_of_packets_by_hand() -> None:
    # nights change at .75: 60000.8 and 60001.2 are one night, 60001.9 the next
    rich = [(59990.0, False), (60000.8, True), (60001.2, True), (60001.9, True), (60005.0, False), (60011.9, True)]
    curves = curves_of([rich, [(60000.0, True)], [(60000.0, False)]])
    found = {group: newest.tolist() for group, newest in evaluate.triggers(curves, (1, 2, 10, 0)).items()}
    assert found["1"] == [1, 6, -1]
    assert found["2"] == [2, -1, -1]
    assert found["10"] == [-1, -1, -1]
    assert found["all"] == [5, 6, -1]
    assert [found[f"nights:{n}"] for n in NIGHTS] == [[2, 6, -1], [3, -1, -1], [5, -1, -1], [-1] * 3, [-1] * 3]
    days = {d: found[f"days:{d}"] for d in DAYS}
    assert days == {0: [1, 6, -1], 1: [2, 6, -1], 3: [3, 6, -1], 7: [3, 6, -1], 14: [5, 6, -1], 30: [5, 6, -1]}


def test_nothing_detected_gives_no_packet() -> None:
    for objects in ([], [[(60000.0, False)]]):
        groups = evaluate.triggers(curves_of(objects), (1, 0))
        assert all((newest == -1).all() and len(newest) == len(objects) for newest in groups.values())


@pytest.mark.parametrize(("survey", "n_points"), [("ztf", 4), ("lsst", 5)])
def test_packets_are_cut_on_both_sides(survey: str, n_points: int) -> None:
    times = [59600.0, 59700.0, 59999.0, 60000.0, 60010.0, 60029.0, 60040.0]  # newest: 60029
    curves = curves_of([[(t, t >= 60000) for t in times]])
    packets = evaluate.answer(MODEL, curves, np.array([5]), survey)
    inside = curves_of([[(t, t >= 60000) for t in times[6 - n_points : 6]]])
    assert np.array_equal(packets.probability, MODEL.predict(inside))
    assert np.array_equal(packets.evident, MODEL.card.evident(survey, packets.probability, summarise(inside)))
