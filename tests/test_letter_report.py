"""What is shown of dead letters: counts that add up, long things kept short, nothing that steers a terminal."""

from collections import Counter
from dataclasses import replace

import generate
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from samples import whole

from broker.deadletter import Opinion, Rejected
from broker.dissect import Dissected, Value, dissect
from broker.letter_report import (
    HEX_BYTES,
    VALUES_FIRST,
    VALUES_LAST,
    grouped,
    in_common,
    show,
    show_groups,
    show_replay,
    show_values,
)
from broker.putback import PutBack

MARKS = {"alert": b"ztf:night:1:5", "reason": b"damaged"}
LETTER = Rejected("letters:0:7", 1_790_000_000_000, b"k", b"\x00" * 9, MARKS)
HOUR_MS = 3_600_000


def said(write: object, *arguments: object) -> str:
    """What a function prints, as wide as it likes."""
    console = Console(width=250, record=True, force_terminal=False, no_color=True)
    with console.capture() as capture:
        write(*arguments, console)  # type: ignore[operator]  # one of the functions above
    return capture.get()


MADE = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.sampled_from(["ztf", "lsst"]),
        st.sampled_from(["damaged", "empty"]),
        st.binary(max_size=7),
    ),
    max_size=30,
)


@given(MADE)
def test_groups_add_up(made: list[tuple[int, str, str, bytes]]) -> None:
    letters = [
        replace(
            LETTER,
            time_ms=hour * HOUR_MS + 5,
            value=value,
            headers={"alert": f"{s}:n:0:1".encode(), "reason": r.encode()},
        )
        for hour, s, r, value in made
    ]
    groups = grouped(letters)
    assert sum(group.n for group in groups) == len(made)
    assert sum(group.n_bytes for group in groups) == sum(len(value) for *_, value in made)
    assert Counter((g.hour[11:13], g.source, g.reason) for g in groups for _ in range(g.n)) == Counter(
        (f"{hour:02}", s, r) for hour, s, r, _ in made
    )
    assert len({(g.hour, g.source, g.reason, g.form) for g in groups}) == len(groups)
    assert said(show_groups, groups).splitlines()[-1] == f"{len(made)} dead letters"


def test_letters_of_others_are_told_apart() -> None:
    (group,) = grouped([replace(LETTER, headers={}, value=None)])
    assert (group.source, group.reason, group.form) == ("(not ours)", "", "null")


def test_common_properties_are_the_three_most_frequent() -> None:
    reasons = ["damaged"] * 5 + ["empty"] * 3 + ["too_large"] * 2 + ["wrong_survey", "kills_reader"]
    found = [replace(LETTER, headers={**MARKS, "reason": reason.encode()}) for reason in reasons]
    assert in_common(found)[0] == "reason: damaged (5), empty (3), too_large (2) and 2 more"
    many = [replace(LETTER, headers={"alert": b"ztf:n%d:0:1" % i}) for i in range(1_500)]
    lines = in_common(many)
    assert lines[0] == "reason: (none) (all)"
    assert "others (500)" in lines[3]
    assert lines[-1].count(" from ") == 10


def test_a_long_alert_shows_its_first_and_last_values() -> None:
    deep = generate.encode("lsst", "1101", generate.alert("lsst", "1101", 8, n_detections=20, n_forced=20))
    parts = dissect(deep, "lsst")
    lines = said(show_values, parts).splitlines()
    assert len(lines) == VALUES_FIRST + VALUES_LAST + 1
    assert lines[VALUES_FIRST].strip() == f"... {len(parts.values) - VALUES_FIRST - VALUES_LAST} values more"
    assert lines[0].split() == [str(parts.values[0].offset), parts.values[0].path, "=", parts.values[0].text]
    short = Dissected("", b"", [Value("a", 0, "\x1b[2J")])
    assert said(show_values, short).strip() == "0  a = \\x1b[2J"


def test_a_letter_is_shown_around_its_fault() -> None:
    data = whole("lsst")[3].data
    cut = data[: len(data) // 2]
    parts = dissect(cut, "lsst")
    assert parts.fault_at is not None
    text = said(show, replace(LETTER, value=cut), Opinion("damaged", "cut"), parts)
    assert f"still refused: damaged: cut\non the wire: schema id {parts.form.split()[2].rstrip(',')}, read as " in text
    assert f"at byte {parts.fault_at}: {parts.fault}" in text
    first = max(0, parts.fault_at - HEX_BYTES // 2) // 16 * 16
    assert f"\n{first:08x}  " in text
    readable = said(show, LETTER, Opinion(None, "an alert"), Dissected("no frame", b"x"))
    assert "readable now: an alert" in readable
    assert "at byte" not in readable
    assert "not read again: held" in said(show, LETTER, Opinion("cut", "held"), Dissected("no frame", b"x"))


def test_what_became_of_letters() -> None:
    done = PutBack(9, 2, Counter({"classified/ok": 3, "abstained/maybe_moving": 1}), Counter(), Counter({"gone": 3}))
    assert said(show_replay, done, False).splitlines() == [
        "9 rejected alerts; 2 of them have a classification already",
        "4 answered now: classified/ok 3, abstained/maybe_moving 1",
        "0 rejected again",
        "3 not tried: gone",
    ]
    assert "4 would be answered now: " in said(show_replay, done, True)
