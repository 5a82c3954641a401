"""Outlets in the config file: what is taken, and that each mistake is named with what is allowed."""

from pathlib import Path
from typing import Any

import pytest

from broker.config import Config, effective, load
from broker.delivery import outlets_of, topics_of
from broker.errors import ConfigError
from broker.job import assign

START = """
[kafka]
bootstrap_servers = "localhost:9092"
[[source]]
name = "night"
survey = "ztf"
topics = ["in"]
checkpoint = "c1"
[[source]]
name = "summit"
survey = "lsst"
topics = ["in2"]
checkpoint = "c2"
"""
GOOD = """
[[outlet]]
name = "fink"
kind = "fink"
topic = "fink_t2b_{survey}"
[[outlet]]
name = "sn"
kind = "lasair"
topic = "anno_t2b"
sources = ["summit"]
[outlet.filter]
classes = ["SNIa", "SNII"]
min_probability = 0.8
cone = { ra = 10.0, dec = -30.0, radius_deg = 5.0 }
where = "n_nights >= 2"
"""


def read(folder: Path, text: str) -> Config:
    path = folder / "job.toml"
    path.write_text(START + text)
    return load(path)


def outlet(**changes: Any) -> str:
    settings = {"name": '"a"', "kind": '"json"', "topic": '"a"'} | changes
    return "[[outlet]]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items())


def test_outlets_are_read(tmp_path: Path) -> None:
    config = read(tmp_path, GOOD)
    fink, sn = config.outlets
    assert (fink.topics_of("lsst"), fink.topics_of("ztf")) == ({"": "fink_t2b_lsst"}, {"": "fink_t2b_ztf"})
    assert fink.filter.statuses == ("classified",)
    assert sn.filter.cone is not None
    assert [o.name for o in outlets_of(config.outlets, "night")] == ["fink"]
    assert topics_of(config.outlets, {"night": "ztf", "summit": "lsst"}) == [
        "fink_t2b_ztf",
        "fink_t2b_lsst",
        "anno_t2b",
    ]
    shown = {row.key: row.value for row in effective(config)}
    assert shown["outlet[sn].filter.where"] == "n_nights >= 2"
    assert shown["outlet[sn].filter.classes"] == "SNIa, SNII"
    assert shown["outlet[fink].public_only"] == "true"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (outlet(kind='"native"'), "stands in [output]: classifications and dead letters carry every verdict"),
        (outlet(kind='"xml"'), "kind = 'xml': should be 'json', 'lasair'"),
        (outlet(topic='"a b"'), "topic = 'a b': is not a topic name"),
        (outlet(topic='"a_{object}"'), "has an unknown name in braces"),
        (outlet(topic='"a_{class}"'), "so it needs filter.classes and statuses"),
        (outlet(topic='"a_{"'), "has an unknown name in braces"),
        (outlet(kind='"lasair"'), "needs a topic that starts with 'anno_'"),
        (outlet(kind='"fink-ai"', topic='"fink_ai_x"'), "needs class_name"),
        (outlet(class_name='"SNIa"'), "needs class_name, whose probability is sent, if kind = 'fink-ai', and has none"),
        (outlet(kind='"fink"', topic='"fink_ztf_{survey}"'), "has a topic that fink-client hides"),
        (outlet(kind='"fastdb"'), "fastdb has no form for alerts of ztf; leave that source out"),
        (outlet() + '[outlet.filter]\npolygon = "none.txt"\n', "can't be read: No such file"),
        (outlet() + '[outlet.filter]\npolygon = "job.toml"\n', "is not a pair of RA and Dec in degrees"),
        (outlet(kind='"fink"'), "fink-client reads one survey per topic; put {survey} into the topic's name"),
        (outlet(sources='["nigth"]'), "no source is called 'nigth'; they are night, summit"),
        (outlet() + outlet(topic='"b"'), "two outlets are called 'a'"),
        (outlet() + outlet(name='"b"'), "topic 'a' is written by outlet 'a'; each outlet needs its own"),
        (outlet(topic='"in"'), "topic 'in' is read by a source: a loop"),
        (outlet(topic='"t2b-ledger"'), "topic 't2b-ledger' is written by [output]"),
        (outlet() + "[outlet.filter]\nclasss = []\n", "'classs': did you mean 'classes'?"),
        (
            outlet() + '[outlet.filter]\nclasses = ["SN Ia"]\n',
            "filter.classes = ['SN Ia']: has 'SN Ia'; the",
        ),
        (outlet() + "[outlet.filter]\nmin_probability = 80\n", "filter.min_probability = 80"),
        (outlet() + '[outlet.filter]\nstatuses = ["rejected"]\n', "should be 'classified' or 'abstained'"),
        (outlet() + "[outlet.filter]\nmin_detections = 5\nmax_detections = 4\n", "lets nothing through"),
        (outlet() + "[outlet.filter]\ncone = { ra = 400.0, dec = 0.0, radius_deg = 1.0 }\n", "filter.cone.ra = 400.0"),
    ],
)
def test_a_mistake_is_named(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    assert complaint in str(caught.value)


def test_a_topic_that_takes_too_little_is_refused(tmp_path: Path) -> None:
    config = read(tmp_path, outlet(sources='["night"]'))
    fits = dict.fromkeys([*config.output.topics, "a"], 65_536)
    assert assign(config, config.sources[0], fits, {"a": 1}).outlets[0].topics == {"": "a"}
    for topic in ("a", "t2b-classifications"):
        with pytest.raises(ConfigError, match=f"topic '{topic}' takes messages of 65535 bytes"):
            assign(config, config.sources[0], fits | {topic: 65_535}, {"a": 1})
    config = read(tmp_path, outlet(sources='["summit"]', kind='"fastdb"'))
    with pytest.raises(ConfigError, match=r"records of 17956864 bytes must fit: the source's max_alert_bytes"):
        assign(config, config.sources[1], fits, {"a": 1})


def test_a_topic_per_class(tmp_path: Path) -> None:
    text = outlet(topic='"t2b_{survey}_{class}"', sources='["night"]')
    (found,) = read(tmp_path, text + '[outlet.filter]\nclasses = ["SNIa", "KN"]\n').outlets
    assert found.topics_of("ztf") == {"SNIa": "t2b_ztf_sn-ia", "KN": "t2b_ztf_kilonova"}
    assert topics_of([found], {"night": "ztf", "summit": "lsst"}) == ["t2b_ztf_sn-ia", "t2b_ztf_kilonova"]


def test_a_source_without_a_form_is_named(tmp_path: Path) -> None:
    text = outlet(kind='"fink"', topic='"f_{survey}"').join(
        ('[[source]]\nname = "sim"\nsurvey = "elasticc"\ntopics = ["in3"]\ncheckpoint = "c3"\n', "")
    )
    with pytest.raises(ConfigError, match="fink has no form for alerts of elasticc; leave that source out"):
        read(tmp_path, text)
