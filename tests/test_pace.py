"""When alerts of a replay are due: never earlier than the one before, at the pace that was asked for."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConfigError
from broker.pace import VISIT_EVERY_S, VISIT_TAKES_S, Pace, Rate, Speed, Visits, pace_of

SECOND = 1 / 86_400
START = 60_000.0


@dataclass(frozen=True)
class At:
    mjd_tai: float | None
    lap: int = 0


def due(pace: Pace, alerts: list[At]) -> list[float]:
    return [pace.due(number, alert) for number, alert in enumerate(alerts)]


TIMES = st.one_of(st.none(), st.floats(START, START + 1))
LAPS = st.lists(st.lists(TIMES, min_size=1, max_size=8), min_size=1, max_size=4)
PACES = st.one_of(st.floats(0.01, 1e5).map(Rate), st.integers(1, 20_000).map(Visits), st.floats(0.01, 1e6).map(Speed))


def alerts_of(laps: list[list[float | None]]) -> list[At]:
    return [At(time, lap) for lap, times in enumerate(laps) for time in times]


@given(PACES, LAPS)
def test_nothing_is_due_before_the_one_before_it_and_the_first_at_once(
    pace: Pace, laps: list[list[float | None]]
) -> None:
    found = due(pace, alerts_of(laps))
    assert found[0] == 0
    assert all(math.isfinite(time) for time in found)
    assert all(earlier <= later for earlier, later in pairwise(found))


@given(st.floats(0.1, 1e4), st.integers(1, 10_000))
def test_a_rate_is_kept_over_any_number(per_s: float, n: int) -> None:
    assert Rate(per_s).due(n, At(None)) == pytest.approx(n / per_s)


@given(st.integers(1, 20_000), st.integers(0, 30), st.data())
def test_a_visit_begins_every_39_s_and_takes_5(n: int, visit: int, data: st.DataObject) -> None:
    within = data.draw(st.integers(0, n - 1))
    time = Visits(n).due(visit * n + within, At(None))
    assert (VISIT_EVERY_S, VISIT_TAKES_S) == (39, 5)
    assert visit * 39 <= time < visit * 39 + 5
    assert (time == visit * 39) == (within == 0)


@given(st.lists(st.floats(0, 3600), min_size=1, max_size=20).map(sorted), st.floats(0.1, 1000))
def test_alerts_in_order_come_as_far_apart_as_they_were_observed(seconds: list[float], factor: float) -> None:
    found = due(Speed(factor), [At(START + s * SECOND) for s in seconds])
    assert found == pytest.approx([(s - seconds[0]) / factor for s in seconds], abs=2e-5 / factor)


@given(LAPS, st.floats(1.5, 100))
def test_twice_the_speed_is_half_the_time(laps: list[list[float | None]], factor: float) -> None:
    slow, fast = (due(Speed(f), alerts_of(laps)) for f in (1.0, factor))
    assert fast == pytest.approx([time / factor for time in slow], rel=1e-6, abs=1e-6)


@given(st.lists(st.floats(START, START + 0.1), min_size=1, max_size=8).map(sorted), st.integers(2, 4))
def test_each_lap_takes_as_long_as_the_first(times: list[float], n_laps: int) -> None:
    found = due(Speed(10.0), alerts_of([list(times)] * n_laps))
    first = found[: len(times)]
    for lap in range(1, n_laps):
        part = found[lap * len(times) : (lap + 1) * len(times)]
        assert part == pytest.approx([time + lap * first[-1] for time in first], abs=1e-6)


def test_alerts_without_a_time_go_at_once() -> None:
    assert due(Speed(1.0), [At(None)] * 3) == [0, 0, 0]
    seen = due(Speed(1.0), [At(None), At(START), At(None), At(START + 7 * SECOND), At(None)])
    assert seen == pytest.approx([0, 0, 0, 7, 7], abs=1e-5)


def test_an_alert_from_before_the_first_one_goes_at_once() -> None:
    assert due(Speed(1.0), [At(START), At(START - 1), At(START + 3 * SECOND)]) == pytest.approx([0, 0, 3], abs=1e-5)


@pytest.mark.parametrize("name", ["rate", "speed", "visits"])
@pytest.mark.parametrize("value", [0, -1, math.inf, math.nan, -math.inf])
def test_a_pace_lies_between_nothing_and_infinity(name: str, value: float) -> None:
    given_: dict[str, Any] = {"rate": None, "speed": None, "visits": None} | {name: value}
    with pytest.raises(ConfigError) as refused:
        pace_of(**given_)
    assert str(refused.value).startswith(f"{name} {value!r}: ")


def test_each_pace_is_what_was_asked_for_and_one_alone() -> None:
    assert pace_of(2.5, None, None) == Rate(2.5)
    assert pace_of(None, 3.0, None) == Speed(3.0)
    assert pace_of(None, None, 7) == Visits(7)
    assert pace_of(None, None, None) is None
    with pytest.raises(ConfigError, match=r"^rate and visits are given; a replay has one pace$"):
        pace_of(1.0, None, 1)
    with pytest.raises(ConfigError, match=r"^rate and speed and visits are given"):
        pace_of(0.0, 0.0, 0)
