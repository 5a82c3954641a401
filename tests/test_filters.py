"""Filters: each condition on real verdicts, the expression against the same test in Python, and what is refused."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pytest
from decoding import assigned, hop
from samples import whole

from broker import model as models
from broker import surveys
from broker.classify import _read, _verdicts
from broker.delivery import Cone, Filter, Outlet, Polygon
from broker.errors import ConfigError
from broker.outlets import columns, filters
from broker.sky import inside

CARD = models.load(models.find("t2b-1")).card
EITHER: tuple[Literal["classified", "abstained"], ...] = ("classified", "abstained")


def table(survey: str, n: int = 60) -> pa.RecordBatch:
    """Columns of real verdicts."""
    batch, assignment, survey_table = (
        hop(survey, [s.data for s in whole(survey)[:n]]),
        assigned(survey),
        surveys.find(survey),
    )
    alerts, index, schemas, _ = _read(batch, survey_table, assignment)
    model = models.load(assignment.model)
    return columns.table(_verdicts(alerts, index, schemas, batch, survey_table, model, assignment), CARD)


TABLE = table("ztf")
ROWS: list[dict[str, Any]] = TABLE.to_pylist()
CORNERS = ((100.0, 0.0), (260.0, 0.0), (0.0, 40.0))
CENTRE = next(row for row in ROWS if row["ra"] is not None)


def is_near(row: dict[str, Any]) -> bool:
    """Within 30 degrees, by the angle between two vectors."""

    def vector(ra: float, dec: float) -> Any:
        lon, lat = np.radians(ra), np.radians(dec)
        return np.array([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)])

    cosine = vector(row["ra"], row["dec"]) @ vector(CENTRE["ra"], CENTRE["dec"])
    return bool(np.degrees(np.arccos(min(1.0, cosine))) <= 30)


CASES: dict[str, tuple[Filter, Callable[[dict[str, Any]], bool]]] = {
    "statuses": (Filter(), lambda r: r["status"] == "classified"),
    "all": (Filter(statuses=EITHER), lambda r: True),
    "classes": (Filter(statuses=EITHER, classes=("SNIa", "AGN")), lambda r: r["class_name"] in ("SNIa", "AGN")),
    "probability": (Filter(statuses=EITHER, min_probability=0.6), lambda r: r["probability"] >= 0.6),
    "bands": (Filter(statuses=EITHER, bands=("ztf-g",)), lambda r: r["band"] == "ztf-g"),
    "detections": (
        Filter(statuses=EITHER, min_detections=3, max_detections=8),
        lambda r: 3 <= r["n_detections"] <= 8,
    ),
    "magnitude": (
        Filter(statuses=EITHER, brightest_mag=17, faintest_mag=19),
        lambda r: 17 <= r["magnitude"] <= 19,
    ),
    "cone": (
        Filter(statuses=EITHER, cone=Cone(ra=CENTRE["ra"], dec=CENTRE["dec"], radius_deg=30.0)),
        is_near,
    ),
    "polygon": (
        Filter(statuses=EITHER, polygon=Polygon(file=Path("wide"), vertices=CORNERS)),
        lambda r: bool(inside(CORNERS, np.array([r["ra"]]), np.array([r["dec"]]))[0]),
    ),
    "where": (
        Filter(statuses=EITHER, where="p_SNIa > 0.3 AND (n_nights >= 3 OR band = 'ztf-r') AND NOT is_negative"),
        lambda r: r["p_SNIa"] > 0.3 and (r["n_nights"] >= 3 or r["band"] == "ztf-r") and not r["is_negative"],
    ),
    "together": (
        Filter(classes=("SNIa", "SNII", "SNIbc"), min_probability=0.5, where="snr >= 5"),
        lambda r: (
            r["status"] == "classified"
            and r["class_name"] in ("SNIa", "SNII", "SNIbc")
            and r["probability"] >= 0.5
            and r["snr"] >= 5
        ),
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_a_condition_lets_through_what_it_says(name: str) -> None:
    wanted, holds = CASES[name]
    due = [holds(row) for row in ROWS]
    assert filters.passes(wanted, TABLE).tolist() == due
    assert any(due)
    assert not all(due) or name == "all"


def test_a_missing_value_meets_no_condition() -> None:
    """Of a batch of nulls nothing passes, whatever is asked of a value."""
    schema = columns.schema(CARD)
    nulls = pa.RecordBatch.from_arrays(
        [pa.array(["classified"] * 2) if field.name == "status" else pa.nulls(2, field.type) for field in schema],
        schema=schema,
    )
    for name, (wanted, _) in CASES.items():
        due = name in ("all", "statuses")
        assert filters.passes(wanted, nulls).tolist() == [due, due], name
    assert not filters.passes(Filter(where="probability IS NULL AND snr > 3"), nulls).any()
    assert filters.passes(Filter(where="probability IS NULL"), nulls).all()


def test_a_batch_of_none() -> None:
    for wanted, _ in CASES.values():
        assert filters.passes(wanted, TABLE.slice(0, 0)).tolist() == []


def test_the_columns_are_the_records() -> None:
    """Under the record's names, without the times of processing: those would change when a batch runs again."""
    from broker.outlets import native

    fields = {str(field["name"]) for field in native.schema()["fields"]}  # type: ignore[attr-defined]
    extra = {"magnitude", *columns.class_fields(CARD).values()}
    assert set(TABLE.schema.names) - fields == extra
    assert not {"brokerIngestTimestamp", "brokerPublishTimestamp"} & set(TABLE.schema.names)


def outlet(**wanted: Any) -> Outlet:
    return Outlet(name="sn", kind="json", topic="sn", filter=Filter(**wanted))


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("clas_name = 'SNIa'", "there is no column 'clas_name'; they are survey, source_id"),
        ("brokerIngestTimestamp > 3", "there is no column 'brokerIngestTimestamp'"),
        ("class_name = ", "unable to parse"),
        ("SELECT 1", "it must be one SQL condition"),
        ("probability > 0.5; DROP TABLE x", "it must be one SQL condition"),
        ("nosuch(probability) > 2", "nosuch"),
        ("probability > 'high'", "cannot compare"),
        ("probability + 1", "gives Float"),
        ("1 = 1", "reads no column"),
        ("SUM(probability) > 3", "not true or false for each verdict"),
    ],
)
def test_an_expression_that_can_not_work_is_refused(where: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        filters.check([outlet(where=where)], CARD)
    assert str(caught.value).startswith(f"outlet 'sn': filter.where = {where!r}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_classes_and_bands_are_those_of_the_model() -> None:
    filters.check([outlet(classes=("SNIa",), bands=("lsst-r",), where="p_SNIa > 0.5")], CARD)
    with pytest.raises(ConfigError, match="model t2b-1 has no class 'BOGUS'; it has SNIa"):
        filters.check([outlet(classes=("BOGUS",))], CARD)
    with pytest.raises(ConfigError, match="no band is called 'r'; they are lsst-u"):
        filters.check([outlet(bands=("r",))], CARD)
