"""What records on an output topic answer: from real messages of the client, headers alone, whatever they hold."""

from array import array
from collections import Counter
from typing import Any, cast

import pytest
from confluent_kafka import KafkaError as Fault
from confluent_kafka import Message
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.collected import Collected, take
from broker.errors import KafkaError
from broker.outlets import Headers, dead_letter

Pairs = list[tuple[str, bytes | None]]
NIGHT, MODEL = b"ztf:night:0", b"m@1"


def record(headers: Pairs | None, offset: int = 0, partition: int = 0, value: bytes | None = b"v") -> Message:
    return Message(topic="out", partition=partition, offset=offset, headers=cast(Any, headers), value=value)


def of_alert(
    offset: int | bytes, *more: tuple[str, bytes | None], prefix: bytes = NIGHT, model: bytes = MODEL
) -> Pairs:
    number = offset if isinstance(offset, bytes) else b"%d" % offset
    return [("alert", prefix + b":" + number), ("model", model), *more]


def end(partition: int, code: int = Fault._PARTITION_EOF) -> Message:
    return Message(topic="out", partition=partition, offset=9, error=Fault(code))


def taken(*messages: Message) -> Collected:
    found = Collected()
    assert take(messages, found) == set()
    return found


def plain(found: dict[tuple[bytes, bytes], "array[int]"]) -> dict[tuple[bytes, bytes], list[int]]:
    return {key: offsets.tolist() for key, offsets in found.items()}


ALERTS = st.lists(
    st.tuples(
        st.sampled_from([NIGHT, b"ztf:night:1", b"lsst:a:b:7"]),
        st.sampled_from([MODEL, b"m@2"]),
        st.integers(0, 2**63 - 1),
        st.booleans(),
        st.booleans(),
    ),
    max_size=40,
)


@given(ALERTS)
@settings(deadline=None)
def test_offsets_lie_by_place_and_model_in_the_order_of_the_records(
    alerts: list[tuple[bytes, bytes, int, bool, bool]],
) -> None:
    messages = []
    for prefix, model, offset, waits, answers in alerts:
        more: Pairs = [("reason", b"schema_unavailable" if waits else b"damaged")] if waits or answers else []
        more += [(dead_letter.ANSWERS, b"out:0:3")] if answers else []
        messages.append(record(of_alert(offset, *more, prefix=prefix, model=model)))
    found = taken(*messages)
    for kind, chosen in (
        (found.offsets, alerts),
        (found.waiting, [a for a in alerts if a[3]]),
        (found.answers, [a for a in alerts if a[4]]),
    ):
        due: dict[tuple[bytes, bytes], list[int]] = {}
        for prefix, model, offset, *_ in chosen:
            due.setdefault((prefix, model), []).append(offset)
        assert plain(kind) == due
    assert found.n_records == len(alerts)
    assert not found.strays


@pytest.mark.parametrize(
    "headers",
    [
        None,
        [],
        [("alert", b"ztf:night:0:7")],
        [("model", MODEL)],
        [("alert", None), ("model", MODEL)],
        [("alert", b"ztf:night:0:7"), ("model", None)],
        [("alert", b""), ("model", MODEL)],
        [("alert", b"7"), ("model", MODEL)],
        of_alert(b""),
        of_alert(b"x"),
        of_alert(b"7.0"),
        of_alert(2**63),
        of_alert(b"\xff"),
        [("Alert", b"ztf:night:0:7"), ("Model", MODEL)],
    ],
)
def test_a_record_without_our_headers_is_a_stray(headers: Pairs | None) -> None:
    found = taken(record(headers, offset=31, partition=4), record(of_alert(5)), record(headers, offset=32, partition=4))
    assert {p: offsets.tolist() for p, offsets in found.strays.items()} == {4: [31, 32]}
    assert plain(found.offsets) == {(NIGHT, MODEL): [5]}
    assert found.n_records == 3


@given(
    st.lists(
        st.tuples(st.sampled_from(["alert", "model", "reason", "x"]), st.none() | st.binary(max_size=24)), max_size=5
    )
)
@settings(deadline=None)
def test_every_record_is_an_answer_or_a_stray(headers: Pairs) -> None:
    found = taken(record(headers, offset=3))
    n_offsets = sum(map(len, found.offsets.values()))
    n_strays = sum(map(len, found.strays.values()))
    assert n_offsets + n_strays == found.n_records == 1


@pytest.mark.parametrize("digits", [b"", b"x", b"7.0", b"\xff"])
def test_a_stray_names_no_place_and_no_model(digits: bytes) -> None:
    """The audit lists both, and would tell of 0 records of a source that there never was."""
    found = taken(record(of_alert(digits, ("reason", b"damaged"), prefix=b"never:was:0", model=b"never@1")))
    assert not found.offsets
    assert not found.waiting
    assert found.strays[0].tolist() == [0]


def test_a_letter_as_it_is_written_is_taken_for_one() -> None:
    """The dead-letter outlet's own headers, through the client's message."""
    letters = []
    for offset, reason in enumerate(["damaged", "schema_unavailable", "too_large", "schema_unavailable"]):
        letter = dead_letter.Letter(b"k", b"alert", [], f"ztf:night:0:{offset}", 0, reason, "why")
        _, value, headers = dead_letter.build(letter, "m@1", 1_000_000)
        letters.append(record(list(as_pairs(headers)), offset, value=value))
    found = taken(*letters)
    assert plain(found.offsets) == {(NIGHT, MODEL): [0, 1, 2, 3]}
    assert plain(found.waiting) == {(NIGHT, MODEL): [1, 3]}
    assert not found.answers


def as_pairs(headers: Headers) -> Pairs:
    return [(name, value) for name, value in headers]


def test_ends_of_partitions_are_told_and_are_no_records() -> None:
    found = Collected()
    assert take([end(2), record(of_alert(1)), end(0), end(2)], found) == {0, 2}
    assert found.n_records == 1
    assert take([], found) == set()
    assert found.n_records == 1


@pytest.mark.parametrize(
    "code", [Fault._ALL_BROKERS_DOWN, Fault.TOPIC_AUTHORIZATION_FAILED, Fault.UNKNOWN_TOPIC_OR_PART]
)
def test_any_other_fault_ends_the_reading(code: int) -> None:
    with pytest.raises(KafkaError, match=r"^out:3: can't be read: "):
        take([record(of_alert(1)), end(3, code)], Collected())


def test_records_of_several_calls_add_up() -> None:
    found, due = Collected(), Counter[int]()
    for call in range(5):
        offsets = [call * 10 + i for i in range(3)]
        due.update(offsets)
        take([record(of_alert(offset)) for offset in offsets], found)
    assert Counter(found.offsets[NIGHT, MODEL]) == due
    assert found.n_records == 15
    assert found.offsets[NIGHT, MODEL].itemsize == 8  # bytes a record: a survey's year must fit into memory
