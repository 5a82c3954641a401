"""Tables of light curves beside formulas in plain Python: units, magnitudes, unusable rows, and the order of rows."""

import math
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import surveys, table_rows
from broker.errors import ArchiveError, UsageError
from broker.lightcurve import BANDS
from broker.surveys.curves import NAMES
from broker.tables import Hints, Plan, look

Row = dict[str, Any]
NJY_OF = {"nJy": 1.0, "uJy": 1e3, "mJy": 1e6, "Jy": 1e9, "FLUXCAL": 10 ** (0.4 * (31.4 - 27.5))}
NAN = float("nan")
NJY = Hints(unit="nJy")


def row(object_id: str = "a", mjd: float = 60_000.0, band: str = "ztf-g", **more: Any) -> Row:
    return {"object_id": object_id, "mjd": mjd, "band": band, "flux": 100.0, "flux_err": 5.0} | more


def write(path: Path, rows: list[Row]) -> Path:
    table = pa.Table.from_pylist(rows)
    if path.suffix == ".csv":
        pa.csv.write_csv(table, path)
    else:
        pq.write_table(table, path)
    return path


def objects(path: Path, hints: Hints = NJY) -> dict[str, Row]:
    """The table's alerts by object, of all surveys whose thresholds it is judged by."""
    plan = look(path, hints)
    assert plan is not None
    found = [
        one
        for survey in plan.surveys
        for batch in table_rows.read(path, "t", plan, survey)
        for one in batch.column("alert").to_pylist()
    ]
    by_name = {one["newest"]["object_id"]: one for one in found}
    assert len(by_name) == len(found)
    return by_name


def points(alert: Row) -> list[tuple[Any, ...]]:
    """All points of an object, the newest too, in an order of their own."""
    names = ("mjd", "band", "flux", "flux_err", "detected")
    every = [tuple(point[name] for name in names) for point in (*alert["points"], alert["newest"])]
    return sorted(every, key=repr)


# --- units ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
@pytest.mark.parametrize("unit", NJY_OF)
def test_a_unit_is_a_factor(tmp_path: Path, unit: str, suffix: str) -> None:
    path = write(tmp_path / f"a{suffix}", [row(flux=-2.5, flux_err=0.25)])
    newest = objects(path, Hints(unit=unit))["a"]["newest"]
    assert newest["flux"] == pytest.approx(-2.5 * NJY_OF[unit], rel=1e-12)
    assert newest["flux_err"] == pytest.approx(0.25 * NJY_OF[unit], rel=1e-12)


@pytest.mark.parametrize("unit", NJY_OF)
def test_a_unit_in_the_name_of_the_column_is_taken(tmp_path: Path, unit: str) -> None:
    plain = row(flux=3.0, flux_err=0.5)
    named = {f"{k}_{unit}" if k.startswith("flux") else k: v for k, v in plain.items()}
    path = write(tmp_path / "a.parquet", [named])
    newest = objects(path, Hints())["a"]["newest"]
    assert newest["flux"] == pytest.approx(3.0 * NJY_OF[unit], rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(10, 40), st.floats(-1e5, 1e5), st.floats(0.01, 1e3))
