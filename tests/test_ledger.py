"""The books: runs, spans, rows and the comparison, as arithmetic on offsets."""

import json
import random
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import LedgerError
from broker.ledger import Balance, Gap, LedgerRow, Run, Span, compare, log_line, runs, runs_of_true, spans

OFFSETS = st.sets(st.integers(0, 300), max_size=200)


def row(
    answered: list[Run] | tuple[Run, ...], time: str = "2026-11-20T00:00:00.000+00:00", **changes: object
) -> LedgerRow:
    n = sum(last - first + 1 for first, last in answered)
    fields: dict[str, object] = {
        "source": "ztf",
        "batch": 7,
        "task": 0,
        "topic": "night",
        "partition": 0,
        "answered": tuple(answered),
        "counts": {"classified/ok": n} if n else {},
        "model": "t2b-1@1",
        "query": "q",
        "time": time,
    }
    return LedgerRow(**(fields | changes))  # type: ignore[arg-type]  # fields by name, checked by the tests that use them


def as_runs(offsets: set[int]) -> list[Run]:
    return runs(np.array(sorted(offsets), dtype=np.int64))


def expand(pairs: list[Run] | tuple[Run, ...]) -> set[int]:
    return {offset for first, last in pairs for offset in range(first, last + 1)}


@given(OFFSETS)
def test_runs_hold_the_same_offsets_and_are_as_few_as_can_be(offsets: set[int]) -> None:
    shuffled = [*offsets, *list(offsets)[:5]]
    random.Random(0).shuffle(shuffled)
    found = runs(np.array(shuffled, dtype=np.int64))
    assert expand(found) == offsets
    assert all(left[1] + 1 < right[0] for left, right in pairwise(found))
    assert all(isinstance(edge, int) for run in found for edge in run)  # numpy's integers are no JSON


def test_row_survives_the_topic() -> None:
    sent = row([(0, 3), (5, 5)], counts={"classified/ok": 3, "rejected/damaged": 2})
    assert LedgerRow.from_json(sent.to_json()) == sent
    assert json.loads(sent.to_json()) | {"ledger": 1, "n": 5, "answered": [[0, 3], [5, 5]]} == json.loads(
        sent.to_json()
    )


def test_row_of_a_later_version_may_hold_more() -> None:
    more = json.loads(row([(0, 0)]).to_json()) | {"new_in_future": 1}
    assert LedgerRow.from_json(json.dumps(more)) == row([(0, 0)])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ledger": 2}, "version 2"),
        ({"n": 3}, "4 offsets"),
        ({"counts": {"classified/ok": 3}}, "3 counted"),
        ({"answered": [[0, 3], [2, 3]], "n": 6, "counts": {"classified/ok": 6}}, "6 offsets"),
        ({"partition": "0"}, "not a ledger row"),
        ({"answered": [[0]]}, "not a ledger row"),
        ({"batch": None}, "not a ledger row"),
    ],
)
def test_row_that_contradicts_itself_is_refused(change: dict[str, object], message: str) -> None:
    value = json.dumps(json.loads(row([(0, 3)]).to_json()) | change)
    with pytest.raises(LedgerError, match=message):
        LedgerRow.from_json(value)


@pytest.mark.parametrize("value", [None, b"", b"null", b"[]", b"{", b"\xff\x00", b"7"])
def test_value_that_is_no_row_is_refused(value: bytes | None) -> None:
    with pytest.raises(LedgerError, match="not a ledger row"):
        LedgerRow.from_json(value)


def test_spans_of_a_batch() -> None:
    start = {"night": {"0": 10, "1": 5}}
    end = '{"night": {"1": 9, "0": 10, "2": 4}, "next": {"0": 0}}'
    assert spans(start, end) == [
        Span("next", 0, 0, 0, is_new=True),
        Span("night", 0, 10, 10),
        Span("night", 1, 5, 9),
        Span("night", 2, 0, 4, is_new=True),
    ]


def test_first_batch_starts_where_spark_resolved_the_start() -> None:
    end = {"night": {"0": 12}}
    assert spans(None, end, initial={"night": {"0": 10}}) == [Span("night", 0, 10, 12)]
    with pytest.raises(LedgerError, match="initial offsets"):
        spans(None, end)


