"""The training chain on made-up light curves, from tables on disk to a released folder; and the split."""

import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

# The training code is no part of the wheel. Appended, so that an installed `broker` still comes first.
sys.path.append(str(Path(__file__).parent.parent))

import jax
import jax.numpy as jnp

from broker import model, split
from broker.lightcurve import BANDS, WAVELENGTH_NM
from models.training import ablations, augment, compress, dataset, evaluate, export, network, release, reread, train
from models.training.dataset import CLASSES, SET_NAMES, SETS, Metadata

N_OBJECTS = 60
KINDS = {
    "yse_dr1": ["SN Ia", "SN II", "SN Ibc"],
    "ztf_snia": ["SN Ia"],
    "many_tde_ztf": ["TDE"],
    "sdss_rrl": ["RRL"],
    "varstars": ["EB", "RRL", "LPV", "YSO"],
    "elasticc_fink_extra": ["SNIa", "KN"],
    "elasticc2_desc": ["SNIbc", "KN", "MDWARF_FLARE"],
    "ztf_fink_labelled": ["SSO", "EB", "AGN", "SNIa"],
}


def write_set(folder: Path, source: dataset.LabelledSet, seed: int) -> None:
    """A labelled set in the layout of the real ones: bumps whose width tells the class."""
    rng = np.random.default_rng(seed)
    folder.mkdir()
    names = [f"{source.name}{i}" for i in range(N_OBJECTS)]
    kinds = KINDS.get(source.name, ["SNIa", "SNII", "SNIbc", "SLSN", "TDE", "AGN"])
    label = [kinds[i % len(kinds)] for i in range(N_OBJECTS)]
    meta = pd.DataFrame(
        {"object_id": names, "ra": rng.uniform(0, 360, N_OBJECTS), "dec": rng.uniform(-60, 60, N_OBJECTS)}
    )
    meta[source.label] = label
    if isinstance(source.permitted, str):
        meta["origin"] = [source.permitted if kind == "SLSN" else "another" for kind in label]
    if source.name == "yse_dr1":
        meta["spec_class"] = label
    meta.to_parquet(folder / "metadata.parquet")
    rows = []
    for name, kind in zip(names, label, strict=True):
        n = int(rng.integers(5, 60))
        mjd = np.sort(rng.uniform(60000, 60200, n))
        width = 10.0 + 15 * kinds.index(kind)
        flux = 200 * np.exp(-0.5 * ((mjd - 60100) / width) ** 2) + rng.normal(0, 5, n)
        table = {"object_id": name, "mjd": mjd, "passband": rng.choice(list("gr"), n), "flux": flux, "flux_err": 5.0}
        rows.append(pd.DataFrame(table | {"instrument": "ztf"}))
    pd.concat(rows).to_parquet(folder / "lightcurves.parquet")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dataset.TrainingSet:
    """All sets, made up and small."""
    folder = tmp_path_factory.mktemp("datasets")
    for i, source in enumerate(SETS):
        write_set(folder / source.name, source, i)
        for name in ("metadata", "lightcurves") if source.unlabelled else ():
            written = pd.read_parquet(folder / source.name / f"{name}.parquet")
            written.to_parquet(folder / source.name / f"unlabelled_{name}.parquet")
    return dataset.load(folder)


def test_load_reads_every_set_in_our_units(data: dataset.TrainingSet) -> None:
    assert set(data.about.origin) == set(range(len(SETS)))
    first = np.flatnonzero(data.about.origin == SET_NAMES.index("mallorn"))[0]
    peak = np.abs(data.curves.take(np.array([first])).flux).max()
    assert 1e4 < peak < 3e5  # 200 in uJy is 200,000 nJy
    assert data.curves.detected.any()
    assert (np.bincount(data.curves.rows[data.curves.detected], minlength=len(data)) > 0).all()


def test_classes_that_the_model_does_not_answer_are_outliers(data: dataset.TrainingSet) -> None:
    of_set = data.about.label[data.about.origin == SET_NAMES.index("elasticc2_desc")]
    assert set(of_set) == {dataset.OUTLIER, CLASSES.index("SNIbc")}
    assert (evaluate.packets(data, dataset.TEST, 0).label >= 0).all()
    assert dataset.OUTLIER in evaluate.packets(data, dataset.TEST, 0, outliers=True).label
    weight = augment.class_weights(data)
    assert 0 < weight[data.about.label == dataset.OUTLIER].sum() < 0.5


