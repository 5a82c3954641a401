"""Books of further outlets: what the ledger says was written against what the topics hold."""

from array import array
from pathlib import Path

import pytest

from broker.config import Source
from broker.delivery import Filter, Outlet
from broker.errors import LedgerError
from broker.ledger import LedgerRow, compare
from broker.outlet_books import OutletBooks, audit_outlets
from broker.reconcile import Place, Window

SOURCE = Source(name="night", survey="ztf", topics=("in",), checkpoint=Path("c"))
PLACE = Place("night", "in", 0)
OUTLET = Outlet(name="sn", kind="json", topic="sn-{survey}", filter=Filter(min_probability=0.5))


def row(first: int, last: int, n_written: int, batch: int = 0, time: str = "2026-11-25T00:00:00+00:00") -> LedgerRow:
    """Alerts first to last, one of them rejected, so many written to the outlet and the rest filtered."""
    n = last - first + 1
    counts = {"classified/ok": n - 1, "rejected/empty": 1}
    outlets = {"sn": {"written": n_written, "filtered": n - 1 - n_written, "already_written": 0}}
    runs = ((first, last),)
    return LedgerRow("night", batch, 0, "in", 0, runs, counts, "m@1", "q", time, outlets=outlets)


def books(rows: list[LedgerRow], offsets: list[int], end: int = 20, model: bytes = b"m@1") -> OutletBooks:
    window = Window(PLACE, 0, 0, end)
    held = {(b"night:in:0", model): array("q", offsets), (b"other:in:0", model): array("q", [1, 2, 3])}
    (found,) = audit_outlets([OUTLET], [SOURCE], [window], {PLACE: rows}, lambda topic: held)
    assert (found.outlet, found.topic) == ("sn", "sn-ztf")
    return found


def test_each_record_that_was_let_through_is_there() -> None:
    found = books([row(0, 9, 3), row(10, 19, 2, batch=1)], [1, 4, 7, 12, 15])
    assert (found.written, found.filtered, found.found, found.n_repeats) == (5, 13, 5, 0)
    assert found.is_balanced


@pytest.mark.parametrize(("offsets", "n_repeats"), [([1, 4], 0), ([1, 4, 7, 8], 0), ([1, 4, 4, 7], 1)])
def test_one_too_few_too_many_or_twice_is_a_fault(offsets: list[int], n_repeats: int) -> None:
    found = books([row(0, 9, 3)], offsets)
    assert not found.is_balanced
    assert found.n_repeats == n_repeats


def test_a_batch_that_ran_twice_counts_once() -> None:
    again = [row(0, 9, 3), row(0, 9, 3, time="2026-11-25T00:05:00+00:00")]
    assert books(again, [1, 4, 7]).is_balanced
    assert compare((), again).outlets == {"sn": {"written": 3, "filtered": 6, "already_written": 0}}


def test_what_lies_past_the_window_is_in_flight() -> None:
    found = books([row(0, 9, 3), row(10, 19, 2, batch=1)], [1, 4, 7, 12], end=10)
    assert (found.written, found.found) == (3, 3)


def test_a_row_whose_outlets_do_not_add_up_is_refused() -> None:
    good = row(0, 9, 3)
    assert LedgerRow.from_json(good.to_json()) == good
    bad = good.to_json().replace(b'"filtered":6', b'"filtered":5')
    with pytest.raises(LedgerError, match="outlet sn: 3 written and 5 filtered of 9 verdicts"):
        LedgerRow.from_json(bad)


def test_a_row_of_before_there_were_outlets_is_read() -> None:
    old = row(0, 9, 3).to_json()
    start, _, rest = old.partition(b',"outlets":')
    _, _, end = rest.partition(b"}}")
    assert LedgerRow.from_json(start + end).outlets == {}