def test_offsets_that_run_backwards_are_an_error() -> None:
    with pytest.raises(LedgerError, match=r"night:0: a batch from offset 9 back to 4.*new checkpoint"):
        spans({"night": {"0": 9}}, {"night": {"0": 4}})


@given(st.integers(0, 50), st.integers(0, 200), st.lists(st.integers(0, 250), max_size=6), st.integers(1, 3))
def test_in_equals_out_however_the_batch_is_cut_and_repeated(first: int, n: int, cuts: list[int], tries: int) -> None:
    """Each try covers the batch in tasks of its own; the last one counts, the others are repeats."""
    span = Span("night", 0, first, first + n)
    rows = []
    for attempt in range(tries):
        edges = sorted({first, first + n, *(cut for cut in cuts[attempt:] if first < cut < first + n)})
        rows += [row([(left, right - 1)], f"2026-11-20T00:0{attempt}:00.000+00:00") for left, right in pairwise(edges)]
    random.Random(1).shuffle(rows)
    balance = compare([span], rows)
    assert (balance.expected, balance.answered) == (n, n)
    assert balance.is_balanced
    assert balance.repeated == n * (tries - 1)
    assert sum(balance.counts.values()) == n
    balance.check("ztf", 7)


@given(st.integers(1, 200), st.data())
def test_a_dropped_offset_is_named(n: int, data: st.DataObject) -> None:
    dropped = data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=10))
    balance = compare([Span("night", 0, 0, n)], [row(as_runs(set(range(n)) - dropped))])
    named = {offset for gap in balance.missing for offset in range(gap.first, gap.last + 1)}
    assert named == dropped
    with pytest.raises(LedgerError, match=rf"'ztf', batch 7: .*night:0:{min(dropped)}\b") as error:
        balance.check("ztf", 7)
    assert f"{n} alerts in, {n - len(dropped)} answered" in str(error.value)


@given(OFFSETS, OFFSETS)
def test_missing_and_foreign_are_set_differences(expected: set[int], answered: set[int]) -> None:
    batch = [Span("night", 0, first, last + 1) for first, last in as_runs(expected)][:1]
    inside = expand([(span.first, span.last_exclusive - 1) for span in batch])
    balance = compare(batch, [row(as_runs(answered))] if answered else [])
    assert expand([(gap.first, gap.last) for gap in balance.missing]) == inside - answered
    assert expand([(gap.first, gap.last) for gap in balance.foreign]) == answered - inside
    assert balance.is_balanced == (inside == answered)


@given(st.sets(st.integers(0, 60), min_size=1), st.data())
def test_holes_are_counted_and_not_missing(missing: set[int], data: st.DataObject) -> None:
    holes = data.draw(st.sets(st.sampled_from(sorted(missing))))
    answered = set(range(61)) - missing
    balance = compare([Span("night", 0, 0, 61)], [row(as_runs(answered))] if answered else [])
    settled = balance.with_holes(Gap("night", 0, *run) for run in as_runs(holes))
    assert settled.holes == len(holes)
    assert expand([(gap.first, gap.last) for gap in settled.missing]) == missing - holes
    assert settled.is_balanced == (holes == missing)


def test_holes_of_another_partition_settle_nothing() -> None:
    balance = compare([Span("night", 0, 0, 2)], [row([(0, 0)])])
    assert not balance.with_holes([Gap("night", 1, 1, 1), Gap("dawn", 0, 1, 1)]).is_balanced


def test_a_whole_partition_without_rows_is_missing() -> None:
    balance = compare([Span("night", 0, 0, 2), Span("night", 1, 5, 9), Span("night", 2, 3, 3)], [row([(0, 1)])])
    assert balance.missing == (Gap("night", 1, 5, 8),)


def test_rows_that_overlap_in_part_leave_the_counts_short() -> None:
    """Offsets answered, yet nobody knows by which verdict: that is no balance."""
    balance = compare([Span("night", 0, 0, 4)], [row([(0, 2)], "2026-11-20T00:01"), row([(2, 3)], "2026-11-20T00:00")])
    assert not balance.missing
    with pytest.raises(LedgerError, match="verdicts of 3 in the counts, 4 by their offsets"):
        balance.check("ztf", 7)


