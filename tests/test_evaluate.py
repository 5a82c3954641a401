"""`broker evaluate`: folders of every kind, and the released model's own figures once more."""

import json
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from running import broker

from broker import evaluate, labelled, model, split
from broker.errors import ArchiveError, BrokerError, UsageError
from broker.evaluate import DAYS, DETECTIONS, NIGHTS
from broker.labelled import Options
from broker.lightcurve import BANDS, WINDOW_D, cut, summarise

MODEL = model.load(model.find("t2b-1"))
NAMES = [c.name for c in MODEL.card.classes]
KINDS = ["SNIa", "SN II", "SNIbc", "SLSN-I", "TDE", "AGN", "EB", "KN", "unlabelled"]
N = 45


def tables(n: int = N, seed: int = 0) -> tuple[pd.DataFrame, pd.DataFrame]:
    """A made-up set in nJy: bumps in ZTF's g and r, some never detected, some with a single detection."""
    rng = np.random.default_rng(seed)
    meta = pd.DataFrame({"object_id": [f"obj{i}" for i in range(n)], "class_broad": [KINDS[i % 9] for i in range(n)]})
    rows = []
    for i, name in enumerate(meta["object_id"]):
        mjd = 60000 + np.sort(rng.uniform(0, 120, int(rng.integers(8, 60))))
        height = 0 if i % 11 == 10 else 3000 * rng.uniform(0.5, 3)
        flux = height * np.exp(-0.5 * ((mjd - 60060) / (5 + 3 * (i % 9))) ** 2) + rng.normal(0, 10, len(mjd))
        rows.append(
            pd.DataFrame({"object_id": name, "mjd": mjd, "passband": rng.choice(["g", "r"], len(mjd)), "flux": flux})
        )
    points = pd.concat(rows, ignore_index=True)
    return meta, points.assign(flux_err=50.0)


def write(folder: Path, meta: pd.DataFrame, points: pd.DataFrame, readme: str = "- Flux: nano-Jansky") -> Path:
    folder.mkdir(parents=True)
    meta.to_parquet(folder / "metadata.parquet")
    points.to_parquet(folder / "lightcurves.parquet")
    if readme:
        (folder / "README.md").write_text(f"# A set\n\n{readme}\n")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "bumps", *tables())


def measure(folder: Path, options: Options | None = None, **more: Any) -> dict[str, Any]:
    return evaluate.evaluate(folder, ["t2b-1"], options or Options(), **more)["t2b-1"]


# --- the command --------------------------------------------------------------------------------------------------


def test_command_writes_the_figures(folder: Path) -> None:
    target = folder / "figures.json"
    ran = broker("evaluate", folder, "--json", target)
    assert ran.returncode == 0, ran.stderr
    assert "bumps is none of them by its name" in ran.stdout
    assert "5 class KN: the model has none such" in ran.stdout
    found = json.loads(target.read_text())
    assert list(found) == ["t2b-1"]
    groups = [*DETECTIONS, *(f"nights:{n}" for n in NIGHTS), *(f"days:{d}" for d in DAYS)]
    assert [*groups, "about"] == list(found["t2b-1"])
    last = found["t2b-1"]["all"]
    names = {"macro_f1", "accuracy", "balanced_accuracy", "weighted_log_loss", "ece", "brier"}
    assert names | {"n", "answer_rate", "answered_accuracy", "within", "classes", "reliability"} <= set(last)
    for name in ("accuracy", "brier", "answer_rate"):
        assert last[f"{name}_interval"][0] <= last[name] <= last[f"{name}_interval"][1]
    of_class = last["classes"]["SNII"]
    for name in ("precision", "recall", "completeness_at_90_purity", "purity_at_50_completeness"):
        assert of_class[name] is None or {name, f"{name}_interval"} <= set(of_class)
    assert sum(last["reliability"]["n"]) == last["n"]
    assert "difference" not in last
    assert list(last["classes"]) == NAMES
    about = found["t2b-1"]["about"]
    assert about["survey"] == "ztf"
    assert about["left_out"]["unlabelled"] == 5
    assert about["n_objects"] + sum(about["left_out"].values()) == N
    assert last["n"] == about["n_objects"]
    assert found["t2b-1"]["10"]["n"] <= found["t2b-1"]["3"]["n"] <= found["t2b-1"]["1"]["n"] == last["n"]


