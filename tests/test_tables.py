"""Alerts and light curves in tables: what they hold is found; the verdicts are those of the same alerts as bytes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import reference
from decoding import assigned, hop
from running import broker
from samples import ALERTS, SCHEMAS, originals, whole

from broker import Classifier, surveys, table_rows
from broker.classify import classify
from broker.errors import ArchiveError, UsageError
from broker.lightcurve import BANDS
from broker.outlets import native
from broker.tables import Hints, Plan, is_table, look

NOT_COMPARED = {"brokerIngestTimestamp", "brokerPublishTimestamp", "alert_schema", "alert_topic", "alert_partition"}
NOT_COMPARED |= {"alert_offset", "alert_timestamp", "classifierParams"}
NJY = Hints(unit="nJy")


def verdicts(batch: pa.RecordBatch, survey: str) -> list[dict[str, Any]]:
    """Records of a batch without what names clocks and places, in the order of its alerts."""
    answer = classify(batch, assigned(survey))
    assert all(name.split("/")[0] != "rejected" for name in answer.verdicts), answer.verdicts
    values = [value for part in answer.rows for value in part.column("value").to_pylist()]
    return [{k: v for k, v in native.read(value).items() if k not in NOT_COMPARED} for value in values]


def of_table(path: Path, plan: Plan, survey: str) -> list[dict[str, Any]]:
    return [record for batch in table_rows.read(path, path.name, plan, survey) for record in verdicts(batch, survey)]


def stored(path: Path, survey: str, values: list[bytes], drop: tuple[str, ...] = ()) -> Path:
    """Alerts as a Parquet file of their whole decoded records, as Fink's raw store holds them; in small row groups."""
    records = [{k: v for k, v in reference.decode(value).items() if k not in drop} for value in values]
    pq.write_table(pa.Table.from_pylist(records), path, row_group_size=16, compression="snappy")
    return path


def alike(survey: str, label: str) -> list[bytes]:
    """Samples of one schema, which a Parquet file can hold together."""
    return [s.data for s in whole(survey) if s.schema == label][:40]


# --- alerts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("survey", "label"), [("lsst", "1000"), ("lsst", "900"), ("ztf", "3.3"), ("ztf", "4.02")])
def test_stored_alerts_get_the_verdicts_of_the_stream(tmp_path: Path, survey: str, label: str) -> None:
    values = alike(survey, label)
    assert len(values) >= 3
    path = stored(tmp_path / "part-0.parquet", survey, values)
    plan = look(path, Hints())
    assert plan is not None
    assert (plan.surveys, plan.columns) == ((survey,), {})
    assert of_table(path, plan, survey) == verdicts(hop(survey, list(values)), survey)


@pytest.mark.shared
def test_fink_parquet_gets_the_verdicts_of_the_stream(shared_alerts: Path) -> None:
    """Fink's own files against frames made of the same rows."""
    frames: dict[str, list[bytes | None]] = {}
    for sample in originals(shared_alerts, "lsst"):
        if sample.file.startswith("lsst_fink_parquet"):
            frames.setdefault(sample.file, []).append(sample.data)
    assert sum(map(len, frames.values())) == 53
    for file, values in frames.items():
        plan = look(shared_alerts / file, Hints())
        assert plan is not None
        assert of_table(shared_alerts / file, plan, "lsst") == verdicts(hop("lsst", values), "lsst")


@pytest.mark.shared
def test_parquet_that_pandas_wrote_is_read(shared_alerts: Path) -> None:
    """Doubles for floats and ids, all-null columns without a type, lists of nothing."""
    (path,) = (shared_alerts / "lsst" / "fink-parquet-v10").glob("*.parquet")
    plan = look(path, Hints())
    assert plan is not None
    assert len(of_table(path, plan, "lsst")) == 25