def test_error_keeps_a_long_list_short() -> None:
    balance = compare([Span("night", 0, 0, 100)], [row([(i, i) for i in range(0, 100, 2)])])
    with pytest.raises(LedgerError, match=r"night:0:1, .* and 40 more runs"):
        balance.check("ztf", 7)


def test_what_expired_unread_is_excused_and_told() -> None:
    booked = row((), expired=((3, 4),), task=-1)
    assert LedgerRow.from_json(booked.to_json()) == booked
    balance = compare([Span("night", 0, 0, 6)], [booked, row(((0, 2),))])
    assert balance.missing == (Gap("night", 0, 3, 5),)
    balance = balance.with_expired([Gap("night", 0, 1, 4), Gap("dawn", 0, 5, 5)])
    assert (balance.expired, balance.missing, balance.is_balanced) == (2, (Gap("night", 0, 5, 5),), False)
    assert balance.with_holes([Gap("night", 0, 5, 5)]).is_balanced
    assert "holes 1, expired 2, " in log_line("ztf", 7, balance.with_holes([Gap("night", 0, 5, 5)]), {})


def test_empty_batch_balances() -> None:
    assert compare([], []).is_balanced
    assert compare([Span("night", 0, 5, 5)], []).is_balanced


def test_log_line_tells_the_whole_batch() -> None:
    counts = {"classified/ok": 90, "abstained/bad_pixels": 3, "abstained/too_few_points": 5, "rejected/damaged": 1}
    balance = Balance(expected=100, answered=99, holes=1, repeated=2, counts=counts, already_written=2)
    line = log_line(
        "ztf", 7, balance, {"triggerExecution": 200, "addBatch": 150, "walCommit": 40, "getBatch": 0}, lag=12
    )
    assert line == (
        "ztf batch 7: 100 alerts in, 90 classified, 8 abstained (too_few_points 5, bad_pixels 3), "
        "1 rejected (damaged 1), holes 1, run twice 2, already written 2, "
        "500 alerts/s, lag 12, 200 ms (addBatch 150, walCommit 40)"
    )


# --- runs of rejections, sums and sets of runs --------------------------------------------------------------------


@given(st.lists(st.booleans(), max_size=60))
def test_runs_of_true_are_those_of_the_text(flags: list[bool]) -> None:
    text = "".join("x" if flag else "." for flag in flags)
    found = runs_of_true(np.array(flags, np.bool_))
    assert found == (
        len(text) - len(text.lstrip("x")),
        max(map(len, text.split(".")), default=0),
        len(text) - len(text.rstrip("x")),
    )
    assert all(isinstance(n, int) for n in found)  # they go into JSON


@given(OFFSETS, OFFSETS, OFFSETS)
def test_what_is_settled_is_the_difference_of_sets(missing: set[int], holes: set[int], expired: set[int]) -> None:
    gaps = tuple(Gap("night", 0, *run) for run in as_runs(missing))
    balance = Balance(expected=len(missing), answered=0, missing=gaps)
    settled = balance.with_holes(Gap("night", 0, *run) for run in as_runs(holes))
    settled = settled.with_expired(Gap("night", 0, *run) for run in as_runs(expired))
    assert settled.holes == len(missing & holes)
    assert settled.expired == len((missing - holes) & expired)
    left = missing - holes - expired
    assert expand([(gap.first, gap.last) for gap in settled.missing]) == left
    assert settled.is_balanced == (not left)
    assert settled.expected == settled.answered + settled.holes + settled.expired + len(left)


@given(
    st.dictionaries(st.sampled_from(["classified/ok", "abstained/a", "abstained/b", "rejected/c"]), st.integers(1, 99))
)
def test_counts_by_status_are_the_same_counts_the_largest_first(counts: dict[str, int]) -> None:
    sums = Balance(expected=0, answered=0, counts=counts).by_status()
    assert list(sums) == ["classified", "abstained", "rejected"]
    assert {f"{status}/{reason}": n for status, reasons in sums.items() for reason, n in reasons.items()} == counts
    for reasons in sums.values():
        assert list(reasons.values()) == sorted(reasons.values(), reverse=True)


def test_equal_counts_are_in_the_order_of_their_names() -> None:
    sums = Balance(expected=0, answered=0, counts={"rejected/b": 2, "rejected/a": 2, "other/x": 1}).by_status()
    assert list(sums["rejected"]) == ["a", "b"]
    assert sums["other"] == {"x": 1}  # a status of a later version is not lost