def test_command_says_what_is_wrong(folder: Path) -> None:
    (folder / "README.md").unlink()
    ran = broker("evaluate", folder)
    assert ran.returncode == 2
    assert "nothing says in which unit its fluxes are" in ran.stderr
    assert "--zero-point" in ran.stderr
    assert "Traceback" not in ran.stderr
    missing = broker("evaluate", folder / "nowhere")
    assert missing.returncode == 3
    assert "metadata.parquet: can't be read" in missing.stderr


def test_figures_are_those_of_the_model_on_the_last_packets(folder: Path) -> None:
    data = labelled.read(folder, Options(), {})
    newest = evaluate.triggers(data.curves, (0,))["all"]
    index = {"SN II": "SNII", "SLSN-I": "SLSN", "EB": "VAR"}
    right = []
    for i in np.flatnonzero(newest >= 0):
        name = index.get(data.written[i], data.written[i])
        if name in NAMES:
            times = data.curves.mjd_tai
            keep = (data.curves.rows == i) & (times <= times[newest[i]]) & (times >= times[newest[i]] - 30)
            answer = MODEL.predict(data.curves.select(keep).take(np.array([i]))).argmax()
            right.append(NAMES[answer] == name)
    found = measure(folder)["all"]
    assert found["n"] == len(right)
    assert found["accuracy"] == pytest.approx(np.mean(right))


def test_several_models_and_fewer_groups(folder: Path) -> None:
    copy = str(model.find("t2b-1"))
    found = evaluate.evaluate(folder, ["t2b-1", copy], Options(), ("all", "3"))
    assert list(found) == ["t2b-1", copy]
    assert [g for g in found[copy] if ":" not in g] == ["all", "3", "about"]
    assert found[copy]["all"]["macro_f1"] == found["t2b-1"]["all"]["macro_f1"]
    gap = found[copy]["all"]["difference"]["t2b-1"]
    assert gap == {
        "n": gap["n"],
        "macro_f1": 0,
        "macro_f1_interval": (0, 0),
        "accuracy": 0,
        "accuracy_interval": (0, 0),
    }
    assert gap["n"] == found[copy]["all"]["n"]


def test_thresholds_are_the_cards(folder: Path) -> None:
    data = labelled.read(folder, Options(), {})
    for survey in ("ztf", "lsst"):
        found = measure(folder, Options(survey=survey))
        assert found["about"]["window_d"] == WINDOW_D[survey]
        first = evaluate.triggers(data.curves, (1,))["1"]
        index, _ = evaluate._labels(data, tuple(NAMES))
        newest = first[(first >= 0) & (index >= 0)]
        packets = cut(data.curves.take(data.curves.rows[newest]), data.curves.mjd_tai[newest], WINDOW_D[survey])
        evident = MODEL.card.evident(survey, MODEL.predict(packets), summarise(packets))
        assert found["1"]["answer_rate"] == pytest.approx(evident.mean())


@pytest.mark.parametrize(
    ("prior", "share"), [("set", None), ("flat", 1 / 7), ("SNIa=0.7, SNII=0.3", 0.7), ("SNIa=7,SNII=3", 0.7)]
)
def test_priors(folder: Path, prior: str, share: float | None) -> None:
    found = measure(folder, prior=prior)
    assert sum(found["about"]["prior"].values()) == pytest.approx(1)
    n = {name: c["n"] for name, c in found["all"]["classes"].items()}
    assert found["about"]["prior"]["SNIa"] == pytest.approx(share or n["SNIa"] / sum(n.values()))
    assert ("completeness_at_90_purity" in found["all"]["classes"]["TDE"]) == ("SNIa" not in prior)


# --- how a folder is read -----------------------------------------------------------------------------------------


