"""Where a replay was: kept over its end, one replay to a target at a time, whatever is left in the folder."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from broker.bookmark import WRITE_EVERY_S, Bookmark
from broker.errors import UsageError

TARGET = "localhost:9092/alerts"


def notes(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.json"))


def test_a_note_lies_where_it_was_left(tmp_path: Path) -> None:
    with Bookmark(TARGET, ["a.avro"], tmp_path / "new" / "folder") as mark:
        assert mark.read() is None
        mark.write(1, "a.avro:0", at_once=True)
        mark.write(2, "a.avro:1", at_once=True)
    with Bookmark(TARGET, ["a.avro"], tmp_path / "new" / "folder") as mark:
        assert mark.read() == (2, "a.avro:1")


def test_it_is_written_once_a_second(tmp_path: Path) -> None:
    """A note for each of some thousand alerts a second would cost more than sending them."""
    assert WRITE_EVERY_S == 1
    with Bookmark(TARGET, [], tmp_path) as mark:
        for n in range(1, 5_001):
            mark.write(n, f"a:{n}")
        found = mark.read()
    assert found is not None
    assert 1 <= found[0] < 5_000
    assert found[1] == f"a:{found[0]}"


def test_other_files_and_another_target_have_notes_of_their_own(tmp_path: Path) -> None:
    for n, (target, about) in enumerate(
        [(TARGET, ["a"]), (TARGET, ["b"]), (f"{TARGET}2", ["a"]), (TARGET, ["a", "b"])]
    ):
        with Bookmark(target, about, tmp_path) as mark:
            assert mark.read() is None
            mark.write(n, "x", at_once=True)
    assert len(notes(tmp_path)) == 4
    with Bookmark(TARGET, ["b"], tmp_path) as mark:
        assert mark.read() == (1, "x")
        mark.remove()
        mark.remove()  # twice does no harm
        assert mark.read() is None
    assert len(notes(tmp_path)) == 3


def test_what_it_is_about_may_be_anything(tmp_path: Path) -> None:
    about = {"paths": [Path("a.avro")], "since": None, "n": 3}
    with Bookmark(TARGET, about, tmp_path) as mark:
        mark.write(3, "é\n\x00", at_once=True)
    with Bookmark(TARGET, dict(about), tmp_path) as mark:
        assert mark.read() == (3, "é\n\x00")


@pytest.mark.parametrize(
    "left", ["", "{", "null", "[]", "7", '{"n": 1}', '{"n": null, "last": "a"}', '{"n": "x", "last": 1}']
)
def test_a_damaged_note_is_none(tmp_path: Path, left: str) -> None:
    with Bookmark(TARGET, [], tmp_path) as mark:
        mark.write(1, "a", at_once=True)
        (note,) = notes(tmp_path)
        note.write_text(left)
        assert mark.read() is None
        note.write_bytes(b"\xff\xfe")
        assert mark.read() is None
        mark.write(2, "b", at_once=True)
        assert mark.read() == (2, "b")


def test_a_note_is_whole_or_not_there(tmp_path: Path) -> None:
    """It is put in place by its name alone, so that a kill in between leaves the one before."""
    with Bookmark(TARGET, [], tmp_path) as mark:
        mark.write(1, "a", at_once=True)
        (note,) = notes(tmp_path)
        before = note.stat().st_ino
        mark.write(2, "b", at_once=True)
        assert note.stat().st_ino != before
        assert json.loads(note.read_text()) == {"n": 2, "last": "b"}
    assert not list(tmp_path.glob("*.new"))


def test_one_replay_to_a_target_at_a_time(tmp_path: Path) -> None:
    with Bookmark(TARGET, ["a"], tmp_path) as mark:
        for about in (["a"], ["b"]):
            with pytest.raises(UsageError, match=rf"another replay \(process {os.getpid()}\) sends to {TARGET}"):
                Bookmark(TARGET, about, tmp_path)
        with Bookmark("localhost:9092/others", ["a"], tmp_path):
            mark.write(1, "a", at_once=True)
    with Bookmark(TARGET, ["b"], tmp_path) as mark:
        assert mark.read() is None


def test_a_replay_that_was_killed_holds_nobody_up(tmp_path: Path) -> None:
    """The lock is the kernel's: it goes with the process, and the next one names itself in it."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfrom broker.bookmark import Bookmark\n"
        "mark = Bookmark(sys.argv[1], ['a'], Path(sys.argv[2]))\n"
        "mark.write(5, 'a:4', at_once=True)\nprint(os.getpid(), flush=True)\nsys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-P", "-c", code, TARGET, str(tmp_path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout is not None
        pid = int(other.stdout.readline())
        with pytest.raises(UsageError, match=rf"\(process {pid}\)"):
            Bookmark(TARGET, ["a"], tmp_path)
        other.kill()
        other.wait(30)
    with Bookmark(TARGET, ["a"], tmp_path) as mark:
        assert mark.read() == (5, "a:4")
        with pytest.raises(UsageError, match=rf"\(process {os.getpid()}\)"):
            Bookmark(TARGET, ["a"], tmp_path)
