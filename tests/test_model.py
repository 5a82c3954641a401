"""The released model to use: a curve's result depends on that curve alone. test_released.py is about all models."""

import hashlib
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker import model
from broker.errors import ModelError
from broker.lightcurve import BANDS, LightCurves, summarise

FOLDER = model.find("t2b-1")
GOLDEN = np.load(FOLDER / "golden.npz")
CURVES = LightCurves(*(GOLDEN[name] for name in LightCurves.__dataclass_fields__))
MODEL = model.load(FOLDER)
EXPECTED = MODEL.predict(CURVES)
ROWS = st.lists(st.integers(0, len(CURVES) - 1), min_size=1, max_size=80)


def curve(
    mjd: list[float], flux: list[float], error: list[float] | None = None, band: list[int] | None = None
) -> LightCurves:
    """One light curve from lists; every point a detection."""
    n = len(mjd)
    return LightCurves(
        np.array([0, n]),
        np.array(mjd),
        np.array(band or [7] * n, np.int8),
        np.array(flux, np.float32),
        np.array(error or [100.0] * n, np.float32),
        np.ones(n, np.bool_),
    )


def random_curve(n: int) -> LightCurves:
    rng = np.random.default_rng(n)
    flux = rng.normal(1e4, 5e3, n)
    return curve(
        np.sort(rng.uniform(60000, 60300, n)).tolist(), flux.tolist(), band=rng.integers(0, len(BANDS), n).tolist()
    )


def test_rows_are_probabilities() -> None:
    assert EXPECTED.dtype == np.float32
    assert EXPECTED.shape == (len(CURVES), len(MODEL.card.classes))
    assert np.abs(EXPECTED.sum(1) - 1).max() < 1e-5
    assert len(set(EXPECTED.argmax(1))) > 1


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_company_changes_no_bit(rows: list[int]) -> None:
    """Batch size, order and position: a curve alone, repeated or among others gives the same bits."""
    assert (MODEL.predict(CURVES.take(np.array(rows))) == EXPECTED[rows]).all()


def test_each_curve_alone_changes_no_bit() -> None:
    alone = [MODEL.predict(CURVES.take(np.array([i])))[0] for i in range(len(CURVES))]
    assert (np.array(alone) == EXPECTED).all()


@pytest.mark.parametrize("rows", range(2, 65))
def test_every_batch_size_changes_no_bit(rows: int) -> None:
    """Below the buckets: 2 to 64 rows of one padded length, as one call each."""
    short = CURVES.take(np.resize(np.flatnonzero(CURVES.counts <= 64), 64))
    whole = MODEL._run(short, np.arange(64), 64)
    assert (MODEL._run(short, np.arange(rows), 64) == whole[:rows]).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, len(CURVES) - 1), st.integers(0, 2**32 - 1), st.integers(0, 60))
def test_padding_anywhere_changes_no_probability(row: int, seed: int, n_padding: int) -> None:
    """The graph itself: padding of any content, at any place between the points."""
    one = CURVES.take(np.array([row]))
    n = one.counts[0]
    length = n + n_padding
    rng = np.random.default_rng(seed)
    place = np.sort(rng.permutation(length)[:n])

    def spread(values: NDArray[np.generic], padding: float, dtype: type) -> NDArray[np.generic]:
        wide = np.full((2, length), padding, dtype)
        wide[:, place] = values
        return wide

    feed = {
        "mjd": spread(one.mjd_tai, 61234.5, np.float64),
        "flux": spread(one.flux, 3e9, np.float32),
        "flux_err": spread(one.flux_err, 1e-9, np.float32),
        "band": spread(one.band, -1, np.int32),
        "detected": spread(one.detected, True, np.bool_),
    }
    padded = MODEL._session.run([model.OUTPUT], feed)[0]
    assert np.abs(padded - EXPECTED[row]).max() < 1e-6


