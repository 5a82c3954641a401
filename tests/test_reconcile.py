"""Parts of the audit's arithmetic that test_audit.py does not count by hand: letters that were answered later, windows,
models, names of places."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ledger import Gap, LedgerRow, runs
from broker.reconcile import (
    LOOK_AHEAD,
    NONE,
    Integers,
    Place,
    Records,
    Window,
    expand,
    look_up,
    outside,
    place_of,
    printable,
    reconcile,
)

PLACE, BESIDE = Place("ztf", "night", 0), Place("ztf", "night", 1)
OLD = "2026-11-20T00:00:00.000+00:00"
SETS = st.sets(st.integers(0, 60))


def array(found: set[int] | list[int]) -> Integers:
    return np.array(sorted(found), np.int64)


def window(first: int, last_exclusive: int, place: Place = PLACE) -> Window:
    return Window(place, first, first, last_exclusive)


def row(found: set[int], place: Place = PLACE, time: str = OLD, expired: tuple[tuple[int, int], ...] = ()) -> LedgerRow:
    counts = {"classified/ok": len(found)}
    return LedgerRow(
        place.source,
        0,
        0,
        place.topic,
        place.partition,
        tuple(runs(array(found))),
        counts,
        "m@1",
        "q",
        time,
        expired=expired,
    )


# --- letters and what answers them --------------------------------------------------------------------------------


@given(SETS, SETS, SETS, SETS, st.integers(0, 30), st.integers(31, 61))
@settings(max_examples=200, deadline=None)
def test_a_letter_and_its_answer_are_one_and_what_waits_is_told(
    plain: set[int], letters: set[int], put_back: set[int], waiting: set[int], first: int, last: int
) -> None:
    """put_back: classifications that say they answer a letter; without that letter they are like any others."""
    classified = [*plain, *put_back]
    records = Records(
        {"m@1": np.array(classified, np.int64)},
        {"m@1": array(letters)},
        {"m@1": array(put_back)},
        {"m@1": array(waiting & letters)},
    )
    whole = {*range(first, last)}
    books = reconcile(window(first, last), records, [row({*classified} | letters)])
    n_of = {o: classified.count(o) + (o in letters) - (o in letters and o in put_back) for o in whole}
    assert set(books.repeated.tolist()) == {o for o, n in n_of.items() if n > 1}
    assert books.n_repeats == sum(n - 1 for n in n_of.values() if n > 1)
    assert books.n_put_back == len(put_back & letters & whole)
    assert set(books.waiting.tolist()) == ((waiting & letters) - {*classified}) & whole
    assert set(books.missing.tolist()) == whole - {*classified} - letters


def test_an_answer_by_another_model_is_no_repeat_of_the_letter() -> None:
    records = Records({"m@2": array({5})}, {"m@1": array({5})}, {"m@2": array({5})}, {})
    books = reconcile(window(0, 10), records, [])
    assert books.n_repeats == 0
    assert books.answered == 1
    assert records.models == ["m@1", "m@2"]
    assert records.of_model("m@3").size == 0


def test_a_second_answer_to_a_letter_is_one_too_many() -> None:
    records = Records({"m@1": array([5, 5])}, {"m@1": array({5})}, {"m@1": array([5, 5])}, {})
    books = reconcile(window(0, 10), records, [row({5})])
    assert (books.n_repeats, books.repeated.tolist()) == (1, [5])


# --- windows and rows ---------------------------------------------------------------------------------------------


@given(SETS, SETS)
@settings(deadline=None)
def test_rows_of_another_place_say_nothing(mine: set[int], others: set[int]) -> None:
    records = Records({"m@1": array(mine)})
    strange = [row(others, place) for place in (BESIDE, Place("lsst", "night", 0), Place("ztf", "day", 0))]
    assert_same(
        reconcile(window(0, 61), records, [row(mine)]), reconcile(window(0, 61), records, [row(mine), *strange])
    )


def assert_same(one: object, other: object) -> None:
    for name in ("answered", "n_repeats", "expired", "missing", "in_ledger", "not_in_ledger", "waiting"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


def test_nothing_offered_and_nothing_answered_is_balanced() -> None:
    books = reconcile(window(7, 7), Records(), [])
    assert books.is_balanced
    assert (books.window.offered, books.answered, books.missing.size) == (0, 0, 0)
    assert look_up([books]) == []


@pytest.mark.parametrize(
    ("time", "n_expired"), [(OLD, 3), ("2026-11-20T00:00:00", 3), ("2026-11-22T00:00:00Z", 0), ("", 0)]
)
def test_only_rows_that_are_as_old_as_what_is_lost_explain_a_missing_record(time: str, n_expired: int) -> None:
    """A time without a zone is UTC; what is no time is new, so that it excuses nothing."""
    before = datetime(2026, 11, 21, tzinfo=UTC)
    books = reconcile(window(0, 6), Records({"m@1": array({0, 1, 2})}), [row({3, 4, 5}, time=time)], before)
    assert books.expired == n_expired
    assert books.missing.size == 3 - n_expired
    assert reconcile(window(0, 6), Records(), [row({3}, time=time)]).expired == 0


@given(st.lists(st.integers(0, 70), max_size=8))
def test_hours_keep_the_begin_and_the_names(cuts: list[int]) -> None:
    whole = Window(PLACE, 5, 10, 50, "earliest", "latest")
    parts = whole.split([(f"h{i}", cut) for i, cut in enumerate(sorted(cuts))])
    assert (parts[0].begin, parts[0].first, parts[-1].last_exclusive) == (5, 10, 50)
    assert all(part.begin == part.first for part in parts[1:])
    assert all(part.offered > 0 for part in parts)
    assert {(part.begin_by, part.end_by, part.place) for part in parts} == {("earliest", "latest", PLACE)}
    if not cuts:
        assert parts == [whole]
    for part in parts[1:]:
        assert part.hour is not None
        assert part.first == sorted(cuts)[int(part.hour[1:])]


def test_an_empty_window_is_not_cut() -> None:
    empty = window(10, 10)
    assert empty.split([("h0", 3), ("h1", 12)]) == [empty]


@given(
    st.lists(st.tuples(st.integers(-5, 80), st.integers(-5, 80)), max_size=10), st.integers(0, 30), st.integers(0, 60)
)
def test_expanding_clips_and_joins(pairs: list[tuple[int, int]], first: int, last: int) -> None:
    found = expand(pairs, window(first, last)).tolist()
    assert found == sorted({o for low, high in pairs for o in range(low, high + 1) if first <= o < last})


@given(SETS, st.integers(0, 30), st.integers(0, 30), st.integers(0, 20))
@settings(deadline=None)
def test_what_lies_outside_adds_up(answered: set[int], begin: int, kept: int, flight: int) -> None:
    first, last = begin + kept, begin + kept + 10
    whole, top = Window(PLACE, begin, first, last), last + flight
    beside = outside(whole, Records({"m@1": array(answered)}), top, [row(set(), expired=((begin, begin + 2),))])
    inside = {*range(first, last)} & answered
    assert beside.earlier + beside.in_flight + beside.beyond.size + len(inside) == len(answered)
    assert beside.earlier == len([o for o in answered if o < first])
    assert set(beside.beyond.tolist()) == {o for o in answered if o >= top}
    assert set(beside.deleted_unanswered.tolist()) == {*range(begin, first)} - answered
    assert beside.expired == len({*range(begin, min(begin + 3, first))} - answered)


# --- holes --------------------------------------------------------------------------------------------------------


def test_spans_to_look_at_are_by_partition_and_not_longer_than_needed() -> None:
    books = [
        reconcile(window(0, 3 * LOOK_AHEAD, place), Records({"m@1": np.setdiff1d(np.arange(3 * LOOK_AHEAD), lost)}), [])
        for place, lost in ((PLACE, [5, 6, 5 + LOOK_AHEAD]), (BESIDE, [7, 8 + LOOK_AHEAD]))
    ]
    assert look_up(books) == [
        Gap("night", 0, 5, 5 + LOOK_AHEAD),
        Gap("night", 1, 7, 7),
        Gap("night", 1, 8 + LOOK_AHEAD, 8 + LOOK_AHEAD),
    ]


def test_two_sources_of_one_topic_look_once() -> None:
    other = Place("second", "night", 0)
    books = [reconcile(window(0, 9, place), Records({"m@1": array({*range(9)} - {4})}), []) for place in (PLACE, other)]
    assert look_up(books) == [Gap("night", 0, 4, 4)]


@given(SETS, SETS, SETS)
@settings(deadline=None)
def test_a_hole_never_excuses_what_the_ledger_answered(lost: set[int], told: set[int], holes: set[int]) -> None:
    answered = {*range(61)} - lost
    books = reconcile(window(0, 61), Records({"m@1": array(answered)}), [row(answered | told)])
    after = books.with_holes(Gap("night", 0, *run) for run in runs(array(holes)))
    assert after.holes == len((lost - told) & holes)
    assert set(after.missing.tolist()) == lost - ((lost - told) & holes)
    assert_same(after.with_holes([]), after)
    again = after.with_holes(Gap("night", 0, *run) for run in runs(array(holes)))
    assert (again.holes, again.missing.tolist()) == (after.holes, after.missing.tolist())  # none is counted twice


# --- names --------------------------------------------------------------------------------------------------------

SLUGS = st.from_regex(r"[a-z][a-z0-9._-]{0,12}", fullmatch=True)


@given(SLUGS, SLUGS, st.integers(0, 2**31 - 1))
def test_a_place_is_read_as_it_is_written(source: str, topic: str, partition: int) -> None:
    place = Place(source, topic, partition)
    assert place_of(str(place).encode()) == place


@given(st.binary(max_size=30))
def test_any_bytes_are_a_place_or_none(prefix: bytes) -> None:
    found = place_of(prefix)
    assert found is None or prefix.decode().startswith(f"{found.source}:{found.topic}:")


@pytest.mark.parametrize(
    ("text", "due"),
    [
        ("night", "night"),
        ("a\nb", "a\\nb"),
        ("\x1b[31m", "\\x1b[31m"),
        ("\u202eabc", "\\u202eabc"),
        ("é", "é"),
        ("\\", "\\"),
    ],
)
def test_what_would_steer_a_terminal_is_escaped(text: str, due: str) -> None:
    assert printable(text) == due


def test_nothing_is_nothing() -> None:
    assert NONE.size == 0
    assert Records().models == []
    assert Records().answered.size == 0
    assert replace(window(0, 4), first=2).offered == 2