def test_a_zero_point_is_the_magnitude_of_flux_1(zero_point: float, flux: float, error: float) -> None:
    """Given by the user or by a column, each row by its own."""
    due = 10 ** (0.4 * (31.4 - zero_point))
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.parquet", [row(flux=flux, flux_err=error)])
        given_ = objects(path, Hints(zero_point=zero_point))["a"]["newest"]
        rows = [row("a", flux=flux, flux_err=error, zp=zero_point), row("b", flux=flux, flux_err=error, zp=31.4)]
        by_column = objects(write(Path(folder) / "b.parquet", rows), Hints())
    for newest in (given_, by_column["a"]["newest"]):
        assert newest["flux"] == pytest.approx(flux * due, rel=1e-9, abs=1e-9)
        assert newest["flux_err"] == pytest.approx(error * due, rel=1e-9)
    assert by_column["b"]["newest"]["flux"] == pytest.approx(flux, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(st.floats(12, 24), st.floats(0.001, 0.5), st.booleans())
def test_magnitudes_become_fluxes(mag: float, error: float, is_negative: bool) -> None:
    """Nano-jansky of an AB magnitude, and the error to first order."""
    due = 10 ** (0.4 * (31.4 - mag))
    found = {"object_id": "a", "mjd": 60_000.0, "band": "lsst-r", "mag": mag, "mag_err": error}
    with TemporaryDirectory() as folder:
        path = write(Path(folder) / "a.parquet", [found | {"is_negative": is_negative}])
        newest = objects(path, Hints())["a"]["newest"]
    assert newest["flux"] == pytest.approx(-due if is_negative else due, rel=1e-9)
    assert newest["flux_err"] == pytest.approx(due * error * math.log(10) / 2.5, rel=1e-9)


def test_fluxes_win_over_magnitudes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(flux=7.0, mag=18.0, mag_err=0.1)])
    assert objects(path)["a"]["newest"]["flux"] == 7.0


# --- rows -----------------------------------------------------------------------------------------------------------


@st.composite
def light_curves(draw: st.DrawFn) -> list[Row]:
    """Points of up to four objects, no two of one at the same time, some of them of no use."""
    found: list[Row] = []
    for name in draw(st.sets(st.sampled_from(["a", "b", "c", "d"]), min_size=1)):
        for night in draw(st.sets(st.integers(0, 50), min_size=1, max_size=6)):
            found.append(
                row(
                    name,
                    60_000.0 + night + 0.125,
                    draw(st.sampled_from(["ztf-g", "ztf-r"])),
                    flux=draw(st.sampled_from([NAN, 0.0, -40.0]) | st.floats(-1e4, 1e4)) + 0.0,  # CSV knows no -0.0
                    flux_err=draw(st.sampled_from([NAN, 0.0, -1.0]) | st.floats(0.5, 100)),
                )
            )
    return found


def is_usable(point: Row) -> bool:
    return math.isfinite(point["flux"]) and point["flux_err"] > 0


@settings(max_examples=15, deadline=None)
@given(light_curves(), st.integers(0, 2**31))
def test_the_order_of_rows_does_not_matter(rows: list[Row], seed: int) -> None:
    """Nor does the kind of file: the alerts of each object are the same, apart from their numbers."""
    mixed = random.Random(seed).sample(rows, len(rows))
    with TemporaryDirectory() as folder:
        first = objects(write(Path(folder) / "a.parquet", rows))
        others = [objects(write(Path(folder) / name, mixed)) for name in ("b.parquet", "b.csv")]
    for other in others:
        assert repr({n: points(other[n]) for n in sorted(other)}) == repr({n: points(first[n]) for n in sorted(first)})
        for name, alert in first.items():
            assert other[name]["newest"]["mjd"] == alert["newest"]["mjd"]


@settings(max_examples=20, deadline=None)
@given(light_curves())
def test_every_object_is_an_alert_with_all_its_points(rows: list[Row]) -> None:
    """The newest usable point stands for the alert's own source; where none is usable, the newest at all."""
    with TemporaryDirectory() as folder:
        found = objects(write(Path(folder) / "a.parquet", rows))
    assert sorted(found) == sorted({one["object_id"] for one in rows})
    for name, alert in found.items():
        mine = [one for one in rows if one["object_id"] == name]
        assert len(alert["points"]) == len(mine) - 1
        assert sorted(point[0] for point in points(alert)) == sorted(one["mjd"] for one in mine)
        best = max([one for one in mine if is_usable(one)] or mine, key=lambda one: one["mjd"])
        assert (alert["newest"]["mjd"], alert["newest"]["band"]) == (best["mjd"], best["band"])