def test_a_transient_that_only_fades_teaches_nothing(
    data: dataset.TrainingSet, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = next(s for s in SETS if s.name == "ztf_fink_labelled")
    write_set(tmp_path / source.name, source, 5)
    path = tmp_path / source.name / "lightcurves.parquet"
    table = pd.read_parquet(path)
    table["flux"] = -table["flux"].abs() - 100
    table.to_parquet(path)
    found = dataset.load(tmp_path, (source,))
    test = found.split == dataset.TEST
    was_transient = np.array([int(name.removeprefix(source.name)) % 4 == 3 for name in found.about.name])
    assert (found.about.label[was_transient & ~test] == dataset.UNLABELLED).all()
    assert (found.about.label[was_transient & test] == CLASSES.index("SNIa")).all()
    assert (found.about.label[~was_transient] != dataset.UNLABELLED).all()
    said = capsys.readouterr().out
    assert f"{(was_transient & test).sum()} in test" in said
    assert all(name in said for name in found.about.name[was_transient & ~test])
    assert not dataset.never_positive(data.curves, data.about).any()


def test_what_an_open_model_is_not_permitted_teaches_nothing(data: dataset.TrainingSet) -> None:
    found = dataset.withhold(data, ~data.about.permitted)
    names = {SET_NAMES[i] for i in np.unique(found.about.origin[found.split == dataset.TRAIN])}
    assert names == {"spcc", "elasticc_fink_tutorials", "elasticc_fink_extra", "real_transients", "ztf_fink_labelled"}
    of_origin = (found.about.origin == SET_NAMES.index("real_transients")) & (found.split == dataset.TRAIN)
    assert set(found.about.label[of_origin]) == {CLASSES.index("SLSN")}
    assert ((found.split == dataset.TEST) == (data.split == dataset.TEST)).all()
    taught = np.flatnonzero(augment.class_weights(found))
    assert set(found.split[taught]) == {dataset.TRAIN}
    assert {SET_NAMES[i] for i in found.about.origin[taught]} == names
    card = "\n".join(release.card_lines("tiny-open", "", found, release.Measured({"ztf": 1.0, "lsst": 1.0})))
    assert {row["name"] for row in tomllib.loads(card)["training_data"]} == names


def test_ablations_withhold_what_they_name(data: dataset.TrainingSet) -> None:
    runs = {name: withheld for name, withheld, _ in ablations.runs(data)}
    origin = data.about.origin
    assert not runs["all"].any()
    assert (runs["without varstars"] == (origin == SET_NAMES.index("varstars"))).all()
    assert set(origin[~runs[f"spcc alone {ablations.LONG[-1]}"]]) == {SET_NAMES.index("spcc")}
    assert (runs["0.25 of spcc"] >= runs["0.5 of spcc"]).all()  # each part holds the smaller ones
    of_set = origin == SET_NAMES.index("spcc")
    assert 0.1 < 1 - runs["0.25 of spcc"][of_set].mean() < 0.4
    found = ablations.figures(data, runs["without ztf_snia"], steps=2, size=16)
    assert "ztf_snia" in {f.name for f in found}
    lines = "\n".join(ablations.table(dict.fromkeys(runs, found), data))
    assert "| ztf_snia | all |" in lines
    assert "nan" not in lines


def test_outliers_are_taught_to_be_undecided() -> None:
    """Flat answers cost least where the target is flat, and most of the loss elsewhere."""
    params = network.initial(0, network.Shape(len(CLASSES)))
    params["head"]["w"] = params["head"]["w"] * 0
    batch = network.Batch(*(np.full((2, 4), x, np.float32) for x in (0, 1e4, 1e2, 500, 1, 1)))
    outliers, first = ((jnp.full(2, label), jnp.zeros(2)) for label in (dataset.OUTLIER, 0))
    flat = float(train.class_loss(params, batch, outliers))
    params["head"]["b"] = params["head"]["b"].at[0].add(3.0)
    sure = float(train.class_loss(params, batch, outliers))
    assert abs(flat - np.log(len(CLASSES))) < 1e-5
    assert sure > flat > float(train.class_loss(params, batch, first))


def test_teachers_count_where_a_row_says_so() -> None:
    """By hand: a teacher of one answer. Its own weights cost its entropy where it is asked, the label elsewhere."""
    teacher = network.initial(0, network.Shape(len(CLASSES)))
    teacher["head"] = {"w": teacher["head"]["w"] * 0, "b": teacher["head"]["b"].at[1].add(2.0)}
    batch = network.Batch(*(np.full((2, 4), x, np.float32) for x in (0, 1e4, 1e2, 500, 1, 1)))
    said = jax.nn.softmax(teacher["head"]["b"])
    label = jnp.zeros(2, int)
    alone = float(train.class_loss(teacher, batch, (label, jnp.ones(2))))
    never = float(train.class_loss(teacher, batch, (label, jnp.zeros(2)), [teacher]))
    wholly = float(train.class_loss(teacher, batch, (label, jnp.ones(2)), [teacher]))
    one_row = float(train.class_loss(teacher, batch, (label, jnp.arange(2.0)), [teacher]))
    assert abs(never - alone) < 1e-6
    assert abs(wholly + float((said * jnp.log(said)).sum())) < 1e-5
    assert abs(one_row - (alone + wholly) / 2) < 1e-5


def test_objects_without_a_label_are_drawn_for_teachers_alone(data: dataset.TrainingSet) -> None:
    """Half of the draws of a set that has such; its part of all draws stays; none that lost its label for a reason."""
    faded = (data.about.origin == SET_NAMES.index("ztf_fink_labelled")) & (data.about.label == CLASSES.index("SNIa"))
    lost = replace(data.about, label=np.where(faded, dataset.UNLABELLED, data.about.label))
    known = replace(data, about=lost)
    alone, both = (augment.class_weights(known, unlabelled=share) for share in (0.0, 0.5))
    nameless = lost.label == dataset.UNLABELLED
    assert (alone[nameless] == 0).all()
    assert (both[faded] == 0).all()
    for name in SET_NAMES:
        of_set = lost.origin == SET_NAMES.index(name)
        assert abs(alone[of_set].sum() - both[of_set].sum()) < 1e-9
        assert abs(both[of_set & nameless].sum() / both[of_set].sum() - 0.5 * (name == "mallorn")) < 1e-9
    assert (both[data.split != dataset.TRAIN] == 0).all()


def test_sets_taught_by_their_labels_exist() -> None:
    assert set(train.SIMULATED) < set(train.BY_LABEL) < set(SET_NAMES)


def test_chain_from_tables_to_a_released_model(data: dataset.TrainingSet, tmp_path: Path) -> None:
    params = train.train(data, replace(_short(4), labels=replace(train.LABELS, steps=30), size=16, first=None))
    network.save(params, tmp_path / "weights.npz")
    shape = network.Shape(len(CLASSES))
    params = network.restore(tmp_path / "weights.npz", shape)
    release.release(tmp_path / "tiny-1", data, *release.exports(params, shape, data))
    loaded = model.load(tmp_path / "tiny-1")
    assert [c.name for c in loaded.card.classes] == list(CLASSES)
    assert abs(sum(c.prior for c in loaded.card.classes) - 1) < 1e-3
    assert loaded.card.bands == BANDS
    golden = np.load(tmp_path / "tiny-1" / "golden.npz")
    assert len(golden["probabilities"]) == len(golden["offsets"]) - 1
    card = tomllib.loads((tmp_path / "tiny-1" / model.CARD_FILE).read_text())
    assert card["compression"][0]["int8_bytes"] == (tmp_path / "tiny-1" / model.MODEL_FILE).stat().st_size
    table = "\n".join(release.readme_table(tmp_path / "tiny-1"))
    assert "| spcc |" in table
    moved = (data.split == dataset.TRAIN) & (np.arange(len(data)) % 2 == 0)
    release.remeasure(tmp_path / "tiny-1", replace(data, split=np.where(moved, dataset.TEST, data.split)))
    again = tomllib.loads((tmp_path / "tiny-1" / model.CARD_FILE).read_text())
    assert again["figures"] != card["figures"]
    assert {key: again[key] for key in ("classes", "training_data", "compression", "sha256")} == {
        key: card[key] for key in ("classes", "training_data", "compression", "sha256")
    }


def test_thresholds_keep_variables_from_becoming_transients() -> None:
    """By hand: 100 packets of AGN at 5 detections, 3 of which look new; 60 supernovae, sure to be new or not."""
    n = 160
    steady = np.arange(n) < 100
    new_light = np.full(n, np.inf)
    new_light[:3] = 0.9, 0.8, 0.7
    new_light[100:] = np.linspace(0.6, 1, 60)
    new_light[159] = -1  # a supernova by label that only fades
    answers = evaluate._Answers(
        np.full(n, 0.95), new_light, np.ones(n, np.bool_), steady, np.full(n, 5), np.zeros(n, np.int8)
    )
    own = answers.bins()[evaluate.DETECTION_BINS.index(4)]
    assert [len(of_bin.right) for of_bin in answers.bins()] == [0, 0, n, 0]
    assert own.right_enough() == 0.95
    least = evaluate._new_enough(own.false(0.95), int(steady.sum()))
    assert 0.7 < least <= 0.702  # 2 % of 100 are two
    assert own.called(0.95, least) == (0.02, 100)
    assert own.said(0.95, least).sum() == 97 + 2 + (new_light[100:] >= least).sum()
    assert not own.said(0.95, 0.0)[159]
    assert evaluate._new_enough(own.false(0.96), 100) == 0


def test_training_goes_on_from_the_model_before(data: dataset.TrainingSet) -> None:
    """The released recipe, a few steps of it: close to where it started."""
    trained = train.train(data, _short(2))
    start = reread.weights(train.FIRST, network.Shape(len(CLASSES)))
    moved = [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (trained, start)), strict=True)]
    assert 0 < max(moved) < 0.1


