"""When an alert was observed, without reading the rest of it: the same as from the whole record, or nothing."""

import math
import random
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import generate
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import damaged, whole

from broker import surveys
from broker.errors import UsageError
from broker.observed import Moment, Observed, moment, observed

TAI_MINUS_UTC_S = 37
WITH_EXPOSURE_TIME = ("3.1", "3.3", "3.3-null-first", "4.01")


def time_of(data: bytes, survey: str) -> float:
    """MJD TAI at mid-exposure, out of the record that fastavro reads as a whole."""
    record = reference.decode(data)
    if survey != "ztf":
        return float(record["diaSource"]["midpointMjdTai" if survey == "lsst" else "midPointTai"])
    own = record["candidate"]
    exposure_s = own.get("exptime")
    middle_s = TAI_MINUS_UTC_S + (30.0 if exposure_s is None else exposure_s) / 2
    return float(own["jd"]) - 2_400_000.5 + middle_s / 86_400


def of_ztf(label: str = "3.3", **changes: Any) -> Observed | None:
    """What is read from a ZTF alert whose candidate has these values."""
    alert = generate.alert("ztf", label, 1)
    return observed(generate.encode("ztf", label, alert | {"candidate": alert["candidate"] | changes}))


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_all_samples_have_the_time_of_the_whole_record(survey: str) -> None:
    unread = []
    for sample in whole(survey):
        found, due = observed(sample.data), time_of(sample.data, survey)
        if found is None:
            unread.append(due)
        else:
            assert found.survey == survey
            assert found.mjd_tai == pytest.approx(due, abs=1e-8), sample
    assert len(unread) <= 1
    assert not any(45_000 < due < 90_000 for due in unread)


@pytest.mark.parametrize("codec", ["deflate", "snappy", "zstandard"])
def test_a_packed_container_has_the_time_of_the_plain_one(codec: str) -> None:
    alert = generate.alert("ztf", "4.01", 3)
    schema = generate.schema_of("ztf", "4.01")
    plain = observed(generate.container([alert], schema))
    assert plain is not None
    assert observed(generate.container([alert], schema, codec)) == plain


def test_of_several_alerts_in_a_container_the_first_counts() -> None:
    alerts = [generate.alert("ztf", "4.01", seed) for seed in (3, 4)]
    schema = generate.schema_of("ztf", "4.01")
    one, both, other = (observed(generate.container(part, schema)) for part in (alerts[:1], alerts, alerts[1:]))
    assert one == both != other
    assert observed(generate.container([], schema)) is None


@pytest.mark.parametrize("label", WITH_EXPOSURE_TIME)
def test_a_ztf_alert_is_timed_at_the_middle_of_its_own_exposure(label: str) -> None:
    usual = of_ztf(label, exptime=30.0)
    assert usual is not None
    for exposure_s in (0.0, 10.0, 300.0):
        found = of_ztf(label, exptime=exposure_s)
        assert found is not None
        assert found.mjd_tai - usual.mjd_tai == pytest.approx((exposure_s - 30) / 2 / 86_400, abs=1e-9)
    assert of_ztf(label, exptime=None) == usual


@pytest.mark.parametrize("exposure_s", [math.nan, math.inf, -math.inf])
def test_an_exposure_of_no_length_gives_no_time(exposure_s: float) -> None:
    """A time of NaN has no place in an order."""
    assert of_ztf(exptime=exposure_s) is None


@pytest.mark.parametrize("jd", [math.nan, math.inf, 0.0, 60_000.0, -1.0, 2_400_000.5, 1e300])
def test_an_implausible_time_is_none(jd: float) -> None:
    assert of_ztf(jd=jd) is None
    assert of_ztf(jd=2_460_000.5) is not None


@pytest.mark.parametrize("survey", ["lsst", "elasticc"])
@pytest.mark.parametrize("time", [math.nan, math.inf, 0.0, -60_000.0, 1e9])
def test_the_same_of_the_other_surveys(survey: str, time: float) -> None:
    label = generate.LABELS[survey][0]
    alert = generate.alert(survey, label, 1)
    name = "midpointMjdTai" if survey == "lsst" else "midPointTai"
    wrong = alert | {"diaSource": alert["diaSource"] | {name: time}}
    assert observed(generate.encode(survey, label, alert)) is not None
    assert observed(generate.encode(survey, label, wrong)) is None


