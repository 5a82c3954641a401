"""The science module for Fink: the job's probabilities from Fink's columns, and no alert that stops it."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from decoding import hop, policy
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from samples import ROOT, whole

from broker import fink, model, surveys
from broker.errors import UsageError
from broker.fink import RUBIN, ZTF, Contract
from broker.gather import gather
from broker.lightcurve import DETECTION, FORCED, TRIGGER, LightCurves, Points, merge, thin

MODEL = model.load(model.find(fink.MODEL))
CONTRACTS = {"ztf": ZTF, "lsst": RUBIN}
# Floors that also decide what counts as a detection
NO_FLOORS = {
    "ztf_max_nbad": 10**9,
    "ztf_min_drb": -1.0,
    "ztf_min_rb": -1.0,
    "lsst_min_reliability": -1.0,
    "lsst_abstains_on_psf_flux_flag": False,
    "lsst_abstains_on_bad_pixels": False,
    "lsst_abstains_on_cosmic_ray_center": False,
    "lsst_abstains_on_saturated_center": False,
    "lsst_abstains_on_dipole": False,
    "lsst_abstains_on_glint_trail": False,
}
CONTRADICTS_ITSELF = "281323062375219200"  # Rubin's example packet: visits at impossible times, not one time per visit


def alerts(survey: str) -> pa.StructArray:
    """The repository's samples as the job decodes them."""
    return hop(survey, [s.data for s in whole(survey) if CONTRADICTS_ITSELF not in s.file])["alert"]


def of_the_job(found: pa.StructArray, survey: str, with_forced: bool, with_floors: bool = False) -> LightCurves:
    gathered = gather(found, surveys.find(survey), policy(**({} if with_floors else NO_FLOORS)))
    points = gathered.points
    if not with_forced:
        kept = points.kind != FORCED
        points = Points(*(getattr(points, name)[kept] for name in Points.__dataclass_fields__))
    return merge(points, len(found), gathered.mjd_tai)[0]


def lists(records: list[Any], contract: Contract) -> list[list[Any]]:
    """What concat_col makes of alerts."""
    c = contract
    return [[[p[f] for p in r[c.history] or ()] + [r[c.current][f]] for r in records] for f in c.detections.values()]


def forced_lists(records: list[Any], contract: Contract) -> list[list[Any]]:
    c = contract
    return [[r[c.forced_history] and [p[f] for p in r[c.forced_history]] for r in records] for f in c.forced.values()]


@pytest.mark.parametrize("with_forced", [False, True])
@pytest.mark.parametrize("survey", CONTRACTS)
def test_light_curves_are_the_jobs_to_the_bit(survey: str, with_forced: bool) -> None:
    found, contract = alerts(survey), CONTRACTS[survey]
    records = found.to_pylist()
    forced = forced_lists(records, contract) if with_forced else []
    ours, due = fink.light_curves(contract, lists(records, contract), forced), of_the_job(found, survey, with_forced)
    for name in LightCurves.__dataclass_fields__:
        assert np.array_equal(getattr(ours, name), getattr(due, name)), name
    assert len(due.mjd_tai) > 3 * len(due)


def flags_of_the_job(found: pa.StructArray, survey: str) -> list[list[bool]]:
    """Whether each source counts as a detection by the job's floors; limits, which are no points there, do."""
    points, contract = gather(found, surveys.find(survey), policy()).points, CONTRACTS[survey]
    past, own = (iter(points.detected[points.kind == kind].tolist()) for kind in (DETECTION, TRIGGER))
    records = found.to_pylist()
    return [
        [True if p.get("magpsf", 0) is None else next(past) for p in r[contract.history] or ()] + [next(own)]
        for r in records
    ]


@pytest.mark.parametrize("with_forced", [False, True])
@pytest.mark.parametrize("survey", CONTRACTS)
def test_with_flags_of_detections_they_are_those_of_the_default_policy(survey: str, with_forced: bool) -> None:
    found, contract = alerts(survey), CONTRACTS[survey]
    records = found.to_pylist()
    more = [flags_of_the_job(found, survey), *(forced_lists(records, contract) if with_forced else [])]
    ours, due = (
        fink.light_curves(contract, lists(records, contract), more),
        of_the_job(found, survey, with_forced, True),
    )
    for name in LightCurves.__dataclass_fields__:
        assert np.array_equal(getattr(ours, name), getattr(due, name)), name
    assert due.detected.sum() < of_the_job(found, survey, with_forced).detected.sum()