def test_the_unit_is_found_and_changes_nothing(tmp_path: Path) -> None:
    meta, points = tables()
    scaled = points.assign(flux=points["flux"] / 1000, flux_err=points["flux_err"] / 1000)
    positive = scaled["flux"].where(scaled["flux"] > 0)
    folders = {
        "column zero_point": write(tmp_path / "a", meta, scaled.assign(zero_point=23.9), ""),
        "column mag": write(tmp_path / "b", meta, scaled.assign(mag=23.9 - 2.5 * np.log10(positive)), ""),
        "README.md": write(tmp_path / "c", meta, scaled, "- Flux: micro-Jansky"),
        "the training set of that name": write(tmp_path / "mallorn", meta, scaled, ""),
    }
    expected = measure(write(tmp_path / "e", meta, points))["all"]
    for why, found in folders.items():
        figures = measure(found)
        assert any(why in note for note in figures["about"]["notes"])
        assert figures["about"]["zero_point"] == 23.9
        assert figures["all"]["accuracy"] == expected["accuracy"]
    given = measure(folders["README.md"], Options(zero_point=23.9))
    assert any("--zero-point" in note for note in given["about"]["notes"])


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("- Flux: FLUXCAL, zero point 27.5 (the README of the origin)", 27.5),
        ("- Flux: nano-Jansky, AB zero point 31.4 (from FLUXCAL, zero point 27.5)", 31.4),
        ("Flux: micro-Jansky (original Jy x 1e6)", 23.9),
        ("- Flux: counts per second", None),
        ("- Objects: 3 in nano-Jansky", None),
    ],
)
def test_units_in_words(tmp_path: Path, line: str, expected: float | None) -> None:
    folder = write(tmp_path / "words", *tables(9), line)
    if expected is None:
        with pytest.raises(UsageError, match="nothing says in which unit"):
            labelled.read(folder, Options(), {})
    else:
        assert labelled.read(folder, Options(), {}).zero_point == expected


def test_a_unit_that_can_hardly_be_is_pointed_out(folder: Path) -> None:
    assert not any("zero point right?" in note for note in measure(folder)["about"]["notes"])
    wrong = measure(folder, Options(zero_point=8.0))
    assert any("is the zero point right?" in note for note in wrong["about"]["notes"])
    assert 0 <= wrong["all"]["accuracy"] <= 1


def test_bands_by_letter_instrument_and_name(tmp_path: Path) -> None:
    meta, points = tables(9)
    letters = pd.Series(["g", "r", "Y", "R", "lsst-u"])
    names = ["" if c < 0 else BANDS[c] for c in labelled.bands_of(letters, "lsst")]
    assert names == ["lsst-g", "lsst-r", "lsst-y", "", "lsst-u"]
    instruments = pd.Series(["P48", "DES", "Keck", "ztf", "PS1MD"])
    found = labelled.bands_of(pd.Series(["g", "z", "r", "r", "z"]), instruments)
    assert [BANDS[c] for c in found] == ["ztf-g", "des-z", "sdss-r", "ztf-r", "ps1-z"]
    for letter, survey in (("y", "lsst"), ("u", "lsst"), ("z", "lsst"), ("i", "ztf")):
        points.loc[points.index[0], "passband"] = letter
        data = labelled.read(write(tmp_path / letter, meta, points), Options(), {})
        assert data.survey == survey


def test_unknown_passbands_are_counted_or_named(tmp_path: Path) -> None:
    meta, points = tables(9)
    some = points.assign(passband=["clear", *points["passband"][1:]])
    notes = measure(write(tmp_path / "some", meta, some))["about"]["notes"]
    assert any("1 points dropped: passbands clear" in note for note in notes)
    none = write(tmp_path / "none", meta, points.assign(passband="V"))
    with pytest.raises(UsageError, match="passbands V: none is a band of ours"):
        measure(none)
    assert measure(none, Options(band_of={"V": "ztf-g"}))["all"]["n"] > 0


def test_total_fluxes_become_differences(tmp_path: Path) -> None:
    meta, points = tables(18)
    folder = write(tmp_path / "total", meta, points.assign(flux=points["flux"] + 1e6, detected=True))
    whole = labelled.read(folder, Options(), {}).curves
    assert whole.detected.all()
    difference = labelled.read(folder, Options(subtract_median=True), {}).curves
    assert 0 < difference.detected.mean() < 1


