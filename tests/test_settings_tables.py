"""[limits], [service] and [registry] by themselves: what they allow, what they refuse, paths beside the config."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from broker.limits import Limits
from broker.lookup import Lookup
from broker.upkeep import Upkeep


def refusal(table: type[BaseModel], values: dict[str, Any]) -> str:
    """What is said of these values, which must be refused."""
    with pytest.raises(ValidationError) as refused:
        table.model_validate(values)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in refused.value.errors())


@pytest.mark.parametrize(
    ("table", "key", "allowed", "refused"),
    [
        (Limits, "max_rejected_ratio", [0, 0.0, 0.5, 1, 1.0], [-0.001, 1.001, "0.5", None, True, float("nan")]),
        (Limits, "max_rejected_run", [1, 10**9], [0, -1, 1.5, "5", None, True]),
        (Limits, "window_alerts", [1_000, 10**9], [0, -1, 1e5, "10000", None]),
        (Limits, "min_alerts", [1, 10_000], [0, -1, 10_001, "1", None]),
        (Upkeep, "restarts", [0, 1, 1_000], [-1, 1_001, 1.0, "3", None, False]),
        (Upkeep, "restart_window_s", [0.001, 1, 604_800], [0, -1, 604_801, "60", None, float("inf"), float("nan")]),
        (Upkeep, "kafka_away_s", [0.001, 3_600, 604_800.0], [0, 604_800.1, "1h", None]),
        (Lookup, "refresh_s", [1, 86_400], [0.99, 86_401, "60", None, float("nan")]),
        (Lookup, "timeout_s", [0.001, 600], [0, 601, "1", None]),
        (Lookup, "subjects", [(), ("a",), ["a", "b"]], ["a", None, (1,), ((),)]),
    ],
)
def test_the_edges_of_each_setting(table: type[BaseModel], key: str, allowed: list[Any], refused: list[Any]) -> None:
    for value in allowed:
        extra = {"min_alerts": 1} if key == "window_alerts" else {}
        found = getattr(table.model_validate(extra | {key: value}), key)
        assert found == (tuple(value) if isinstance(value, list) else value)
    for value in refused:
        assert key in refusal(table, {key: value}), value


@pytest.mark.parametrize("table", [Limits, Upkeep, Lookup])
def test_a_key_that_nobody_knows_is_refused_and_nothing_changes_later(table: type[BaseModel]) -> None:
    assert "misspelt: Extra inputs are not permitted" in refusal(table, {"misspelt": 1})
    made = table()
    for name in table.model_fields:
        with pytest.raises(ValidationError):
            setattr(made, name, 1)


# --- [limits] -----------------------------------------------------------------------------------------------------


@given(st.integers(1, 50), st.integers(1, 50))
def test_a_judgement_needs_no_more_than_the_window(least: int, window: int) -> None:
    values = {"min_alerts": least, "window_alerts": window}
    if least > window:
        assert refusal(Limits, values).endswith(f"has min_alerts = {least}, more than window_alerts = {window}")
    else:
        assert Limits.model_validate(values).min_alerts == least


@pytest.mark.parametrize(
    "when", ["2026-11-20T01:00:00Z", "2026-11-20T02:00:00+01:00", "2026-11-20 01:00:00+00:00", "20261120T010000Z"]
)
def test_a_time_to_count_from_has_a_zone(when: str) -> None:
    due = datetime(2026, 11, 20, 1, tzinfo=UTC)
    assert Limits(count_from=when).count_from == due  # type: ignore[arg-type]  # as the file gives it
    assert Limits(count_from=due).count_from == due


@pytest.mark.parametrize("when", ["2026-11-20T01:00:00", "2026-11-20", datetime(2026, 11, 20)])
def test_a_time_without_one_is_refused(when: object) -> None:
    assert "is a time without a zone; add Z for UTC" in refusal(Limits, {"count_from": when})


@pytest.mark.parametrize("when", ["", "yesterday", "2026-13-01T00:00:00Z", 7, 1.5, [], True])
def test_what_is_no_time_is_refused(when: object) -> None:
    assert "needs a time such as 2026-11-20T00:00:00Z" in refusal(Limits, {"count_from": when})


# --- [service] ----------------------------------------------------------------------------------------------------


def beside(table: type[BaseModel], values: dict[str, Any], folder: Path) -> Any:
    return table.model_validate(values, context={"folder": folder})


@pytest.mark.parametrize(("table", "key"), [(Upkeep, "health_file"), (Lookup, "cache")])
def test_paths_lie_beside_the_config(table: type[BaseModel], key: str, tmp_path: Path) -> None:
    for text, due in (
        ("x", tmp_path / "x"),
        ("a/b.json", tmp_path / "a" / "b.json"),
        ("../x", tmp_path / ".." / "x"),
        ("/var/x", Path("/var/x")),
        ("~/x", Path.home() / "x"),
    ):
        assert getattr(beside(table, {key: text}, tmp_path), key) == due
    assert getattr(table.model_validate({key: "x"}), key) == Path.cwd() / "x"
    assert getattr(table(), key) is None
    assert getattr(beside(table, {key: None}, tmp_path), key) is None
    assert key in refusal(table, {key: 7})
    assert f"{key}: Value error, is empty; leave it out" in refusal(table, {key: ""})  # Path("") is where one stands


# --- [registry] ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "due"),
    [
        ("http://localhost:8081", "http://localhost:8081"),
        ("https://registry.example.org/", "https://registry.example.org"),
        ("https://registry.example.org/apis/ccompat/v7//", "https://registry.example.org/apis/ccompat/v7"),
        ("http://[::1]:8081", "http://[::1]:8081"),
    ],
)
def test_addresses_of_a_registry(url: str, due: str) -> None:
    assert Lookup(url=url).url == due


@pytest.mark.parametrize(
    "url", ["", "localhost", "localhost:8081", "//localhost", "ftp://localhost", "http://", "https://:80"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    assert f"needs http://HOST:PORT or https://HOST, and its path; {url!r} is not one" in refusal(Lookup, {"url": url})


@pytest.mark.parametrize("url", ["http://me@localhost", "http://me:secret@localhost", "http://:secret@localhost"])
def test_a_login_in_the_address_is_refused_and_not_repeated(url: str) -> None:
    said = refusal(Lookup, {"url": url})
    assert "has a login in it; a registry is asked without one" in said
    assert "secret" not in said