@pytest.mark.parametrize("survey", CONTRACTS)
def test_contract_is_the_surveys_table(survey: str) -> None:
    contract, table = CONTRACTS[survey], surveys.find(survey)
    assert contract.bands == table.bands
    assert contract.positive == table.true_labels
    assert contract.missing_value == table.missing_value
    assert contract.exposure_s == (table.default_exposure_s if survey == "ztf" else None)
    by_kind = {m.kind: m for m in table.measurements}
    own, history, forced = by_kind["trigger"], by_kind["detection"], by_kind["forced"]
    assert (contract.current, contract.history, contract.forced_history) == (own.path, history.path, forced.path)
    for roles, due in ((contract.detections, own), (contract.detections, history), (contract.forced, forced)):
        value, error = ("mag", "mag_err") if due.photometry == "magnitude" else ("flux", "flux_err")
        expected = {"time": due.time, "band": due.band, value: due.value, error: due.error}
        expected |= {"sign": due.positive} if due.positive else {}
        expected |= {"zero_point": due.zero_point} if due.zero_point else {}
        assert roles == expected


def test_columns_are_those_of_concat_col() -> None:
    assert RUBIN.columns == ("cmidpointMjdTai", "cpsfFlux", "cpsfFluxErr", "cband")
    assert ZTF.columns == ("cjd", "cfid", "cmagpsf", "csigmapsf", "cisdiffpos")
    assert RUBIN.forced_columns[0] == "prvDiaForcedSources.midpointMjdTai"


# --- odd lists ----------------------------------------------------------------------------------------------------

GOOD = ([61000.0, 61003.0], [900.0, 1500.0], [50.0, 60.0], ["g", "r"])
NAN = float("nan")
ODD: dict[str, tuple[Any, ...]] = {
    "null": (None, None, None, None),
    "nan for a row": (NAN, NAN, NAN, NAN),
    "empty": ([], [], [], []),
    "empty arrays": (np.zeros(0), np.zeros(0), np.zeros(0), np.zeros(0, object)),
    "one column null": ([61000.0], None, [50.0], ["g"]),
    "unequal": ([61000.0, 61001.0], [900.0], [50.0], ["g"]),
    "no time": ([None], [900.0], [50.0], ["g"]),
    "no flux": ([61000.0], [None], [50.0], ["g"]),
    "missing value": ([61000.0], [-99999.0], [50.0], ["g"]),
    "infinite": ([61000.0], [float("inf")], [50.0], ["g"]),
    "error of nothing": ([61000.0], [900.0], [0.0], ["g"]),
    "no band": ([61000.0], [900.0], [50.0], [None]),
    "unknown band": ([61000.0], [900.0], [50.0], ["w"]),
    "texts": (["a"], ["b"], ["c"], ["d"]),
    "lists in lists": ([[61000.0]], [[900.0, 1.0]], [[50.0]], [["g"]]),
    "beyond float": ([61000.0], [10**400], [50.0], ["g"]),
    "numbers": (61000.0, 900.0, 50.0, "g"),
}


def answers(rows: list[tuple[Any, ...]], contract: Contract = RUBIN) -> pd.DataFrame:
    columns = [pd.Series(list(column), dtype=object) for column in zip(*rows, strict=True)]
    return fink.table(contract, columns, (), MODEL)


def test_an_odd_alert_has_no_answer_and_harms_no_other() -> None:
    rows = [row for odd in ODD.values() for row in (GOOD, odd)]
    found = answers(rows)
    assert list(found.columns) == fink.RESULT.names
    good, odd = found.iloc[::2], found.iloc[1::2]
    assert len(odd) == len(ODD)
    assert odd.isna().all(axis=None)
    assert (good == answers([GOOD]).iloc[0]).all(axis=None)
    assert good["model_version"].iloc[0] == "t2b-1@1"
    assert found["score"].dtype == np.float32


@pytest.mark.parametrize("odd", ODD)
def test_an_odd_alert_alone(odd: str) -> None:
    assert answers([ODD[odd]]).isna().all(axis=None)


