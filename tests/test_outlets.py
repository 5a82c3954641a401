"""What leaves: native records by plain fastavro, and dead letters that fit their topic."""

import hashlib
import io
import json
import math
from typing import Any, cast

import fastavro
import generate
import numpy as np
import pytest
from decoding import SENT, assigned, hop
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import SCHEMAS, whole

from broker import __version__, surveys
from broker.classify import classify
from broker.lightcurve import BANDS, RULES_VERSION
from broker.outlets import ROWS, avro, dead_letter, native, rows
from broker.outlets.dead_letter import CUT_BYTES, Letter

PUBLISHED = SCHEMAS / "output" / "classification.avsc"
# Appended to, never renamed, removed or reordered: consumers read by position as well as by name.
FIELDS = [
    "survey", "source_id", "object_id", "programid", "ra", "dec", "mjd_tai", "band", "flux", "flux_err", "snr",
    "is_negative", "reliability", "visit", "detector", "field", "rcid", "status", "reason", "class_id", "class_name",
    "probability", "classifications", "taxonomy_version", "classifierName", "classifierParams", "model_sha256",
    "rules_version", "n_points_offered", "n_points_dropped", "n_points_used", "n_detections", "n_positive_detections",
    "n_nights", "n_points_per_band", "span_days", "days_since_first_detection", "age_days", "points_hash",
    "alert_schema", "alert_topic", "alert_partition", "alert_offset", "alert_timestamp", "brokerIngestTimestamp",
    "brokerPublishTimestamp", "brokerName", "brokerVersion", "repeats_alert",
]  # fmt: skip


def natives(survey: str, values: list[bytes | None]) -> list[bytes]:
    """Native values of alerts that are all answered by this outlet."""
    (part,) = classify(hop(survey, values), assigned(survey)).rows
    found: list[bytes] = part.column("value").to_pylist()
    assert len(found) == len(values)
    return found


def by_fastavro(value: bytes) -> dict[str, Any]:
    """The record, read by nothing but fastavro from the container's own schema."""
    (record,) = fastavro.reader(io.BytesIO(value))
    return cast(dict[str, Any], record)


def samples_of(survey: str, n: int = 30) -> list[bytes | None]:
    """Alerts that this outlet answers; the samples of LSST 7.02 count their time in seconds, which is implausible."""
    found: list[bytes | None] = [s.data for s in whole(survey)[:n] if (survey, s.schema) != ("lsst", "702")]
    return [*found, *generate.generated(survey, generate.LABELS[survey][-1], 5, seed=2)]


# --- native -------------------------------------------------------------------------------------------------------


def test_fields_are_only_appended_to() -> None:
    schema = json.loads(PUBLISHED.read_text())
    assert [field["name"] for field in schema["fields"]][: len(FIELDS)] == FIELDS
    assert f"{schema['namespace']}.{schema['name']}" == "t2b.v1.classification"
    for field in schema["fields"][len(FIELDS) :]:
        assert "default" in field, f"{field['name']}: a field that is appended needs a default for readers of old data"


@pytest.mark.parametrize("survey", surveys.NAMES)
def test_records_by_plain_fastavro(survey: str) -> None:
    values = samples_of(survey)
    published = fastavro.parse_schema(json.loads(PUBLISHED.read_text()))
    for offset, (alert, value) in enumerate(zip(values, natives(survey, values), strict=True)):
        assert alert is not None
        record = by_fastavro(value)
        (again,) = fastavro.reader(io.BytesIO(value), published)
        assert again == record == native.read(value)
        assert list(record) == FIELDS
        assert (record["survey"], record["brokerName"], record["brokerVersion"]) == (survey, "t2-broker", __version__)
        assert (record["alert_topic"], record["alert_partition"], record["alert_offset"]) == ("alerts", 3, offset)
        assert record["alert_timestamp"] == SENT
        assert record["brokerIngestTimestamp"] <= record["brokerPublishTimestamp"]
        assert record["rules_version"] == RULES_VERSION
        assert record["classifierName"] == assigned(survey).passport.model
        assert json.loads(record["classifierParams"])["moving_min_minutes"] == 30.0
        assert_sensible(record)


def assert_sensible(record: dict[str, Any]) -> None:
    """Numbers of one record that must agree with each other."""
    used, per_band = record["n_points_used"], record["n_points_per_band"]
    assert used <= sum(per_band.values()) <= record["n_points_offered"] - record["n_points_dropped"]
    assert 0 <= record["n_positive_detections"] <= record["n_detections"]
    assert set(per_band) <= set(BANDS)
    assert len(record["points_hash"]) == 16
    if record["flux"] is not None:
        assert record["snr"] == pytest.approx(record["flux"] / record["flux_err"], rel=1e-5)
        assert record["is_negative"] == (record["flux"] < 0) or record["survey"] == "lsst"
    if used:
        assert record["span_days"] >= 0
        assert record["n_nights"] >= 1


