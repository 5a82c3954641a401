"""A task's own count: every offset once, by topic and partition."""

from collections import Counter
from itertools import groupby

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.ledger import LedgerRow
from broker.tally import Share, Tally

Alert = tuple[str, int, int, str]  # topic, partition, offset, verdict
VERDICTS = ("classified/ok", "abstained/maybe_moving", "rejected/damaged", "rejected/empty")


def tally_of(*batches: list[Alert]) -> list[LedgerRow]:
    """Rows of a task that answered these batches."""
    tally = Tally("night", "query-id", 7, 1, "t2b-1@1")
    for batch in batches:
        topics, partitions, offsets, verdicts = ([alert[i] for alert in batch] for i in range(4))
        tally.add(
            pa.array(topics, pa.string()),
            pa.array(partitions, pa.int32()),
            pa.array(offsets, pa.int64()),
            [str(verdict) for verdict in verdicts],
            np.array([alert[2] % 3 > 0 for alert in batch], np.bool_),
        )
    return tally.rows()


def test_nothing_answered_is_no_row() -> None:
    assert tally_of() == []
    assert tally_of([]) == []


def test_one_partition() -> None:
    (row,) = tally_of([("a", 0, 5, "classified/ok"), ("a", 0, 6, "rejected/empty")], [("a", 0, 9, "classified/ok")])
    assert (row.source, row.query, row.batch, row.task, row.model) == ("night", "query-id", 7, 1, "t2b-1@1")
    assert (row.topic, row.partition) == ("a", 0)
    assert row.answered == ((5, 6), (9, 9))
    assert row.counts == {"classified/ok": 2, "rejected/empty": 1}
    assert row.rejected_runs == (0, 0, 0)  # a value that is empty is not counted
    assert LedgerRow.from_json(row.to_json()) == row


def test_outlets_are_counted_by_place() -> None:
    """Of five alerts four were read, two of them in partition 1; the outlet lets three through, one of them again."""
    tally = Tally("night", "q", 0, 0, "t2b-1@1")
    share = Share.of(
        5, np.array([0, 1, 3, 4]), np.array([True, False, True, True]), np.array([True, True, True, False])
    )
    verdicts = ["classified/ok", "classified/ok", "rejected/empty", "abstained/maybe_moving", "classified/ok"]
    places = (pa.array(["a"] * 5), pa.array([0, 0, 0, 1, 1]), pa.array([5, 6, 7, 5, 6]))
    tally.add(*places, verdicts, np.ones(5, np.bool_), {"sn": share})
    first, second = tally.rows()
    assert first.outlets == {"sn": {"written": 1, "filtered": 1, "already_written": 0}}
    assert second.outlets == {"sn": {"written": 2, "filtered": 0, "already_written": 1}}
    assert LedgerRow.from_json(second.to_json()) == second


alerts = st.lists(
    st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 2**50), st.sampled_from(VERDICTS)),
    max_size=30,
    unique_by=lambda alert: alert[:3],
)


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(alerts, st.integers(0, 30))
def test_every_alert_is_counted_once_at_its_place(batch: list[Alert], cut: int) -> None:
    rows = tally_of(batch[:cut], batch[cut:])
    assert [(row.topic, row.partition) for row in rows] == sorted({alert[:2] for alert in batch})
    for row in rows:
        mine = [alert for alert in batch if alert[:2] == (row.topic, row.partition)]
        offsets = [n for first, last in row.answered for n in np.arange(first, last + 1).tolist()]
        assert offsets == sorted(alert[2] for alert in mine)
        assert row.counts == Counter(alert[3] for alert in mine)
        in_order = [v.startswith("rejected") for *_, v in sorted(mine, key=lambda a: a[2]) if v != "rejected/empty"]
        lengths = [(flag, len(list(run))) for flag, run in groupby(in_order)]
        ends = [lengths[i][1] if lengths and lengths[i][0] else 0 for i in (0, -1)] if lengths else [0, 0]
        longest = max((n for flag, n in lengths if flag), default=0)
        assert row.rejected_runs == (ends[0], longest, ends[1])
        assert row.already_written == sum(alert[2] % 3 == 0 for alert in mine)
        assert LedgerRow.from_json(row.to_json()) == row
    assert sum(row.n for row in rows) == len(batch)
