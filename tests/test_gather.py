"""Points, columns and floors of decoded alerts, checked against the reference reader and by hand."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate
import pyarrow as pa
import pytest
import reference
from decoding import alerts_of, by_second_reader, by_spark, policy, struct_of
from pyspark.sql import SparkSession
from samples import originals, whole

from broker import surveys
from broker.gather import Gathered, gather
from broker.lightcurve import BANDS, LightCurves, PointCounts, merge
from broker.second_reader import Read

LAYOUTS = [(survey, label) for survey, labels in generate.LABELS.items() for label in labels]
Record = dict[str, Any]


def curves_of(alerts: pa.StructArray, survey: str, **changes: Any) -> tuple[LightCurves, PointCounts, Gathered]:
    gathered = gather(alerts, surveys.find(survey), policy(**changes))
    curves, counts = merge(gathered.points, len(alerts), gathered.mjd_tai)
    return curves, counts, gathered


def as_reference(curves: LightCurves, gathered: Gathered, i: int) -> Record:
    """The light curve in the form of the reference reader."""
    part = slice(curves.offsets[i], curves.offsets[i + 1])
    return {
        "source_id": gathered.columns["source_id"][i].as_py(),
        "object_id": gathered.columns["object_id"][i].as_py(),
        "mjd_tai": curves.mjd_tai[part].tolist(),
        "band": [BANDS[code] for code in curves.band[part]],
        "flux": curves.flux[part].tolist(),
        "flux_err": curves.flux_err[part].tolist(),
        "detected": curves.detected[part].tolist(),
    }


def assert_gathered(alerts: pa.StructArray, survey: str, values: list[bytes]) -> None:
    """Light curves and columns of the alerts are those that the reference reader takes from the bytes."""
    curves, _, gathered = curves_of(alerts, survey)
    for i, value in enumerate(values):
        found, expected = as_reference(curves, gathered, i), reference.light_curve(value, survey)
        for name in ("flux", "flux_err"):
            assert found.pop(name) == pytest.approx(expected.pop(name), rel=3e-7)
        assert found == expected
    assert_columns(gathered, survey, [reference.decode(value) for value in values])


COLUMNS: dict[str, dict[str, Callable[[Record], Any]]] = {
    "lsst": {
        "ra": lambda a: a["diaSource"]["ra"],
        "dec": lambda a: a["diaSource"]["dec"],
        "visit": lambda a: a["diaSource"]["visit"],
        "detector": lambda a: a["diaSource"]["detector"],
        "reliability": lambda a: a["diaSource"].get("reliability"),
        "is_negative": lambda a: a["diaSource"].get("isNegative", a["diaSource"].get("is_negative")),
        "first_mjd_tai": lambda a: (a["diaObject"] or {}).get("firstDiaSourceMjdTai"),
        "programid": lambda _: None,
    },
    "ztf": {
        "ra": lambda a: a["candidate"]["ra"],
        "dec": lambda a: a["candidate"]["dec"],
        "field": lambda a: a["candidate"]["field"],
        "rcid": lambda a: a["candidate"]["rcid"],
        "programid": lambda a: a["candidate"]["programid"],
        "reliability": lambda a: a["candidate"].get("rb") if drb(a) is None else drb(a),
        "visit": lambda _: None,
    },
    "elasticc": {
        "ra": lambda a: a["diaSource"]["ra"],
        "dec": lambda a: a["diaSource"]["decl"],
        "reliability": lambda _: None,
    },
}


def drb(alert: Record) -> Any:
    return alert["candidate"].get("drb")


def assert_columns(gathered: Gathered, survey: str, records: list[Record]) -> None:
    for name, take in COLUMNS[survey].items():
        assert gathered.columns[name].to_pylist() == [take(record) for record in records], name
    if survey == "ztf":
        for found, record in zip(gathered.columns["first_mjd_tai"].to_pylist(), records, strict=True):
            first = record["candidate"].get("jdstarthist")
            assert found == (None if first is None else pytest.approx(first - 2_400_000.5 + 52 / 86400, abs=1e-9))


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_samples(spark: SparkSession, survey: str) -> None:
    values = [sample.data for sample in whole(survey)]
    assert_gathered(by_spark(spark, survey, list(values)).alerts, survey, values)


@pytest.mark.parametrize(("survey", "label"), LAYOUTS)
def test_generated_records(survey: str, label: str) -> None:
    values = generate.generated(survey, label, 25, seed=1)
    found = by_second_reader(survey, list(values), struct_of(survey))
    alerts = pa.concat_arrays([read.alert for read in found if isinstance(read, Read)])
    assert_gathered(alerts, survey, values)


@pytest.mark.shared
@pytest.mark.parametrize("survey", surveys.NAMES)
def test_every_alert_of_the_shared_folder(spark: SparkSession, survey: str, shared_alerts: Path) -> None:
    values = [sample.data for sample in originals(shared_alerts, survey)]
    for start in range(0, len(values), 400):
        part = values[start : start + 400]
        assert_gathered(by_spark(spark, survey, list(part)).alerts, survey, part)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_a_part_of_a_batch_is_the_same(survey: str) -> None:
    """Arrow arrays may begin in the middle of their buffers."""
    records = [generate.alert(survey, generate.LABELS[survey][-1], seed, seed % 4, seed) for seed in range(9)]
    alerts = alerts_of(survey, records)
    all_curves, _, everything = curves_of(alerts, survey)
    curves, _, part = curves_of(alerts.slice(3, 4), survey)
    for i in range(4):
        assert as_reference(curves, part, i) == as_reference(all_curves, everything, 3 + i)


# --- one rule after the other -------------------------------------------------------------------------------------


def lsst(**changes: Any) -> Record:
    """An alert with one detection and two forced points, and changes to its own source."""
    record = generate.alert("lsst", "1101", 3, n_detections=1, n_forced=2)
    record["diaSource"] |= changes
    return record


def ztf(**changes: Any) -> Record:
    record = generate.alert("ztf", "4.01", 3, n_detections=1, n_forced=2)
    record["candidate"] |= changes
    return record


def counted(survey: str, record: Record, **changes: Any) -> tuple[int, int, int, int]:
    """Points offered, dropped and used, and detections among them."""
    curves, counts, _ = curves_of(alerts_of(survey, [record]), survey, **changes)
    return int(counts.offered[0]), int(counts.dropped[0]), int(counts.used[0]), int(curves.detected.sum())


def test_both_lists_of_one_exposure() -> None:
    """One detection that forced photometry repeats, one forced point alone, the alert's own source."""
    assert counted("lsst", lsst()) == (4, 0, 3, 2)
    assert counted("ztf", ztf()) == (4, 0, 3, 2)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_packets_without_a_history(survey: str) -> None:
    record = generate.alert(survey, generate.LABELS[survey][-1], 1)
    nothing: list[Record] | None
    for nothing in ([], None):
        bare = record | {name: nothing for name in generate.HISTORY[survey][:2] if name in record}
        assert counted(survey, bare) == (1, 0, 1, 1)
    assert len(curves_of(alerts_of(survey, []), survey)[0]) == 0


