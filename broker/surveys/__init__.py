"""Surveys as tables: what of a packet is decoded, and which raw field is which of our columns, in which unit.

Raw spellings appear in this package and in schemas/ and nowhere else. A survey adds a table, not code paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

Fields = dict[str, "str | Fields | list[Fields]"]  # name -> Avro type, record, or array of records
Kind = Literal["trigger", "detection", "forced"]
Extra = tuple[tuple[str, str], ...]  # (path, Avro type) of fields that are decoded for outlets alone
LONGEST_TEXT = 1_000  # bytes of a text that records repeat; ZTF's ids have 12
Test = Literal["set", "true", "positive", "not_negative", "above", "below", "outside"]


@dataclass(frozen=True)
class Measurements:
    """How one record (the alert's own source) or list of records of a packet becomes points of a light curve."""

    path: str
    kind: Kind
    time: str
    time_scale: Literal["mjd_tai", "jd_utc_start"]
    band: str
    exposure: tuple[str, ...]  # exact key of an exposure; the first one if not null, else the others together
    photometry: Literal["flux", "counts", "magnitude"]  # counts: flux at a zero point given by a column
    value: str
    error: str
    zero_point: str | None = None  # column with the AB zero point (counts)
    positive: str | None = None  # column with the sign of a magnitude's flux
    exposure_s: str | None = None  # column with the exposure time in seconds (jd_utc_start)
    withdrawn: str | None = None  # column that is set on a withdrawn point
    programid: str | None = None  # column with the owner of a point
    detected: str | None = None  # column that says whether a point counts as a detection (else its kind and the floors)


@dataclass(frozen=True)
class Floor:
    """One quality floor: an alert (or detection) that meets the condition gets the reason.

    test: `set` (not null), `true`, `positive` (> 0), `above` / `below` the policy's value, `outside` its list;
    `unless` names a column whose presence (not null) makes this floor void; `all_of` adds (column, test) pairs
    that must hold as well; `switch` names a policy flag that turns the floor off. `history` says that
    the floor also decides whether a past detection counts as one (where the list has the column).
    """

    reason: str
    column: str
    test: Test
    policy: str | None = None
    unless: str | None = None
    all_of: tuple[tuple[str, Test], ...] = ()
    switch: str | None = None
    history: bool = False


@dataclass(frozen=True)
class Survey:
    """One survey.

    framing: how its alerts are wrapped on Kafka; fields: the pruned reader schema; essential: what every writer
    schema of this survey has (a schema without them is another survey's); mandatory: the paths that must not be null
    in an alert, each with the range of values that are plausible; columns: our name -> raw paths, the first that is
    not null and not 0 wins; trigger: path of the alert's own source; own floors in the order in which reasons win.
    """

    name: str
    framing: Literal["confluent", "container", "bare"]
    fields: Fields
    essential: tuple[str, ...]
    mandatory: dict[str, tuple[float, float]]
    columns: dict[str, tuple[str, ...]]
    bands: Mapping[str, str] | Mapping[int, str]  # raw label -> name in lightcurve.BANDS
    trigger: str
    measurements: tuple[Measurements, ...]
    floors: tuple[Floor, ...] = ()
    zero_point: float = 31.4
    default_exposure_s: float = 30.0
    missing_value: float | None = None  # a flux that means "not measured"
    true_labels: tuple[str, ...] = ()  # spellings of a positive difference
    texts: tuple[str, ...] = ()  # paths of texts that go into records, so that they have a limit
    extra: Extra = ()


def find(name: str) -> Survey:
    """The survey of this name (config has checked it), or `lsst-curves`, `ztf-curves`: plain light curves."""
    from broker.lightcurve import BANDS
    from broker.surveys import curves, elasticc, lsst, ztf

    if name.endswith(CURVES):
        return curves.curves_of(name.removesuffix(CURVES), BANDS)
    return {"lsst": lsst.LSST, "ztf": ztf.ZTF, "elasticc": elasticc.ELASTICC}[name]


def widened(survey: Survey, extra: Extra) -> Survey:
    """The survey, which decodes these fields too; they lie in records, not in lists."""
    return replace(survey, fields=_with(survey.fields, extra), extra=extra) if extra else survey


def _with(fields: Fields, extra: Extra) -> Fields:
    found = dict(fields)
    for path, kind in extra:
        name, _, rest = path.partition(".")
        inner = found.get(name, {})
        if rest and isinstance(inner, dict):
            found[name] = _with(inner, ((rest, kind),))
        else:
            found.setdefault(name, kind)
    return found


NAMES = ("lsst", "ztf", "elasticc")
CURVES = "-curves"  # behind the name of the survey whose thresholds count