def test_cutouts_are_not_read(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.parquet", "ztf", alike("ztf", "3.3"))
    due = of_table(path, Plan(("ztf",), {}, None, None, {}), "ztf")
    data = bytearray(path.read_bytes())
    with pq.ParquetFile(path) as file:
        for group in range(file.num_row_groups):
            for i in range(len(file.schema)):
                column = file.metadata.row_group(group).column(i)
                if "cutout" in column.path_in_schema:
                    start = column.dictionary_page_offset or column.data_page_offset
                    data[start : start + column.total_compressed_size] = bytes(column.total_compressed_size)
    path.write_bytes(data)
    with pytest.raises(OSError, match=r".+"):
        pq.read_table(path)
    assert of_table(path, Plan(("ztf",), {}, None, None, {}), "ztf") == due


def test_missing_columns_are_named(tmp_path: Path) -> None:
    path = stored(tmp_path / "a.parquet", "ztf", alike("ztf", "3.3"))
    table = pq.read_table(path)
    pq.write_table(table.drop_columns(["prv_candidates"]), tmp_path / "b.parquet")
    lists = [f"prv_candidates.{name}" for name in ("jd", "fid", "magpsf", "sigmapsf")]
    with pytest.raises(ArchiveError, match=rf"b.parquet: .*for alerts of ztf it lacks {', '.join(lists)}$"):
        look(tmp_path / "b.parquet", Hints())
    candidate = pa.array([{"candid": 1, "jd": 2460000.5}])
    pq.write_table(pa.table({"candidate": candidate}), tmp_path / "c.parquet")
    with pytest.raises(ArchiveError, match=r"lacks objectId, candidate\.fid, candidate\.magpsf, candidate\.ra"):
        look(tmp_path / "c.parquet", Hints())


def test_an_id_that_is_no_whole_number_is_told(tmp_path: Path) -> None:
    found = pa.array([1.5, float("nan")])
    with pytest.raises(pa.ArrowInvalid):
        table_rows.conform(found, "long")
    assert table_rows.conform(found[1:], "long").to_pylist() == [None]
    with pytest.raises(pa.ArrowInvalid, match="expected a struct of jd"):
        table_rows.conform(found, {"jd": "double"})


def test_tables_that_are_neither_say_nothing(tmp_path: Path) -> None:
    pq.write_table(pa.table({"object_id": [1], "class": ["SNIa"]}), tmp_path / "metadata.parquet")
    assert look(tmp_path / "metadata.parquet", Hints()) is None
    assert look(ALERTS / "MANIFEST.csv", Hints()) is None
    assert is_table(tmp_path / "metadata.parquet")
    assert not is_table(ALERTS / "ztf.tar.gz")
    assert is_table(tmp_path / "gone.parquet")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1 and no more of it PAR1", b"junk" * 100])
def test_a_broken_table_is_named(tmp_path: Path, data: bytes) -> None:
    for name in ("x.parquet", "gone.parquet"):
        (tmp_path / "x.parquet").write_bytes(data)
        with pytest.raises(ArchiveError, match=f"{name}: can't be read as a table"):
            look(tmp_path / name, Hints())


# --- light curves -------------------------------------------------------------------------------------------------


def curves(n: int = 30, seed: int = 3, bands: tuple[str, ...] = BANDS) -> pa.Table:
    """Random light curves of n objects, their points in no order, some of them of no use."""
    rng = np.random.default_rng(seed)
    rows = rng.integers(0, n, 40 * n)
    rows[:n] = np.arange(n)
    flux = rng.normal(0, 3000, len(rows))
    flux[rng.random(len(rows)) < 0.05] = np.nan
    columns = {
        "object_id": pa.array([f"curve {row}" for row in rows]),
        "mjd": pa.array(60_000 + 60 * rng.random(len(rows)).round(3)),
        "band": pa.array([bands[i] for i in rng.integers(0, len(bands), len(rows))]),
        "flux": pa.array(flux),
        "flux_err": pa.array(rng.uniform(-1, 200, len(rows))),
    }
    return pa.table(columns)


def assert_like_python(path: Path, hints: Hints, table: pa.Table, **scale: Any) -> None:
    """The table's verdicts have the probabilities that broker.Classifier gives, to the bit."""
    plan = look(path, hints)
    assert plan is not None
    due = Classifier("t2b-1").classify(table, **scale)
    found = {r["object_id"]: r for survey in plan.surveys for r in of_table(path, plan, survey)}
    assert sorted(found) == sorted(map(str, due.object_id))
    for i, name in enumerate(due.object_id):
        record = found[str(name)]
        probabilities = [c["probability"] for c in record["classifications"] or ()]
        assert probabilities == [p for p in due.probabilities[i].tolist() if p == p]
        assert record["n_points_used"] == due.n_points_used[i]
        if record["status"] == "classified":
            assert due.evident[i]
        if record["reason"] == "not_enough_evidence":
            assert not due.evident[i]


@pytest.mark.parametrize("bands", [BANDS, ("ztf-g", "ztf-r")])
def test_light_curves_get_the_probabilities_of_the_python_api(tmp_path: Path, bands: tuple[str, ...]) -> None:
    table = curves(bands=bands)
    pq.write_table(table, tmp_path / "a.parquet")
    assert_like_python(tmp_path / "a.parquet", NJY, table)
    pa.csv.write_csv(table, tmp_path / "a.csv")
    assert_like_python(tmp_path / "a.csv", NJY, table)
    assert_like_python(tmp_path / "a.csv", Hints(unit="uJy"), table, unit="uJy")
    assert_like_python(tmp_path / "a.csv", Hints(zero_point=27.5), table, zero_point=27.5)


def test_light_curves_by_other_names_and_units(tmp_path: Path) -> None:
    table = curves(bands=("ztf-g", "ztf-r"))
    letters = pa.array([name[-1] for name in table["band"].to_pylist()])
    named = table.set_column(2, "band", letters).rename_columns(["OID", "MJD", "filter", "flux_uJy", "flux_err_uJy"])
    pa.csv.write_csv(named, tmp_path / "a.csv")
    assert_like_python(tmp_path / "a.csv", Hints(), table, unit="uJy")
    zero_point = named.rename_columns(["OID", "MJD", "filter", "flux", "fluxerr"])
    pq.write_table(zero_point.append_column("zp", pa.array([31.4] * len(table))), tmp_path / "b.parquet")
    assert_like_python(tmp_path / "b.parquet", Hints(), table)
    mags = {"mag": np.full(len(table), 19.5), "mag_err": np.full(len(table), 0.1)}
    magnitudes = table.drop_columns(["flux", "flux_err"])
    for name, values in mags.items():
        magnitudes = magnitudes.append_column(name, pa.array(values))
    pq.write_table(magnitudes, tmp_path / "c.parquet")
    assert_like_python(tmp_path / "c.parquet", Hints(), magnitudes)


def test_objects_are_judged_by_the_survey_of_their_bands(tmp_path: Path) -> None:
    ours, other = curves(5, bands=("ztf-g",)), curves(6, 4, bands=("lsst-g", "ztf-r"))
    other = other.set_column(0, "object_id", pa.array([f"other {name}" for name in other["object_id"].to_pylist()]))
    pq.write_table(pa.concat_tables([ours, other]), tmp_path / "a.parquet")
    plan = look(tmp_path / "a.parquet", NJY)
    assert plan is not None
    assert plan.surveys == ("lsst-curves", "ztf-curves")
    found = {s: [r["survey"] for r in of_table(tmp_path / "a.parquet", plan, s)] for s in plan.surveys}
    assert found == {"lsst-curves": ["lsst"] * 6, "ztf-curves": ["ztf"] * 5}


def test_what_the_user_must_say_is_said(tmp_path: Path) -> None:
    table = curves(3)
    pa.csv.write_csv(table, tmp_path / "a.csv")
    with pytest.raises(UsageError, match=r"a\.csv: nothing says in which unit .*--unit \(nJy, .*--zero-point"):
        look(tmp_path / "a.csv", Hints())
    pa.csv.write_csv(table.set_column(2, "band", pa.array(["V"] * len(table))), tmp_path / "b.csv")
    with pytest.raises(UsageError, match=r"band 'V' is none of des's; .*--bands"):
        look(tmp_path / "b.csv", NJY)
    for column, missing in (("object_id", "object_id"), ("band", "band"), ("flux_err", "flux_err")):
        pa.csv.write_csv(table.drop_columns([column]), tmp_path / "c.csv")
        with pytest.raises(ArchiveError, match=rf"light curves without a column {missing} \(or "):
            look(tmp_path / "c.csv", NJY)
    for hints in (Hints(unit="erg"), Hints(bands="2mass"), Hints(unit="nJy", zero_point=31.4)):
        with pytest.raises(UsageError, match="--"):
            hints.check()


def test_a_csv_that_breaks_off_into_text_is_named(tmp_path: Path) -> None:
    pa.csv.write_csv(curves(3), tmp_path / "a.csv")
    plan = look(tmp_path / "a.csv", NJY)
    assert plan is not None
    with (tmp_path / "a.csv").open("a") as file:
        file.write("\n<html>Service unavailable</html>\n")
    with pytest.raises(ArchiveError, match=r"a\.csv: "):
        list(table_rows.read(tmp_path / "a.csv", "a.csv", plan, plan.surveys[0]))
    (tmp_path / "a.csv").unlink()
    with pytest.raises(ArchiveError, match=r"a\.csv: .*No such file"):
        list(table_rows.read(tmp_path / "a.csv", "a.csv", plan, plan.surveys[0]))


def test_the_rows_are_those_of_the_hop() -> None:
    columns = set(table_rows.ddl(surveys.find("ztf")).replace(",", " ").split())
    assert set(hop("ztf", [None]).schema.names) <= columns


# --- the command --------------------------------------------------------------------------------------------------


def test_a_folder_of_all_forms(tmp_path: Path) -> None:
    """Parquet and bytes of the same alerts, curves, what is none of these, and what is broken: all in one run."""
    folder = tmp_path / "in"
    folder.mkdir()
    values = alike("ztf", "3.3")
    stored(folder / "alerts.parquet", "ztf", values)
    for i, value in enumerate(values):
        (folder / f"{i}.avro").write_bytes(value)
    pa.csv.write_csv(curves(8), folder / "curves.csv")
    packed = (ALERTS / "ztf.tar.gz").read_bytes()
    (folder / "cut.tar.gz").write_bytes(packed[: len(packed) // 2])
    (folder / "empty.parquet").write_bytes(b"")
    unknown = b"\x00\x00\x00\x04\xb1" + next(s.data for s in whole("lsst") if s.schema == "1000")[5:]
    (folder / "1201.bin").write_bytes(unknown)
    (folder / "schemas").mkdir()
    (folder / "schemas" / "1201.json").write_text((SCHEMAS / "lsst" / "1000.avsc").read_text())
    (folder / "schemas" / "1202.json").write_text("<html>")
    with (folder / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["file", "sha256"], ["a", "b"]])
    out, summary = tmp_path / "out.jsonl", tmp_path / "summary.json"
    ended = broker("classify", folder, "-o", out, "--summary", summary, "--unit", "nJy", timeout_s=600)
    assert ended.returncode == 3, ended.stderr
    assert "list.csv: neither alerts nor light curves" in ended.stderr
    counts = json.loads(summary.read_text())
    assert sorted(Path(f["file"]).name for f in counts["failed_files"]) == ["1202.json", "cut.tar.gz", "empty.parquet"]
    assert "1202.json: is no Avro schema" in ended.stderr
    assert f"error: 3 of the files failed (named above); {counts['in']} alerts were answered" in ended.stderr
    records = [json.loads(line) for line in out.read_text().splitlines()]
    topics = {name: [r for r in records if r["alert_topic"] == name] for name in ("alerts.parquet", "curves.csv")}
    assert (len(topics["alerts.parquet"]), len(topics["curves.csv"])) == (len(values), 8)
    n_cut = sum(r["alert_topic"].startswith("cut.tar.gz/") for r in records)
    assert f"{n_cut} alerts of it were read" in ended.stderr
    assert counts["in"] == len(records) == 2 * len(values) + 9 + n_cut
    assert [r["alert_schema"] for r in records if r["alert_topic"] == "1201.bin"] == ["1201"]
    by_id: dict[str, list[Any]] = {}
    for record in records:
        if record["alert_topic"].endswith((".parquet", ".avro")) and "/" not in record["alert_topic"]:
            kept = {k: v for k, v in record.items() if k not in NOT_COMPARED}
            by_id.setdefault(record["source_id"], []).append(kept)
    assert all(len(pair) == 2 and pair[0] == pair[1] for pair in by_id.values())
    assert len(by_id) == len(values)


def test_only_tables_that_are_neither(tmp_path: Path) -> None:
    pq.write_table(pa.table({"class": ["SNIa"]}), tmp_path / "metadata.parquet")
    for path in (tmp_path, tmp_path / "metadata.parquet"):
        ended = broker("classify", path, timeout_s=300)
        assert ended.returncode == 3
        assert "neither alerts" in ended.stderr
    pa.csv.write_csv(curves(3), tmp_path / "a.csv")
    ended = broker("classify", tmp_path, timeout_s=300)
    assert ended.returncode == 2
    assert "nothing says in which unit its fluxes are: give --unit" in ended.stderr