@pytest.mark.parametrize("survey", surveys.NAMES)
@pytest.mark.parametrize("flux", [math.nan, math.inf, -math.inf, -99999.0])
def test_what_is_not_measured(survey: str, flux: float) -> None:
    record = generate.alert(survey, generate.LABELS[survey][-1], 1, n_detections=0, n_forced=0)
    spoilt = alerts_of(survey, [generate.with_flux(record, survey, flux)])
    curves, counts, _ = curves_of(spoilt, survey)
    assert len(curves.flux) == 0
    assert counts.dropped.tolist() == counts.offered.tolist() == [1]
    history = generate.alert(survey, generate.LABELS[survey][-1], 1)
    curves, counts, _ = curves_of(alerts_of(survey, [generate.with_all_fluxes(history, survey, flux)]), survey)
    assert len(curves.flux) == 0
    assert counts.dropped[0] == counts.offered[0] > 4


@pytest.mark.parametrize("survey", surveys.NAMES)
@pytest.mark.parametrize("band", [None, "unknown"])
def test_bands_that_nobody_knows(survey: str, band: str | None) -> None:
    record = generate.alert(survey, generate.LABELS[survey][-1], 1, n_detections=0, n_forced=0)
    label = {"ztf": 77}.get(survey, "Q") if band else None
    spoilt = generate.with_band(record, survey, label)
    assert counted(survey, spoilt) == (1, 1, 0, 0)
    _, _, gathered = curves_of(alerts_of(survey, [spoilt]), survey)
    assert gathered.band.tolist() == [-1]


