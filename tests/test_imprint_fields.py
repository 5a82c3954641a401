"""Imprints and health files over made-up values: what is written is read, each change has one answer, each age too."""

import json
import logging
from dataclasses import asdict, fields, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import ConfigError
from broker.health import Health, SourceHealth, State, complaint
from broker.imprint import FILE, Imprint, _read, take_over

words = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
lists = st.lists(words, max_size=3).map(tuple)
imprints = st.builds(
    Imprint,
    source=words,
    survey=st.sampled_from(["lsst", "ztf"]),
    topics=lists,
    outputs=lists,
    cluster=words,
    model=words,
    model_sha256=words,
    rules=st.integers(1, 9),
    code=words,
    spark=st.from_regex(r"[34]\.[0-9]\.[0-9]", fullmatch=True),
)
NOW = Imprint("night", "ztf", ("a", "b"), ("o", "d", "l"), "cluster1", "t2b-1@1", "abc", 1, "0.1.0", "4.1.1")


def plan(folder: Path, is_committed: bool = True) -> Path:
    """A checkpoint whose first batch was planned."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True)
    (folder / "sources" / "0" / "0").write_text('\0v1\n{"a":{"0":0}}')
    (folder / "offsets" / "0").write_text('v1\n{"batchTimestampMs": 1}\n{"a":{"0":5}}')
    if is_committed:
        (folder / "commits" / "0").write_text("v1\n{}")
    return folder


# --- imprints -------------------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(imprints)
def test_what_is_written_is_read_and_goes_on(made: Imprint) -> None:
    with TemporaryDirectory() as name:
        folder = plan(Path(name))
        take_over(folder, made)
        assert _read(folder / FILE) == made
        assert json.loads((folder / FILE).read_text()) == json.loads(json.dumps({"imprint": 1} | asdict(made)))
        before = (folder / FILE).stat().st_mtime_ns
        take_over(folder, made)
        assert (folder / FILE).stat().st_mtime_ns == before
        assert sorted(path.name for path in folder.iterdir()) == sorted([FILE, "commits", "offsets", "sources"])


def is_refused(before: Imprint, now: Imprint, is_unfinished: bool) -> bool:
    """By the rules in words: who reads what from where by which Spark, and whither while a batch is open."""
    return (
        (before.source, before.survey, before.cluster) != (now.source, now.survey, now.cluster)
        or not set(before.topics) <= set(now.topics)
        or before.spark.rsplit(".", 1)[0] != now.spark.rsplit(".", 1)[0]
        or (is_unfinished and before.outputs != now.outputs)
    )


@settings(max_examples=60, deadline=None)
@given(imprints, imprints, st.sets(st.sampled_from([field.name for field in fields(Imprint)])), st.booleans())
def test_each_change_goes_on_or_is_refused(
    before: Imprint, other: Imprint, changed: set[str], is_committed: bool
) -> None:
    """A refused start leaves the imprint as it was; another writes its own."""
    now = replace(before, **{name: getattr(other, name) for name in changed})
    with TemporaryDirectory() as name:
        folder = plan(Path(name), is_committed)
        take_over(folder, before)
        if is_refused(before, now, not is_committed):
            with pytest.raises(ConfigError, match="the checkpoint"):
                take_over(folder, now)
            assert _read(folder / FILE) == before
        else:
            take_over(folder, now)
            assert _read(folder / FILE) == now


@pytest.mark.parametrize("field", ["topics", "outputs", "model", "model_sha256", "rules", "code", "spark"])
def test_each_harmless_change_is_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture, field: str) -> None:
    caplog.set_level(logging.INFO)
    plan(tmp_path)
    take_over(tmp_path, NOW)
    value: Any = {"topics": ("a", "b", "c"), "outputs": ("x",), "rules": 2, "spark": "4.1.2"}.get(field, "other")
    take_over(tmp_path, replace(NOW, **{field: value}))
    (line,) = caplog.messages
    assert line.startswith("night: since the checkpoint's last job: ")
    assert ("c added" if field == "topics" else str(value if field != "outputs" else "x")) in line


# --- health ---------------------------------------------------------------------------------------------------------


def aged(file: Path, seconds: float, **more: Any) -> None:
    found = json.loads(file.read_text())
    found["time"] = (datetime.now(UTC) - timedelta(seconds=seconds)).isoformat()
    file.write_text(json.dumps(found | more))


@pytest.mark.parametrize("state", get_args(State))
@pytest.mark.parametrize("age_s", [0.0, 50.0, 70.0, -70.0])
def test_alive_is_who_wrote_lately_and_has_not_ended(tmp_path: Path, state: State, age_s: float) -> None:
    """A file from the future is of another clock, so it says nothing either."""
    file = tmp_path / "health.json"
    Health(file).tell("running")
    aged(file, age_s, state=state)
    found = complaint(file, 60)
    if state in ("stopped", "failed"):
        assert found == f"the job has {state}"
    elif abs(age_s) > 60:
        assert found is not None
        assert f"the job ({state}) last wrote {file} {age_s:.0f} s ago; 60 s are allowed" in found
    else:
        assert found is None


sources = st.builds(
    SourceHealth,
    state=st.sampled_from(["starting", "running", "restarting", "done"]),
    restarts=st.integers(0, 9),
    batch=st.none() | st.integers(0, 99),
    lag=st.none() | st.integers(0, 2**40),
    balanced=st.booleans(),
    cause=st.none() | words,
)


@settings(max_examples=50, deadline=None)
@given(st.sampled_from(["starting", "running", "draining"]), st.dictionaries(words, sources, max_size=4))
def test_ready_is_a_running_job_whose_queries_run_and_books_balance(
    state: State, by_name: dict[str, SourceHealth]
) -> None:
    due = state == "running" and all(s.state in ("running", "done") and s.balanced for s in by_name.values())
    with TemporaryDirectory() as name:
        file = Path(name) / "health.json"
        health = Health(file, sources=by_name)
        health.tell(state)
        if not file.exists():  # it starts as it is: no news, but the first word
            health.tell()
        assert health.is_ready is due
        assert json.loads(file.read_text())["sources"] == {name: vars(source) for name, source in by_name.items()}
        assert complaint(file, 60) is None
        found = complaint(file, 60, wants_ready=True)
    assert (found is None) is due
    for source, one in by_name.items() if found else ():
        assert f"{source} {one.state}{'' if one.balanced else ', books open'}" in (found or "")


@pytest.mark.parametrize(
    "text",
    [
        "null",
        "7",
        '"running"',
        '{"health": 1}',
        '{"health": 1, "time": 5}',
        "\x00",
        "{",
        '{"health": 1, "time": "2026"}',
    ],
)
def test_a_file_of_another_kind_is_no_job(tmp_path: Path, text: str) -> None:
    file = tmp_path / "health.json"
    file.write_text(text)
    assert f"{file}: not a health file: " in str(complaint(file, 60))


def test_a_time_without_a_zone_is_no_health_file(tmp_path: Path) -> None:
    file = tmp_path / "health.json"
    Health(file).tell("running")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"time": "2026-11-20T00:00:00"}))
    assert "not a health file" in str(complaint(file, 60))


@pytest.mark.parametrize("changes", [{"sources": {"ztf": None}}, {"sources": {"ztf": "running"}}, {"sources": []}])
def test_sources_of_another_shape_are_told_and_raise_nothing(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = tmp_path / "health.json"
    Health(file).tell("running")
    file.write_text(json.dumps(json.loads(file.read_text()) | {"ready": False} | changes))
    assert complaint(file, 60, wants_ready=True) is not None


def test_bytes_that_are_no_text_are_no_health_file(tmp_path: Path) -> None:
    (tmp_path / "health.json").write_bytes(b"\xff\xfe\x00")
    assert "not a health file" in str(complaint(tmp_path / "health.json", 60))
