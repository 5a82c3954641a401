"""The Python API: the job's probabilities for the same points, from any table, without the job's machinery."""

import subprocess
import sys
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from decoding import assigned, hop, policy
from samples import whole

import broker
from broker import Classifier, model, surveys
from broker.classifier import UNITS, Classifications
from broker.classify import classify
from broker.errors import ModelError, UsageError
from broker.gather import gather
from broker.lightcurve import BANDS, LightCurves, flux_of_magnitude, merge, thin
from broker.outlets import native

CLASSIFIER = Classifier()
MODEL = model.load(model.find("t2b-1"))


def values(survey: str) -> list[bytes | None]:
    """The samples of a survey, but for Rubin's example packet, whose two visits have one time."""
    return [sample.data for sample in whole(survey) if "281323062375219200" not in sample.file]


def curves_of(survey: str) -> LightCurves:
    """The samples, merged as in the job."""
    alerts = hop(survey, values(survey))["alert"]
    gathered = gather(alerts, surveys.find(survey), policy())
    return merge(gathered.points, len(alerts), gathered.mjd_tai)[0]


def table_of(curves: LightCurves) -> dict[str, Any]:
    """Points of light curves as columns."""
    return {
        "object_id": np.array([f"object {i}" for i in curves.rows]),
        "mjd": curves.mjd_tai,
        "band": np.array(BANDS)[curves.band],
        "flux": curves.flux,
        "flux_err": curves.flux_err,
        "detected": curves.detected,
    }


ZTF = curves_of("ztf")
DUE = CLASSIFIER.classify(ZTF)
POINTS = table_of(ZTF)


class Stream:
    """A table that speaks Arrow's interface and nothing else, as Polars does."""

    def __init__(self, table: pa.Table) -> None:
        self._table = table

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        return self._table.__arrow_c_stream__(requested_schema)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_the_jobs_probabilities_to_the_bit(survey: str) -> None:
    curves = curves_of(survey)
    found = CLASSIFIER.classify(curves, survey="ztf" if survey == "ztf" else "lsst")
    assert np.array_equal(found.probabilities, MODEL.predict(thin(curves, MODEL.card.max_points)), equal_nan=True)
    by_table = CLASSIFIER.classify(table_of(curves))
    read = curves.counts > 0
    assert np.array_equal(by_table.probabilities, found.probabilities[read])
    records: dict[int, dict[str, Any]] = {}
    for part in classify(hop(survey, values(survey)), assigned(survey)).rows:
        for row in part.to_pylist():
            place = next(h["value"] for h in row["headers"] if h["key"] == "alert")
            if row["topic"] == "classifications":
                records[int(place.decode().rpartition(":")[2])] = native.read(row["value"])
    assert len(records) == len(curves)
    for i, record in records.items():
        assert [c["className"] for c in record["classifications"]] == list(found.classes)
        told = np.array([c["probability"] for c in record["classifications"]], np.float32)
        assert np.array_equal(found.probabilities[i], told)
        assert (record["class_name"], record["n_points_used"]) == (found.class_name[i], found.n_points_used[i])
        assert record["classifierName"] == found.model
        if record["reason"] in ("ok", "not_enough_evidence"):
            assert found.evident[i] == (record["reason"] == "ok")


@pytest.mark.parametrize(
    "form",
    [
        dict,
        pd.DataFrame,
        pa.table,
        lambda columns: pa.table(columns).to_batches()[0],
        lambda columns: Stream(pa.table(columns)),
        lambda columns: pa.table(columns).cast(pa.table(columns).schema.set(2, pa.field("band", pa.string_view()))),
        lambda columns: pd.DataFrame(columns).astype({"band": "category", "object_id": "category"}),
        lambda columns: pd.DataFrame(columns | {"junk": [{1}] * len(columns["mjd"])}),
        lambda columns: pd.DataFrame(columns).to_records(index=False),
    ],
    ids=["mapping", "pandas", "arrow", "batch", "interface", "views", "categories", "other columns", "records"],
)
def test_every_form_of_table(form: Any) -> None:
    found = CLASSIFIER.classify(form(POINTS))
    assert found.object_id.tolist() == [f"object {i}" for i in range(len(ZTF))]
    assert np.array_equal(found.probabilities, DUE.probabilities)
    assert np.array_equal(found.evident, DUE.evident)
    assert np.array_equal(found.n_points_used, DUE.n_points_used)