def test_band_of_elasticc_in_upper_case() -> None:
    record = generate.with_band(generate.alert("elasticc", "0.9", 1, 0, 0), "elasticc", "Y")
    curves, _, _ = curves_of(alerts_of("elasticc", [record]), "elasticc")
    assert [BANDS[code] for code in curves.band] == ["lsst-y"]


def test_zero_point_of_a_source() -> None:
    alerts = alerts_of("elasticc", [generate.alert("elasticc", "0.9", 1)])
    nano, _, _ = curves_of(alerts, "elasticc")
    fluxcal, _, _ = curves_of(alerts, "elasticc", zero_point=27.5)
    assert fluxcal.flux == pytest.approx(nano.flux * 10 ** (0.4 * 3.9), rel=1e-6)
    assert fluxcal.flux_err == pytest.approx(nano.flux_err * 10 ** (0.4 * 3.9), rel=1e-6)


def test_withdrawn_points() -> None:
    record = lsst()
    record["prvDiaForcedSources"][0]["timeWithdrawnMjdTai"] = 60_100.0
    assert counted("lsst", record) == (4, 1, 3, 2)  # the detection of that exposure stays
    record["prvDiaSources"][0]["timeWithdrawnMjdTai"] = 0.0  # set, if only to 0
    assert counted("lsst", record) == (4, 2, 2, 1)


def test_points_later_than_the_alert() -> None:
    record = lsst()
    record["prvDiaForcedSources"][1] |= {"midpointMjdTai": record["diaSource"]["midpointMjdTai"] + 1e-6}
    assert counted("lsst", record) == (4, 1, 2, 2)


def test_detectors_of_one_visit_are_exposures_of_their_own() -> None:
    record = lsst()
    record["prvDiaForcedSources"][0]["detector"] = 41
    assert counted("lsst", record) == (4, 0, 4, 2)


def test_ztf_exposures_forty_seconds_apart() -> None:
    record = ztf()
    (detection,), (forced, _) = record["prv_candidates"], record["fp_hists"]
    forced |= {"pid": detection["pid"] + 1, "jd": detection["jd"] + 40 / 86400, "fid": detection["fid"]}
    assert counted("ztf", record) == (4, 0, 4, 2)


def test_ztf_images_without_a_number_are_told_by_their_time() -> None:
    record = ztf()
    for point in (*record["prv_candidates"], *record["fp_hists"]):
        point["pid"] = None
    assert counted("ztf", record) == (4, 0, 3, 2)


@pytest.mark.parametrize("procstatus", ["0", "56", "57", "61", "255", None])
def test_bad_procstatus_with_a_finite_flux_is_a_point(procstatus: str | None) -> None:
    """Most points with a warning are sound; what failed has no flux."""
    record = ztf()
    record["fp_hists"][0]["procstatus"] = procstatus
    assert counted("ztf", record) == (4, 0, 3, 2)
    record["fp_hists"][0] |= {"forcediffimflux": -99999.0, "forcediffimfluxunc": -99999.0}
    assert counted("ztf", record) == (4, 1, 3, 2)
    record["fp_hists"][1]["magzpsci"] = None
    assert counted("ztf", record) == (4, 2, 2, 2)