def test_a_column_of_detections_adds_to_the_rule(tmp_path: Path) -> None:
    meta, points = tables(18)
    rule = labelled.read(write(tmp_path / "rule", meta, points), Options(), {}).curves.detected.sum()
    none = points.assign(detected=np.full(len(points), None))
    assert labelled.read(write(tmp_path / "none", meta, none), Options(), {}).curves.detected.sum() == rule
    every = labelled.read(write(tmp_path / "every", meta, points.assign(detected=True)), Options(), {}).curves
    assert every.detected.all()


def test_iib_and_subtypes(tmp_path: Path) -> None:
    meta, points = tables(9)
    meta = meta.assign(class_broad="SNIbc", true_type=["IIb", "Ib", "Ic-BL"] * 3)
    assert measure(write(tmp_path / "sub", meta, points))["all"]["classes"]["SNII"]["n"] == 3
    meta = meta.assign(class_broad=["Other", "NA", "SN Ia"] * 3, true_type=["TDE", "NA", "SN Ia"] * 3)
    found = measure(write(tmp_path / "other", meta, points))
    assert found["all"]["classes"]["TDE"]["n"] == 3
    assert found["about"]["left_out"]["unlabelled"] == 3


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda m, p: (m, p.drop(columns="flux_err")), ArchiveError, "lightcurves.parquet: no column flux_err; it has"),
        (lambda m, p: (m.drop(columns="object_id"), p), ArchiveError, "metadata.parquet: no column object_id"),
        (lambda m, p: (m.drop(columns="class_broad"), p), UsageError, "name the column of classes with --label-column"),
        (lambda m, p: (m, p.assign(flux="bright")), ArchiveError, "column flux holds .*, expected numbers"),
        (lambda m, p: (m.assign(object_id="same"), p), ArchiveError, "object_id 'same' stands in it more than once"),
    ],
)
def test_tables_that_cannot_be_used(tmp_path: Path, change: Any, error: type[BrokerError], message: str) -> None:
    with pytest.raises(error, match=message):
        measure(write(tmp_path / "wrong", *change(*tables(9))))


