"""Notes of end offsets: each holds for every batch that was planned after it was taken."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import bounds


def plan(folder: Path, batch: int) -> None:
    """Spark's entry for a batch; only its name counts here."""
    (folder / "offsets").mkdir(exist_ok=True)
    (folder / "offsets" / str(batch)).touch()


def test_a_new_checkpoint_has_none(tmp_path: Path) -> None:
    assert bounds.find(tmp_path, 0) is None


def test_a_note_before_the_first_batch_holds_for_it(tmp_path: Path) -> None:
    assert bounds.write(tmp_path, {"out": {0: 7, 1: 0}}) == 0
    plan(tmp_path, 0)
    assert bounds.write(tmp_path, {"out": {0: 9, 1: 4}}) == 1
    assert bounds.find(tmp_path, 0) == {"out": {0: 7, 1: 0}}
    assert bounds.find(tmp_path, 1) == bounds.find(tmp_path, 5) == {"out": {0: 9, 1: 4}}


def test_the_newest_note_of_a_batch_counts(tmp_path: Path) -> None:
    for end in (1, 2, 3):
        bounds.write(tmp_path, {"out": {0: end}})
    assert bounds.find(tmp_path, 0) == {"out": {0: 3}}
    assert [path.name for path in (tmp_path / bounds.FOLDER).iterdir()] == ["0"]


def cut(path: Path) -> None:
    path.write_text(path.read_text()[:-5])


def other_version(path: Path) -> None:
    path.write_text('{"outputs": 2, "ends": {}}')


@pytest.mark.parametrize("spoil", [cut, other_version])
def test_a_spoilt_note_is_told_and_the_older_one_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, spoil: Callable[[Path], None]
) -> None:
    bounds.write(tmp_path, {"out": {0: 1}})
    plan(tmp_path, 0)
    bounds.write(tmp_path, {"out": {0: 5}})
    spoil(tmp_path / bounds.FOLDER / "1")
    with caplog.at_level(logging.WARNING):
        assert bounds.find(tmp_path, 1) == {"out": {0: 1}}
    assert "not a note of end offsets" in caplog.text


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(st.lists(st.sampled_from(["plan", "write", "note"]), max_size=60))
def test_no_write_lies_before_its_batchs_bound(tmp_path_factory: pytest.TempPathFactory, steps: list[str]) -> None:
    """Whatever the order: batches write only once they are planned, notes come at any time, one at the start."""
    folder, end, batch = tmp_path_factory.mktemp("run"), 0, -1
    first_write: dict[int, int] = {}
    bounds.write(folder, {"out": {0: end}})
    for step in steps:
        if step == "plan":
            batch += 1
            plan(folder, batch)
        elif step == "write" and batch >= 0:
            first_write.setdefault(batch, end)
            end += 1
        elif step == "note":
            bounds.write(folder, {"out": {0: end}})
        if batch in first_write:  # the one that would be unfinished if the job died now
            found = bounds.find(folder, batch)
            assert found is not None
            assert found["out"][0] <= first_write[batch]