def test_upper_limits_are_not_offered() -> None:
    record = ztf()
    record["prv_candidates"] += [record["prv_candidates"][0] | {"magpsf": None, "isdiffpos": None, "pid": 7}]
    assert counted("ztf", record) == (4, 0, 3, 2)


def test_points_that_are_not_public() -> None:
    record = ztf()
    record["fp_hists"][1]["programid"] = 2
    assert counted("ztf", record) == (4, 1, 2, 2)
    assert counted("ztf", record, programids=(1, 2)) == (4, 0, 3, 2)
    record["fp_hists"][1]["programid"] = None
    assert counted("ztf", record) == (4, 1, 2, 2)


@pytest.mark.parametrize(("label", "sign"), [("t", 1), ("1", 1), ("f", -1), ("0", -1)])
def test_sign_of_a_difference(label: str, sign: int) -> None:
    _, _, gathered = curves_of(alerts_of("ztf", [ztf(isdiffpos=label, magpsf=20.0, sigmapsf=0.1)]), "ztf")
    assert gathered.flux.tolist() == pytest.approx([sign * 10 ** (0.4 * 11.4)])
    assert gathered.flux_err.tolist() == pytest.approx([abs(gathered.flux[0]) * 0.1 / 1.0857362], rel=1e-6)


@pytest.mark.parametrize(
    ("survey", "spoilt"),
    [
        ("lsst", {"reliability": 0.49}),
        ("lsst", {"isDipole": True}),
        ("lsst", {"pixelFlags_bad": True}),
        ("ztf", {"drb": 0.49}),
        ("ztf", {"drb": None, "rb": 0.54}),
        ("ztf", {"nbad": 1}),
    ],
)
def test_history_below_the_floor_is_no_detection(survey: str, spoilt: Record) -> None:
    """The point stays: forced photometry of the exposure does not depend on it."""
    record, name = {"lsst": (lsst(), "prvDiaSources"), "ztf": (ztf(), "prv_candidates")}[survey]
    record[name][0] |= spoilt
    assert counted(survey, record) == (4, 0, 3, 1)


@pytest.mark.parametrize("missing", [None, 0])
def test_a_missing_id_is_null_or_zero(missing: int | None) -> None:
    record = lsst(diaObjectId=77)
    cases = [record | {"diaObject": None}, record | {"diaObject": record["diaObject"] | {"diaObjectId": missing or 0}}]
    cases += [generate.without_object(record), generate.of_solar_system(record)]
    _, _, gathered = curves_of(alerts_of("lsst", cases), "lsst")
    assert gathered.columns["object_id"].to_pylist() == ["77", "77", None, None]


def test_object_ids_that_are_no_text() -> None:
    """One flipped bit: Spark lets it pass, Python would stop there."""
    kind = struct_of("ztf")
    alerts = alerts_of("ztf", [ztf(), ztf()])
    raw = pa.array([b"ZTF26aaaaaaa", b"ZTF26\xe1aaaaaa"], pa.binary()).view(pa.string())
    columns = [raw if f.name == "objectId" else alerts.field(f.name) for f in kind]
    broken = pa.StructArray.from_arrays(columns, [f.name for f in kind])
    _, _, gathered = curves_of(broken, "ztf")
    assert gathered.columns["object_id"].to_pylist() == ["ZTF26aaaaaaa", "ZTF26\ufffdaaaaaa"]


# --- floors -------------------------------------------------------------------------------------------------------

