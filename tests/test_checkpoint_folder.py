"""A checkpoint folder laid out by hand, as Spark lays it out: what was planned, what is done, where the next begins."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.checkpoint import (
    committed_batches,
    committed_spans,
    has_offsets,
    initial_offsets,
    newest_planned,
    next_offsets,
    planned_at_ms,
    planned_spans,
    query_id,
)
from broker.errors import LedgerError
from broker.ledger import Span

Place = tuple[str, int]
Offsets = dict[Place, int]


def as_json(offsets: Offsets) -> str:
    topics: dict[str, dict[str, int]] = {}
    for (topic, partition), offset in offsets.items():
        topics.setdefault(topic, {})[str(partition)] = offset
    return json.dumps(topics)


def lay_out(folder: Path, ends: list[Offsets], n_committed: int) -> Path:
    """A folder whose batches end at ends[1:], the first of them starting from ends[0]."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True)
    (folder / "metadata").write_text('{"id":"q-1"}')
    (folder / "sources" / "0" / "0").write_text("\0v1\n" + as_json(ends[0]))
    for batch, end in enumerate(ends[1:]):
        text = f'v1\n{{"batchWatermarkMs":0,"batchTimestampMs":{1000 + batch}}}\n{as_json(end)}'
        (folder / "offsets" / str(batch)).write_text(text)
        (folder / "offsets" / f".{batch}.crc").write_bytes(b"crc")  # Spark's own business
        if batch < n_committed:
            (folder / "commits" / str(batch)).write_text("v1\n{}")
    return folder


@st.composite
def histories(draw: st.DrawFn) -> tuple[list[Offsets], int]:
    """Ends of batches that only grow, and how many of them are committed: all, or all but the last."""
    places = draw(st.sets(st.tuples(st.sampled_from(["a", "b.c"]), st.integers(0, 11)), min_size=1, max_size=5))
    ends = [dict.fromkeys(places, 0) | {place: draw(st.integers(0, 2**40)) for place in places}]
    for _ in range(draw(st.integers(1, 4))):
        ends.append({place: offset + draw(st.integers(0, 1000)) for place, offset in ends[-1].items()})
    return ends, len(ends) - 1 - draw(st.integers(0, 1))


def spans_of(start: Offsets, end: Offsets) -> list[Span]:
    return sorted(Span(*place, start[place], last) for place, last in end.items())


@settings(max_examples=40, deadline=None)
@given(histories())
def test_each_batch_goes_from_the_end_of_the_one_before_to_its_own(history: tuple[list[Offsets], int]) -> None:
    ends, n_committed = history
    with TemporaryDirectory() as name:
        folder = lay_out(Path(name), ends, n_committed)
        assert committed_batches(folder) == list(range(n_committed))
        for batch in range(n_committed):
            found = committed_spans(folder, batch)
            assert found is not None
            assert (found.batch, found.query, found.planned_at_ms) == (batch, "q-1", 1000 + batch)
            assert found.spans == spans_of(ends[batch], ends[batch + 1])
            assert planned_at_ms(folder, batch) == 1000 + batch
        newest = committed_spans(folder)
        assert (None if newest is None else newest.batch) == (n_committed - 1 if n_committed else None)
        assert newest is None or newest.planned == (n_committed if n_committed < len(ends) - 1 else None)


@settings(max_examples=40, deadline=None)
@given(histories())
def test_the_next_batch_begins_where_the_committed_ones_end(history: tuple[list[Offsets], int]) -> None:
    """One that was planned and not committed is the next, over the same offsets."""
    ends, n_committed = history
    with TemporaryDirectory() as name:
        folder = lay_out(Path(name), ends, n_committed)
        assert next_offsets(folder) == ends[n_committed]
        is_unfinished = n_committed < len(ends) - 1
        due = (n_committed, spans_of(ends[-2], ends[-1])) if is_unfinished else None
        assert planned_spans(folder) == due
        assert newest_planned(folder) == len(ends) - 2
        assert has_offsets(folder)
        assert initial_offsets(folder) == json.loads(as_json(ends[0]))
        assert query_id(folder) == "q-1"


