"""Limits on rejections: the arithmetic against counting by hand, and a real job that stops and goes on."""

from datetime import UTC, datetime
from itertools import groupby
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Alert, broker, read_outcome, send, topics_of, write_config
from samples import whole

from broker import checkpoint
from broker import config as configs
from broker.deadletter import Rejected
from broker.embedded import EmbeddedKafka
from broker.errors import ConfigError, LedgerError
from broker.ledger import LedgerRow, runs, runs_of_true
from broker.letter_report import in_common
from broker.limits import Limits
from broker.rejections import Rejections, recent
from broker.verdict import uncounted

SOUND, BAD, EMPTY = "classified/ok", "rejected/damaged", "rejected/empty"


def row(verdicts: list[str], first: int = 0, partition: int = 0) -> LedgerRow:
    """The row of alerts with these verdicts at consecutive offsets."""
    counts = {verdict: verdicts.count(verdict) for verdict in sorted(set(verdicts))}
    flags = np.array([verdict == BAD for verdict in verdicts if verdict != EMPTY], np.bool_)
    answered = tuple(runs(np.arange(first, first + len(verdicts))))
    return LedgerRow("ztf", 0, 0, "night", partition, answered, counts, "m@1", rejected_runs=runs_of_true(flags))


@given(st.lists(st.booleans(), max_size=30))
def test_runs_of_true_are_those_of_itertools(flags: list[bool]) -> None:
    lengths = [len(list(run)) for flag, run in groupby(flags) if flag]
    at_begin = lengths[0] if flags and flags[0] else 0
    at_end = lengths[-1] if flags and flags[-1] else 0
    assert runs_of_true(np.array(flags, np.bool_)) == (at_begin, max(lengths, default=0), at_end)


BATCHES = st.lists(st.lists(st.sampled_from([SOUND, BAD, BAD, EMPTY]), min_size=1, max_size=12), max_size=8)


@given(BATCHES, st.integers(1, 12), st.integers(1, 30), st.integers(1, 30), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(max_examples=300, deadline=None)
def test_limits_are_what_counting_by_hand_gives(
    batches: list[list[str]], run: int, window: int, least: int, ratio: float
) -> None:
    limits = Limits(max_rejected_ratio=ratio, max_rejected_run=run, window_alerts=max(window, least), min_alerts=least)
    watched, said = Rejections(limits), list[bool]()
    due = list[bool]()
    for number, batch in enumerate(batches):
        said.append(watched.add([row(batch)], number) is not None)
        counted = [[verdict for verdict in b if verdict != EMPTY] for b in batches[: number + 1]]
        newest: list[str] = []
        for b in reversed(counted):
            if len(newest) >= limits.window_alerts:
                break
            newest = b + newest
        too_many = len(newest) >= least and newest.count(BAD) > ratio * len(newest)
        stream = [verdict for b in counted for verdict in b]
        ends_of_runs, at = [], 0
        for verdict, group in groupby(stream):
            at += len(list(group))
            ends_of_runs += [at] if verdict == BAD else []
        begin = len(stream) - len(counted[-1])
        lengths = [len(list(group)) for verdict, group in groupby(stream) if verdict == BAD]
        touching = [n for n, end in zip(lengths, ends_of_runs, strict=True) if end > begin or end == len(stream)]
        due.append(too_many or max(touching, default=0) > run)
        if said[-1] or due[-1]:  # the job stops there
            break
    assert said == due


def test_three_of_five_stop_nothing_and_partitions_have_runs_of_their_own() -> None:
    watched = Rejections(Limits(max_rejected_run=5, max_rejected_ratio=1))
    assert Rejections(Limits()).add([row([BAD, SOUND, BAD, SOUND, BAD])], 0) is None
    assert watched.add([row([BAD] * 4), row([BAD] * 4, partition=1)], 0) is None
    found = watched.add([row([BAD] * 2, 4, 1), row([SOUND, BAD], 4)], 7)
    assert found is not None
    assert found.words == "6 alerts in a row of night:1 were rejected (limits.max_rejected_run is 5)"
    assert (found.place, found.since_ms) == (("night", 1), 0)


def test_batches_from_before_count_from_are_forgiven() -> None:
    start = datetime(2026, 11, 20, 3, tzinfo=UTC)
    watched = Rejections(Limits(min_alerts=10, count_from=start))
    at = int(start.timestamp() * 1000)
    assert watched.add([row([BAD] * 600)], at - 1) is None
    assert watched.add([row([SOUND] * 20)], at) is None
    found = watched.add([row([BAD] * 6)], at + 5)
    assert found is not None
    assert found.words == "6 of the last 26 alerts were rejected (23 %; limits.max_rejected_ratio is 0.2)"
    assert found.since_ms == at


def test_alerts_that_wait_for_a_schema_count_where_nobody_asks_for_it() -> None:
    waiting = LedgerRow("ztf", 0, 0, "night", 0, ((0, 99),), {"rejected/schema_unavailable": 100}, "m@1")
    limits = Limits(min_alerts=50)
    assert Rejections(limits, uncounted(learns_schemas=True)).add([waiting], 0) is None
    assert Rejections(limits, uncounted(learns_schemas=False)).add([waiting], 0) is not None


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('count_from = "2026-11-20T00:00:00"', "a time without a zone; add Z for UTC"),
        ('count_from = "yesterday"', "needs a time such as"),
        ("min_alerts = 20_000", "has min_alerts = 20000, more than window_alerts = 10000"),
        ("max_rejected_ratio = 1.5", "less than or equal to 1"),
        ("max_rejected_runs = 3", "did you mean 'max_rejected_run'?"),
    ],
)
def test_wrong_settings_are_named(tmp_path: Path, line: str, words: str) -> None:
    source = {"name": "ztf", "survey": "ztf", "topics": ["night"]}
    file = write_config(tmp_path, "127.0.0.1:9", [source], rest=f"[limits]\n{line}")
    with pytest.raises(ConfigError) as error:
        configs.load(file)
    assert words in str(error.value)
    assert "limits" in str(error.value)