@pytest.mark.parametrize("form", [dict, pd.DataFrame, pa.table])
def test_a_list_of_objects(form: Any) -> None:
    parts = [{name: POINTS[name][ZTF.rows == i] for name in POINTS} for i in range(len(ZTF))]
    found = CLASSIFIER.classify([form(part) for part in parts])
    assert found.object_id.tolist() == list(range(len(ZTF)))
    assert np.array_equal(found.probabilities, DUE.probabilities)


def test_shuffled_points_change_no_bit() -> None:
    order = np.random.default_rng(3).permutation(len(ZTF.mjd_tai))
    found = CLASSIFIER.classify({name: column[order] for name, column in POINTS.items()})
    place = [int(name.split()[1]) for name in found.object_id]
    assert np.array_equal(found.probabilities, DUE.probabilities[place])


def test_units_and_magnitudes() -> None:
    for unit, zero_point in UNITS.items():
        scaled = POINTS | {name: POINTS[name] * 10 ** (0.4 * (zero_point - 31.4)) for name in ("flux", "flux_err")}
        options: list[dict[str, Any]] = [{"unit": unit}, {"zero_point": zero_point}]
        for given in options:
            found = CLASSIFIER.classify(scaled, **given)
            assert np.abs(found.probabilities - DUE.probabilities).max() < 1e-3
    mag = 31.4 - 2.5 * np.log10(np.abs(POINTS["flux"].astype(float)))
    mag_err = POINTS["flux_err"] / np.abs(POINTS["flux"]) / (0.4 * np.log(10))
    assert np.allclose(flux_of_magnitude(mag, POINTS["flux"] > 0), POINTS["flux"])
    names = ("object_id", "mjd", "band", "detected")
    table = {name: POINTS[name] for name in names} | {"mag": mag, "mag_err": mag_err, "is_negative": POINTS["flux"] < 0}
    assert np.abs(CLASSIFIER.classify(table).probabilities - DUE.probabilities).max() < 1e-3


def test_bands_of_other_names_and_numbers() -> None:
    short = POINTS | {"band": np.array([name[-1] for name in POINTS["band"]])}
    found = CLASSIFIER.classify(short, bands={letter: f"ztf-{letter}" for letter in "gri"})
    assert np.array_equal(found.probabilities, DUE.probabilities)
    fid = POINTS | {"band": np.array([" gri".index(name[-1]) for name in POINTS["band"]])}
    found = CLASSIFIER.classify(fid, bands={1: "ztf-g", 2: "ztf-r", 3: "ztf-i"})
    assert np.array_equal(found.probabilities, DUE.probabilities)


def test_detections_are_five_sigma_unless_told() -> None:
    without = {name: column for name, column in POINTS.items() if name != "detected"}
    told = POINTS | {"detected": np.abs(POINTS["flux"].astype(float)) >= 5 * POINTS["flux_err"].astype(float)}
    assert np.array_equal(CLASSIFIER.classify(without).probabilities, CLASSIFIER.classify(told).probabilities)


ONE = {"mjd": [61000.0, 61003.0], "band": ["lsst-g", "lsst-r"], "flux": [900.0, 1500.0], "flux_err": [50.0, 60.0]}


def test_an_object_without_a_usable_point_has_no_class() -> None:
    found = CLASSIFIER.classify([ONE, ONE | {"flux": [np.nan, None]}, ONE | {"flux_err": [0.0, -1.0]}])
    assert found.class_name[0] in found.classes
    assert found.class_name[1:] == [None, None]
    assert found.n_points_used.tolist() == [2, 0, 0]
    assert found.evident[1:].tolist() == [False, False]
    assert np.isnan(found.probabilities[1:]).all()
    table = found.to_arrow()
    assert table["probability"].null_count == table["SNIa"].null_count == 2


def test_results_as_tables() -> None:
    names = ["object_id", "class_name", "probability", "evident", "n_points_used", "model", *DUE.classes]
    table, frame = DUE.to_arrow(), DUE.to_pandas()
    assert table.column_names == list(frame.columns) == names
    assert DUE.model == "t2b-1@1"
    assert len(DUE) == len(table) == len(frame) == len(ZTF)
    assert frame["class_name"].tolist() == DUE.class_name
    assert np.array_equal(frame[list(DUE.classes)].to_numpy(), DUE.probabilities)
    assert np.array_equal(frame["probability"], DUE.probability)
    assert DUE.probabilities.dtype == np.float32


