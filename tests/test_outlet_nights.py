"""Topics by night of observation: their dates, what there may be, and that nothing is lost where one is missing."""

import json
import re
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from confluent_kafka.admin import AdminClient
from decoding import assigned, hop
from hypothesis import given, settings
from hypothesis import strategies as st
from running import STARTUP_S, Alert, Running, broker, send, topics_of, wait_until, write_config
from samples import whole

from broker import surveys
from broker.classify import classify
from broker.config import Config, load
from broker.delivery import Filter
from broker.embedded import EmbeddedKafka
from broker.errors import ConfigError
from broker.observed import moment, observed
from broker.outlet_nights import among, expand, stands_for
from broker.outlets.further import Further
from broker.outlets.nights import coming, dates, name_of
from broker.outputs import Outputs
from broker.topics import list_topics, read_all, watermarks

NIGHT_S = 86_400.0
NOON = 1_795_780_800.0  # 2026-11-27 12:00 UTC


@settings(derandomize=True, deadline=None, database=None)
@given(st.sampled_from(surveys.NAMES), st.floats(40_000, 80_000))
def test_a_time_lies_in_the_night_that_is_named(survey: str, mjd_tai: float) -> None:
    """By the rule of `broker replay --since`, written down apart from this one."""
    name = name_of(int(dates(survey, np.array([mjd_tai]))[0]))
    night = moment("--since", name)
    assert night is not None
    assert night.start(survey) - 1e-6 <= mjd_tai < night.end(survey) + 1e-6


def test_dates() -> None:
    assert dates("ztf", np.array([np.nan])).tolist() == [-1]
    assert coming("ztf", NOON - 1, 2) == ["20261127", "20261128", "20261129"]
    assert coming("lsst", NOON - 1, 1) == ["20261126", "20261127"]
    assert coming("lsst", NOON, 0) == coming("elasticc", NOON, 0) == ["20261127"]
    assert coming("ztf", NOON + NIGHT_S / 2 + 1, 0) == ["20261128"]


def test_templates() -> None:
    names = ["a-20261127-x", "a-20261126-x", "a-other-x", "a-2026112-x", "b-20261127-x", "aa-20261127-x"]
    nights = among(["a-{night}-x", "c"], names)
    assert nights == {"a-{night}-x": ("20261126", "20261127")}
    assert expand(["a-{night}-x", "c"], nights) == ["a-20261126-x", "a-20261127-x", "a-other-x", "c"]
    assert [stands_for("a-{night}-x", name) for name in names] == [True, True, False, False, False, False]


def test_what_is_taken_in_a_config(tmp_path: Path) -> None:
    def read(topic: str, rest: str = "", filter_: str = "") -> Config:
        path = write_config(tmp_path, "localhost:9092", [source(name) for name in surveys.NAMES])
        text = f'[[outlet]]\nname = "o"\nkind = "json"\ntopic = "{topic}"\n[outlet.filter]\n{filter_}\n{rest}'
        path.write_text(path.read_text() + text)
        return load(path)

    def source(name: str) -> dict[str, object]:
        return {"name": name, "survey": name, "topics": [f"{name}-in"]}

    six = 'classes = ["SNIa", "SNIbc", "SNII", "SLSN", "TDE", "KN"]'
    (found,) = read("n-{survey}-{night}").outlets
    assert found.topics_of("ztf") == {"": "n-ztf-{night}"}
    assert len(read("n-{class}-{night}", "", six).outlets[0].topics_of("ztf")) == 6
    with pytest.raises(ConfigError, match="opens 558 topics a month, 18 a night; at most 200: leave out"):
        read("n-{survey}-{class}-{night}", "", six)
    with pytest.raises(ConfigError, match=r"has \{night\} twice"):
        read("n-{night}-{night}")
    second = '[[outlet]]\nname = "p"\nkind = "json"\ntopic = "{}"\n'
    for topic in ("n-20261120", "n-other"):
        with pytest.raises(ConfigError, match=f"topic '{topic}' is also one of 'n-{{night}}'"):
            read("n-{night}", second.format(topic))
    with pytest.raises(ConfigError, match="topic 'ztf-in' is read by a source"):
        read("ztf-in")


def config_of(folder: Path, kafka: EmbeddedKafka, name: str, of: tuple[str, ...] = ("ztf",)) -> Path:
    output = {**topics_of(name), "create_topics": True}
    sources = [{"name": survey, "survey": survey, "topics": [f"{name}-in"]} for survey in of]
    path = write_config(folder, kafka.bootstrap_servers, sources, output)
    text = f'[[outlet]]\nname = "n"\nkind = "json"\ntopic = "{name}-{{night}}"\n'
    path.write_text(path.read_text() + text + '[outlet.filter]\nstatuses = ["classified", "abstained"]\n')
    return path


def delete(kafka: EmbeddedKafka, topic: str) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.delete_topics([topic])[topic].result(30)
    wait_until(lambda: topic not in admin.list_topics(timeout=30).topics)


def has_news(outputs: Outputs) -> bool:
    """Whether a look after a refresh tells of other nights."""
    outputs.refresh()
    with ThreadPoolExecutor(1) as pool:
        return outputs.look(pool)


