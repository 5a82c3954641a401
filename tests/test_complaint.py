"""Mistakes in a file of any shape, told in its own words."""

import pytest
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from broker.complaint import is_secret, tell


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid")
    size: int = Field(default=1, strict=True)
    names: dict[str, str] = {}


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid")
    one: Inner = Inner()
    many: list[Inner] = Field([], alias="row")


def told(data: dict[str, object]) -> list[str]:
    with pytest.raises(ValidationError) as error:
        Outer.model_validate(data)
    return [tell(detail, Outer, data) for detail in error.value.errors()]


def test_tables_and_rows_are_named_as_the_file_names_them() -> None:
    assert told({"one": {"size": "x"}}) == ["[one] size = 'x': should be a whole number"]
    assert told({"row": [{"size": 1}, {"size": 1.5}]}) == ["[[row]] number 2 size = 1.5: should be a whole number"]
    assert told({"one": 3}) == ["[one] should be a table"]
    assert told({"row": [{}, 7]}) == ["[[row]] number 2 should be a table"]
    assert told({"many": []}) == ["the file has an unknown table [many]: allowed are one, row"]
    assert told({"row": [{"sise": 1}]}) == [
        "[[row]] number 1 has an unknown key 'sise': did you mean 'size'? allowed are size, names"
    ]


def test_long_values_are_cut_and_secrets_masked() -> None:
    assert told({"one": {"size": "x" * 500}})[0].endswith("xxx...: should be a whole number")
    assert told({"one": {"names": {"sasl.password": 5}}}) == [
        "[one] names.sasl.password = ********: should be text in quotes"
    ]
    said = told({"one": {"size": "http://me:secret@host/a@b"}})
    assert said == ["[one] size = 'http://********@host/a@b': should be a whole number"]


@pytest.mark.parametrize(
    ("key", "secret"),
    [
        ("sasl.password", True),
        ("sasl.jaas.config", True),
        ("ssl.keystore.key", True),
        ("ssl.keystore.type", False),
        ("ssl.ca.pem", False),
        ("ssl.key.pem", True),
        ("ssl.key.location", False),
        ("ssl.truststore.password", True),
        ("sasl.oauthbearer.token.endpoint.url", False),
        ("sasl.oauthbearer.client.secret", True),
        ("security.protocol", False),
        ("group.id", False),
    ],
)
def test_what_counts_as_a_secret(key: str, secret: bool) -> None:
    assert is_secret(key) is secret