@settings(deadline=None, max_examples=30)
@given(st.floats(-50_000, 50_000))
def test_shift_of_all_times_changes_nothing(days: float) -> None:
    shifted = replace(CURVES, mjd_tai=CURVES.mjd_tai + days)
    assert np.abs(MODEL.predict(shifted) - EXPECTED).max() < 1e-5


@pytest.mark.parametrize(
    "strange",
    [
        curve([60000.0], [1e4]),
        curve([60000.0] * 5, [1e4, 2e4, 3e4, 4e4, 5e4]),
        curve([60000.0, 60001.0], [1e12, -1e12]),
        curve([60000.0, 60001.0], [1e4, 1e4], [1e-30, 1e-30]),
        replace(random_curve(20), detected=np.zeros(20, np.bool_)),
    ],
    ids=["one point", "identical times", "huge flux", "tiny errors", "nothing detected"],
)
def test_strange_curves(strange: LightCurves) -> None:
    assert abs(MODEL.predict(strange).sum() - 1) < 1e-5


def test_ten_thousand_points_are_thinned() -> None:
    assert np.isfinite(MODEL.predict(LightCurves.concatenate([random_curve(10_000), random_curve(3)]))).all()


def test_curves_without_a_point_are_nan_and_change_no_other() -> None:
    empty = curve([], [])
    mixed = LightCurves.concatenate([empty, CURVES, empty])
    result = MODEL.predict(mixed)
    assert np.isnan(result[[0, -1]]).all()
    assert (result[1:-1] == EXPECTED).all()


def test_no_curves() -> None:
    assert MODEL.predict(CURVES.take(np.array([], np.int64))).shape == (0, len(MODEL.card.classes))


def test_points_in_bands_that_the_model_lacks_do_not_count() -> None:
    """A band that the table gained after the model was released is no point of this model."""
    fewer = replace(MODEL.card, bands=tuple(b for b in MODEL.card.bands if b != "ztf-r"))
    result = model.Model(fewer, MODEL._session).predict(curve([60000.0, 60001.0], [1e4, 1e4], band=[7, 7]))
    assert np.isnan(result).all()


def test_thresholds_follow_the_number_of_detections() -> None:
    steps = [t for t in MODEL.card.thresholds if t.survey == "lsst"]
    at_start = MODEL.card.threshold("lsst", [t.min_detections for t in steps])
    assert at_start.tolist() == [t.probability for t in steps]
    assert MODEL.card.threshold("elasticc", [0, 1000]).tolist() == [at_start[0], at_start[-1]]


def test_threshold_of_an_unknown_survey_is_an_error() -> None:
    with pytest.raises(ModelError, match="no thresholds for survey 'hst'; the card has lsst, ztf"):
        MODEL.card.threshold("hst", [1])


def evident(probability: list[float], flux: list[float], limits: tuple[float, float]) -> bool:
    """Whether a ZTF packet with detections of these fluxes is sure enough; probability: of SNIa, TDE and AGN."""
    card = replace(MODEL.card, thresholds=(model.Threshold("ztf", 1, *limits),))
    of_class = dict(zip(("SNIa", "TDE", "AGN"), probability, strict=True))
    given = np.array([[of_class.get(c.name, np.nan if np.isnan(probability).any() else 0.0) for c in card.classes]])
    days = [60000.0 + 3 * i for i in range(len(flux))]
    return bool(card.evident("ztf", given, summarise(curve(days, flux, band=[7] * len(flux))))[0])


def test_a_transient_needs_two_thresholds_and_new_light() -> None:
    up, down = [1e4, 2e4], [-1e4, -2e4]
    assert evident([0.6, 0.4, 0.0], up, (0.5, 0.9))  # the type is open, that it is new is not
    assert not evident([0.6, 0.4, 0.0], up, (0.7, 0.9))
    assert not evident([0.0, 0.6, 0.4], up, (0.5, 0.9))  # a TDE by half, an AGN by the other
    assert evident([0.0, 0.6, 0.4], up, (0.5, 0.6 - 1e-9))
    assert evident([0.0, 0.4, 0.6], up, (0.5, 0.9))  # the second is for transients alone
    assert not evident([1.0, 0.0, 0.0], down, (0.5, 0.9))
    assert evident([1.0, 0.0, 0.0], [*down, 1e4], (0.5, 0.9))
    assert evident([0.0, 0.0, 1.0], down, (0.5, 0.9))
    assert not evident([np.nan] * 3, up, (0.0, 0.0))