@pytest.mark.parametrize(("survey", "label"), [(s, label) for s, labels in generate.LABELS.items() for label in labels])
def test_the_history_behind_the_own_source_does_not_matter(survey: str, label: str) -> None:
    """Only what lies before the end of the own source is read: a container cut behind it is still refused as such."""
    short, deep = (generate.alert(survey, label, 8, *size) for size in ((0, 0), (12, 20)))
    own = generate.HISTORY[survey][2]
    same = deep | {own: short[own]}
    times = [observed(generate.encode(survey, label, record)) for record in (short, same, deep)]
    assert None not in times
    assert times[0] == times[1]
    assert times[2] is not None
    assert times[2].mjd_tai == pytest.approx(time_of(generate.encode(survey, label, deep), survey))


def test_damaged_samples_do_no_harm() -> None:
    found = [observed(sample.data) for sample in damaged()]
    assert len(found) == 3
    assert all(one is None or 45_000 < one.mjd_tai < 90_000 for one in found)


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_whatever_happens_to_the_bytes_a_time_is_a_time(survey: str) -> None:
    rng = random.Random(survey)
    for sample in whole(survey)[:6]:
        for damage in generate.DAMAGES * 8:
            found = observed(damage(sample.data, rng))
            assert found is None or math.isfinite(found.mjd_tai)


@given(st.binary(max_size=200), st.sampled_from([b"", b"Obj\x01", b"\x00\x00\x00\x04\x4d"]))
@settings(max_examples=150, deadline=None)
def test_bytes_at_random_have_no_time(rest: bytes, start: bytes) -> None:
    assert observed(start + rest) is None


def test_hostile_containers_have_no_time() -> None:
    values = [generate.zero_byte_bomb(), generate.zero_byte_bomb(inside="3.3"), generate.deflate_bomb()]
    values += [generate.nested_schema(), generate.recursive(inside="3.3"), generate.container_within(b"Obj\x01")]
    for value in values:
        assert observed(value) is None


# --- moments and nights -------------------------------------------------------------------------------------------

WHEN = st.datetimes(datetime(2000, 1, 1), datetime(2100, 1, 1), timezones=st.just(UTC))


@given(WHEN, st.integers(-14, 14))
def test_a_moment_is_the_same_in_every_zone(when: datetime, hours: int) -> None:
    abroad = when.astimezone(timezone(timedelta(hours=hours)))
    here, there = moment("--since", when.isoformat()), moment("--since", abroad.isoformat())
    assert here is not None
    assert here == there
    due = (when - datetime(1858, 11, 17, tzinfo=UTC)).total_seconds() / 86_400 + TAI_MINUS_UTC_S / 86_400
    assert here.mjd_tai == pytest.approx(due, abs=1e-7)
    assert {here.start(name) for name in surveys.NAMES} == {here.end(name) for name in surveys.NAMES} == {here.mjd_tai}


@given(st.dates(datetime(2000, 1, 2).date(), datetime(2100, 1, 1).date()))
def test_a_night_ends_when_the_next_begins(date: Any) -> None:
    this, after = moment("--since", date.isoformat()), moment("--since", (date + timedelta(days=1)).strftime("%Y%m%d"))
    assert this is not None
    assert after is not None
    for name in surveys.NAMES:
        assert this.end(name) == pytest.approx(after.start(name), abs=1e-9)
    midnight = moment("--since", f"{date.isoformat()}T00:00:00Z")
    assert midnight is not None
    assert this.start("ztf") == midnight.mjd_tai
    assert this.start("lsst") == midnight.mjd_tai + 0.5


@pytest.mark.parametrize(
    "text", ["", "now", "2026", "2026-02-30", "2026-03-10T25:00:00Z", "2026-03-10 12:00", "60000.5", "2026-03-10T12"]
)
def test_what_is_neither_a_time_nor_a_night_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as refused:
        moment("--until", text)
    assert str(refused.value).startswith(f"--until {text!r}: needs a time with a zone, such as ")


def test_no_moment_is_none() -> None:
    assert moment("--since", None) is None
    assert Moment(60_000.0).start("ztf") == Moment(60_000.0).end("lsst") == 60_000.0
