"""Which alerts of a batch have a record: by output topic, place and offset."""

import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.written import Written

alerts = st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.integers(0, 20)), max_size=40)


@settings(derandomize=True, deadline=None, database=None, max_examples=300)
@given(alerts, st.dictionaries(st.sampled_from(["native", "letters", "other"]), alerts, max_size=3))
def test_an_alert_is_held_where_one_of_the_outputs_has_it(
    batch: list[tuple[str, int, int]], records: dict[str, list[tuple[str, int, int]]]
) -> None:
    written = Written(
        {
            output: {
                place: np.unique([a[2] for a in have if a[:2] == place]).astype(np.int64)
                for place in {a[:2] for a in have}
            }
            for output, have in records.items()
        }
    )
    topics, partitions, offsets = ([alert[i] for alert in batch] for i in range(3))
    columns = pa.array(topics, pa.string()), pa.array(partitions, pa.int32()), pa.array(offsets, pa.int64())
    have = {*records.get("native", ()), *records.get("letters", ())}
    assert written.holds(("native", "letters"), *columns).tolist() == [alert in have for alert in batch]
    assert len(written) == sum(len(set(r)) for r in records.values())