def test_many_objects_come_in_batches_with_their_numbers(tmp_path: Path) -> None:
    names = [f"object {i:03}" for i in range(600)]
    path = write(tmp_path / "a.parquet", [row(name) for name in names])
    plan = look(path, NJY)
    assert plan is not None
    batches = list(table_rows.read(path, "folder/a.parquet", plan, "ztf-curves"))
    assert [batch.num_rows for batch in batches] == [256, 256, 88]
    offsets = [offset for batch in batches for offset in batch.column("offset").to_pylist()]
    found = [one["newest"]["object_id"] for batch in batches for one in batch.column("alert").to_pylist()]
    assert (offsets, found) == (list(range(600)), names)
    for batch in batches:
        assert set(batch.column("topic").to_pylist()) == {"folder/a.parquet"}
        assert set(batch.column("schema").to_pylist()) == {"light-curves"}
        assert set(batch.column("partition").to_pylist()) == {0}


def test_missing_values_are_no_points(tmp_path: Path) -> None:
    """A null in flux, error, band or time leaves the point behind the newest that can be used."""
    whole = [row(mjd=60_000.0), row(mjd=60_001.0)]
    for name in ("flux", "flux_err", "band", "mjd"):
        path = write(tmp_path / f"{name}.parquet", [*whole, row(mjd=60_002.0) | {name: None}])
        alert = objects(path)["a"]
        assert (alert["newest"]["mjd"], len(alert["points"])) == (60_001.0, 2), name


def test_a_point_without_an_object_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(), row() | {"object_id": None}])
    plan = look(path, NJY)
    assert plan is not None
    with pytest.raises(ArchiveError, match=r"a\.parquet: object_id is null in 1 of 2 points"):
        list(table_rows.read(path, "t", plan, plan.surveys[0]))


def test_julian_dates_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(mjd=2_460_000.5)])
    plan = look(path, NJY)
    assert plan is not None
    with pytest.raises(ArchiveError, match=r"mjd 2460000\.5 is a JD"):
        list(table_rows.read(path, "t", plan, plan.surveys[0]))


def test_places_are_those_of_the_object(tmp_path: Path) -> None:
    rows = [row("a", ra=10.5, decl=-3.25), row("b", ra=None, decl=None), row("a", 60_003.0, ra=10.6, decl=-3.2)]
    found = objects(write(tmp_path / "a.parquet", rows))
    assert (found["a"]["newest"]["ra"], found["a"]["newest"]["dec"]) == (10.5, -3.25)
    assert (found["b"]["newest"]["ra"], found["b"]["newest"]["dec"]) == (None, None)
    without = objects(write(tmp_path / "b.parquet", [row()]))
    assert without["a"]["newest"]["ra"] is None


def test_a_column_of_detections_is_kept(tmp_path: Path) -> None:
    rows = [row(mjd=60_000.0, detected=True, flux=1.0), row(mjd=60_001.0, detected=False, flux=900.0)]
    alert = objects(write(tmp_path / "a.parquet", rows))["a"]
    assert (alert["newest"]["detected"], alert["points"][0]["detected"]) == (False, True)


def test_objects_may_be_numbers(tmp_path: Path) -> None:
    """With leading zeros where the file is text."""
    path = write(tmp_path / "a.parquet", [row() | {"object_id": 12}, row() | {"object_id": 7}])
    assert sorted(objects(path)) == ["12", "7"]
    (tmp_path / "b.csv").write_text("object_id,mjd,band,flux,flux_err\n007,60000,ztf-g,1,1\n7,60000,ztf-g,1,1\n")
    assert sorted(objects(tmp_path / "b.csv")) == ["007", "7"]


# --- names ----------------------------------------------------------------------------------------------------------


SPELLINGS = [(ours, name) for ours in ("object_id", "mjd", "band", "flux", "flux_err") for name in NAMES[ours]]


