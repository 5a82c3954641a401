"""The load of the benchmarks, their books, and one small run; no test judges a time."""

import io
import itertools
import json
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import fastavro
import pytest

from broker import model, surveys
from broker.embedded import EmbeddedKafka

sys.path.append(str(Path(__file__).resolve().parent.parent))  # last: `broker` stays the installed package

from benchmarks import (
    alerts,
    archive,
    audit,
    baselines,
    fault_kinds,
    fault_load,
    fault_memory,
    faults,
    faults_table,
    limits,
    machine,
    throughput,
)

ROOT = Path(__file__).resolve().parent.parent


def decoded(load: str, value: bytes) -> dict[str, Any]:
    """An alert read in full by its own schema."""
    if load == "ztf":
        (found,) = fastavro.reader(io.BytesIO(value))
    else:
        name = "elasticc/0.9" if load == "elasticc" else f"lsst/{struct.unpack_from('>I', value, 1)[0]}"
        schema = fastavro.parse_schema(json.loads((ROOT / "schemas" / f"{name}.avsc").read_text()))
        file = io.BytesIO(value if load == "elasticc" else value[5:])
        found = fastavro.schemaless_reader(file, schema, None)
        assert not file.read(1)
    assert isinstance(found, dict)
    return found


def source_id(load: str, record: dict[str, Any]) -> int:
    return int(record["candid"] if load == "ztf" else record["diaSource"]["diaSourceId"])


def n_points(record: dict[str, Any]) -> int:
    history = [*(record["prvDiaSources"] or ()), *(record["prvDiaForcedSources"] or ())]
    return len({p["midpointMjdTai"] for p in [*history, record["diaSource"]]})


@pytest.mark.parametrize("load", alerts.LOADS)
def test_ids_and_bytes_are_unique_and_every_alert_decodes(load: str) -> None:
    n = 60
    made = list(alerts.build(load, n))
    assert len({value for _, value in made}) == len({number for number, _ in made}) == n
    assert [source_id(load, decoded(load, value)) for _, value in made] == [number for number, _ in made]


@pytest.mark.parametrize("load", alerts.LOADS)
def test_the_seed_decides(load: str) -> None:
    first, again, other = (list(alerts.build(load, 40, seed)) for seed in (1, 1, 2))
    assert first == again
    assert [v for _, v in first] != [v for _, v in other]


def test_a_load_can_be_streamed_without_end() -> None:
    alone = {len(value) for _, value in itertools.islice(alerts.build("elasticc", 10**9), 250)}
    assert len(alone) > 20


@pytest.mark.parametrize(
    ("load", "low", "high"), [("lsst-shallow", 1, 10), ("lsst-average", 1, 80), ("lsst-deep", 300, 5000)]
)
def test_lsst_loads_have_their_points_and_keep_their_cutouts(load: str, low: int, high: int) -> None:
    for _, value in alerts.build(load, 40):
        record = decoded(load, value)
        assert low <= n_points(record) <= high
        assert record["cutoutDifference"]
        assert len(value) > 90_000


def test_average_histories_have_a_mean_of_18_points() -> None:
    counts = [template.points for template in alerts.templates("lsst-average")]
    assert len(counts) == alerts.AVERAGE_VARIANTS
    assert (min(counts), max(counts)) >= (1, 70)
    assert sum(counts) / len(counts) == pytest.approx(18, abs=0.5)


def test_a_cut_history_is_the_newest_part_of_the_deep_one() -> None:
    _, record = alerts.lsst_sample(deep=True)
    cut = alerts._cut(record, 12)
    times = sorted({p["midpointMjdTai"] for p in alerts._history(record)})
    kept = sorted({p["midpointMjdTai"] for p in alerts._history(cut)})
    assert n_points(cut) == 12
    assert kept == times[-len(kept) :]


@pytest.mark.parametrize("n_bytes", [200_000, 1_000_001, limits.LIMIT])
def test_alerts_of_a_wanted_size_are_sound(n_bytes: int) -> None:
    value = limits.sized(n_bytes, alerts.FIRST_ID + 7)
    assert len(value) == n_bytes
    assert source_id("lsst-shallow", decoded("lsst-shallow", value)) == alerts.FIRST_ID + 7


def test_a_long_light_curve_has_its_points() -> None:
    assert n_points(decoded("lsst-deep", limits.long_curve(2000, alerts.FIRST_ID))) == 2001


@pytest.mark.parametrize("load", alerts.LOADS)
def test_the_lean_baseline_reads_what_the_product_reads(load: str) -> None:
    survey = surveys.find(alerts.LOADS[load].survey)
    for number, value in alerts.build(load, 30):
        record, label = baselines._pruned(value, survey)
        whole = decoded(load, value)
        own = record["candidate"] if load == "ztf" else record["diaSource"]
        assert number == own["candid" if load == "ztf" else "diaSourceId"]
        assert label
        for name in ("prv_candidates", "fp_hists", "prvDiaSources", "prvDiaForcedSources"):
            assert len(record.get(name) or ()) == len(whole.get(name) or ())


