"""Writer schemas that the package knows."""

import generate
import pytest
from samples import SCHEMAS

from broker import registry
from broker.errors import SchemaError


@pytest.mark.parametrize("survey", ["lsst", "ztf", "elasticc"])
def test_every_shipped_layout_is_known(survey: str) -> None:
    writers = registry.writers(survey)
    prefix = "" if survey == "lsst" else f"{survey}-"
    assert sorted(w.label for w in writers) == sorted(prefix + label for label in generate.LABELS[survey])
    for writer in writers:
        assert writer.text == (SCHEMAS / survey / f"{writer.label.removeprefix(prefix)}.avsc").read_text()
        assert writer.schema["type"] == "record"
        assert writer.schema is not writer.schema  # Avro libraries write into it


def test_lsst_is_known_by_id() -> None:
    writers = registry.writers("lsst")
    assert [w.schema_id for w in writers] == sorted(int(label) for label in generate.LABELS["lsst"])
    for writer in writers:
        assert writer.schema_id is not None
        assert registry.by_id(writer.schema_id) == ("lsst", writer)
    assert registry.by_id(54_321) is None


def test_containers_are_known_by_header() -> None:
    headers = [header for survey in ("ztf", "elasticc") for w in registry.writers(survey) for header in w.headers]
    assert len(headers) >= 12
    assert len({header.sha256 for header in headers}) == len(headers)
    for header in headers:
        assert header.start.startswith(generate.MAGIC)
        assert len(header.start) < header.n_bytes
        assert len(header.sha256) == 64
    assert not any(w.headers for w in registry.writers("lsst"))


def test_order_in_which_bare_bodies_are_tried() -> None:
    """A bare body says nothing of its layout: where two fit, the first is taken, so the order must not change."""
    labels = [w.label for w in registry.writers("elasticc")]
    assert labels == ["elasticc-0.9-early", "elasticc-0.9", "elasticc-0.9.1"]


def test_a_survey_without_schemas_is_an_installation_fault() -> None:
    with pytest.raises(SchemaError, match="reinstall"):
        registry.writers("output/..")