def test_what_letters_have_in_common() -> None:
    def letter(offset: int, detail: str, value: bytes) -> Rejected:
        alert = b"ztf:night:1:%d" % offset
        return Rejected("t:0:0", 0, None, value, {"alert": alert, "reason": b"damaged", "detail": detail.encode()})

    found = [letter(7, "the 20 bytes end \x1b[2J", b"\0\0\0\x04\x4d1"), letter(3, "the 9 bytes end \x1b[2J", b"x")]
    assert in_common([]) == []
    assert in_common(found) == [
        "reason: damaged (all)",
        "schema: schema id 1101 (1), no frame (1)",
        "detail: the N bytes end \\x1b[NJ (all)",
        "partition: ztf:night:1 (all)",
        "offsets: ztf:night:1 from 3 to 7",
    ]


# --- the real job -------------------------------------------------------------------------------------------------


def test_a_job_that_rejects_too_much_stops_and_goes_on_when_told(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    names, sound = topics_of("limits"), [s.data for s in whole("elasticc")]
    kafka.create_topics({"limits-in": 2})
    alerts = [Alert(sound[i % len(sound)][: 40 if i % 5 < 3 else None], str(i).encode()) for i in range(1200)]
    sent = send(kafka, "limits-in", alerts, 2)
    source = {"name": "night", "survey": "elasticc", "topics": ["limits-in"], "max_alerts_per_batch": 150}
    limits = "[limits]\nmin_alerts = 200\nwindow_alerts = 400"
    output = {**names, "create_topics": True}
    config = write_config(tmp_path, kafka.bootstrap_servers, [source], output, limits)
    stopped = broker("run", "--config", config, "--once", timeout_s=300)
    assert stopped.returncode == 3, stopped.stderr
    assert "source 'night', batch 1: 180 of the last 300 alerts were rejected (60 %; limits.max" in stopped.stderr
    assert "reason: damaged (all)" in stopped.stderr
    assert "detail: the N bytes end before the alert does (all)" in stopped.stderr
    assert "offsets: night:limits-in:0 from 0 to " in stopped.stderr
    assert "Traceback" not in stopped.stderr
    again = broker("run", "--config", config, "--once", timeout_s=300)
    assert again.returncode == 3  # a supervisor that starts it again does not get it through the night
    assert "alerts in, " not in again.stderr
    assert "were rejected (60 %" in again.stderr
    (told,) = {line for line in again.stderr.splitlines() if "count_from" in line}
    setting = told[told.index("count_from") :].split(" in [limits]")[0]
    config.write_text(config.read_text().replace("[limits]", f"[limits]\n{setting}\nmax_rejected_ratio = 0.7"))
    last = broker("run", "--config", config, "--once", timeout_s=300)
    assert last.returncode == 0, last.stderr
    outcome = read_outcome(kafka.bootstrap_servers, names)
    assert outcome.repeats() == {1: len(sent)}
    assert broker("audit", "--config", config).returncode == 0
    folder = tmp_path / "checkpoints" / "night"
    numbers = checkpoint.committed_batches(folder)
    newest = recent(folder, Limits(window_alerts=300, min_alerts=1, max_rejected_run=10))
    assert [c.batch for c in newest] == numbers[-len(newest) :]
    assert 300 <= sum(s.last_exclusive - s.first for c in newest for s in c.spans) <= 450
    assert [c.batch for c in recent(folder, Limits())] == numbers
    (folder / "offsets" / str(numbers[-3])).unlink()  # what Spark keeps no more
    assert [c.batch for c in recent(folder, Limits())] == numbers[-1:]
    (folder / "offsets" / str(numbers[-1])).unlink()
    with pytest.raises(LedgerError):
        recent(folder, Limits())