def test_topics_are_made_ahead_and_told_of(
    kafka: EmbeddedKafka, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock that moves on over midnight; a topic by hand, one too small, one that goes; without the right to make."""
    options, now = {"bootstrap.servers": kafka.bootstrap_servers}, [NOON - 1]
    kafka.create_topics({"ahead-in": 1})
    config = load(config_of(tmp_path, kafka, "ahead", ("ztf", "lsst")))
    outputs = Outputs(config, options, lambda: now[0])
    outputs.open([])
    nights = ["20261126", "20261127", "20261128", "20261129"]  # LSST's night goes on until noon
    assert set(outputs.names[2:]) == {*(f"ahead-{n}" for n in nights), "ahead-other"}
    assert not has_news(outputs)
    now[0] += NIGHT_S
    kafka.create_topics({"ahead-20250101": 1})
    kafka.create_topics({"ahead-20250102": 1}, {"max.message.bytes": "60000"})
    assert has_news(outputs)
    assert not has_news(outputs)
    (outlet,) = outputs.assign(config.sources[0]).outlets
    assert outlet.nights == ("20250101", *nights, "20261130")
    assert outlet.n_partitions == 1
    assert "topic 'ahead-20250102' is not used: topic 'ahead-20250102' takes messages of 60000 bytes" in caplog.text
    delete(kafka, "ahead-20250101")
    assert has_news(outputs)
    assert not has_news(outputs)
    assert "ahead-20250101" not in outputs.names
    caplog.clear()
    bare = config.model_copy(update={"output": config.output.model_copy(update={"create_topics": False})})
    now[0] += NIGHT_S
    other = Outputs(bare, options, lambda: now[0])
    other.open([])
    other.refresh()
    assert caplog.text.count("--create --topic ahead-20261201") == 1
    assert "ahead-20261201" not in list_topics(options)
    assert "ahead-20261130" in other.names


def answered(job: Running, options: dict[str, str], n: int) -> None:
    """Wait until so many alerts have a verdict and their batches are done with."""
    deadline = time.monotonic() + STARTUP_S
    while sum(map(int, re.findall(r"(\d+) alerts in", job.text))) < n:
        assert job.process.poll() is None, job.text
        assert time.monotonic() < deadline, job.text
        time.sleep(0.1)
    topic = watermarks(options, ["homeless-classifications"])["homeless-classifications"]
    assert sum(reach.last_exclusive for reach in topic.values()) == n


def test_no_verdict_is_lost_between_nights(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    """A night that has a topic, one that gets it while the job runs, one whose topic goes, and nights without."""
    alerts = [sample.data for sample in whole("ztf") if observed(sample.data)]
    times = [seen.mjd_tai for seen in map(observed, alerts) if seen]
    night_of = [name_of(int(day)) for day in dates("ztf", np.array(times))]
    (first, _), (second, _) = Counter(night_of).most_common(2)
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    kafka.create_topics({"homeless-in": 1, f"homeless-{first}": 2})
    send(kafka, "homeless-in", map(Alert, alerts))
    config = config_of(tmp_path, kafka, "homeless")
    with Running(tmp_path / "log", "run", "--config", config) as job:
        answered(job, options, len(alerts))
        kafka.create_topics({f"homeless-{second}": 2})
        job.wait_for("its query knows the topics of the nights")
        send(kafka, "homeless-in", map(Alert, alerts))
        answered(job, options, 2 * len(alerts))
        delete(kafka, f"homeless-{first}")
        job.wait_for("its query knows the topics of the nights", count=2)
        send(kafka, "homeless-in", map(Alert, alerts))
        answered(job, options, 3 * len(alerts))
        job.process.terminate()
        assert job.end(60) == 0, job.text
    n = {name: sum(1 for _ in read_all(options, f"homeless-{name}")) for name in (second, "other")}
    m = {name: night_of.count(name) for name in (first, second)}
    assert n == {second: 2 * m[second], "other": 3 * len(alerts) - 2 * m[first] - 2 * m[second]}
    for message in read_all(options, f"homeless-{second}"):
        assert name_of(int(dates("ztf", np.array([json.loads(message.value() or b"")["mjd_tai"]]))[0])) == second
    audit = broker("audit", "--config", config, timeout_s=120)
    assert audit.returncode == 0, audit.stdout + audit.stderr
    assert "were topics of nights deleted?" in audit.stdout


def test_each_verdict_goes_to_its_night_or_to_other() -> None:
    alerts: list[bytes | None] = [sample.data for sample in whole("ztf")[:8]]
    times = [seen.mjd_tai for seen in map(observed, alerts) if seen]
    first = name_of(int(dates("ztf", np.array(times))[0]))
    wanted = Filter(statuses=("classified", "abstained"))
    outlet = Further("n", "json", {"": "n-{night}"}, 1, True, None, wanted, (first,))
    answer = classify(hop("ztf", alerts), replace(assigned("ztf"), outlets=(outlet,)))
    rows = [row for part in answer.rows for row in part.to_pylist() if row["topic"].startswith("n-")]
    for row in rows:
        mjd = json.loads(row["value"])["mjd_tai"]
        is_first = mjd is not None and name_of(int(dates("ztf", np.array([mjd]))[0])) == first
        assert row["topic"] == (f"n-{first}" if is_first else "n-other")
    assert len(rows) == len(alerts)