def _short(steps: int) -> train.Plan:
    stages = (train.LABELS, train.LONG, train.AGAIN, train.HELD)
    labels, long, again, held = (replace(stage, steps=steps) for stage in stages)
    return train.Plan(steps, labels, long, again, held, 8)


def test_weights_are_read_back_from_a_file(tmp_path: Path) -> None:
    """The same float32 graph again, byte for byte but for rounding; of an int8 one the matrices as it holds them."""
    shape = network.Shape(len(CLASSES))
    params = network.initial(5, shape)
    wavelengths = {b: WAVELENGTH_NM[b] for b in BANDS}
    for int8, error in ((False, 1e-6), (True, 0.02)):
        export.write(export.graph(params, shape, wavelengths, int8=int8), tmp_path / "model.onnx")
        again = reread.weights(tmp_path / "model.onnx", shape)
        pairs = zip(*map(jax.tree.leaves, (params, again)), strict=True)
        assert all(float(np.abs(a - b).max()) <= error * max(1, float(np.abs(a).max())) for a, b in pairs)


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    network.save(network.initial(0, network.Shape(3)), tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="another shape"):
        network.restore(tmp_path / "weights.npz", network.Shape(4))


def test_onnx_gives_what_jax_gives(data: dataset.TrainingSet, tmp_path: Path) -> None:
    """Random weights of trained size, every feature, rows of different length, a temperature per survey: to 1e-5."""
    shape = network.Shape(len(CLASSES))
    rng = np.random.default_rng(3)
    noisy = jax.tree.map(lambda x: x + 0.1 * rng.standard_normal(x.shape).astype(np.float32), network.initial(1, shape))
    temperature = {"ztf": 1.7, "lsst": 0.8}
    graph = export.graph(noisy, shape, {b: WAVELENGTH_NM[b] for b in BANDS}, temperature, int8=False)
    release.write(tmp_path, graph, data, release.Measured(temperature))
    curves = evaluate.packets(data, dataset.TEST, 0).curves
    served = model.load(tmp_path).predict(curves)

    column = np.arange(curves.counts.max())
    valid = column < curves.counts[:, None]
    at = np.where(valid, curves.offsets[:-1, None] + column, 0)
    detected = curves.detected[at] & valid
    batch = network.Batch(
        network.relative_days(curves.mjd_tai[at], detected, valid),
        curves.flux[at],
        curves.flux_err[at],
        augment.WAVELENGTHS[curves.band[at]],
        detected.astype(np.float32),
        valid.astype(np.float32),
    )
    is_lsst = evaluate.has_other_bands(curves)
    assert 0 < is_lsst.sum() < len(curves)
    divisor = np.where(is_lsst, 0.8, 1.7)[:, None]
    trained = np.asarray(jax.nn.softmax(network.logits(noisy, batch) / divisor))
    assert np.abs(trained - served).max() < 1e-5


