"""Values that cannot be: Spark and numpy judge them alike, by one table of ranges."""

import math
from typing import Any

import generate
import numpy as np
import pyarrow as pa
import pytest
from decoding import alerts_of, struct_of
from hypothesis import given, settings
from hypothesis import strategies as st
from pyspark.sql import SparkSession

from broker import decode, surveys
from broker.gather import implausible


def odd(path: str, low: float, high: float) -> st.SearchStrategy[tuple[str, Any]]:
    """A mandatory field with a value within its range, at its edges, beyond them, or none."""
    if high > 2**62:
        edges = st.sampled_from([0, -1, 1, 2**63 - 1, -(2**63)])
        return st.tuples(st.just(path), st.one_of(st.none(), st.integers(0, 2**63 - 1), edges))
    near = [low, high, math.nextafter(low, -math.inf), math.nextafter(high, math.inf), -0.0]
    edges = st.sampled_from([*near, math.nan, math.inf, -math.inf, 1e300, -1.0])
    return st.tuples(st.just(path), st.one_of(st.none(), st.floats(low, high), edges))


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_implausible_alike_in_spark_and_numpy(spark: SparkSession, survey: str) -> None:
    table = surveys.find(survey)
    base = generate.alert(survey, generate.LABELS[survey][-1], 1, 0, 0)
    sound = alerts_of(survey, [base])
    made: list[Any] = sound.to_pylist()

    fields = st.one_of([odd(path, *limits) for path, limits in table.mandatory.items()])

    @settings(derandomize=True, deadline=None, database=None, max_examples=300)
    @given(st.lists(fields, max_size=2))
    def collect(values: list[tuple[str, Any]]) -> None:
        (alert,) = sound.to_pylist()
        for path, value in values:
            trigger, name = path.split(".")
            alert[trigger][name] = value
        made.append(alert)

    collect()
    made += [made[0] | {path: text} for path in table.texts for text in (None, "Z" * 1000, "Z" * 1001, "é" * 501)]
    made += [made[0] | {table.trigger: None}]
    alerts = pa.array(made, struct_of(survey))
    frame = spark.createDataFrame(pa.table({"row": range(len(made)), "alert": alerts}))
    rows = frame.select("row", decode.implausible(table).alias("implausible")).toArrow().sort_by("row")
    in_spark = rows["implausible"].to_pylist()
    in_numpy = np.logical_or.reduce([wrong for wrong, _ in implausible(alerts, table)]).tolist()
    assert in_spark == in_numpy
    assert in_numpy[0] is False
    assert in_numpy[-1] is True
    assert 20 < sum(in_numpy) < len(made) - 20
    paths = (*table.mandatory, *table.texts)
    assert all(path in detail for path, (_, detail) in zip(paths, implausible(alerts, table), strict=True))
    assert in_numpy[-5:] == [False, False, True, True, True] or survey != "ztf"
