"""What a replay sends: the right alerts, in order, in the right frames, when they are due, and from where on."""

import gzip
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import generate
import numpy as np
import pytest
import reference
from samples import ALERTS, whole

from broker import container, registry
from broker.bookmark import Bookmark
from broker.errors import ArchiveError, ConfigError, UsageError
from broker.lightcurve import mjd_tai_of_jd_utc
from broker.observed import moment, observed
from broker.pace import Rate, Speed, Visits, pace_of
from broker.playlist import Order, Play, Wish, in_container, in_frame, play

ZTF = str(ALERTS / "ztf.tar.gz")


def time_of(data: bytes, survey: str) -> float:
    """By the reference reader."""
    record = reference.decode(data)
    if survey == "ztf":
        own = record["candidate"]
        return float(mjd_tai_of_jd_utc(np.array(own["jd"]), np.array(own.get("exptime") or 30.0)))
    return float(record["diaSource"]["midpointMjdTai" if survey == "lsst" else "midPointTai"])


# --- times --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", ["lsst", "ztf", "elasticc"])
def test_times_are_those_of_the_alerts(survey: str) -> None:
    n_known = 0
    for sample in whole(survey):
        found = observed(sample.data)
        if found is None:  # a hand-made sample of 1970
            assert not 45_000 < time_of(sample.data, survey) < 90_000
            continue
        n_known += 1
        assert (found.survey, found.mjd_tai) == (survey, time_of(sample.data, survey))
    assert n_known > 35
    for label in generate.LABELS[survey]:
        for data in generate.generated(survey, label, 3):
            found = observed(data)
            assert found is not None
            assert found.mjd_tai == time_of(data, survey)


def test_what_is_no_alert_has_no_time() -> None:
    good = whole("ztf")[0].data
    packed = gzip.compress(good)
    for data in (None, b"", b"hello", good[:20_000], packed, b"\x00\x00\x00\x30\x39junk", generate.recursive()):
        assert observed(data) is None


def test_nights_are_the_surveys_own() -> None:
    night = moment("--since", "2026-03-10")
    assert night == moment("--since", "20260310")
    assert night is not None
    assert night.start("lsst") - night.start("ztf") == 0.5
    assert night.end("ztf") - night.start("ztf") == 1
    when = moment("--until", "2026-03-10T12:00:00Z")
    assert when is not None
    assert when.end("ztf") == when.start("lsst") == pytest.approx(night.start("lsst"), abs=1e-9)
    for text in ("yesterday", "2026-03-10T12:00:00", "2026-13-01"):
        with pytest.raises(UsageError, match=r"--since .*needs a time with a zone.* or a night"):
            moment("--since", text)


# --- choice and order ---------------------------------------------------------------------------------------------


def test_order_of_arrival_and_of_observation() -> None:
    arrival = list(play(Wish((ZTF,))))
    assert [a.value for a in arrival] == [s.data for s in whole("ztf")]
    assert {a.mjd_tai for a in arrival} == {None}
    sorted_ = list(play(Wish((ZTF,), "observation")))
    times = [a.mjd_tai for a in sorted_]
    assert times == sorted(times, key=lambda t: t or 0)
    assert sorted(a.value or b"" for a in sorted_) == sorted(s.data for s in whole("ztf"))


def test_a_span_of_times_or_nights() -> None:
    every = {a.topic: a.mjd_tai for a in play(Wish((ZTF,), needs_times=True))}
    dates = sorted({int((t or 0) - 37 / 86_400) for t in every.values()})
    assert len(dates) > 5
    first, last = (np.datetime64("1858-11-17") + np.timedelta64(dates[i], "D") for i in (1, 3))
    wish = Wish((ZTF,), since=moment("--since", str(first)), until=moment("--until", str(last)))
    found = {a.topic for a in play(wish)}
    assert found == {t for t, mjd in every.items() if int((mjd or 0) - 37 / 86_400) in dates[1:4]}
    assert found


def test_limit_and_loops(tmp_path: Path) -> None:
    for i in range(3):
        (tmp_path / f"{i}.avro").write_bytes(whole("ztf")[i].data)
    orders: tuple[Order, ...] = ("arrival", "observation")
    for order in orders:
        found = list(play(Wish((str(tmp_path),), order, limit=7, loop=True)))
        assert [a.lap for a in found] == [0, 0, 0, 1, 1, 1, 2]
        assert [a.value for a in found[3:6]] == [a.value for a in found[:3]]
    assert len(list(play(Wish((str(tmp_path),), limit=2)))) == 2


