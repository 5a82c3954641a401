"""The survey of an alert, from its bytes alone."""

import generate
import pytest
from samples import damaged, whole

from broker.recognise import survey_of_value


@pytest.mark.parametrize("survey", ["lsst", "ztf", "elasticc"])
def test_samples_are_recognised(survey: str) -> None:
    assert {survey_of_value(sample.data) for sample in whole(survey)} == {survey}


@pytest.mark.parametrize(("survey", "label"), [(s, label) for s, labels in generate.LABELS.items() for label in labels])
def test_every_layout_is_recognised(survey: str, label: str) -> None:
    assert {survey_of_value(data) for data in generate.generated(survey, label, 5)} == {survey}


def test_a_rewritten_alert_is_recognised_by_its_fields() -> None:
    schema = generate.schema_of("ztf", "3.3") | {"name": "topLevelRecord"}
    assert survey_of_value(generate.container([generate.alert("ztf", "3.3", 0)], schema)) == "ztf"


def test_what_is_no_alert_has_no_survey() -> None:
    unknown = [sample.data for sample in damaged() if sample.schema == "12345"]
    bombs = [generate.zero_byte_bomb(), generate.recursive(), generate.nested_schema(), generate.container_within(b"x")]
    for data in [*unknown, *bombs, b"", b"\x00", b"hello", b"Obj\x01"]:
        assert survey_of_value(data) is None