def test_no_alert_at_all() -> None:
    empty: list[pd.Series] = [pd.Series([], dtype=object)] * 4
    assert fink.table(RUBIN, empty, empty, MODEL).shape == (0, 3)


def test_null_entries_are_left_out_and_order_does_not_matter() -> None:
    mixed = ([None, *GOOD[0][::-1]], [1.0, *GOOD[1][::-1]], [1.0, *GOOD[2][::-1]], ["g", *GOOD[3][::-1]])
    later = ([61009.0, *GOOD[0]], [1.0, *GOOD[1]], [1.0, *GOOD[2]], ["g", *GOOD[3]])  # after the alert's own source
    found = answers([GOOD, later])
    assert found.iloc[0].equals(found.iloc[1])
    curves = fink.light_curves(RUBIN, [[column] for column in mixed])
    assert curves.mjd_tai.tolist() == [61000.0]  # the last entry is the alert's own source: nothing later counts


def test_ztf_limits_signs_and_forced_points() -> None:
    row = ([2461000.5, 2461002.5], [1, 2.0], [None, 19.0], [None, 0.1], [None, "f"])
    curves = fink.light_curves(ZTF, [[column] for column in row])
    assert curves.counts.tolist() == [1]
    assert curves.flux[0] == pytest.approx(-(10 ** (0.4 * 12.4)), rel=1e-6)
    assert curves.mjd_tai[0] == pytest.approx(61002 + 52 / 86400, abs=1e-9)
    forced = ([2461000.5, 2461002.5], [1, 2], [100.0, -7.0], [5.0, 5.0], [26.4, 26.4])
    curves = fink.light_curves(ZTF, [[column] for column in row], [[column] for column in forced])
    assert curves.flux.tolist() == pytest.approx([1e4, -700.0])
    assert curves.detected.tolist() == [False, True]


VALUES = st.one_of(st.none(), st.floats(), st.integers(), st.text(max_size=2), st.booleans(), st.lists(st.integers()))
ENTRIES = st.one_of(st.none(), st.lists(VALUES, max_size=4), st.lists(st.floats(), max_size=4).map(np.array), VALUES)


@settings(derandomize=True, deadline=None, database=None, max_examples=150)
@given(st.lists(st.tuples(*[ENTRIES] * 5), min_size=1, max_size=4))
def test_whatever_a_row_holds(rows: list[tuple[Any, ...]]) -> None:
    for contract in (RUBIN, ZTF):
        width = len(contract.detections)
        found = answers([row[:width] for row in rows] + [GOOD_OF[contract.current]], contract)
        assert len(found) == len(rows) + 1
        assert found.iloc[-1].notna().all()
        assert found["score"].dropna().between(0, 1).all()


GOOD_OF: dict[str, tuple[Any, ...]] = {
    "diaSource": GOOD,
    "candidate": ([2461000.5], [1], [19.0], [0.1], ["t"]),
}


def test_a_wrong_number_of_columns_is_said() -> None:
    with pytest.raises(
        UsageError, match="3 columns given where 4 belong; they are cmidpointMjdTai, cpsfFlux, cpsfFluxE"
    ):
        fink.light_curves(RUBIN, [[], [], []])
    with pytest.raises(UsageError, match=r"2 columns given where 5 belong; they are cjd, .*, fp_hists\.jd, "):
        fink.light_curves(ZTF, [[]] * 5, [[]] * 2)


def test_flags_say_what_is_a_detection() -> None:
    curves = fink.light_curves(RUBIN, [[column] for column in GOOD], [[[False, None]]])
    assert curves.detected.tolist() == [False, True]
    assert not len(fink.light_curves(RUBIN, [[column] for column in GOOD], [[[True]]]).mjd_tai)  # of unequal length


# --- Fink's environment -------------------------------------------------------------------------------------------

