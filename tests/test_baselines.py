"""The baselines on made-up light curves: features and grid by hand, both chains from tables to the comparison."""

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pandas as pd
import pytest

# The training code is no part of the wheel. Appended, so that an installed `broker` still comes first.
sys.path.append(str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from broker import model
from broker.lightcurve import BANDS, LightCurves, Points, merge
from models.training import dataset, evaluate, release
from models.training.baselines import boosted, compare, features, grid, packets, paper, replica, timing
from models.training.baselines.grid import N_TIMES
from models.training.dataset import CLASSES, SET_NAMES, SETS, TRAIN, TrainingSet

KINDS = {"spcc": ["SNIa", "SNII", "SNIbc"], "ztf_snia": ["SN Ia"]}
N_OBJECTS = 90


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TrainingSet:
    """Two sets, a deep one with three classes and one of ZTF; the width of a bump tells the class."""
    folder = tmp_path_factory.mktemp("datasets")
    chosen = tuple(s for s in SETS if s.name in KINDS)
    for seed, source in enumerate(chosen):
        rng = np.random.default_rng(seed)
        names = [f"{source.name}{i}" for i in range(N_OBJECTS)]
        label = [KINDS[source.name][i % len(KINDS[source.name])] for i in range(N_OBJECTS)]
        place = {"ra": rng.uniform(0, 360, N_OBJECTS), "dec": rng.uniform(-60, 60, N_OBJECTS)}
        (folder / source.name).mkdir()
        meta = pd.DataFrame({"object_id": names, source.label: label} | place)
        meta.to_parquet(folder / source.name / "metadata.parquet")
        rows = []
        for name, kind in zip(names, label, strict=True):
            mjd = np.sort(rng.uniform(60000, 60150, int(rng.integers(6, 60))))
            width = 8.0 + 12 * KINDS[source.name].index(kind)
            flux = 200 * np.exp(-0.5 * ((mjd - 60070) / width) ** 2) + rng.normal(0, 5, len(mjd))
            table = {"object_id": name, "mjd": mjd, "passband": rng.choice(["g", "r"], len(mjd)), "flux": flux}
            rows.append(pd.DataFrame(table | {"flux_err": 5.0}))
        pd.concat(rows).to_parquet(folder / source.name / "lightcurves.parquet")
    return dataset.load(folder, chosen)


def curves_of(objects: list[list[tuple[float, str, float, float]]]) -> LightCurves:
    """Light curves of these (mjd, band, flux, error)."""
    rows = np.repeat(np.arange(len(objects)), [len(o) for o in objects])
    mjd, band, flux, error = (list(column) for column in zip(*(p for o in objects for p in o), strict=True))
    codes = np.array([BANDS.index(name) for name in band], np.int8)
    points = Points.of_table(rows, np.array(mjd), codes, np.array(flux), np.array(error))
    return merge(points, len(objects), np.full(len(objects), np.nan))[0]


def bump(n: int, seed: int = 0) -> list[tuple[float, str, float, float]]:
    rng = np.random.default_rng(seed)
    mjd = np.sort(rng.uniform(0, 60, n))
    flux = 9000 * np.exp(-0.5 * ((mjd - 25) / 12) ** 2)
    return [(60000 + t, ("lsst-g", "lsst-r")[i % 2], f, 50.0) for i, (t, f) in enumerate(zip(mjd, flux, strict=True))]


# --- features -----------------------------------------------------------------------------------------------------


def test_features_by_hand() -> None:
    curve = [(60000.0, "lsst-g", 10.0, 10.0), (60002.0, "lsst-g", 1000.0, 10.0), (60005.2, "lsst-r", -400.0, 10.0)]
    found = features.of_curves(curves_of([curve]))[0]
    # points, detections, negative ones, their share, nights, nights with a detection, log10 scale
    assert found[:6].tolist() == [3, 2, 1, 0.5, 3, 2]
    assert found[6] == pytest.approx(3)
    last, peak, since_peak, last_detection, before_first = found[7:12]
    assert [last, peak, since_peak, last_detection, before_first] == pytest.approx([3.2, 0, 3.2, 3.2, 2], abs=1e-4)
    assert found[12:15] == pytest.approx([100, -40, 1])
    g = 15 + features.LETTERS.index("g") * 18
    assert found[g : g + 4] == pytest.approx([2, 1, 1, 0], abs=1e-5)
    u = 15
    assert found[u : u + 2].tolist() == [0, 0]
    assert np.isnan(found[u + 2 : u + 18]).all()


def test_features_depend_on_the_curve_alone() -> None:
    several = [bump(n, n) for n in (3, 40, 1, 12, 300)]
    together = features.of_curves(curves_of(several))
    for i, one in enumerate(several):
        assert features.of_curves(curves_of([one]))[0] == pytest.approx(together[i], rel=1e-5, nan_ok=True)
    assert not np.isinf(together).any()


# --- the Gaussian process -----------------------------------------------------------------------------------------


def test_the_grid_goes_through_points_that_are_well_measured() -> None:
    curves = curves_of([bump(60)])
    found = grid.grids(curves)[0]
    times = np.linspace(curves.mjd_tai[0], curves.mjd_tai[-1], grid.N_TIMES)
    truth = 9000 * np.exp(-0.5 * ((times - 60025) / 12) ** 2)
    assert np.abs(found[:, 1] - truth).max() < 0.05 * 9000  # g
    assert np.abs(found[:, 2] - truth).max() < 0.05 * 9000  # r
    assert np.abs(found[:, 5]).max() < np.abs(found[:, 2]).max()  # y is far from both and falls back to zero


def test_grids_depend_on_the_curve_alone_and_need_few_points() -> None:
    several = [bump(n, n) for n in (1, 2, 30, 400)]
    together = grid.grids(curves_of(several))
    assert np.isfinite(together).all()
    for i, one in enumerate(several):
        assert grid.grids(curves_of([one]))[0] == pytest.approx(together[i], rel=1e-3, abs=1)
    none = curves_of([bump(3)]).select(np.zeros(3, np.bool_))
    assert (grid.grids(none) == 0).all()


# --- packets ------------------------------------------------------------------------------------------------------


def test_training_packets_are_of_the_training_side_and_end_at_a_detection(data: TrainingSet) -> None:
    packed = packets.training(data, 3, seed=1)
    n_train = int(((data.split == TRAIN) & (data.about.label >= 0)).sum())
    assert len(packed.label) == 4 * n_train
    assert packed.weight.sum() == pytest.approx(1)
    last = packed.curves.offsets[1:] - 1
    assert packed.curves.detected[last].all()
    span = packed.curves.mjd_tai[last] - packed.curves.mjd_tai[packed.curves.offsets[:-1]]
    of_ztf = np.tile(
        data.about.origin[(data.split == TRAIN) & (data.about.label >= 0)] == SET_NAMES.index("ztf_snia"), 4
    )
    assert span[of_ztf].max() <= 30
    assert span[~of_ztf].max() > 30
    again = packets.training(data, 3, seed=1)
    assert (again.curves.mjd_tai == packed.curves.mjd_tai).all()


def test_keys_tell_objects_of_one_name_apart(data: TrainingSet) -> None:
    rows = np.array([0, 1, 0])
    assert packets.keys(data, rows).tolist() == ["spcc/spcc:spcc0", "spcc/spcc:spcc1", "spcc/spcc:spcc0#2"]


def test_temperature_undoes_a_factor() -> None:
    rng = np.random.default_rng(0)
    logit = rng.normal(0, 2, (4000, 3))
    label = (rng.random((4000, 1)) > np.cumsum(packets.softmax(logit), 1)).sum(1)
    assert packets.temperature(logit * 2, label, np.ones(4000)) == pytest.approx(2, rel=0.1)


# --- chains -------------------------------------------------------------------------------------------------------


def test_attention_of_the_replica_is_softmax_attention() -> None:
    rng = np.random.default_rng(0)
    q, k, v = (jnp.asarray(rng.normal(0, 1, (2, N_TIMES, paper.WIDTH)), jnp.float32) for _ in range(3))
    heads = [x.reshape(2, N_TIMES, paper.HEADS, -1) for x in (q, k, v)]
    score = jnp.einsum("bqhd,bkhd->bhqk", heads[0], heads[1]) / np.sqrt(2)
    expected = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(score, -1), heads[2]).reshape(q.shape)
    assert np.abs(np.asarray(paper._attention(q, k, v) - expected)).max() < 1e-5


