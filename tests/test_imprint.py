"""What wrote a checkpoint, against what goes on with it: harmless changes are told, the others refused."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from running import Alert, broker, send, topics_of, write_config
from samples import whole

from broker.config import Source
from broker.embedded import EmbeddedKafka
from broker.errors import ConfigError
from broker.imprint import FILE, Imprint, imprint, take_over
from broker.outlets import Passport

NOW = Imprint("night", "ztf", ("a", "b"), ("o", "d", "l"), "cluster1", "t2b-1@1", "abc", 1, "0.1.0", "4.1.1")


def plan(folder: Path, is_committed: bool) -> None:
    """A first batch."""
    for name in ("offsets", "commits", "sources/0"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "sources" / "0" / "0").write_text('\0v1\n{"a":{"0":0}}')
    (folder / "offsets" / "0").write_text('v1\n{"batchTimestampMs": 1}\n{"a":{"0":5}}')
    if is_committed:
        (folder / "commits" / "0").write_text("v1\n{}")


def test_it_is_made_of_config_and_passport() -> None:
    source = Source(name="night", survey="ztf", topics=("a", "b"), checkpoint=Path("/x"), start="earliest")
    made = imprint(source, ("o", "d", "l"), "cluster1", Passport("t2b-1", "1", "abc", 1, "{}", "0.1.0"))
    assert replace(made, spark="4.1.1") == NOW
    assert made.spark[0].isdigit()


def test_harmless_changes_are_one_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    take_over(tmp_path, NOW)
    plan(tmp_path, is_committed=True)
    take_over(tmp_path, NOW)
    assert caplog.messages == []
    later = replace(NOW, topics=("b", "a", "c"), outputs=("p", "d", "l"), model="t2b-2@1", model_sha256="d" * 64)
    take_over(tmp_path, later)
    assert caplog.messages == [
        "night: since the checkpoint's last job: topics c added, outputs o, d, l -> p, d, l, "
        "model t2b-1@1 (abc) -> t2b-2@1 (dddddddddddd)"
    ]
    assert json.loads((tmp_path / FILE).read_text())["model"] == "t2b-2@1"
    take_over(tmp_path, replace(later, code="0.2.0", rules=2, spark="4.1.2"))
    assert caplog.messages[1].endswith("rules 1 -> 2, code 0.1.0 -> 0.2.0, Spark 4.1.1 -> 4.1.2")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"source": "day"}, "written for source 'night', not 'day': correct the config, or give it a new checkpoint"),
        ({"survey": "lsst"}, "written for survey 'ztf', not 'lsst'"),
        ({"topics": ("b", "c")}, "written for the topics a too: name them again (they may be empty), or give it a new"),
        ({"cluster": "cluster2"}, "the Kafka cluster cluster1, and this is cluster2, whose offsets are others"),
        ({"spark": "4.2.0"}, "Spark 4.1.1, not 4.2.0: install that one again, or"),
        (
            {"spark": "4.0.3", "survey": "lsst"},
            "'lsst': correct the config, or give it a new checkpoint and a 'start'; and for Spark",
        ),
    ],
)
def test_what_can_not_go_on_is_refused(tmp_path: Path, change: dict[str, str], words: str) -> None:
    take_over(tmp_path, NOW)
    other = replace(NOW, **change)  # type: ignore[arg-type]  # fields by name
    plan(tmp_path, is_committed=True)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(ConfigError) as refused:
        take_over(tmp_path, other)
    assert words in str(refused.value)
    assert str(tmp_path) in str(refused.value)
    assert (tmp_path / FILE).read_bytes() == before


def test_outputs_may_change_between_batches_alone(tmp_path: Path) -> None:
    take_over(tmp_path, NOW)
    plan(tmp_path, is_committed=False)
    other = replace(NOW, outputs=("p", "d", "l"))
    with pytest.raises(ConfigError, match="outputs o, d, l, and its last batch is unfinished: run it once with those"):
        take_over(tmp_path, other)
    plan(tmp_path, is_committed=True)
    take_over(tmp_path, other)


def test_before_the_first_batch_all_may_change(tmp_path: Path) -> None:
    take_over(tmp_path, NOW)
    other = replace(NOW, survey="lsst", cluster="cluster2")
    take_over(tmp_path, other)
    plan(tmp_path, is_committed=True)
    take_over(tmp_path, other)


def test_damaged_and_later_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    plan(tmp_path, is_committed=True)
    for text in ("", "[]", '{"imprint": 1}', '{"imprint": 1, "topics": [], "outputs": [], "x": 1}'):
        (tmp_path / FILE).write_text(text)
        take_over(tmp_path, NOW)
        assert json.loads((tmp_path / FILE).read_text())["survey"] == "ztf"
    assert len([m for m in caplog.messages if "nothing is known of the checkpoint's last job" in m]) == 4
    (tmp_path / FILE).write_text('{"imprint": 2}')
    with pytest.raises(ConfigError, match="later version"):
        take_over(tmp_path, NOW)


def test_a_job_refuses_a_checkpoint_of_another_survey(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    kafka.create_topics({"imprint-in": 1})
    send(kafka, "imprint-in", [Alert(whole("elasticc")[0].data)])
    source: dict[str, object] = {"name": "one", "survey": "elasticc", "topics": ["imprint-in"]}
    output = topics_of("imprint") | {"create_topics": True}
    first = broker(
        "run", "--once", "--config", write_config(tmp_path, kafka.bootstrap_servers, [source], output), timeout_s=240
    )
    assert first.returncode == 0, first.stderr
    assert json.loads((tmp_path / "checkpoints" / "one" / FILE).read_text())["topics"] == ["imprint-in"]
    config = write_config(tmp_path, kafka.bootstrap_servers, [source | {"survey": "ztf"}], output)
    second = broker("run", "--once", "--config", config)
    assert second.returncode == 2
    assert "was written for survey 'elasticc', not 'ztf'" in second.stderr
    assert len(second.stderr.splitlines()) == 1