def test_tables_are_not_replayed() -> None:
    with pytest.raises(ArchiveError, match="a table holds no alerts as bytes"):
        list(play(Wish((str(ALERTS / "MANIFEST.csv"),))))


# --- frames -------------------------------------------------------------------------------------------------------


def test_frames_become_containers_and_come_back() -> None:
    for sample in whole("lsst"):
        packed = in_container(sample.data)
        assert packed is not None
        assert packed.endswith(sample.data[5:] + container.read_header(packed)[0].sync)
        assert in_frame(packed, int(sample.schema)) == sample.data
        assert in_frame(sample.data, int(sample.schema)) == sample.data
    ztf = whole("ztf")[0].data
    assert in_container(ztf) == ztf
    assert in_frame(None, 1) is None
    framed = in_frame(ztf, 77)
    assert framed is not None
    header, end = container.read_header(ztf)
    assert framed[:5] == b"\x00\x00\x00\x00\x4d"
    assert container.fits(header.schema, framed[5:])
    assert ztf[end:].find(framed[5:]) > 0


def test_frames_that_would_lie_are_refused() -> None:
    lsst = next(s for s in whole("lsst") if s.schema == "1000")
    with pytest.raises(container.Unreadable, match="is in a frame of schema 1000 already"):
        in_frame(lsst.data, 1100)
    with pytest.raises(container.Unreadable, match="is no alert of schema 1000"):
        in_frame(whole("ztf")[0].data, 1000)
    with pytest.raises(container.Unreadable, match="schema 12345, which is not known"):
        in_container(b"\x00\x00\x00\x30\x39body")
    with pytest.raises(ArchiveError, match=r"ztf\.tar\.gz/.*avro:0: is no alert of schema 1000"):
        list(play(Wish((ZTF,), schema_id=1000)))
    assert registry.by_id(1000) is not None


# --- pace ---------------------------------------------------------------------------------------------------------


@dataclass
class At:
    mjd_tai: float | None
    lap: int = 0


def test_rate_and_visits() -> None:
    assert [Rate(4).due(i, At(None)) for i in range(3)] == [0, 0.25, 0.5]
    due = [Visits(10).due(i, At(None)) for i in range(30)]
    assert due[:3] == [0, 0.5, 1.0]
    assert max(due[:10]) < 5
    assert due[10] == 39
    assert due[20] == 78


def test_speed_follows_the_sources() -> None:
    second = 1 / 86_400
    alerts = [At(60_000.0), At(60_000 + 10 * second), At(None), At(60_000 + 4 * second), At(60_000 + 20 * second)]
    alerts += [At(60_000.0, 1), At(60_000 + 10 * second, 1)]
    pace = Speed(2.0)
    assert [round(pace.due(i, a), 4) for i, a in enumerate(alerts)] == [0, 5, 5, 5, 10, 10, 15]


@pytest.mark.parametrize("wrong", [{"rate": 0.0}, {"speed": -1.0}, {"speed": float("nan")}, {"visits": 0}])
def test_a_pace_is_more_than_nothing(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="more than 0"):
        pace_of(*(wrong.get(name) for name in ("rate", "speed", "visits")))
    with pytest.raises(ConfigError, match="rate and speed are given"):
        pace_of(1.0, 2.0, None)
    assert pace_of(None, None, None) is None


# --- bookmarks ----------------------------------------------------------------------------------------------------


def test_a_bookmark_is_found_by_what_is_sent_and_where_to(tmp_path: Path) -> None:
    with Bookmark("host:1/a", ["x"], tmp_path) as mark:
        assert mark.read() is None
        mark.write(7, "x.avro:6", at_once=True)
        mark.write(9, "x.avro:8")  # within the same second
    with Bookmark("host:1/a", ["x"], tmp_path) as mark:
        assert mark.read() == (7, "x.avro:6")
        with pytest.raises(UsageError, match=rf"another replay \(process {os.getpid()}\) sends to host:1/a"):
            Bookmark("host:1/a", ["y"], tmp_path)
        with Bookmark("host:1/b", ["x"], tmp_path) as other:
            assert other.read() is None
        mark.remove()
        assert mark.read() is None
    assert Play(None, b"", [], "t", 0, 0).lap == 0