def test_the_replica_gives_the_same_in_onnx(tmp_path: Path) -> None:
    params = jax.tree.map(lambda x: x + np.float32(0.05), paper.initial())
    x = np.random.default_rng(0).normal(0, 1, (5, N_TIMES, 6)).astype(np.float32)
    (found,) = timing.session(replica.network(params)).run(None, {"grid": x})
    assert np.abs(found - paper.probabilities(params, x)).max() < 1e-5
    np.savez(tmp_path / "weights.npz", allow_pickle=False, scales=np.ones((2, 2, 6)), **paper._flat(params))
    stored, by = paper.load(tmp_path / "weights.npz")
    assert by.shape == (2, 2, 6)
    assert np.abs(found - paper.probabilities(stored, x)).max() < 1e-5


def test_the_replica_as_a_folder_answers_as_it_was_trained(data: TrainingSet, tmp_path: Path) -> None:
    params = jax.tree.map(lambda x: x + np.float32(0.05), paper.initial())
    scales = np.random.default_rng(0).uniform(1, 300, (2, 2, 6)).astype(np.float32)
    divisor = {"ztf": 1.0, "lsst": 1.0}
    release.write(tmp_path, replica.graph(params, scales, divisor), data, release.Measured(divisor))
    held = evaluate.packets(data, dataset.TEST, 0).curves
    of_ztf = [(60000.0, "ztf-g", 900.0, 5.0)]
    odd = curves_of([of_ztf, bump(3), [*of_ztf, *of_ztf, (60090.0, "lsst-u", 1.0, 5.0)]])
    for curves in (held, odd):
        is_ztf = ~evaluate.has_other_bands(curves)
        expected = paper.probabilities(params, paper.scaled(grid.grids(curves), is_ztf, scales))
        loaded = model.load(tmp_path)
        assert np.abs(loaded.predict(curves) - expected).max() < 1e-5
        assert np.abs(loaded.predict(curves.take(np.array([2]))) - expected[2]).max() < 1e-5
    assert evaluate.has_other_bands(held).any()
    assert not evaluate.has_other_bands(held).all()
    sharper = replica.graph(params, scales, {"ztf": 1.0, "lsst": 0.5})
    release.write(tmp_path, sharper, data, release.Measured(divisor))
    found = model.load(tmp_path).predict(odd)
    assert np.abs(found[0] - expected[0]).max() < 1e-5
    assert found[2].max() > expected[2].max() + 1e-3