@pytest.mark.parametrize(
    ("options", "more", "message"),
    [
        (Options(label_column="kind"), {}, "--label-column 'kind': .* has object_id, class_broad"),
        (Options(survey="hst"), {}, "--survey 'hst': lsst and ztf are known"),
        (Options(bands="hst"), {}, "--bands 'hst'"),
        (Options(band_of={"V": "johnson-v"}), {}, "--band: johnson-v is no band"),
        (Options(zero_point=float("nan")), {}, "--zero-point nan"),
        (Options(), {"detections": ("0",)}, "--detections '0'"),
        (Options(), {"detections": ("",)}, "--detections ''"),
        (Options(), {"prior": "SNIa=most"}, "--prior 'SNIa=most'"),
        (Options(), {"prior": "KN=0.1"}, "--prior 'KN=0.1'.*classes SNIa"),
        (Options(), {"held_out": True}, "--held-out: t2b-1 was trained on mallorn, .*; bumps is none of them"),
    ],
)
def test_options_that_cannot_be_used(folder: Path, options: Options, more: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        measure(folder, options, **more)


def test_a_file_that_is_no_parquet_and_a_target_without_folder(folder: Path) -> None:
    (folder / "lightcurves.parquet").write_text("mjd,flux\n")
    with pytest.raises(ArchiveError, match=r"lightcurves\.parquet: can't be read"):
        measure(folder)
    with pytest.raises(UsageError, match="--json"):
        evaluate.check_output(folder / "nowhere" / "x.json")


# --- bad input ----------------------------------------------------------------------------------------------------


def test_strange_light_curves_are_scored_or_counted(tmp_path: Path) -> None:
    good = {"mjd": [60000.0, 60001.0, 60003.0], "flux": [900.0, 2000.0, 1500.0], "flux_err": [50.0, 50.0, 50.0]}
    many = np.linspace(60000, 60029, 10_000)
    objects: dict[str, dict[str, Any]] = {
        "one point": {"mjd": [60000.0], "flux": [900.0], "flux_err": [50.0]},
        "errors zero or negative": good | {"flux_err": [0.0, -1.0, 0.0]},
        "infinite fluxes": good | {"flux": [np.inf, -np.inf, 1e300]},
        "missing": good | {"flux": [np.nan] * 3},
        "long": {"mjd": many, "flux": 1000 + many % 7, "flux_err": np.full(len(many), 50.0)},
        "out of order": good | {"mjd": [60003.0, 60000.0, 60001.0]},
        "identical times": good | {"mjd": [60000.0] * 3},
        "wrong unit, bright": good | {"flux": [9e6, 2e7, 1.5e7], "flux_err": [5e5] * 3},
        "wrong unit, faint": good | {"flux": [9e-2, 2e-1, 1.5e-1], "flux_err": [5e-3] * 3},
        "negative": good | {"flux": [-900.0, -2000.0, -1500.0]},
    }
    meta = pd.DataFrame({"object_id": ["no points", *objects], "class_broad": "SNIa"})
    points = pd.concat([pd.DataFrame({"object_id": name, "passband": "g"} | o) for name, o in objects.items()])
    found = measure(write(tmp_path / "strange", meta, points))
    assert found["about"]["left_out"]["never detected"] == 4  # no points, and three without a usable one
    assert found["all"]["n"] == len(meta) - 4
    assert found["all"]["n_without_answer"] == 0
    assert np.isfinite([found["all"][name] for name in ("weighted_log_loss", "ece", "brier", "accuracy")]).all()


def test_a_set_without_a_usable_object_gives_null(tmp_path: Path) -> None:
    meta, points = tables(9)
    found = evaluate.evaluate(write(tmp_path / "kn", meta.assign(class_broad="KN"), points), ["t2b-1"], Options())
    assert found["t2b-1"]["all"]["n"] == 0
    evaluate.save(found, tmp_path / "empty.json")
    saved = json.loads((tmp_path / "empty.json").read_text())["t2b-1"]
    assert saved["all"]["macro_f1"] is None
    assert saved["about"]["left_out"] == {"class KN: the model has none such": 9}


# --- what the model was trained on --------------------------------------------------------------------------------


def test_held_out_objects_are_those_of_the_split(tmp_path: Path) -> None:
    meta, points = tables()
    folder = write(tmp_path / "spcc", meta, points)
    data = labelled.read(folder, Options(), {})
    nowhere = np.full(len(meta), np.nan)
    names = np.array([f"spcc:{name}" for name in meta["object_id"]])
    is_test = split.sides(names, nowhere, nowhere) == split.TEST
    assert (names == data.object_name).all()
    everything, held = measure(folder), measure(folder, held_out=True)
    assert held["about"]["n_objects"] < everything["about"]["n_objects"]
    n_test = int(is_test[np.isin(meta["class_broad"], KINDS[:7])].sum())
    assert 0 < held["about"]["n_objects"] <= n_test  # some of them were never detected
    (warning,) = everything["about"]["warnings"]
    assert "spcc is a training set of t2b-1" in warning
    assert f"keeps the {held['about']['n_objects']} of the test side" in warning
    assert held["about"]["warnings"] == []


@pytest.mark.shared
@pytest.mark.parametrize("name", ["spcc", "yse_dr1", "mallorn"])
def test_held_out_figures_are_the_cards(shared_data: Path, name: str) -> None:
    card = tomllib.loads((model.find("t2b-1") / model.CARD_FILE).read_text())
    found = measure(shared_data / name, detections=("3", "all"), held_out=True)
    for group in ("3", "all"):
        k = group if group == "all" else int(group)
        (figure,) = (f for f in card["figures"] if f["set"] == name and f["n_detections"] == k)
        assert found[group]["n"] == figure["n_objects"]
        assert found[group]["macro_f1"] == pytest.approx(figure["macro_f1"], abs=2e-3)  # other processors, last bits
        assert found[group]["within"]["macro_f1"] == pytest.approx(figure["within"], abs=2e-3)