@pytest.mark.parametrize(
    ("gap", "text"), [(Gap("night", 3, 5, 5), "night:3:5"), (Gap("night", 3, 5, 9), "night:3:5-9")]
)
def test_gaps_in_words(gap: Gap, text: str) -> None:
    assert str(gap) == text


@pytest.mark.parametrize(
    ("outlets", "is_balanced"),
    [
        ({}, True),
        ({"a": {"written": 3, "filtered": 0}}, True),
        ({"a": {"written": 0, "filtered": 3, "already_written": 0}, "b": {"written": 3}}, True),
        ({"a": {"written": 2, "filtered": 0}}, False),
        ({"a": {"written": 3, "filtered": 0}, "b": {"written": 4}}, False),
        ({"a": {}}, False),
    ],
)
def test_each_verdict_that_was_read_is_written_or_filtered(
    outlets: dict[str, dict[str, int]], is_balanced: bool
) -> None:
    """Of five alerts two are rejected: they go to no outlet."""
    counts = {"classified/ok": 2, "abstained/a": 1, "rejected/b": 2}
    balance = Balance(expected=5, answered=5, counts=counts, outlets=outlets)
    assert balance.is_balanced == is_balanced
    sent = row([(0, 4)], counts=counts, outlets=outlets)
    if is_balanced:
        balance.check("ztf", 7)
        assert LedgerRow.from_json(sent.to_json()) == sent
    else:
        with pytest.raises(LedgerError, match=r"outlet [ab]: \d written and 0 filtered of 3 verdicts"):
            balance.check("ztf", 7)
        with pytest.raises(LedgerError, match=r"outlet [ab]: "):
            LedgerRow.from_json(sent.to_json())


ROWS = st.builds(
    lambda offsets, **rest: row(as_runs(offsets), **rest),
    st.sets(st.integers(0, 2**62), max_size=20),
    topic=st.text(min_size=1, max_size=20),
    partition=st.integers(0, 2**31 - 1),
    batch=st.integers(0, 2**62),
    task=st.integers(-1, 2**31 - 1),
    rejected_runs=st.tuples(st.integers(0, 9), st.integers(0, 9), st.integers(0, 9)),
    expired=st.lists(st.tuples(st.integers(0, 9), st.integers(9, 20)), max_size=3).map(tuple),
)


@given(ROWS)
def test_any_row_survives_the_topic(sent: LedgerRow) -> None:
    assert LedgerRow.from_json(sent.to_json()) == sent
    assert LedgerRow.from_json(sent.to_json().decode()) == sent


@given(ROWS, st.data())
def test_a_row_that_is_cut_is_refused(sent: LedgerRow, data: st.DataObject) -> None:
    value = sent.to_json()
    with pytest.raises(LedgerError, match="not a ledger row"):
        LedgerRow.from_json(value[: data.draw(st.integers(0, len(value) - 1))])


@given(st.dictionaries(st.sampled_from("01234567"), st.tuples(st.integers(0, 99), st.integers(0, 99)), min_size=1))
def test_spans_are_the_same_from_text_and_from_tables(partitions: dict[str, tuple[int, int]]) -> None:
    start = {"night": {p: first for p, (first, _) in partitions.items()}}
    end = {"night": {p: first + n for p, (first, n) in partitions.items()}}
    found = spans(start, end)
    assert found == spans(json.dumps(start), json.dumps(end)) == spans(None, json.dumps(end), json.dumps(start))
    assert [(s.partition, s.first, s.last_exclusive) for s in found] == [
        (int(p), first, first + n) for p, (first, n) in sorted(partitions.items())
    ]
    assert not any(span.is_new for span in found)
    assert all(span.is_new and span.first == 0 for span in spans({}, end))


def test_a_line_names_outlets_rates_and_what_is_not_known() -> None:
    outlets = {"b": {"written": 2}, "a": {"written": 0}}
    line = log_line("ztf", 3, Balance(expected=0, answered=0, outlets=outlets), {})
    assert line == (
        "ztf batch 3: 0 alerts in, 0 classified, 0 abstained, 0 rejected, 0 to a, 2 to b, lag unknown, 0 ms"
    )
