"""Books of further outlets: what the ledger says was written against what the topics hold."""

from array import array
from dataclasses import replace
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


# --- several sources, topics and surveys --------------------------------------------------------------------------


def test_sources_of_one_survey_are_added_up_and_others_have_lines_of_their_own() -> None:
    sources = [Source(name=n, survey=s, topics=(f"{n}-in",), checkpoint=Path(n)) for n, s in NIGHTS]  # type: ignore[arg-type]
    places = {source.name: Place(source.name, f"{source.name}-in", 0) for source in sources}
    rows = {place: [replace(row(0, 9, 3), source=name, topic=place.topic)] for name, place in places.items()}
    asked: list[str] = []

    def read(topic: str) -> dict[tuple[bytes, bytes], "array[int]"]:
        asked.append(topic)
        mine = [places[source.name] for source in sources if topic == f"sn-{source.survey}"]
        return {(str(place).encode(), b"m@1"): array("q", [1, 4, 7]) for place in mine}

    windows = [Window(place, 0, 0, 10) for place in places.values()]
    found = audit_outlets([OUTLET], sources, windows, rows, read)
    assert found == [OutletBooks("sn", "sn-ztf", 6, 12, 6, 0), OutletBooks("sn", "sn-lsst", 3, 6, 3, 0)]
    assert all(books.is_balanced for books in found)
    assert sorted(asked) == ["sn-lsst", "sn-ztf"]  # each topic is read once


NIGHTS = (("one", "ztf"), ("two", "lsst"), ("three", "ztf"))


def test_classes_with_topics_of_their_own_are_one_outlet() -> None:
    outlet = Outlet(name="by", kind="json", topic="by-{class}", filter=Filter(classes=("SNIa", "TDE")))
    told = [replace(row(0, 9, 3), outlets={"by": {"written": 3, "filtered": 6}})]
    held = {
        "by-sn-ia": {(b"night:in:0", b"m@1"): array("q", [1, 4])},
        "by-tde": {(b"night:in:0", b"m@1"): array("q", [7])},
    }
    (found,) = audit_outlets([outlet], [SOURCE], [Window(PLACE, 0, 0, 10)], {PLACE: told}, held.__getitem__)
    assert found == OutletBooks("by", "by-sn-ia, by-tde", 3, 6, 3, 0)


def test_an_outlet_that_takes_no_verdicts_of_a_source_has_no_books_of_it() -> None:
    elsewhere = Outlet(name="sn", kind="json", topic="sn", sources=("day",))
    assert audit_outlets([elsewhere], [SOURCE], [Window(PLACE, 0, 0, 10)], {}, lambda topic: {}) == []
    assert audit_outlets([], [SOURCE], [Window(PLACE, 0, 0, 10)], {}, lambda topic: {}) == []


def test_two_models_are_two_verdicts() -> None:
    window = Window(PLACE, 0, 0, 10)
    rows = [row(0, 9, 3), replace(row(0, 9, 2, batch=1), model="m@2", query="other")]
    held = {(b"night:in:0", b"m@1"): array("q", [1, 4, 7]), (b"night:in:0", b"m@2"): array("q", [1, 4])}
    (found,) = audit_outlets([OUTLET], [SOURCE], [window], {PLACE: rows}, lambda topic: held)
    assert found == OutletBooks("sn", "sn-ztf", 5, 13, 5, 0)


@pytest.mark.parametrize("prefix", [b"night:in", b"\xff:in:0", b"night:in:x", b"night:other:0", b"night:in:1"])
def test_records_of_no_window_are_passed_over(prefix: bytes) -> None:
    held = {(prefix, b"m@1"): array("q", [1, 4, 7])}
    (found,) = audit_outlets([OUTLET], [SOURCE], [Window(PLACE, 0, 0, 10)], {}, lambda topic: held)
    assert found == OutletBooks("sn", "sn-ztf", 0, 0, 0, 0)
