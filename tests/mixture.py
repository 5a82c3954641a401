"""Everything that may arrive on a topic: all samples, generated records of all layouts, and every kind of damage.

`Alert.group` says what must become of each: a verdict such as "rejected/empty", a status, "answered" (by the native
outlet, whatever the status) or "any" (of the two: damage may leave an alert readable).
"""

import math
import random
from collections.abc import Iterator
from dataclasses import replace

import generate
from generate import HISTORY, LABELS
from running import Alert
from samples import damaged, whole

KILLER_LAYOUT = "3.3"
LAYOUT = {"lsst": "1101", "ztf": "4.01", "elasticc": "0.9.1"}
BIG_BYTES = 10_000_000


def mixture(survey: str) -> list[Alert]:
    """The alerts of one survey's topic, keyed and with headers."""
    # one hand-made frame of LSST has no time
    found = [Alert(s.data, group="any" if "hand-made" in s.note else "sample") for s in whole(survey)]
    found += [Alert(s.data, group="rejected") for s in damaged()]
    for label in LABELS[survey]:
        found += [Alert(data, group="answered") for data in generate.generated(survey, label, 4)]
    found += [*_strange(survey), *_oversize(survey), *_foreign(survey), *_damaged(survey), *_bombs(survey)]
    found += [Alert(None, group="rejected/empty"), Alert(b"", group="rejected/empty")]
    found += [Alert(b"\x00", group="rejected"), Alert(b"Obj\x01", group="rejected")]
    found += _containers(survey) if survey == "ztf" else []
    random.Random(survey).shuffle(found)
    numbered = [replace(a, key=f"{survey} {i}".encode(), headers=_headers(i)) for i, a in enumerate(found)]
    return [*numbered, Alert(None, None, [], "rejected/empty")]  # a tombstone without anything at all


def killers(n_before: int = 6, n_after: int = 5) -> list[Alert]:
    """Alerts of ZTF, one that kills its reader among them."""
    alerts = [Alert(s.data, f"k{i}".encode(), [], "answered") for i, s in enumerate(whole("ztf")[: n_before + n_after])]
    deadly = Alert(generate.recursive(inside=KILLER_LAYOUT), b"deadly", [("original", b"1")], "rejected/kills_reader")
    return [*alerts[:n_before], deadly, *alerts[n_before:]]


def _headers(number: int) -> list[tuple[str, bytes]]:
    """None, one, or several; values may be empty or no text."""
    return [[], [("night", b"20261120")], [("a", b""), ("b", bytes([number % 256, 0, 255]))]][number % 3]


def _strange(survey: str) -> Iterator[Alert]:
    """Sound records with values that must not be classified as they are."""
    layout = LAYOUT[survey]
    record = generate.alert(survey, layout, 7)

    def alert(spoilt: generate.Record, group: str) -> Alert:
        return Alert(generate.encode(survey, layout, spoilt), group=group)

    for flux in (math.nan, math.inf, -math.inf, -99999.0, 3e38):
        yield alert(generate.with_flux(record, survey, flux), "answered")
    for flux in (math.nan, math.inf):
        yield alert(generate.with_all_fluxes(record, survey, flux), "abstained/no_photometry")
    yield alert(generate.with_band(record, survey, 77 if survey == "ztf" else "Q"), "answered")
    yield alert(generate.with_band(record, survey, -1 if survey == "ztf" else ""), "answered")
    empty: generate.Record = {name: [] for name in HISTORY[survey][:2] if name in record}
    yield alert(generate.with_band(record | empty, survey, 77 if survey == "ztf" else "Q"), "abstained/no_photometry")
    if survey != "ztf":
        yield alert(generate.without_object(record), "answered")
    if survey == "lsst":
        yield alert(generate.of_solar_system(record), "abstained/solar_system")


def _oversize(survey: str) -> Iterator[Alert]:
    """An alert of 10 MB, and one with 2,000 points."""
    layout = LAYOUT[survey]
    many = generate.alert(survey, layout, 8, n_detections=1000, n_forced=2000)
    yield Alert(generate.encode(survey, layout, many), group="answered")
    record = generate.alert(survey, layout, 9)
    if survey == "lsst":
        yield Alert(generate.encode(survey, layout, record | {"cutoutDifference": bytes(BIG_BYTES)}), group="answered")
    if survey == "ztf":
        cutout = {"fileName": "x", "stampData": bytes(BIG_BYTES)}
        yield Alert(generate.encode(survey, layout, record | {"cutoutDifference": cutout}), group="answered")


def _foreign(survey: str) -> Iterator[Alert]:
    """Alerts of the other surveys, as their own topics have them, and a frame of an unknown schema."""
    precise = {("ztf", "lsst"): "/wrong_survey", ("lsst", "ztf"): "/wrong_survey", ("elasticc", "ztf"): "/wrong_survey"}
    for other in sorted({"lsst", "ztf", "elasticc"} - {survey}):
        yield from (Alert(s.data, group="rejected" + precise.get((survey, other), "")) for s in whole(other)[:2])
    frame = b"\x00" + (54_321).to_bytes(4) + whole("lsst")[0].data[5:]
    yield Alert(frame, group="rejected/schema_unavailable" if survey == "lsst" else "rejected")


def _damaged(survey: str) -> Iterator[Alert]:
    """Sound alerts cut, with bits turned over, with bytes put in."""
    rng = random.Random(f"damage {survey}")
    sound = [s.data for s in rng.sample(whole(survey), 3)] + generate.generated(survey, LAYOUT[survey], 3, seed=5)
    for data in sound:
        for damage in generate.DAMAGES:
            for _ in range(3):
                spoilt = damage(data, rng)
                yield Alert(spoilt, group="rejected/empty" if not spoilt else "any")
        yield Alert(data[:-1], group="rejected")
        yield Alert(data + b"\x00", group="rejected")


def _bombs(survey: str) -> Iterator[Alert]:
    """Small alerts that ask for a lot."""
    for label in LABELS[survey]:
        yield Alert(generate.huge_array(survey, label), group="rejected")
    yield Alert(generate.zero_byte_bomb(), group="rejected")
    yield Alert(generate.zero_byte_bomb(inside="3.3"), group="rejected/too_large" if survey == "ztf" else "rejected")
    yield Alert(generate.deflate_bomb(), group="rejected")
    yield Alert(generate.container_within(whole("ztf")[0].data), group="rejected/wrong_survey")
    yield Alert(generate.recursive(), group="rejected/wrong_survey")
    yield Alert(generate.nested_schema(), group="rejected")


def _containers(survey: str) -> Iterator[Alert]:
    """Containers that are no native ones: without a record, with two, with other codecs."""
    layout = LAYOUT[survey]
    schema, record = generate.schema_of(survey, layout), generate.alert(survey, layout, 11)
    yield Alert(generate.container([], schema), group="rejected/empty")
    yield Alert(generate.container([record, record], schema), group="rejected/damaged")
    native = whole("ztf")[0].data
    sync = native[-16:]
    yield Alert(native + native[native.index(sync) + 16 :], group="rejected/damaged")  # a second block
    for codec in ("deflate", "snappy", "zstandard"):
        yield Alert(generate.container([record], schema, codec), group="answered")
    renamed = schema | {"fields": [*schema["fields"], {"name": "later", "type": ["null", "string"]}]}
    yield Alert(generate.container([record | {"later": "x"}], renamed), group="answered")
    yield Alert(b"\xff" * (16_777_216 + 1 - 200), group="rejected/damaged")
    yield Alert(b"\xff" * 17_000_000, group="rejected/too_large")