TRACE = """
import sys
from broker import fink
from broker.fink import RUBIN, _model, table
print(table(RUBIN, ([[61000.0]], [[900.0]], [[50.0]], [["g"]]), (), _model())["class"][0])
print(*sorted(name for name in sys.modules if name.partition(".")[0] == "broker"))
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_it_imports_only_what_fink_has() -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", TRACE], capture_output=True, text=True, timeout=120, check=True)
    name, ours, others = ended.stdout.splitlines()
    assert name in {c.name for c in MODEL.card.classes}
    due = {"broker", *(f"broker.{part}" for part in ("classes", "errors", "fink", "lightcurve", "model", "models"))}
    assert set(ours.split()) <= due
    foreign = {"fastavro", "confluent_kafka", "pydantic", "typer", "rich", "tenacity", "cramjam"}
    assert set(others.split()) & foreign == set()


def frame(spark: SparkSession, survey: str, folder: Path) -> tuple[DataFrame, pa.StructArray]:
    """Decoded alerts with Fink's columns: concat_col's own expression, and the forced lists as they are."""
    import pyarrow.parquet as pq

    found, contract = alerts(survey), CONTRACTS[survey]
    fields = {field.name: found.field(field.name) for field in found.type}
    table = pa.table({"row": pa.array(range(len(found)), pa.int64())} | fields)
    pq.write_table(table, folder / f"{survey}.parquet")
    df = spark.read.parquet(str(folder / f"{survey}.parquet"))
    floors = ("nbad", "drb", "rb") if survey == "ztf" else ()
    for field in (*contract.detections.values(), *floors):
        past, own = df[f"{contract.history}.{field}"], F.array(df[f"{contract.current}.{field}"])
        df = df.withColumn(f"c{field}", F.when(past.isNotNull(), F.concat(past, own)).otherwise(own))
    return df, found


@pytest.mark.parametrize("survey", CONTRACTS)
def test_in_spark_the_scores_are_the_jobs(spark: SparkSession, survey: str, tmp_path: Path) -> None:
    df, found = frame(spark, survey, tmp_path)
    contract = CONTRACTS[survey]
    udf = {"ztf": fink.classify_ztf, "lsst": fink.classify_rubin}[survey]
    columns = [F.col(name) for name in contract.columns]
    df = df.withColumn("alone", udf(*columns))
    df = df.withColumn("with_forced", udf(*columns, *(F.col(path) for path in contract.forced_columns)))
    rows = df.select("row", "alone", "with_forced").orderBy("row").collect()
    for column, with_forced in (("alone", False), ("with_forced", True)):
        due = expected(found, survey, with_forced)
        assert [row[column]["class"] for row in rows] == [MODEL.card.classes[i].name for i in due.argmax(axis=1)]
        score = np.array([row[column]["score"] for row in rows])
        assert np.abs(score - due.max(axis=1)).max() < 1e-6
        assert {row[column]["model_version"] for row in rows} == {"t2b-1@1"}


def expected(found: pa.StructArray, survey: str, with_forced: bool) -> NDArray[np.float32]:
    return MODEL.predict(thin(of_the_job(found, survey, with_forced), MODEL.card.max_points))


def test_in_spark_the_pages_flags_are_the_jobs_floors(spark: SparkSession, tmp_path: Path) -> None:
    df, found = frame(spark, "ztf", tmp_path)
    page = (ROOT / "docs" / "fink.md").read_text()
    shown = page.split("flags = F.expr(")[1].split("\ndf =")[0]
    flags = F.expr("".join(re.findall(r'"(.*)"', shown)))
    answered = df.withColumn("t2b", fink.classify_ztf(*ZTF.columns, flags)).select("row", "t2b.score").orderBy("row")
    curves = of_the_job(found, "ztf", with_forced=False, with_floors=True)
    due = MODEL.predict(thin(curves, MODEL.card.max_points)).max(axis=1)
    assert np.abs(np.array([row["score"] for row in answered.collect()]) - due).max() < 1e-6


def test_in_spark_none_is_null(spark: SparkSession) -> None:
    kinds = "row int, time array<double>, flux array<float>, flux_err array<float>, band array<string>"
    rows = [(0, *GOOD), (1, None, None, None, None), (2, [], [], [], []), (3, [61000.0], [None], [5.0], [None])]
    df = spark.createDataFrame(rows, kinds)
    found = df.select("row", fink.classify_rubin("time", "flux", "flux_err", "band").alias("t2b")).orderBy("row")
    answered = [tuple(row["t2b"]) for row in found.collect()]
    assert answered[1:] == [(None, None, None)] * 3
    assert None not in answered[0]
