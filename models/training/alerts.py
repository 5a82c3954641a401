"""Alert packets of a labelled set as the broker would judge them: the job's own Python hop on rows of alerts.parquet.

Kafka and Spark are left out, and decoding with them; from the decoded alert on, the code is that of the stream: points,
rules, floors, model, thresholds, record. Figures from here are of alerts, one per packet, not of objects.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from broker import labelled, split, surveys
from broker.classify import Assignment, classify
from broker.config import Policy
from broker.gather import gather
from broker.job import assignment
from broker.lightcurve import LightCurves, merge
from broker.outlets import HEADERS_TYPE, native
from broker.surveys import Fields

ZERO_POINT = 31.4  # of ELAsTiCC's fluxes in the sets
PER_CALL = 512
MOST_BYTES = 16_777_216
PLAIN = {"long": pa.int64(), "int": pa.int32(), "float": pa.float32(), "double": pa.float64()}
PLAIN |= {"string": pa.string(), "boolean": pa.bool_()}


@dataclass(frozen=True)
class Judged:
    """n alerts of a set, as they came.

    alerts (n,): decoded structs; records: of the verdicts (docs/record.md), of a rejected one status and reason alone.
    """

    alerts: pa.StructArray
    records: list[dict[str, Any]]
    assignment: Assignment

    def curves(self, rows: Sequence[int]) -> LightCurves:
        """Light curves of these alerts before thinning."""
        survey = surveys.find(self.assignment.survey)
        gathered = gather(self.alerts.take(pa.array(rows, pa.int64())), survey, self.assignment.settings)
        return merge(gathered.points, len(rows), gathered.mjd_tai)[0]

    def column(self, name: str, missing: Any = None) -> list[Any]:
        """One field of all records."""
        return [record.get(name, missing) for record in self.records]

    def probability(self, class_name: str) -> NDArray[np.float64]:
        """Of a class, (n,); NaN where the model did not run or has no such class."""
        found = np.full(len(self.records), np.nan)
        for i, record in enumerate(self.records):
            for item in record.get("classifications", ()):
                if item["className"] == class_name:
                    found[i] = item["probability"]
        return found


def judge(path: Path, survey: str, model: Path) -> Judged:
    """Every row of an alerts.parquet through the broker with its default policy."""
    table = pq.read_table(path)
    whole = pa.StructArray.from_arrays([c.combine_chunks() for c in table.columns], table.column_names)
    alerts = _pruned(whole, surveys.find(survey).fields)
    topics = ("classifications", "dead-letters", "ledger")
    task = assignment(path.parent.name, survey, model, Policy(), ZERO_POINT, (1,), topics, MOST_BYTES, MOST_BYTES)
    records: list[dict[str, Any]] = [{} for _ in range(len(alerts))]
    for first in range(0, len(alerts), PER_CALL):
        batch = _batch(alerts.slice(first, PER_CALL), first)
        answer = classify(batch, task)
        for i, verdict in enumerate(answer.verdicts):
            records[first + i] = dict(zip(("status", "reason"), verdict.split("/"), strict=True))
        for row in (row for part in answer.rows for row in part.to_pylist()):
            if row["topic"] == task.classifications:
                record = native.read(row["value"])
                records[record["alert_offset"]] = record
    return Judged(alerts, records, task)


def sides(meta: pd.DataFrame, set_name: str) -> NDArray[np.int8]:
    """Side of each object of a set with positions, as in training."""
    return split.sides(split.names_in(set_name, labelled.sky_names(meta)), *labelled.positions(meta))


def _batch(alerts: pa.StructArray, first: int) -> pa.RecordBatch:
    """What the Python hop of the job gets."""
    n = len(alerts)
    return pa.RecordBatch.from_pydict(
        {
            "alert": alerts,
            "schema": pa.array([None] * n, pa.string()),
            "raw": pa.array([b""] * n, pa.binary()),
            "key": pa.array([None] * n, pa.binary()),
            "headers": pa.array([[]] * n, HEADERS_TYPE),
            "topic": pa.array(["alerts"] * n, pa.string()),
            "partition": pa.array([0] * n, pa.int32()),
            "offset": pa.array(range(first, first + n), pa.int64()),
            "timestamp": pa.array([None] * n, pa.timestamp("us", "UTC")),
            "alone": pa.array([False] * n, pa.bool_()),
        }
    )


def _type(wanted: Any) -> pa.DataType:
    if isinstance(wanted, str):
        return PLAIN[wanted]
    if isinstance(wanted, list):
        return pa.list_(_type(wanted[0]))
    return pa.struct([(name, _type(inner)) for name, inner in wanted.items()])


def _pruned(records: pa.StructArray, fields: Fields) -> pa.StructArray:
    """The survey's fields in its own types, null where the set has none."""
    have = {field.name for field in records.type}
    columns = [
        _column(pc.struct_field(records, name), wanted) if name in have else pa.nulls(len(records), _type(wanted))
        for name, wanted in fields.items()
    ]
    return pa.StructArray.from_arrays(columns, list(fields), mask=records.is_null())


def _column(array: pa.Array, wanted: Any) -> pa.Array:
    if isinstance(wanted, dict):
        return _pruned(array, wanted)
    if not isinstance(wanted, list):
        return array.cast(PLAIN[wanted])
    inner = _column(array.flatten(), wanted[0])
    offsets = np.concatenate([[0], np.cumsum(pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False))])
    return pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), inner, mask=array.is_null())
