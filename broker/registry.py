"""Writer schemas that this process knows: by schema id, by container header, or for bare bodies.

Those of the package, and those that were learnt from a registry (`registry_client`): workers get them with the query.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib import resources

from broker.errors import SchemaError

Schema = dict[str, object]


@dataclass(frozen=True)
class Header:
    """A known container header: everything up to the first sync marker, identified by its length, start and sha256."""

    n_bytes: int
    start: bytes
    sha256: str


@dataclass(frozen=True)
class Writer:
    """One writer schema. label is what records and dead letters call it ('1100', 'ztf-3.3', 'elasticc-0.9')."""

    label: str
    text: str
    schema_id: int | None = None
    headers: tuple[Header, ...] = ()

    @property
    def schema(self) -> Schema:
        """The schema, parsed (a new object each time, since Avro libraries write into it)."""
        parsed: Schema = json.loads(self.text)
        return parsed


_learnt: dict[int, Writer] = {}


def learn(found: Iterable[Writer]) -> tuple[Writer, ...]:
    """Know these writer schemas of LSST too, from now on and in this process; gives those that were not known.

    An id stands for one schema for ever: what is known already stays as it is.
    """
    fresh = {w.schema_id: w for w in found if w.schema_id is not None and by_id(w.schema_id) is None}
    _learnt.update(fresh)
    return tuple(fresh.values())


def learnt() -> tuple[Writer, ...]:
    """What was learnt, by id."""
    return tuple(_learnt[schema_id] for schema_id in sorted(_learnt))


def writers(survey: str) -> tuple[Writer, ...]:
    """Writer schemas of a survey, oldest first, learnt ones last. Raises SchemaError where the package lacks them."""
    return packaged(survey) + (learnt() if survey == "lsst" else ())


@cache
def packaged(survey: str) -> tuple[Writer, ...]:
    """Writer schemas of a survey that ship with the package, oldest first. Raises SchemaError where there is none."""
    folder = resources.files("broker.schemas") / survey
    texts = {
        entry.name.removesuffix(".avsc"): entry.read_text()
        for entry in folder.iterdir()
        if entry.name.endswith(".avsc")
    }
    if not texts:
        raise SchemaError(f"survey {survey!r}: the package holds no writer schema; reinstall t2-broker")
    if survey == "lsst":
        return tuple(Writer(label, texts[label], int(label)) for label in sorted(texts, key=int))
    headers = _headers(survey)
    return tuple(
        Writer(f"{survey}-{name}", texts[name], None, headers.get(name, ())) for name in sorted(texts, key=_newest_last)
    )


def _newest_last(name: str) -> tuple[bool, str]:
    return "-" not in name, name  # variants of a version (3.3-null-first, 0.9-early) are rarer: first


def _headers(survey: str) -> dict[str, tuple[Header, ...]]:
    """Known container headers by the name of the schema that decodes them."""
    entry = resources.files("broker.schemas") / survey / "headers.toml"
    if not entry.is_file():
        return {}
    found: dict[str, tuple[Header, ...]] = {}
    for row in tomllib.loads(entry.read_text())["header"]:
        header = Header(row["length"], bytes.fromhex(row["start"]), row["sha256"])
        name = row["schema"].removesuffix(".avsc")
        found[name] = (*found.get(name, ()), header)
    return found


def by_id(schema_id: int) -> tuple[str, Writer] | None:
    """Survey and writer schema of a Confluent schema id, None where nobody knows it."""
    for writer in writers("lsst"):
        if writer.schema_id == schema_id:
            return "lsst", writer
    return None
