"""Alerts of a set through the broker's own hop, the page of a night, the comparison with another broker's scores."""

import io
import sys
from pathlib import Path
from typing import Any, cast

import fastavro
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from decoding import assigned, hop
from samples import Sample, whole

# The training code is no part of the wheel. Appended, so that an installed `broker` still comes first.
sys.path.append(str(Path(__file__).parent.parent))

from broker import model
from broker.classify import classify
from broker.outlets import native
from broker.scores import interval
from models.training import alerts, fink_scores, night
from models.training.alerts import Judged

CUTOUTS = ("cutoutScience", "cutoutTemplate", "cutoutDifference")
OWN = {"alert_offset", "alert_partition", "alert_schema", "alert_topic", "alert_timestamp", "brokerIngestTimestamp"}
OWN |= {"brokerPublishTimestamp"}
KINDS = ["EB", None, "AGN", "SSO", "SLSN"]


@pytest.fixture(scope="module")
def ztf() -> list[Sample]:
    """Sample alerts of one schema, one per source."""
    return [s for s in whole("ztf") if s.schema == "3.3"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ztf: list[Sample]) -> Path:
    """The samples in the layout of ztf_fink_labelled, with made-up labels."""
    path = tmp_path_factory.mktemp("sets") / "ztf_fink_labelled"
    path.mkdir()
    records = [cast(dict[str, Any], next(fastavro.reader(io.BytesIO(s.data)))) for s in ztf]
    bare = [{k: v for k, v in r.items() if k not in CUTOUTS} for r in records]
    pq.write_table(pa.Table.from_pylist(bare), path / "alerts.parquet")
    names = sorted({r["objectId"] for r in records})
    meta = pd.DataFrame({"object_id": names, "ra": np.arange(len(names)) * 1.0, "dec": 0.0})
    meta["class_broad"] = [KINDS[i % len(KINDS)] for i in range(len(names))]
    meta = meta.assign(unbiased_night=np.arange(len(names)) % 4 > 0, sgscore1=0.5, parallax=np.nan)
    meta.to_parquet(path / "metadata.parquet")
    return path


@pytest.fixture(scope="module")
def judged(folder: Path) -> Judged:
    return alerts.judge(folder / "alerts.parquet", "ztf", model.find("t2b-1"))


def test_alerts_of_a_table_get_the_verdicts_of_the_stream(ztf: list[Sample], judged: Judged) -> None:
    answer = classify(hop("ztf", [s.data for s in ztf]), assigned("ztf"))
    rows = [row for part in answer.rows for row in part.to_pylist() if row["topic"] == "classifications"]
    streamed = {r["alert_offset"]: r for r in (native.read(row["value"]) for row in rows)}
    assert len(judged.records) == len(ztf) == len(streamed)
    for i, record in enumerate(judged.records):
        assert {k: v for k, v in record.items() if k not in OWN} == {
            k: v for k, v in streamed[i].items() if k not in OWN
        }
    assert judged.curves([0, 2]).counts.tolist() == [streamed[0]["n_points_used"], streamed[2]["n_points_used"]]


def test_probabilities_by_class(judged: Judged) -> None:
    names = [c["className"] for c in judged.records[0]["classifications"]]
    total = np.sum([judged.probability(name) for name in names], axis=0)
    assert total[np.isfinite(total)] == pytest.approx(1, abs=1e-5)
    assert np.isnan(judged.probability("KN")).all()


def test_a_night_is_counted_and_plotted(folder: Path, tmp_path: Path) -> None:
    found = night.read(folder, "t2b-1")
    report = "\n".join(night.report(found, "t2b-1", tmp_path))
    of_night = found.of_night & found.called
    assert f"{int(of_night.sum())} of the {int(found.of_night.sum())} (" in report
    for kind in (*night.NOT_TRANSIENT, "these three together"):
        assert f"| {kind} | all | " in report
    assert (tmp_path / "night-t2b-1.png").exists() == bool(of_night.any())
    everything = np.arange(len(found.label))
    night.plot(found, everything[:7], tmp_path / "page.png")
    assert (tmp_path / "page.png").read_bytes().startswith(b"\x89PNG")
    assert len(list(night.called_table(found, everything[:3]))) == 5


@pytest.mark.shared
def test_of_a_real_night_few_are_called_transients_and_none_that_is_only_fainter(shared_data: Path) -> None:
    found = night.read(shared_data / night.SET, "t2b-1")
    dark = found.without_positive & found.of_night
    assert dark.sum() > 100
    assert not (found.called & dark).any()
    assert (found.of_night & found.called).sum() <= 0.03 * found.of_night.sum()


def test_wilson_by_hand() -> None:
    assert night.wilson(0, 12) == pytest.approx((0, 0.2425), abs=1e-3)
    assert night.wilson(5, 10) == pytest.approx((0.2366, 0.7634), abs=1e-3)
    assert night.wilson(10, 10)[1] == pytest.approx(1)


def test_auc_by_hand() -> None:
    is_snia, score = np.array([True, True, False, False]), np.array([0.9, 0.4, 0.4, 0.1])
    assert fink_scores.roc_auc(is_snia, score, np.ones(4)) == pytest.approx((2 + 1.5) / 4)
    assert fink_scores.roc_auc(is_snia, score, np.array([1.0, 0, 1, 1])) == 1
    assert np.isnan(fink_scores.roc_auc(np.ones(4, np.bool_), score, np.ones(4)))


def test_not_scored_is_left_out_and_alerts_of_an_object_go_together() -> None:
    table = pd.DataFrame(
        {
            "fink_snn_snia_vs_nonia": [0.0, 0.3, 0.9],
            "fink_rf_snia_vs_nonia": [0.0, 0.0, 0.2],
            "fink_cats_fine_class": [0, 111, 113],
            "fink_cats_fine_max_prob": [0.0, 0.8, 0.7],
        }
    )
    scored = fink_scores.fink(table)
    is_scored = ["".join("01"[int(s)] for s in np.isfinite(column)) for column in scored.values()]
    assert is_scored == ["011", "001", "011"]
    assert scored["Fink CATS, SN Ia or its best class"][1:].tolist() == [0.8, -0.7]
    rng = np.random.default_rng(0)
    obj = np.repeat(np.arange(60), 5)
    is_snia = obj % 2 == 0
    score = {"ours": is_snia + rng.normal(0, 1, 60)[obj], "Fink x": rng.normal(0, 1, 300)}
    of_night = fink_scores.Night(is_snia, obj, np.full(300, 3), score)
    ours, _, gap = fink_scores.with_interval(of_night, np.arange(300), ("ours", "Fink x"))
    assert ours[1] < ours[0] < ours[2]
    assert gap[1] < gap[0] < gap[2]
    single = fink_scores.Night(is_snia, np.arange(300), of_night.n_detections, score)
    (alone,) = fink_scores.with_interval(single, np.arange(300), ("ours",))
    assert ours[2] - ours[1] > 1.5 * (alone[2] - alone[1])  # five alerts of an object are not five objects
    lines = list(fink_scores.tables(of_night, "ours"))
    assert any(line.startswith("| 3 | 300 | 150 | 60 |") for line in lines)
    assert interval(np.arange(101.0)) == (2.5, 97.5)