FLOORS: list[tuple[str, Record, str | None]] = [
    ("lsst", {}, None),
    ("lsst", {"pixelFlags_injected": True}, "injected"),
    ("lsst", {"pixelFlags_injected_templateCenter": True}, "injected"),
    ("lsst", {"timeWithdrawnMjdTai": 60_000.0}, "withdrawn"),
    ("lsst", {"ssObjectId": 4711}, "solar_system"),
    ("lsst", {"ssObjectId": 0}, None),
    ("lsst", {"psfFlux_flag": True}, "bad_pixels"),
    ("lsst", {"pixelFlags_bad": True}, "bad_pixels"),
    ("lsst", {"pixelFlags_crCenter": True}, "bad_pixels"),
    ("lsst", {"pixelFlags_saturatedCenter": True}, "bad_pixels"),
    ("lsst", {"isDipole": True}, "low_reliability"),
    ("lsst", {"glint_trail": True}, "low_reliability"),
    ("lsst", {"reliability": 0.4999}, "low_reliability"),
    ("lsst", {"reliability": 0.5}, None),
    ("lsst", {"reliability": None}, None),
    ("lsst", {"reliability": math.nan}, None),
    ("lsst", {"reliability": 0.1, "ssObjectId": 4711, "pixelFlags_injected": True}, "injected"),
    ("lsst", {"reliability": 0.1, "ssObjectId": 4711}, "solar_system"),
    ("ztf", {}, None),
    ("ztf", {"programid": 2}, "not_public"),
    ("ztf", {"ssdistnr": 4.9, "ssmagnr": 18.0}, "solar_system"),
    ("ztf", {"ssdistnr": 0.0, "ssmagnr": 0.0}, "solar_system"),
    ("ztf", {"ssdistnr": 5.0, "ssmagnr": 18.0}, None),
    ("ztf", {"ssdistnr": 4.9, "ssmagnr": -999.0}, None),
    ("ztf", {"ssdistnr": -999.0, "ssmagnr": 18.0}, None),
    ("ztf", {"ssdistnr": None, "ssmagnr": None}, None),
    ("ztf", {"nbad": 1}, "bad_pixels"),
    ("ztf", {"nbad": None}, None),
    ("ztf", {"drb": 0.4999}, "low_reliability"),
    ("ztf", {"drb": 0.5, "rb": 0.0}, None),
    ("ztf", {"drb": None, "rb": 0.5499}, "low_reliability"),
    ("ztf", {"drb": None, "rb": 0.55}, None),
    ("ztf", {"drb": None, "rb": None}, None),
    ("ztf", {"programid": 2, "drb": 0.1, "nbad": 3}, "not_public"),
]


@pytest.mark.parametrize(("survey", "own", "reason"), FLOORS)
def test_first_floor(survey: str, own: Record, reason: str | None) -> None:
    record = lsst(**own) if survey == "lsst" else ztf(**own)
    assert first_floor(survey, record) == reason


def first_floor(survey: str, record: Record, **changes: Any) -> str | None:
    table = surveys.find(survey)
    (index,) = gather(alerts_of(survey, [record]), table, policy(**changes)).floor.tolist()
    return table.floors[index].reason if index >= 0 else None


SWITCHES = {
    "lsst_abstains_on_dipole": "isDipole",
    "lsst_abstains_on_glint_trail": "glint_trail",
    "lsst_abstains_on_psf_flux_flag": "psfFlux_flag",
    "lsst_abstains_on_bad_pixels": "pixelFlags_bad",
    "lsst_abstains_on_cosmic_ray_center": "pixelFlags_crCenter",
    "lsst_abstains_on_saturated_center": "pixelFlags_saturatedCenter",
    "lsst_abstains_on_injected": "pixelFlags_injected",
}


@pytest.mark.parametrize("switch", SWITCHES)
def test_floors_can_be_switched_off(switch: str) -> None:
    record = lsst(**{SWITCHES[switch]: True})
    assert first_floor("lsst", record) is not None
    assert first_floor("lsst", record, **{switch: False}) is None


def test_floors_are_settings() -> None:
    assert first_floor("lsst", lsst(reliability=0.6), lsst_min_reliability=0.7) == "low_reliability"
    assert first_floor("ztf", ztf(nbad=2), ztf_max_nbad=2) is None
    assert first_floor("ztf", ztf(ssdistnr=8.0, ssmagnr=18.0), solar_system_arcsec=10.0) == "solar_system"
    assert first_floor("ztf", ztf(programid=3), programids=(1, 3)) is None
