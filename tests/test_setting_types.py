"""Types of settings: what TOML's own types are taken for, and which names are fit for topics and slugs."""

import re
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from broker.delivery import Cone, Filter, Outlet, outlets_of, topics_of
from broker.setting_types import (
    Bool,
    Count,
    EnvName,
    Number,
    SettingsTable,
    Share,
    Whole,
    check_slug,
    check_topic,
)

SOUND: dict[str, tuple[Any, list[Any]]] = {
    "Bool": (Bool, [True, False]),
    "Whole": (Whole, [0, -5, 2**60]),
    "Count": (Count, [1, 10**9]),
    "Number": (Number, [0.5, -3.0, 7]),
    "Share": (Share, [0, 0.0, 1, 1.0, 0.25]),
    "EnvName": (EnvName, ["A", "_x", "T2_PASSWORD9"]),
}
UNSOUND: dict[str, list[Any]] = {
    "Bool": [0, 1, "true", "yes", None],
    "Whole": [1.0, "4", True, None],
    "Count": [0, -1, 2.0, "1", True],
    "Number": ["1.5", float("nan"), float("inf"), True, None],
    "Share": [-0.001, 1.001, 80, "0.5", float("nan")],
    "EnvName": ["", "9A", "A B", "A-B", "$A", "A\n"],
}


@pytest.mark.parametrize("name", SOUND)
def test_a_type_takes_its_own_values(name: str) -> None:
    kind, values = SOUND[name]
    for value in values:
        assert TypeAdapter(kind).validate_python(value) == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in UNSOUND.items() for value in values])
def test_a_type_refuses_others_even_where_they_could_be_read_so(name: str, value: Any) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(SOUND[name][0]).validate_python(value)


class Example(SettingsTable):
    """A table of two keys."""

    size: Count = 1
    name: str = ""


def test_a_table_is_frozen_and_knows_its_keys() -> None:
    table = Example(size=2)
    with pytest.raises(ValidationError, match="frozen"):
        table.size = 3
    with pytest.raises(ValidationError, match="Extra inputs"):
        Example(sizes=2)  # type: ignore[call-arg]
    assert table == Example(size=2)
    assert table != Example(size=3)


# --- names ----------------------------------------------------------------------------------------------------------

TOPIC_LETTERS = string.ascii_letters + string.digits + "._-"


@given(st.text(TOPIC_LETTERS, min_size=1, max_size=249).filter(lambda t: t not in (".", "..")))
def test_kafka_s_names_of_topics_are_taken(name: str) -> None:
    assert check_topic(name) == name


@given(st.text(min_size=1, max_size=20).filter(lambda t: not set(t) <= set(TOPIC_LETTERS)))
def test_a_topic_with_any_other_letter_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a list in one text" if "," in name else "is not a topic name"):
        check_topic(name)


@pytest.mark.parametrize("name", ["", ".", "..", "a" * 250, "ztf_.*", "a\n", "ä", "a b", "ztf_[0-9]+"])
def test_names_that_kafka_refuses_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="letters, digits"):
        check_topic(name)


@given(st.text(string.printable, max_size=12))
def test_a_slug_is_fit_for_a_folder_and_a_header(name: str) -> None:
    """Those that are taken hold nothing that a shell, a path or Kafka would read as more than a letter."""
    is_fit = bool(name) and set(name) <= set(string.ascii_lowercase + string.digits + "_-") and name[0] not in "_-"
    if is_fit:
        assert check_slug(name) == name
    else:
        with pytest.raises(ValueError, match="small letters"):
            check_slug(name)


# --- outlets --------------------------------------------------------------------------------------------------------


@given(st.text(TOPIC_LETTERS, min_size=1, max_size=30).filter(lambda t: t not in (".", "..")), st.booleans())
def test_an_outlet_s_topic_is_filled_in_and_fit_for_kafka(name: str, has_survey: bool) -> None:
    outlet = Outlet(name="a", kind="json", topic=f"{name}_{{survey}}" if has_survey else f"{name}_")
    for survey in ("lsst", "ztf", "elasticc"):
        (topic,) = outlet.topics_of(survey).values()
        assert topic == (f"{name}_{survey}" if has_survey else f"{name}_")
        assert check_topic(topic) == topic


def test_each_class_of_a_filter_has_a_topic_of_its_own() -> None:
    chosen = ("SNIa", "SNII", "EB", "MDWARF_FLARE")
    outlet = Outlet(name="a", kind="json", topic="t_{class}_{survey}", filter=Filter(classes=chosen))
    topics = outlet.topics_of("ztf")
    assert tuple(topics) == chosen
    assert len(set(topics.values())) == len(chosen)
    assert all(re.fullmatch(r"t_[a-z-]+_ztf", topic) for topic in topics.values())
    assert outlet.is_by_class
    assert not Outlet(name="a", kind="json", topic="t").is_by_class


@given(st.lists(st.sets(st.sampled_from(["x", "y", "z"])), max_size=4), st.sampled_from(["x", "y", "z"]))
def test_an_outlet_without_sources_takes_all(sources: list[set[str]], source: str) -> None:
    outlets = [
        Outlet(name=f"o{i}", kind="json", topic=f"t{i}_{{survey}}", sources=tuple(sorted(some)))
        for i, some in enumerate(sources)
    ]
    due = [i for i, some in enumerate(sources) if not some or source in some]
    assert [outlet.name for outlet in outlets_of(outlets, source)] == [f"o{i}" for i in due]
    assert topics_of(outlets, {source: "ztf"}) == [f"t{i}_ztf" for i in due]


@pytest.mark.parametrize(
    "wrong",
    [
        {"ra": 360.0, "dec": 0.0, "radius_deg": 1.0},
        {"ra": -0.1, "dec": 0.0, "radius_deg": 1.0},
        {"ra": 0.0, "dec": 90.1, "radius_deg": 1.0},
        {"ra": 0.0, "dec": 0.0, "radius_deg": 0.0},
        {"ra": 0.0, "dec": 0.0, "radius_deg": 181.0},
        {"ra": "0", "dec": 0.0, "radius_deg": 1.0},
        {"ra": 0.0, "dec": 0.0},
        {"ra": float("nan"), "dec": 0.0, "radius_deg": 1.0},
    ],
)
def test_a_cone_lies_on_the_sky(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Cone(**wrong)
    assert Cone(ra=0.0, dec=-90.0, radius_deg=180.0).radius_deg == 180.0


@given(st.floats(0, 30), st.floats(0, 30), st.integers(0, 50), st.integers(0, 50))
def test_limits_in_the_wrong_order_are_refused_and_equal_ones_are_not(a: float, b: float, n: int, m: int) -> None:
    cases: list[tuple[dict[str, Any], bool]] = [
        ({"brightest_mag": a, "faintest_mag": b}, a > b),
        ({"min_detections": n, "max_detections": m}, n > m),
    ]
    for limits, is_wrong in cases:
        if is_wrong:
            with pytest.raises(ValidationError, match="lets nothing through"):
                Filter(**limits)
        else:
            Filter(**limits)
