"""What every released model promises, the paper's among them; test_model.py asks more of the one to use."""

import tomllib
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker import model
from broker.lightcurve import BANDS, LightCurves

NAMES = [card.name for card in model.released()]
MODELS = {name: model.load(model.find(name)) for name in NAMES}
PERMITTED = {"Apache-2.0", "MIT", "BSD"}


def golden(name: str) -> tuple[LightCurves, np.ndarray[tuple[int, int], np.dtype[np.float32]]]:
    """Light curves of a model's folder and the probabilities they must give."""
    with np.load(model.find(name) / "golden.npz") as stored:
        curves = LightCurves(*(stored[field] for field in LightCurves.__dataclass_fields__))
        return curves, stored["probabilities"]


def test_the_models_that_the_readme_names_are_there() -> None:
    assert NAMES == ["t2-paper", "t2b-1", "t2b-1-open"]


@pytest.mark.parametrize("name", NAMES)
def test_golden_outputs_alone_and_in_company_and_at_other_times(name: str) -> None:
    curves, expected = golden(name)
    assert len(curves) == 200
    assert np.abs(MODELS[name].predict(curves) - expected).max() < 1e-5
    some = np.arange(0, 200, 9)
    for row in some:
        assert np.abs(MODELS[name].predict(curves.take(np.array([row])))[0] - expected[row]).max() < 1e-5
    for days in (-50_000.0, 12_345.6):
        shifted = replace(curves, mjd_tai=curves.mjd_tai + days).take(some)
        assert np.abs(MODELS[name].predict(shifted) - expected[some]).max() < 1e-5


@pytest.mark.parametrize("name", NAMES)
@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.floats(-1e6, 1e6),
            st.floats(-(2.0**120), 2.0**120, width=32),
            st.floats(2.0**-140, 2.0**120, width=32),
            st.integers(0, len(BANDS) - 1),
            st.booleans(),
        ),
        min_size=1,
        max_size=40,
    )
)
def test_any_finite_input_gives_finite_probabilities(
    name: str, points: list[tuple[float, float, float, int, bool]]
) -> None:
    mjd, flux, error, band, detected = zip(*sorted(points), strict=True)
    one = LightCurves(
        np.array([0, len(mjd)]),
        np.array(mjd),
        np.array(band, np.int8),
        np.array(flux, np.float32),
        np.array(error, np.float32),
        np.array(detected),
    )
    result = MODELS[name].predict(one)
    assert np.isfinite(result).all()
    assert abs(result.sum() - 1) < 1e-5


def test_the_open_model_has_learnt_from_permitted_sets_alone() -> None:
    card = tomllib.loads((model.find("t2b-1-open") / model.CARD_FILE).read_text())
    licences = {row["name"]: row["licence"] for row in card["training_data"]}
    assert licences.pop("real_transients").startswith("MIT (SLSNe)")
    assert {part for licence in licences.values() for part in licence.split(", ")} <= PERMITTED
    (of_transients,) = (row for row in card["training_data"] if row["name"] == "real_transients")
    assert of_transients["part"] == "slsne"
    assert of_transients["n_labelled"] < 204  # SLSNe