@pytest.mark.parametrize("flux", [math.nan, math.inf, 3e38])
def test_what_is_not_finite_is_null(flux: float) -> None:
    record = generate.with_flux(generate.alert("lsst", "1101", 1), "lsst", flux)
    (value,) = natives("lsst", [generate.encode("lsst", "1101", record)])
    found = by_fastavro(value)
    assert (found["flux"] is None) == (not math.isfinite(flux))
    assert all(math.isfinite(v) for v in found.values() if isinstance(v, float))


def test_container_is_small() -> None:
    """The schema travels with every verdict: without its docs."""
    (value,) = natives("ztf", samples_of("ztf")[:1])
    assert len(value) < 8_000
    assert b'"doc"' not in value


def test_a_frame_is_read_by_the_schema_of_its_id() -> None:
    (value,) = natives("ztf", samples_of("ztf")[:1])
    record = native.read(value)
    body = generate.body(record, native.schema())
    assert native.container(body) == value
    framed = native.frame(77, body)
    assert native.read(framed) == record
    older = {**native.schema(), "fields": native.schema()["fields"][:-1]}  # type: ignore[index]
    known = {76: json.dumps(older), 77: native.schema_text()}.__getitem__
    assert native.read(framed, known) == record
    found = native.read(native.frame(76, generate.body(record, older)), known)
    assert found == {name: value for name, value in record.items() if name != "repeats_alert"}
    for broken in (native.frame(76, body), framed[:4], framed[:-3], framed + b"x"):
        with pytest.raises((ValueError, EOFError)):
            native.read(broken, known)


def written(values: list[Any], schema: Any) -> list[bytes]:
    """Each value by fastavro's own writer."""
    return [generate.body(value, schema) for value in values]


STABLE = settings(derandomize=True, deadline=None, database=None)
longs = st.integers(-(2**63), 2**63 - 1)
texts = st.text(st.characters(codec="utf-8"), max_size=20)


@STABLE
@given(st.lists(longs), st.lists(st.none() | longs), st.lists(texts), st.lists(st.none() | texts))
def test_columns_are_what_fastavro_writes(
    whole_numbers: list[int], some_numbers: list[int | None], words: list[str], some_words: list[str | None]
) -> None:
    assert avro.longs(whole_numbers) == written(whole_numbers, "long")
    assert avro.optional_longs(some_numbers) == written(some_numbers, ["null", "long"])
    assert avro.texts(words) == written(words, "string")
    assert avro.optional_texts(some_words) == written(some_words, ["null", "string"])
    flags = [None if number is None else number > 0 for number in some_numbers]
    assert avro.optional_flags(flags) == written(flags, ["null", "boolean"])


@STABLE
@given(
    st.lists(st.floats(width=32)), st.lists(st.floats()), st.lists(st.dictionaries(texts, st.integers(0, 2**31 - 1)))
)
def test_numbers_and_maps_are_what_fastavro_writes(
    singles: list[float], doubles: list[float], maps: list[dict[str, int]]
) -> None:
    finite: list[float | None] = [number if math.isfinite(number) else None for number in singles]
    assert avro.optional_numbers(np.array(singles, np.float32), "<f4") == written(finite, ["null", "float"])
    finite = [number if math.isfinite(number) else None for number in doubles]
    assert avro.optional_numbers(np.array(doubles, np.float64), "<f8") == written(finite, ["null", "double"])
    fit = [number if number is not None and abs(number) < 3.4e38 else None for number in finite]
    close = avro.optional_numbers(np.array([n or 0.0 for n in fit], np.float64), "<f4")
    assert close == written([float(np.float32(n or 0.0)) for n in fit], ["null", "float"])
    assert avro.maps(maps) == written(maps, {"type": "map", "values": "int"})


@STABLE
@given(st.lists(st.lists(st.floats(0, 1, width=32), min_size=3, max_size=3) | st.none()))
def test_arrays_of_classes_are_what_fastavro_writes(rows_: list[list[float] | None]) -> None:
    names = ["SNIa", "SNII", "TDE"]
    fields = [{"name": "className", "type": "string"}, {"name": "probability", "type": "float"}]
    items = {"type": "array", "items": {"type": "record", "name": "Class", "fields": fields}}
    records = [
        [{"className": n, "probability": p} for n, p in zip(names, row, strict=True)] if row else [] for row in rows_
    ]
    values = np.array([row or [math.nan] * 3 for row in rows_], np.float32).reshape(-1, 3)
    assert avro.arrays([avro.text(name) for name in names], values) == written(records, items)


def test_joining_columns() -> None:
    assert avro.join([[b"a", b"b"], b"-", b"+", [b"c", b"d"]], 2) == [b"a-+c", b"b-+d"]
    assert avro.join([b"x", b"y"], 3) == [b"xy"] * 3
    assert avro.join([[], b"x"], 0) == []


