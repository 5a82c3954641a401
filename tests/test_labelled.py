"""Labelled sets part by part: whose points are whose, units, bands, labels, places, and which points are kept."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ArchiveError, UsageError
from broker.labelled import (
    BEFORE_FIRST_DETECTION_D,
    SYSTEMS,
    Options,
    _by_magnitude,
    bands_of,
    curves_of,
    detections,
    labels,
    positions,
    read,
    rows_of,
    sky_names,
    system_of,
)
from broker.lightcurve import BANDS

HERE = Path("set")


def table(n: int = 6, **more: Any) -> pd.DataFrame:
    """Points of one object, a day apart, all of them detections."""
    columns = {"object_id": ["a"] * n, "mjd": 60_000.0 + np.arange(n), "passband": ["g"] * n}
    return pd.DataFrame(columns | {"flux": np.full(n, 100.0), "flux_err": np.full(n, 1.0)} | more)


def write(folder: Path, points: pd.DataFrame, readme: str = "", **meta: list[Any]) -> Path:
    folder.mkdir(exist_ok=True)
    pd.DataFrame({"object_id": ["a"], "class": ["SNIa"]} | meta).to_parquet(folder / "metadata.parquet")
    points.to_parquet(folder / "lightcurves.parquet")
    if readme:
        (folder / "README.md").write_text(readme)
    return folder


# --- objects --------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 50), unique=True), st.lists(st.integers(0, 60)), st.booleans())
def test_every_point_finds_its_object(known: list[int], wanted: list[int], as_text: bool) -> None:
    """Ids that are numbers in one file and text in the other too."""
    theirs = pd.Series([str(w) for w in wanted] if as_text else wanted, dtype=object if as_text else "int64")
    found = rows_of(pd.Series(known, dtype="int64"), theirs, HERE)
    assert found.tolist() == [known.index(w) if w in known else -1 for w in wanted]


def test_an_object_that_stands_there_twice_is_told() -> None:
    with pytest.raises(ArchiveError, match=r"set/metadata\.parquet: object_id 7 stands in it more than once"):
        rows_of(pd.Series([7, 3, 7]), pd.Series([3]), HERE)


def test_points_of_unknown_objects_are_left_out_and_counted(tmp_path: Path) -> None:
    points = pd.concat([table(3), table(2).assign(object_id="stranger")])
    found = read(write(tmp_path / "s", points), Options(zero_point=31.4), {})
    assert len(found.curves.flux) == 3
    assert "2 points of objects that metadata.parquet does not have" in found.notes


def test_objects_without_points_stay(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", table(3), "", object_id=["b", "a"], **{"class": ["TDE", "SNIa"]})
    found = read(folder, Options(zero_point=31.4), {})
    assert found.curves.counts.tolist() == [0, 3]
    assert found.label == ["TDE", "SNIa"]


def test_names_on_the_sky_are_the_iau_s_where_known() -> None:
    meta = pd.DataFrame({"object_id": [1, 2, 3], "iau_name": ["2020abc", None, ""]})
    assert sky_names(meta) == ["2020abc", "2", "3"]
    assert sky_names(meta[["object_id"]]) == ["1", "2", "3"]


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_point", [31.4, 23.9, 27.5, 8.9])
def test_fluxes_become_nano_janskys(zero_point: float) -> None:
    points = table(4)
    curves = curves_of(points, np.zeros(4, np.int64), np.zeros(4, np.int8), 1, zero_point)
    assert curves.flux.tolist() == pytest.approx([100 * 10 ** (0.4 * (31.4 - zero_point))] * 4, rel=1e-6)
    assert curves.flux_err.tolist() == pytest.approx([10 ** (0.4 * (31.4 - zero_point))] * 4, rel=1e-6)
    assert curves.detected.all()


def test_the_unit_is_looked_for_in_this_order(tmp_path: Path) -> None:
    """What the user says, a column, magnitudes beside the fluxes, words, sets of that name."""
    mag = 25.0 - 2.5 * np.log10(np.full(6, 100.0))
    every = write(tmp_path / "every", table(mag=mag, zero_point=26.0), "flux: in nJy\n")
    known = {"every": 20.0, "none": 21.0}
    assert read(every, Options(zero_point=27.0), known).zero_point == 27.0
    assert read(every, Options(), known).zero_point == 26.0
    table(mag=mag).to_parquet(every / "lightcurves.parquet")
    assert read(every, Options(), known).zero_point == 25.0
    table(mag=mag + np.arange(6)).to_parquet(every / "lightcurves.parquet")  # no magnitudes of these fluxes
    assert read(every, Options(), known).zero_point == 31.4
    (every / "README.md").write_text("nothing of fluxes\n")
    assert read(every, Options(), known).zero_point == 20.0
    with pytest.raises(UsageError, match="nothing says in which unit its fluxes are"):
        read(every, Options(), {})


def test_zero_points_that_differ_say_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", table(zero_point=[25.0, 26.0] * 3))
    with pytest.raises(UsageError, match="nothing says in which unit"):
        read(folder, Options(), {})


@settings(max_examples=30)
@given(st.floats(20, 35), st.lists(st.floats(1, 1e5), min_size=1, max_size=20))
def test_a_magnitude_beside_each_flux_gives_the_zero_point(zero_point: float, fluxes: list[float]) -> None:
    flux = np.array(fluxes)
    frame = pd.DataFrame({"flux": [*flux, -5.0, np.nan], "mag": [*(zero_point - 2.5 * np.log10(flux)), np.nan, 20.0]})
    found = _by_magnitude(frame)
    assert found is not None
    assert found[0] == pytest.approx(zero_point, abs=0.0051)
    assert _by_magnitude(frame.assign(flux=-frame["flux"].abs())) is None
    assert _by_magnitude(frame.assign(mag="bright")) is None


# --- bands ----------------------------------------------------------------------------------------------------------


def test_letters_of_a_survey_are_its_bands() -> None:
    for system in SYSTEMS:
        mine = [name for name in BANDS if name.startswith(f"{system}-")]
        letters = pd.Series([name[-1] for name in mine])
        assert [BANDS[code] for code in bands_of(letters, system)] == mine
        assert [BANDS[code] for code in bands_of(pd.Series(mine), "des")] == mine  # our own names need no survey


@given(st.sets(st.sampled_from("ugrizyY"), min_size=1))
def test_the_survey_of_letters_has_them_all(letters: set[str]) -> None:
    system = system_of(letters)
    codes = bands_of(pd.Series(sorted(letters)), system)
    assert (codes >= 0).all()
    assert (system == "lsst") is bool(letters & {"y", "Y"})


def test_instruments_decide_point_by_point() -> None:
    letters = pd.Series(["g", "g", "g", "g", "V", "g"])
    instruments = pd.Series(["P48", "PS1", "Blanco", "LSST", "P48", "of nobody"])
    names = ["" if code < 0 else BANDS[code] for code in bands_of(letters, instruments)]
    assert names == ["ztf-g", "ps1-g", "des-g", "lsst-g", "", "sdss-g"]
    given_ = bands_of(letters, instruments, {"V": "ztf-g"})
    assert BANDS[given_[4]] == "ztf-g"


# --- labels ---------------------------------------------------------------------------------------------------------


def test_a_finer_label_decides_where_there_is_one() -> None:
    meta = pd.DataFrame(
        {"class": ["SNIbc", "SN Ia", "nonsense", "NA"], "true_type": ["IIb", "Ia-91T", "nonsense", "NA"]}
    )
    ours, written = labels(meta, "class")
    assert ours == ["SNII", "SNIa", "?", None]
    assert written == ["SNIbc", "SN Ia", "nonsense", "NA"]
    assert labels(meta, "true_type")[1] == ["IIb", "Ia-91T", "nonsense", "NA"]


def test_the_column_of_classes_is_the_first_that_is_known(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", table(), class_broad=["TDE"], type=["SN II"])
    assert read(folder, Options(zero_point=31.4), {}).label_column == "class_broad"
    found = read(folder, Options(zero_point=31.4, label_column="class"), {})
    assert (found.label_column, found.written) == ("class", ["SNIa"])


# --- places ---------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.integers(0, 89), st.integers(0, 59), st.booleans()
)
def test_hours_and_degrees_are_read(h: int, m: int, s: int, d: int, arc: int, is_south: bool) -> None:
    """A place just south of the equator, -00:30:00, is south of it."""
    sign = "-" if is_south else "+"
    meta = pd.DataFrame({"RA": [f"{h:02}:{m:02}:{s:02}.5"], "Dec": [f"{sign}{d:02}:{arc:02}:30"]})
    (ra,), (dec,) = positions(meta)
    assert ra == pytest.approx(15 * (h + m / 60 + (s + 0.5) / 3600), abs=1e-9)
    assert dec == pytest.approx((-1 if is_south else 1) * (d + arc / 60 + 30 / 3600), abs=1e-9)


def test_degrees_come_first_and_nothing_is_nan() -> None:
    meta = pd.DataFrame({"ra": [10.0, 20.0], "dec": [-1.0, 2.0], "RA": ["x"] * 2, "Dec": ["x"] * 2})
    ra, dec = positions(meta)
    assert (ra.tolist(), dec.tolist()) == ([10.0, 20.0], [-1.0, 2.0])
    assert all(math.isnan(value) for values in positions(meta[["RA"]]) for value in values)


# --- points ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("column", "due"),
    [
        ([True, False, True], [True, False, True]),
        ([1, 0, 1], [True, False, True]),
        ([1.0, np.nan, 0.0], [True, False, False]),
        ([True, None, pd.NA], [True, False, False]),
    ],
)
def test_flags_that_are_missing_are_no_detections(column: list[Any], due: list[bool]) -> None:
    found = detections(pd.DataFrame({"detected": column}))
    assert found is not None
    assert found.tolist() == due
    assert detections(pd.DataFrame({"flux": [1.0]})) is None


@given(st.lists(st.floats(-20, 20), min_size=1, max_size=8))
def test_five_sigma_of_either_sign_is_a_detection(signal: list[float]) -> None:
    n = len(signal)
    points = table(n, flux=np.array(signal))
    curves = curves_of(points, np.zeros(n, np.int64), np.zeros(n, np.int8), 1, 31.4)
    due = {60_000.0 + i: abs(value) >= 5 for i, value in enumerate(signal)}
    assert {t: bool(d) for t, d in zip(curves.mjd_tai, curves.detected, strict=True)} == due


def test_points_long_before_the_first_detection_are_left_out() -> None:
    days = np.array([-200.0, -30.5, -30.0, -1.0, 0.0, 400.0])
    points = table(6, mjd=60_000.0 + days, flux=np.array([1.0, 1, 1, 1, 100, 1]))
    curves = curves_of(points, np.zeros(6, np.int64), np.zeros(6, np.int8), 1, 31.4)
    assert (curves.mjd_tai - 60_000.0).tolist() == [day for day in days if day >= -BEFORE_FIRST_DETECTION_D]


def test_medians_are_those_of_an_object_in_a_band() -> None:
    points = pd.concat([table(5), table(5).assign(object_id="b", flux=[1.0, 1, 1, 1, 51])])
    points["passband"] = ["g", "r"] * 5
    rows = np.repeat([0, 1], 5).astype(np.int64)
    band = np.where(points["passband"] == "g", 0, 1).astype(np.int8)
    curves = curves_of(
        points, rows, band, 2, 31.4, subtract_median=True, detected=np.ones(10, np.bool_)
    )  # fmt: skip
    assert curves.detected.tolist().count(True) == 1  # what the set calls detected says nothing of the differences
    assert sorted(curves.flux.tolist()) == [0.0] * 9 + [50.0]


@pytest.mark.parametrize("rows", [0, 3])
def test_a_set_without_points_is_read(tmp_path: Path, rows: int) -> None:
    points = table(3).iloc[:rows]
    found = read(write(tmp_path / "s", points), Options(zero_point=31.4), {})
    assert found.curves.counts.tolist() == [rows]
    assert ("no point is a detection" in found.notes) is (rows == 0)