def test_a_card_without_the_second_threshold_asks_for_none(tmp_path: Path) -> None:
    text = (FOLDER / "card.toml").read_text()
    (tmp_path / "card.toml").write_text("\n".join(x for x in text.splitlines() if not x.startswith("transient = ")))
    assert {t.transient for t in model.read_card(tmp_path / "card.toml").thresholds} == {0.0}


def test_find_takes_a_folder_and_names_the_released_models() -> None:
    assert model.find(str(FOLDER)) == FOLDER
    with pytest.raises(ModelError, match=r"no model 't3': neither a released one \(.*t2b-1.*\)"):
        model.find("t3")


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of the released folder, to be damaged."""
    return Path(shutil.copytree(FOLDER, tmp_path / "t2b-1"))


def edit(folder: Path, old: str, new: str, count: int = 1) -> None:
    text = (folder / "card.toml").read_text()
    assert old in text
    (folder / "card.toml").write_text(text.replace(old, new, count))


def test_changed_weights_are_refused(copy: Path) -> None:
    content = bytearray((copy / "model.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "model.onnx").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    with pytest.raises(ModelError, match=f"sha256 is {digest}, the card says {MODEL.card.sha256}"):
        model.load(copy)


@pytest.mark.parametrize("name", ["model.onnx", "card.toml"])
def test_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(ModelError, match=rf"{name}: can't be read"):
        model.load(copy)


def test_a_file_that_is_no_graph_is_refused(copy: Path) -> None:
    (copy / "model.onnx").write_bytes(b"weights")
    edit(copy, MODEL.card.sha256, hashlib.sha256(b"weights").hexdigest())
    with pytest.raises(ModelError, match="can't load it"):
        model.load(copy)


def test_card_with_another_number_of_classes(copy: Path) -> None:
    edit(copy, "[[bands]]", '[[classes]]\nname = "KN"\ntaxonomy_id = 2232\nprior = 0\n\n[[bands]]')
    with pytest.raises(ModelError, match="card lists 8 classes, graph output 'probabilities' has 7"):
        model.load(copy)


def test_card_with_another_number_of_bands(copy: Path) -> None:
    text = (copy / "card.toml").read_text()
    start = text.index("[[bands]]")
    (copy / "card.toml").write_text(text[:start] + text[text.index("[[bands]]", start + 1) :])
    n = len(MODEL.card.bands)
    with pytest.raises(ModelError, match=f"card lists {n - 1} bands, the graph was exported for {n}"):
        model.load(copy)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "lsst-g"', 'name = "lsst-q"', "bands .*lsst-q.* are unknown"),
        ('name = "lsst-g"', 'name = "lsst-r"', "unknown or repeated"),
        ("rules_version = 1", "rules_version = 9", "light-curve rules 9, this broker has 1"),
        ("max_points = 256", "max_points = 250", "max_points 250; need"),
        ("min_points = 1", "min_points = 0", "min_points 0"),
        ("min_points = 1", 'min_points = "one"', "'min_points' is 'one', expected a int"),
        ("min_points = 1", "min_points = true", "'min_points' is True"),
        ("taxonomy_id = 2222", "", "key 'taxonomy_id' is missing"),
        ('version = "1"', "version = ", "not a TOML file"),
        ("[[classes]]", "[[klasses]]", "key 'classes' is missing"),
    ],
)
def test_wrong_cards_are_refused(copy: Path, old: str, new: str, message: str) -> None:
    edit(copy, old, new, -1 if "klasses" in new else 1)
    with pytest.raises(ModelError, match=message):
        model.load(copy)