def test_batches_are_numbers_and_no_texts(tmp_path: Path) -> None:
    """9 comes before 10, whatever the order of the names."""
    lay_out(tmp_path, [{("a", 0): 10 * i} for i in range(12)], 11)
    assert committed_batches(tmp_path) == list(range(11))
    found = committed_spans(tmp_path)
    assert found is not None
    assert (found.batch, found.spans) == (10, [Span("a", 0, 100, 110)])


def test_before_the_first_batch_the_initial_offsets_count(tmp_path: Path) -> None:
    lay_out(tmp_path, [{("a", 0): 4, ("a", 1): 9}], 0)
    assert next_offsets(tmp_path) == {("a", 0): 4, ("a", 1): 9}
    assert not has_offsets(tmp_path)
    assert (newest_planned(tmp_path), planned_spans(tmp_path), committed_spans(tmp_path)) == (None, None, None)
    assert next_offsets(tmp_path / "none") is None


def test_a_new_partition_is_marked(tmp_path: Path) -> None:
    """Spark gives it from its beginning."""
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 5}, {("a", 0): 5, ("a", 1): 3, ("b", 0): 1}], 2)
    found = committed_spans(tmp_path)
    assert found is not None
    assert found.spans == [Span("a", 0, 5, 5), Span("a", 1, 0, 3, is_new=True), Span("b", 0, 0, 1, is_new=True)]


def test_offsets_that_run_backwards_are_told(tmp_path: Path) -> None:
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 8}, {("a", 0): 7}], 2)
    with pytest.raises(LedgerError, match="a:0: a batch from offset 8 back to 7"):
        committed_spans(tmp_path)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("sources/0/0", "sources/0/0 is missing"),
        ("metadata", "metadata: no query id"),
        ("offsets/0", "offsets/0: can't be read"),
    ],
)
def test_what_is_lost_is_named(tmp_path: Path, lost: str, message: str) -> None:
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 5}], 1)
    (tmp_path / lost).unlink()
    with pytest.raises(LedgerError, match=message):
        committed_spans(tmp_path)


@pytest.mark.parametrize("lost", ["sources/0/0", "offsets/0"])
def test_an_unfinished_batch_without_its_start_is_named(tmp_path: Path, lost: str) -> None:
    number = 0 if lost.startswith("sources") else 1
    lay_out(tmp_path, [{("a", 0): 0}, *({("a", 0): 5 + i} for i in range(number + 1))], number)
    (tmp_path / lost).unlink()
    with pytest.raises(LedgerError, match=r"checkpoint|first batch"):
        planned_spans(tmp_path)


@pytest.mark.parametrize("text", [b"", b"v1", b"v2\n{}\n{}", b"\xff\xfe", b"v1\n{}\n[", b"v1\n{}\n{}\n{}"])
def test_damage_in_a_plan_is_named(tmp_path: Path, text: bytes) -> None:
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 5}], 1)
    (tmp_path / "offsets" / "0").write_bytes(text)
    with pytest.raises(LedgerError, match="offsets/0: "):
        committed_spans(tmp_path)


@pytest.mark.parametrize("line", ["{", "[]", "{}", "null", '{"batchTimestampMs": "soon"}'])
def test_damage_in_a_plan_s_line_of_metadata_is_named(tmp_path: Path, line: str) -> None:
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 5}], 1)
    plan = tmp_path / "offsets" / "0"
    first, _, last = plan.read_text().splitlines()
    plan.write_text("\n".join((first, line, last)))
    with pytest.raises(LedgerError, match="offsets/0: "):
        committed_spans(tmp_path)
    with pytest.raises(LedgerError, match="offsets/0: "):
        planned_at_ms(tmp_path, 0)


@pytest.mark.parametrize("line", ["[]", "null", '{"a": 5}', '{"a": {"0": "x"}}', '{"a": {"x": 1}}'])
def test_offsets_of_another_shape_are_named(tmp_path: Path, line: str) -> None:
    lay_out(tmp_path, [{("a", 0): 0}, {("a", 0): 5}], 1)
    plan = tmp_path / "offsets" / "0"
    plan.write_text("\n".join((*plan.read_text().splitlines()[:2], line)))
    with pytest.raises(LedgerError, match="offsets/0: "):
        committed_spans(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "{}", "null", '{"no": 1}'])
def test_a_damaged_query_id_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata").write_text(text)
    with pytest.raises(LedgerError, match="metadata: no query id"):
        query_id(tmp_path)