@pytest.mark.parametrize("nothing", [[], {name: column[:0] for name, column in POINTS.items()}, ZTF.take(np.arange(0))])
def test_nothing_gives_nothing(nothing: Any) -> None:
    found = CLASSIFIER.classify(nothing)
    assert isinstance(found, Classifications)
    assert (len(found), found.to_arrow().num_rows) == (0, 0)
    assert found.probabilities.shape == (0, len(found.classes))


def without(name: str) -> dict[str, Any]:
    return {other: column for other, column in POINTS.items() if other != name}


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (without("object_id"), {}, "no column object_id"),
        (without("mjd"), {}, "no column mjd; of the known ones it has object_id, band, flux"),
        (without("flux"), {}, r"no column flux and flux_err \(or mag and mag_err\)"),
        ([ONE, {"mjd": [1.0]}], {}, "light curve 1: no column band, flux and flux_err"),
        ([ONE, ONE | {"band": ["lsst-g", "V"]}], {}, "light curve 1: band 'V' is unknown: one of lsst-u, .*bands="),
        (POINTS, {"bands": {"ztf-g": "green"}}, "band 'ztf-g' is unknown"),
        (POINTS, {"unit": "erg"}, "unit 'erg' is unknown: one of nJy, uJy, mJy, Jy, FLUXCAL"),
        (POINTS, {"unit": "nJy", "zero_point": 25.0}, "both given"),
        (POINTS, {"zero_point": float("nan")}, "zero_point nan must be a number"),
        (POINTS, {"zero_point": "AB"}, "zero_point 'AB' must be a number"),
        (POINTS, {"zero_point": [31.4]}, r"zero_point \[31\.4\] must be a number"),
        (POINTS, {"unit": ["nJy"]}, r"unit \['nJy'\] is unknown"),
        (POINTS, {"survey": "sdss"}, "survey='sdss'"),
        (POINTS | {"mjd": POINTS["mjd"] + 2400000.5}, {}, "is a JD: subtract 2400000.5"),
        (POINTS | {"flux": POINTS["band"]}, {}, "column flux holds string, expected numbers"),
        (POINTS | {"detected": POINTS["band"]}, {}, "column detected holds string, expected true and false"),
        (POINTS | {"mjd": POINTS["mjd"][1:]}, {}, "can't be read as a table"),
        ([{**ONE, "mag": ONE["flux"], "mag_err": ONE["flux"], "flux": None}], {}, "can't be read as a table"),
        (without("flux") | {"mag": POINTS["flux"], "mag_err": POINTS["flux"]}, {"unit": "Jy"}, "are AB magnitudes"),
        (POINTS | {"object_id": [None] * len(POINTS["mjd"])}, {}, "object_id is null in"),
        (ZTF, {"unit": "nJy"}, "LightCurves are in nJy"),
        ("light curves", {}, "str can't be read as a table"),
        (3, {}, "int can't be read as a table"),
    ],
)
def test_what_is_wrong_is_said(given: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CLASSIFIER.classify(given, **options)


def test_an_unknown_model() -> None:
    with pytest.raises(ModelError, match="no model 't9': neither a released one"):
        Classifier("t9")


def test_an_unknown_attribute() -> None:
    with pytest.raises(AttributeError, match="module 'broker' has no attribute 'Clasifier'"):
        _ = broker.Clasifier  # type: ignore[attr-defined]


TRACE = """
import sys
import broker
print(*sorted({name.partition(".")[0] for name in sys.modules}))
found = broker.Classifier("t2b-1").classify(
    [{"mjd": [61000.0, 61003.0], "band": ["lsst-g", "lsst-r"], "flux": [900.0, 1500.0], "flux_err": [50.0, 60.0]}]
)
print(found.to_arrow()["class_name"][0])
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""


def test_it_needs_neither_the_job_nor_its_packages() -> None:
    ended = subprocess.run([sys.executable, "-P", "-c", TRACE], capture_output=True, text=True, timeout=120, check=True)
    light, name, used = ended.stdout.splitlines()
    assert set(light.split()) & {"numpy", "pyarrow", "onnxruntime", "pandas"} == set()
    assert name in DUE.classes
    assert set(used.split()) & {"pyspark", "py4j", "confluent_kafka", "fastavro", "pydantic", "typer", "rich"} == set()