@pytest.mark.parametrize(("ours", "spelling"), SPELLINGS)
def test_every_spelling_is_known_in_any_case(tmp_path: Path, ours: str, spelling: str) -> None:
    for name in (spelling, spelling.upper()):
        path = write(tmp_path / f"{name}.parquet", [{name if k == ours else k: v for k, v in row().items()}])
        plan = look(path, NJY)
        assert plan is not None
        assert plan.columns[ours] == name
        assert objects(path)["a"]["newest"]["flux"] == 100.0


def test_the_first_spelling_wins(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row() | {"name": "other", "diff_flux": 1.0}])
    assert objects(path)["a"]["newest"]["flux"] == 100.0


@pytest.mark.parametrize("label", BANDS)
def test_our_names_of_bands_need_no_system(tmp_path: Path, label: str) -> None:
    path = write(tmp_path / "a.parquet", [row(band=label)])
    plan = look(path, NJY)
    assert plan == Plan(
        ("ztf-curves",) if label.startswith("ztf") else ("lsst-curves",),
        {name: name for name in ("object_id", "mjd", "band", "flux", "flux_err")},
        "nJy",
        None,
        {},
    )
    assert objects(path)["a"]["newest"]["band"] == label


@pytest.mark.parametrize(
    ("letters", "system"),
    [("gri", "ztf"), ("griz", "des"), ("ugriz", "sdss"), ("ugrizy", "lsst"), ("grizY", "lsst"), ("g", "ztf")],
)
def test_letters_tell_the_system(tmp_path: Path, letters: str, system: str) -> None:
    path = write(tmp_path / "a.parquet", [row(band=letter) for letter in letters])
    plan = look(path, NJY)
    assert plan is not None
    assert plan.bands == {letter: f"{system}-{letter.lower()}" for letter in letters}


def test_a_band_that_the_system_does_not_have_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", [row(band="u"), row(band="g")])
    with pytest.raises(UsageError, match=r"band 'u' is none of ps1's"):
        look(path, Hints(unit="nJy", bands="ps1"))


# --- types ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", [*surveys.NAMES, "lsst-curves", "ztf-curves"])
def test_a_struct_of_another_writer_is_made_ours(survey: str) -> None:
    """Fields in another order, more of them, none of them: ours come out, in our order, null where missing."""
    fields = surveys.find(survey).fields
    kind = table_rows.arrow_type(fields)
    extra = pa.struct([("strange", pa.string()), *reversed(list(kind))])
    made = pa.array([{"strange": "x"}, None], extra)
    found = table_rows.conform(made, fields)
    assert found.type == kind
    assert found.to_pylist() == [{field.name: None for field in kind}, None]
    assert table_rows.conform(pa.nulls(3), fields).to_pylist() == [None] * 3


@settings(max_examples=20, deadline=None)
@given(st.lists(st.none() | st.lists(st.none() | st.integers(-(2**40), 2**40), max_size=4), max_size=6))
def test_lists_stay_what_they_are(lists: list[list[int | None] | None]) -> None:
    made = pa.array(
        [None if x is None else [{"id": v} for v in x] for x in lists],
        pa.large_list(pa.struct([("id", pa.float64())])),
    )
    found = table_rows.conform(made, [{"id": "long"}])
    assert found.to_pylist() == made.to_pylist()
    assert pa.types.is_list(found.type)
    sliced = table_rows.conform(made.slice(1), [{"id": "long"}])
    assert sliced.to_pylist() == made.to_pylist()[1:]


def test_numbers_that_do_not_fit_are_refused_and_not_rounded() -> None:
    assert table_rows.conform(pa.array([1.0, 2.0**40]), "long").to_pylist() == [1, 2**40]
    for wrong, kind in (([0.5], "long"), ([2.0**40], "int"), ([1e300], "long")):
        with pytest.raises(pa.ArrowInvalid):
            table_rows.conform(pa.array(wrong), kind)
    with pytest.raises(pa.ArrowInvalid):
        table_rows.conform(pa.array(["many"]), "long")
