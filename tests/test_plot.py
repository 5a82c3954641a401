"""`broker read TOPIC --plot OBJECT`: the alert behind the newest record, drawn."""

from pathlib import Path
from typing import Any

import pytest
from decoding import assigned, hop
from fink_form import as_fink_sends
from PIL import Image
from running import Alert, broker, send
from samples import whole

from broker.classify import classify
from broker.embedded import EmbeddedKafka
from broker.errors import UsageError
from broker.outlets import native
from broker.outlets.native import of_this_version
from broker.plot import as_png, drawing, in_terminal


def answered(kafka: EmbeddedKafka, name: str, survey: str, alerts: list[Alert], plain: list[bytes]) -> dict[str, Any]:
    """The alerts on NAME-in, a classification of each on NAME-out; the last record."""
    kafka.create_topics({f"{name}-in": 1, f"{name}-out": 1})
    send(kafka, f"{name}-in", alerts)
    rows = [row for part in classify(hop(survey, [*plain]), assigned(survey)).rows for row in part.to_pylist()]
    values = [row["value"] for row in rows if row["topic"] == "classifications"]
    assert len(values) == len(alerts)
    send(
        kafka,
        f"{name}-out",
        [
            Alert(value, None, [("alert", f"night:{name}-in:0:{i}".encode()), ("model", b"t2b-1@1")])
            for i, value in enumerate(values)
        ],
    )
    return native.read(values[-1])


@pytest.mark.parametrize("survey", ["lsst", "ztf"])
def test_the_points_are_those_that_the_verdict_counts(kafka: EmbeddedKafka, tmp_path: Path, survey: str) -> None:
    chosen = [s for s in whole(survey) if len(s.data) > 50_000][:2]
    record = answered(kafka, f"plot-{survey}", survey, [Alert(s.data) for s in chosen], [s.data for s in chosen])
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    drawn = drawing(options, f"plot-{survey}-out", record["object_id"], of_this_version)
    assert len(drawn.curve.mjd_tai) >= record["n_points_used"] > 0
    assert record["object_id"] in drawn.title
    assert drawn.days().max() == 0
    text = in_terminal(drawn)
    assert "difference flux, nJy" in text
    assert len(text.splitlines()) >= 20
    as_png(drawn, tmp_path / "curve.png")
    with Image.open(tmp_path / "curve.png") as image:
        assert image.size == (1080, 600)
        assert len(image.convert("RGB").getcolors(1_000_000) or ()) > 10
    with pytest.raises(UsageError, match="can't be written"):
        as_png(drawn, tmp_path / "no" / "curve.png")


def test_an_alert_of_fink_is_drawn_too(kafka: EmbeddedKafka) -> None:
    sample = whole("ztf")[3]
    record = answered(kafka, "plot-fink", "ztf", [as_fink_sends(sample)], [sample.data])
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    assert len(drawing(options, "plot-fink-out", record["object_id"], of_this_version).curve.mjd_tai)


def test_the_command_and_what_it_refuses(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    sample = whole("ztf")[0]
    record = answered(kafka, "plot-cli", "ztf", [Alert(sample.data)], [sample.data])
    servers = ("--servers", kafka.bootstrap_servers)
    done = broker("read", "plot-cli-out", *servers, "--plot", record["object_id"])
    assert done.returncode == 0, done.stderr
    assert record["object_id"] in done.stdout
    done = broker("read", "plot-cli-out", *servers, "--plot", record["object_id"], "-o", tmp_path / "a.png")
    assert done.returncode == 0, done.stderr
    assert "points drawn to" in done.stdout
    for arguments, told in (
        (("--plot", "nobody"), "no record of object 'nobody'"),
        (("--plot", "x", "-o", "a.parquet"), "ends in .png"),
        (("--plot", "x", "--count"), "goes with --output alone"),
        (("-o", "a.png"), "ends in .parquet"),
    ):
        done = broker("read", "plot-cli-out", *servers, *arguments)
        assert done.returncode == 2
        assert told in done.stderr


def test_records_whose_alert_is_not_to_be_had(kafka: EmbeddedKafka) -> None:
    sample = whole("ztf")[0]
    record = answered(kafka, "plot-gone", "ztf", [Alert(sample.data)], [sample.data])
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    rows = [row for part in classify(hop("ztf", [sample.data]), assigned("ztf")).rows for row in part.to_pylist()]
    value = next(row["value"] for row in rows if row["topic"] == "classifications")
    for number, (alert, told) in enumerate(
        [(b"night:plot-gone-in:0:77", "on its topic no more"), (b"", "does not say which alert")]
    ):
        topic = f"plot-gone-{number}"
        kafka.create_topics({topic: 1})
        send(kafka, topic, [Alert(value, None, [("alert", alert), ("model", b"t2b-1@1")])])
        with pytest.raises(UsageError, match=told):
            drawing(options, topic, record["object_id"], of_this_version)