def test_timed_curves_have_the_length_asked_for() -> None:
    part = timing.of_length(curves_of([bump(n, n) for n in (70, 10, 64, 65)]), 64)
    assert part.counts.tolist() == [64, 64, 64]
    assert timing.least({"nothing": lambda: None}, 2)["nothing"] < 1e4


def test_a_graph_is_timed_on_what_it_is_served() -> None:
    part = curves_of([bump(32, i) for i in range(timing.BATCH)])
    folder = model.find("t2b-1")
    (found,) = timing.session(onnx.load(folder / model.MODEL_FILE)).run(None, timing._feed(part, 32))
    assert np.abs(found - model.load(folder).predict(part)).max() < 1e-5


def test_the_replica_has_the_size_of_the_paper() -> None:
    assert paper.n_parameters(paper.initial()) == 13_159  # the paper's 13,262 has 14 classes and 2 bands


def test_chains_from_tables_to_the_comparison(data: TrainingSet, tmp_path: Path) -> None:
    trees = boosted.train(data, most_trees=5, n_cuts=1)
    answers = {"LightGBM": packets.answer(lambda c: np.asarray(trees.predict(features.of_curves(c))), data)}
    params, by = paper.train(data, steps=3, size=8)
    answers["t2 replica"] = packets.answer(
        lambda c: paper.probabilities(params, paper.scaled(grid.grids(c), ~evaluate.has_other_bands(c), by)), data
    )
    for name, found in answers.items():
        found.save(tmp_path / "answers.npz")
        answers[name] = packets.Answers.load(tmp_path / "answers.npz")
        for k in evaluate.CUTS:
            assert (answers[name].keys[k] == found.keys[k]).all()
            assert found.probability[k].sum(1) == pytest.approx(1, abs=1e-5)
    released = {"t2b-1": model.load(model.find("t2b-1"))}
    held = list(compare.held_out(data, released, answers))
    assert {(h.source, h.cut) for h in held} == {(name, k) for name in KINDS for k in evaluate.CUTS}
    lines = list(compare.table(held, "t2b-1", list(answers)))
    assert sum("(recall)" in line for line in lines) == len(evaluate.CUTS)
    assert {line.count("|") for line in lines} == {9}
    assert "LightGBM" in compare.verdict(held, "t2b-1", "LightGBM")
    assert len(list(compare.losses(held, ["t2b-1", "LightGBM"]))) == 3
    assert {line.count("|") for line in compare.within(held, list(answers))} == {10}