def test_int8_weights_lie_within_half_a_step() -> None:
    exact = np.random.default_rng(0).normal(0, [[0.1, 3.0, 0.0]], (40, 3)).astype(np.float32)
    whole, scale = compress.quantised(exact)
    assert (np.abs(whole * scale - exact) <= scale * 0.501).all()


def test_fitted_rounding_misses_less_where_inputs_go_together() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((40, 8)).astype(np.float32)
    inputs = (rng.standard_normal((500, 6)) @ rng.standard_normal((6, 40))).astype(np.float32)
    plain, fitted = (compress.quantised(exact, x) for x in (None, inputs))
    misses = [np.abs(inputs @ (whole * scale - exact)).mean() for whole, scale in (plain, fitted)]
    assert misses[1] < misses[0] / 2


def test_graph_stays_within_what_old_runtimes_read() -> None:
    shape = network.Shape(len(CLASSES))
    graph = export.graph(network.initial(0, shape), shape, {b: WAVELENGTH_NM[b] for b in BANDS})
    assert graph.ir_version <= 10
    assert [o.version for o in graph.opset_import] == [21]
    assert graph.SerializeToString(deterministic=True) == graph.SerializeToString(deterministic=True)


def test_training_is_repeatable(data: dataset.TrainingSet) -> None:
    fresh = network.initial(0, network.Shape(len(CLASSES)))
    first, again = (train.finetune(data, fresh, replace(train.LABELS, steps=2), size=4) for _ in range(2))
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True))


