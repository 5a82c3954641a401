"""Names with `{night}` in them, both ways, and when a night begins."""

import re
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from broker.night_names import night_at, night_in, topic_of

_names = st.tuples(st.text("az09_", max_size=5), st.text("az09_", max_size=5)).map("{night}".join)


@given(_names, st.dates())
def test_a_name_and_its_night(name: str, night: date) -> None:
    topic = topic_of(name, night)
    assert len(topic) == len(name) + 1
    assert night_in(name, topic) == night


@given(_names, st.text("az0123456789_", max_size=20))
def test_what_is_none_of_a_names_topics(name: str, topic: str) -> None:
    fits = re.fullmatch(re.escape(name).replace(re.escape("{night}"), r"(\d{8})"), topic)
    night = night_in(name, topic)
    assert night is None or topic_of(name, night) == topic
    if fits and fits[1][4:6] == "01" and fits[1][6:] == "01" and fits[1][:4] != "0000":
        assert night is not None
    assert fits or night is None


@pytest.mark.parametrize("topic", ["z_20260230", "z_2026022", "z_202602211", "z_+2026022", "y_20260221", "z_", "z"])
def test_these_are_none(topic: str) -> None:
    assert night_in("z_{night}", topic) is None


def test_a_name_without_a_night_has_none() -> None:
    assert night_in("20260221", "20260221") is None


@given(st.datetimes(datetime(2000, 1, 2), datetime(2100, 1, 1)), st.times())
def test_a_night_lasts_a_day_from_when_it_begins(when: datetime, at: object) -> None:
    begins = f"{at:%H:%M:%S}"
    night = night_at(when.replace(tzinfo=UTC), begins)
    start = datetime.fromisoformat(f"{night.isoformat()}T{begins}")
    assert start <= when < start + timedelta(days=1)