def test_cpu_is_counted_by_kind() -> None:
    # in a process of its own: this one may have a Kafka and a Spark running
    script = f"""
import subprocess, sys
sys.path.append({str(ROOT)!r})
from benchmarks import machine
before = machine.cpu_of_this_job()
subprocess.run([sys.executable, "-c", "sum(i * i for i in range(3_000_000))"], check=True)
sum(i * i for i in range(2_000_000))
used = machine.cpu_of_this_job() - before
assert used.driver > 0, used
assert used.jvm == 0, used
assert used.total == used.driver + used.workers, used
"""
    done = subprocess.run([sys.executable, "-P", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_what_the_machine_does_is_a_share() -> None:
    busy = machine.between(machine.moment(), machine.moment())
    assert 0 <= busy["steal"] <= 1
    assert set(machine.describe()) >= {"date", "processor", "cores"}


def test_warm_up_is_dropped() -> None:
    clock = throughput.Clock()
    for done, seconds, cpu in ((100, 1.0, 9.0), (300, 2.0, 10.0), (500, 3.0, 10.4)):
        clock.marks.append((done, seconds, machine.Cpu(cpu, 0.0, 0.0)))
    found = clock.after(250)
    assert found["measured"] == 200
    assert found["cpu_us"] == pytest.approx(2000)
    assert found["per_core_s"] == pytest.approx(500)
    assert found["wall_per_s"] == pytest.approx(200)


def test_a_small_run_of_the_lean_loop_answers_every_alert(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"bench-in": 2, "bench-out": 2})
    throughput.feed(kafka.bootstrap_servers, "bench-in", "elasticc", 300)
    folder = str(model.find("t2b-1").resolve())
    todo = baselines.Job(kafka.bootstrap_servers, "elasticc", "bench-in", "bench-out", 300, 100, str(tmp_path), folder)
    seen: list[int] = []
    baselines.lean(todo, seen.append)
    assert seen[-1] == 300
    assert throughput.count(kafka.bootstrap_servers, "bench-out") == 300


def test_the_audit_reads_what_the_bare_loop_reads() -> None:
    told = audit.measure(3_000, rounds=1)  # raises where their records differ, or the books do not balance
    assert told["alerts"] == 3_000
    assert isinstance(told["ratio"], float)


def test_the_faults_of_the_docs_are_those_of_the_result_files() -> None:
    runs = faults_table.read(faults_table.RESULTS)
    assert faults_table.table(runs, faults_table.broken_off(faults_table.RESULTS)) in faults_table.PAGE.read_text()
    assert [run for run in runs if not faults.is_good(run)] == []


def test_a_fault_run_that_comes_to_nothing_is_told(tmp_path: Path) -> None:
    assert faults_table.broken_off(tmp_path) == []
    for seed in (1, 2):
        faults_table.note(tmp_path, "kafka", seed, "the job does not end")
    assert faults_table.read(tmp_path) == []
    assert "Came to no result: kafka 2." in faults_table.table([], faults_table.broken_off(tmp_path))


def test_a_night_of_the_benchmark_is_read_by_all(tmp_path: Path) -> None:
    archive.write_night(tmp_path / "night.tar.gz", 900)
    assert archive.baseline(tmp_path / "night.tar.gz")["n"] == 900
    assert archive.gunzip(tmp_path / "night.tar.gz")["cpu_s"] > 0
    found = archive.memory(tmp_path / "night.tar.gz")
    assert len(found["at_mb"]) == len(found["resident_mb"]) >= archive.MARKS
    assert found["at_mb"] == sorted(found["at_mb"])


def test_a_slope_is_of_each_start_of_the_job_by_itself() -> None:
    """Two starts, each 100 MB an hour up in the JVM from where it began; the driver is level; a warm-up that is not."""
    samples = [[t, 1.0, 200.0, 900.0 if t < 120 else 1000.0 + t / 36, 50.0] for t in range(0, 600, 5)]
    samples += [[t, 2.0, 200.0, 1500.0 + t / 36, 50.0 + t % 2] for t in range(600, 1200, 5)]
    found = fault_memory.slopes(samples, 120.0)
    assert found["jvm"] == pytest.approx(100, abs=0.1)
    assert found["driver"] == 0
    assert fault_memory.slopes([], 120.0) == {"driver": None, "jvm": None, "workers": None}
    drawn = fault_memory.figure({"samples": samples}).splitlines()
    assert all(mark in "".join(drawn) for mark in "djw")
    assert "1195 s" in drawn[-1]


def test_a_fault_is_done_when_it_came_often_enough_in_every_phase() -> None:
    phases = [dict(zip(fault_load.SHARES, told, strict=True)) for told in (("plan", "decode", "write"), ["commit"] * 3)]
    runs = [{"fault": "job", "hits": [{"phases": phases[0]}] * 30}]
    assert not faults.is_done(fault_kinds.KINDS["job"], runs)  # no commit was hit
    assert faults.is_done(fault_kinds.KINDS["job"], [*runs, {"fault": "job", "hits": [{"phases": phases[1]}]}])
    assert not faults.is_done(fault_kinds.KINDS["damaged-60"], [{"fault": "damaged-60", "hits": []}])
    assert faults.is_done(fault_kinds.KINDS["damaged-60"], [{"fault": "damaged-60", "hits": []}] * 2)