def test_rows_have_the_sink_s_columns() -> None:
    assert rows("t", [], [], []).schema.equals(ROWS)
    assert len(rows("t", [], [], [])) == 0
    made = rows("t", [b"k", None], [None, b"v"], [[("a", b"1"), ("b", None)], []])
    assert made.schema.equals(ROWS)
    assert made.to_pylist()[0] == {
        "topic": "t",
        "partition": None,
        "key": b"k",
        "value": None,
        "headers": [{"key": "a", "value": b"1"}, {"key": "b", "value": None}],
    }


# --- dead letters -------------------------------------------------------------------------------------------------


def letter(value: bytes | None = b"alert", key: bytes | None = b"key", **headers: bytes) -> Letter:
    return Letter(key, value, list(headers.items()), "night:alerts:3:7", 1_234_567, "damaged", "says why")


def sent(one: Letter, max_bytes: int) -> tuple[bytes | None, bytes | None, dict[str, bytes | None]]:
    """Key, value and headers; header names are unique, and the whole fits."""
    key, value, headers = dead_letter.build(one, "t2b-1@1", max_bytes)
    assert len({name for name, _ in headers}) == len(headers)
    assert len(key or b"") + len(value or b"") + sum(len(n) + len(d or b"") for n, d in headers) <= max_bytes
    return key, value, dict(headers)


OURS = {
    "alert": b"night:alerts:3:7",
    "model": b"t2b-1@1",
    "reason": b"damaged",
    "detail": b"says why",
    "timestamp_us": b"1234567",
}


@pytest.mark.parametrize("value", [b"alert", b"", None])
def test_a_letter_that_fits_is_whole(value: bytes | None) -> None:
    key, found, headers = sent(letter(value, trace=b"\x00\xff", empty=b""), 100_000)
    assert (key, found) == (b"key", value)
    assert headers == OURS | {"original.trace": b"\x00\xff", "original.empty": b""}
    assert sent(letter(value, key=None), 100_000)[0] is None


def test_a_letter_that_does_not_fit_is_cut_and_says_so() -> None:
    data = bytes(range(256)) * 4096
    key, value, headers = sent(letter(data), 1_000_000)
    assert (key, value) == (b"key", data[:CUT_BYTES])
    assert headers == OURS | {
        "cut": b"true",
        "n_bytes": str(len(data)).encode(),
        "sha256": hashlib.sha256(data).hexdigest().encode(),
    }


def test_the_limit_decides() -> None:
    data = bytes(900_000)
    whole_size = 900_000 + 2_000
    assert "cut" not in sent(letter(data), whole_size)[2]
    assert "cut" in sent(letter(data), 900_000)[2]


def test_a_small_topic_takes_as_much_as_it_can() -> None:
    _, value, headers = sent(letter(bytes(50_000)), 10_000)
    assert value is not None
    assert 8_000 < len(value) < 10_000
    assert headers["n_bytes"] == b"50000"


def test_huge_key() -> None:
    huge = b"k" * 2_000_000
    key, value, headers = sent(letter(b"alert", key=huge), 1_000_000)
    assert (key, value) == (huge[:1024], b"alert")
    assert headers["cut"] == b"true"


def test_huge_headers() -> None:
    key, value, headers = sent(letter(b"alert", trace=bytes(2_000_000)), 1_000_000)
    assert (key, value) == (b"key", b"alert")
    assert headers == OURS | {
        "cut": b"true",
        "n_bytes": b"5",
        "sha256": hashlib.sha256(b"alert").hexdigest().encode(),
    }


def test_long_or_strange_details() -> None:
    long = Letter(None, b"x", [], "a", 0, "damaged", "é" * 5000 + "\ud800")
    _, _, headers = sent(long, 100_000)
    assert len(headers["detail"] or b"") <= 2000
    _, _, headers = sent(Letter(None, b"x", [], "a", 0, "damaged", "half a character: \ud800"), 100_000)
    assert headers["detail"] == b"half a character: \\ud800"


@settings(derandomize=True, deadline=None, database=None, max_examples=200)
@given(st.integers(0, 200_000), st.integers(0, 5_000), st.integers(0, 30_000), st.integers(4_096, 150_000))
def test_letters_always_fit(n_value: int, n_key: int, n_header: int, max_bytes: int) -> None:
    one = letter(bytes(n_value), bytes(n_key), trace=bytes(n_header))
    key, value, headers = sent(one, max_bytes)
    assert headers["alert"] == OURS["alert"]
    if "cut" not in headers:
        assert (key, value, headers["original.trace"]) == (one.key, one.value, bytes(n_header))
    else:
        assert value is not None
        assert headers["n_bytes"] == str(n_value).encode()
        assert one.value is not None
        assert one.value.startswith(value)