def test_completeness_of_real_transients_by_hand() -> None:
    label = np.array([0, 0, 0, 3, 3, 1, 1, 2])
    sure = np.eye(7)[[0, 0, 1, 3, 0, 1, 1, 2]] * 0.9 + 0.1 / 7
    sure[4, 0] = 0.5  # a SLSN that looks like a SNIa, less than the true ones do
    held = [compare.Held("real_transients", 0, label, {"x": sure})]
    row = list(compare.completeness(held, ["x"]))[2]
    assert row.startswith("| x | 0.667 [")
    assert "| 0.500 [" in row
    assert row.count("of 2") == 1
    yse = [compare.Held("yse_dr1", 3, label, {"x": sure})]
    rows = list(compare.within(yse, ["x"]))
    assert rows[2].startswith("| yse_dr1 | 3 | 8 | ")
    assert rows[3].startswith("| yse_dr1, SNIa, SNII, SNIbc | 3 | 6 | ")
    assert "| 0.833 |" in rows[3]


def test_boosted_trees_learn_the_bumps(data: TrainingSet) -> None:
    trees = boosted.train(data, most_trees=40, n_cuts=1)
    test = evaluate.packets(data, dataset.TEST, 0)
    of_spcc = test.origin == dataset.SET_NAMES.index("spcc")
    answer = np.asarray(trees.predict(features.of_curves(test.curves))).argmax(1)
    assert (answer == test.label)[of_spcc].mean() > 0.6


def test_trees_are_asked_about_a_set_that_they_were_not_shown(data: TrainingSet) -> None:
    """Without ztf_snia its SNe Ia are known by what spcc has taught, worse than with it; its labels change nothing."""
    of_set = data.about.origin == dataset.SET_NAMES.index("ztf_snia")
    rows = boosted.left_out(data, "ztf_snia", most_trees=40)
    n = int((of_set & (data.split == dataset.TEST)).sum())
    set_, cut, objects, recall, chance = rows[3].strip("| ").split(" | ")
    assert (set_, cut, objects) == ("ztf_snia", "all", str(n))
    held = evaluate.packets(data, dataset.TEST, 0)
    shown = np.asarray(boosted.train(data, most_trees=40).predict(features.of_curves(held.curves))).argmax(1)
    with_it = (shown == CLASSES.index("SNIa"))[of_set[held.row]].mean()
    assert with_it > float(recall) > float(chance)
    wrong = np.where(of_set & (data.split != dataset.TEST), CLASSES.index("SNII"), data.about.label)
    assert boosted.left_out(replace(data, about=replace(data.about, label=wrong)), "ztf_snia", most_trees=40) == rows