def test_batches_are_packets(data: dataset.TrainingSet) -> None:
    """No point behind the newest detection, times relative to the first, only training objects."""
    weight = augment.class_weights(data)
    assert abs(weight.sum() - 1) < 1e-9
    assert (weight[data.split != dataset.TRAIN] == 0).all()
    sampler = augment.Sampler(data, weight, 0)
    for batch, rows in augment.batches(sampler, 64):
        assert np.isin(data.about.label[rows], [*range(len(CLASSES)), dataset.OUTLIER]).all()
        assert batch.days.shape[1] in augment.LENGTHS
        valid, seen = batch.valid > 0, batch.detected > 0
        assert valid.any(1).all()
        assert all(np.isfinite(x).all() for x in batch)
        newest = np.where(valid, batch.days, -np.inf).max(1)
        last_seen = np.where(seen, batch.days, -np.inf).max(1)
        assert (newest == last_seen)[seen.any(1)].all()


def test_evaluation_packets_end_at_their_detection(data: dataset.TrainingSet) -> None:
    three = evaluate.packets(data, dataset.TEST, 3, window_d=1e6)
    assert (three.n_detections == 3).all()
    assert three.curves.detected[three.curves.offsets[1:] - 1].all()
    short = evaluate.packets(data, dataset.TEST, 0, window_d=30.0)
    spans = [
        np.ptp(short.curves.mjd_tai[a:b]) for a, b in zip(short.curves.offsets, short.curves.offsets[1:], strict=False)
    ]
    assert max(spans) <= 30


def about(ra: list[float], dec: list[float], names: list[str]) -> Metadata:
    n = len(names)
    return Metadata(
        np.zeros(n, np.int8), np.array(names), np.array(ra), np.array(dec), np.zeros(n, np.int8), np.zeros(n, np.bool_)
    )


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32 - 1), st.integers(2, 120))
def test_no_near_pair_and_no_name_straddles_the_split(seed: int, n: int) -> None:
    """Dense made-up sky, also across RA 0 and near the pole: pairs within 2 arcsec lie on one side."""
    rng = np.random.default_rng(seed)
    step = 1.5 / 3600
    dec = rng.choice([0.0, -30.0, 89.9995]) + rng.integers(0, 12, n) * step
    ra = (rng.integers(-12, 12, n) * step) % 360
    sky = about(ra.tolist(), dec.tolist(), [f"a{x}" for x in rng.integers(0, 2 * n, n)])
    side, groups = dataset.split(sky), dataset.group(sky)
    a, d = np.radians(ra), np.radians(dec)
    xyz = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
    near = np.linalg.norm(xyz[:, None] - xyz[None], axis=2) <= np.radians(2 / 3600) * (1 - 1e-6)
    same = near | (sky.name[:, None] == sky.name[None])
    assert (side[:, None] == side[None])[same].all()
    assert (groups[:, None] == groups[None])[same].all()


def test_far_objects_of_other_names_are_not_grouped() -> None:
    sky = about([10.0, 10.0, 10.0, np.nan], [0.0, 3 / 3600, 50.0, np.nan], ["a", "b", "c", "d"])
    assert len(set(dataset.group(sky))) == 4


def test_more_data_move_no_old_group() -> None:
    old = about([1.0, 2.0, 3.0], [0.0, 0.0, 0.0], ["b", "c", "d"])
    more = about([1.0, 2.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0], ["b", "c", "d", "a"])
    assert (dataset.split(more)[:3] == dataset.split(old)).all()


@pytest.mark.parametrize(
    ("name", "expected"),
    [("SN2019abh", "2019abh"), ("AT 2018bsi", "2018bsi"), ("2019pmd", "2019pmd"), ("DES_1308957", "DES_1308957")],
)
def test_names_of_one_transient_agree(name: str, expected: str) -> None:
    assert split.sky_name(name) == expected
