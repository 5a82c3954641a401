"""The audit: its arithmetic against counting by hand, and the command over records on a real Kafka."""

import json
import re
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from subprocess import CompletedProcess

import generate
import numpy as np
import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import TopicPartition
from decoding import assigned, hop
from hypothesis import given, settings
from hypothesis import strategies as st
from running import Alert, broker, send, topics_of, write_config
from samples import whole

from broker import config as configs
from broker.audit import audit
from broker.classify import classify
from broker.collected import collect
from broker.embedded import EmbeddedKafka
from broker.ledger import Gap, LedgerRow, runs
from broker.outlets import Headers, dead_letter, native, rows
from broker.reconcile import (
    LOOK_AHEAD,
    Place,
    Records,
    Window,
    expand,
    look_up,
    outside,
    place_of,
    printable,
    reconcile,
)
from broker.repeats import inside

PLACE = Place("ztf", "night", 0)
EARLY, LATE = "2026-11-20T00:00:00.000+00:00", "2026-11-21T00:00:00.000+00:00"
MIDDAY = datetime(2026, 11, 20, 12, tzinfo=UTC)


def row(*answered: tuple[int, int], place: Place = PLACE, time: str = LATE, model: str = "m@1") -> LedgerRow:
    n = sum(last - first + 1 for first, last in answered)
    return LedgerRow(place.source, 0, 0, place.topic, place.partition, answered, {"classified/ok": n}, model, "q", time)


def window(first: int, last_exclusive: int, begin: int | None = None) -> Window:
    return Window(PLACE, first if begin is None else begin, first, last_exclusive)


def offsets(*found: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(found, np.int64)


# --- arithmetic ---------------------------------------------------------------------------------------------------

SOME = st.lists(st.integers(0, 40), max_size=40)


@given(SOME, SOME, SOME, st.sets(st.integers(0, 40)), st.sets(st.integers(0, 40)), st.integers(0, 40))
@settings(max_examples=300, deadline=None)
def test_books_are_what_counting_by_hand_gives(
    one: list[int], two: list[int], letters: list[int], old: set[int], new: set[int], first: int
) -> None:
    records = Records({"a@1": offsets(*one), "b@1": offsets(*two)}, {"a@1": offsets(*letters)})
    ledger = [row(*runs(offsets(*old)), time=EARLY), row(*runs(offsets(*new)))]
    whole = range(first, 41)
    books = reconcile(window(first, 41), records, ledger, expired_before=MIDDAY)
    answered = {*one, *two, *letters} & {*whole}
    lacking = {*whole} - answered
    by_a, by_b = Counter(one + letters), Counter(two)
    assert books.answered == len(answered)
    assert books.expired == len(lacking & old)
    assert set(books.missing.tolist()) == lacking - old
    assert set(books.in_ledger.tolist()) == (lacking - old) & new
    assert set(books.not_in_ledger.tolist()) == answered - old - new
    assert set(books.repeated.tolist()) == {o for o in whole if by_a[o] > 1 or by_b[o] > 1}
    assert books.n_repeats == sum(max(0, by[o] - 1) for o in whole for by in (by_a, by_b))
    assert books.n_classifications == len({*one, *two} & {*whole})
    assert books.n_dead_letters == len({*letters} & {*whole})
    holes = books.with_holes([Gap("night", 0, 5, 12), Gap("night", 1, 0, 40), Gap("day", 0, 0, 40)])
    assert holes.holes == len({*books.unexplained().tolist()} & {*range(5, 13)})
    for each in (books, holes):
        assert each.window.offered == each.answered + each.missing.size + each.holes + each.expired
        assert each.is_balanced == (not each.missing.size and not each.n_repeats and not each.not_in_ledger.size)


@given(SOME, st.lists(st.integers(0, 45), max_size=6).map(sorted), st.integers(0, 20), st.integers(20, 40))
def test_hours_add_up_to_the_whole(answered: list[int], cuts: list[int], first: int, last: int) -> None:
    records, whole = Records({"a@1": offsets(*answered)}), window(first, last)
    parts = whole.split([(f"hour {i}", cut) for i, cut in enumerate(cuts)])
    assert sum(part.offered for part in parts) == whole.offered
    assert [part.first for part in parts[1:]] == [part.last_exclusive for part in parts[:-1]]
    books = [reconcile(part, records, []) for part in parts]
    missing = np.concatenate([each.missing for each in books])
    assert missing.tolist() == reconcile(whole, records, []).missing.tolist()
    assert sum(each.n_repeats for each in books) == reconcile(whole, records, []).n_repeats


@given(st.sets(st.integers(0, 20_000), max_size=30))
@settings(deadline=None)
def test_spans_to_be_looked_up_hold_what_is_unexplained_and_lie_far_apart(lacking: set[int]) -> None:
    whole = window(0, 20_001)
    answered = np.setdiff1d(np.arange(20_001), offsets(*lacking))
    spans = look_up([reconcile(part, Records({"a@1": answered}), []) for part in whole.split([("a", 0), ("b", 9_000)])])
    assert lacking <= {*expand([(gap.first, gap.last) for gap in spans], whole).tolist()}
    assert all(after.first - before.last > LOOK_AHEAD for before, after in pairwise(spans))


def test_what_lies_outside_is_told_apart() -> None:
    records = Records({"a@1": offsets(1, 1, 3, 12, 20, 30, 99)})
    beside = outside(window(10, 20, begin=2), records, top=30)
    assert (beside.earlier, beside.in_flight, beside.beyond.tolist()) == (2, 1, [30, 99])
    assert beside.deleted_unanswered.tolist() == [2, 4, 5, 6, 7, 8, 9]
    booked = replace(row(), expired=((0, 5), (9, 12)))
    assert outside(window(10, 20, begin=2), records, 30, [booked]).expired == 4  # 2, 4, 5 and 9
    assert not reconcile(window(10, 20), records, [row((0, 99))]).is_balanced


def test_a_ledger_that_has_lost_rows_says_nothing_of_a_record_without_one() -> None:
    records = Records({"a@1": offsets(0, 1)})
    assert reconcile(window(0, 2), records, [row((1, 1))]).not_in_ledger.tolist() == [0]
    assert reconcile(window(0, 2), records, [row((1, 1))], ledger_is_whole=False).is_balanced


def test_a_row_with_a_senseless_time_or_span_does_no_harm() -> None:
    wild = row((0, 10**15), time="yesterday")
    assert reconcile(window(0, 2), Records(), [wild], expired_before=MIDDAY).in_ledger.tolist() == [0, 1]


@pytest.mark.parametrize("prefix", [b"", b"a:b", b"a:b:c", b"a:b:c:1", b"\xff:b:1"])
def test_headers_of_others_are_no_place(prefix: bytes) -> None:
    assert place_of(prefix) is None
    assert place_of(b"ztf:night:12") == Place("ztf", "night", 12)


@given(st.text())
def test_nothing_from_a_topic_steers_the_terminal(text: str) -> None:
    assert printable(text).isprintable()
    if text.isprintable():
        assert printable(text) == text


# --- over a real Kafka --------------------------------------------------------------------------------------------


@dataclass
class Night:
    """A source topic and what a job would have left of it: records by the product's own functions."""

    kafka: EmbeddedKafka
    name: str
    folder: Path
    n_partitions: int = 1

    def __post_init__(self) -> None:
        self.output = topics_of(self.name)
        self.kafka.create_topics({self.name: self.n_partitions} | dict.fromkeys(self.output.values(), 2))
        source = {"name": "ztf", "survey": "ztf", "topics": [self.name]}
        self.config = write_config(self.folder, self.kafka.bootstrap_servers, [source], self.output)

    def offer(self, n: int) -> None:
        send(self.kafka, self.name, [Alert(b"alert %d" % i) for i in range(n)], self.n_partitions)

    def coordinates(self, offset: int, partition: int = 0) -> str:
        return f"ztf:{self.name}:{partition}:{offset}"

    def classify(self, found: Iterable[int], partition: int = 0, model: bytes = b"m@1") -> None:
        marks: list[Headers] = [
            [("alert", self.coordinates(offset, partition).encode()), ("model", model)] for offset in found
        ]
        keys: list[bytes | None] = [b"%d" % i for i in range(len(marks))]
        batch = rows(self.output["classifications"], keys, [native.container(b"x") for _ in keys], marks)
        records = batch.to_pylist()
        self.write([(r["topic"], r["value"], [(h["key"], h["value"]) for h in r["headers"]]) for r in records])

    def reject(self, offset: int, partition: int = 0) -> None:
        letter = dead_letter.Letter(b"k", b"alert", [], self.coordinates(offset, partition), 0, "damaged", "cut short")
        _, value, headers = dead_letter.build(letter, "m@1", 1_000_000)
        self.write([(self.output["dead_letters"], value, headers)])

    def count(self, *answered: tuple[int, int], partition: int = 0) -> None:
        place = Place("ztf", self.name, partition)
        self.write([(self.output["ledger"], row(*answered, place=place).to_json(), [])])

    def write(self, records: Iterable[tuple[str, bytes | None, Headers]]) -> None:
        producer = Producer({"bootstrap.servers": self.kafka.bootstrap_servers, "enable.idempotence": True})
        for topic, value, headers in records:
            producer.produce(topic, value=value, headers=list(headers))
        assert producer.flush(30) == 0

    def commit(self, end: int, first: int = 0) -> None:
        """A checkpoint as Spark writes it, with one committed batch of partition 0."""
        folder = self.folder / "checkpoints" / "ztf"
        for name in ("offsets", "commits", "sources/0"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / "metadata").write_text(json.dumps({"id": "q"}))
        (folder / "sources/0/0").write_text("\0v1\n" + json.dumps({self.name: {"0": first}}))
        ends = json.dumps({self.name: {"0": end}})
        (folder / "offsets/0").write_text(f"v1\n{json.dumps({'batchTimestampMs': 1})}\n{ends}")
        (folder / "commits/0").write_text("v1\n{}")

    def audit(self, *arguments: str) -> CompletedProcess[str]:
        return broker("audit", "--config", self.config, *arguments)


def test_whole_books_balance(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-whole", tmp_path, 2)
    night.offer(20)
    night.classify(range(9), 0)
    night.reject(9, 0)
    night.classify(range(10), 1)
    night.count((0, 9), partition=0)
    night.count((0, 4), (5, 9), partition=1)
    ended = night.audit("--json", str(tmp_path / "audit.json"))
    assert ended.returncode == 0, ended.stdout + ended.stderr
    last = ended.stdout.splitlines()[-1]
    assert last == "balanced: 20 offsets offered, 20 answered, 0 holes; no alert without a verdict, none with two"
    assert "no checkpoint at" in ended.stdout
    told = json.loads((tmp_path / "audit.json").read_text())
    assert told["balanced"] is True
    assert told["models"] == {"m@1": 20}
    assert [(p["partition"], p["classifications"], p["dead_letters"]) for p in told["partitions"]] == [
        (0, 9, 1),
        (1, 10, 0),
    ]


def test_a_lost_one_a_doubled_one_and_a_strange_one(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-wrong", tmp_path)
    night.offer(12)
    night.classify([0, 1, 2, 4, 5, 6, 7, 7, 8, 10])  # 3 and 11 lost, 7 doubled
    night.reject(9)
    night.classify([8], model=b"m@2")  # another model's verdict is no repeat
    night.classify([10**6])  # never offered
    night.count((0, 9))  # knows 3, not 10 and 11
    other: Headers = [("alert", b"\x1b[31m:x:0:7"), ("model", b"m@1")]
    night.write(
        [
            (night.output["classifications"], b"from elsewhere", []),
            (night.output["classifications"], b"", [("alert", b"ztf"), ("model", None)]),
            (night.output["dead_letters"], None, other),
        ]
    )
    ended = night.audit("--json", str(tmp_path / "audit.json"))
    assert ended.returncode == 3
    text = ended.stdout
    assert "ztf:audit-wrong:0: missing, no trace in the ledger: 1: 11" in text
    assert "ztf:audit-wrong:0: missing, though the ledger has a verdict: 1: 3" in text
    assert "ztf:audit-wrong:0: answered more than once: 1: 7" in text
    assert "ztf:audit-wrong:0: answered, but not in the ledger: 1: 10" in text
    assert "the source never had it (was the topic deleted and made again?): 1: 1000000" in text
    assert "1 records of \\x1b[31m:x, which is not audited" in text
    assert "\x1b" not in text
    assert text.splitlines()[-1] == (
        "NOT balanced: 12 offsets offered, 10 answered, 0 holes; "
        "2 missing, 1 repeated, 1 not in the ledger, 1 never offered"
    )
    (told,) = json.loads((tmp_path / "audit.json").read_text())["partitions"]
    assert (told["missing"], told["missing_but_in_ledger"], told["repeated"]) == (
        [[3, 3], [11, 11]],
        [[3, 3]],
        [[7, 7]],
    )
    strays = audit(configs.load(night.config)).strays[night.output["classifications"]]
    assert sum(map(len, strays.values())) == 2


def test_markers_of_transactions_are_holes_and_a_lost_alert_beside_them_is_not(
    kafka: EmbeddedKafka, tmp_path: Path
) -> None:
    night = Night(kafka, "audit-holes", tmp_path)
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "transactional.id": "audit-holes"})
    producer.init_transactions(30)
    for _ in range(3):
        producer.begin_transaction()
        for i in range(3):
            producer.produce(night.name, value=b"%d" % i, partition=0)
        producer.commit_transaction(30)
    night.classify([0, 1, 2, 4, 6, 8, 9, 10])  # markers at 3, 7 and 11; 5 is lost
    night.count((0, 2), (4, 4), (6, 6), (8, 10))
    ended = night.audit()
    assert ended.returncode == 3
    assert ended.stdout.splitlines()[-1].startswith("NOT balanced: 12 offsets offered, 8 answered, 3 holes; 1 missing")
    assert "missing, no trace in the ledger: 1: 5" in ended.stdout
    night.classify([5])
    night.count((5, 5))
    assert night.audit().returncode == 0


def test_alerts_in_flight_are_not_missing(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-flight", tmp_path)
    night.offer(20)
    night.commit(12, first=2)
    night.classify(range(2, 15))  # 12 to 14 belong to the batch under way
    night.count((2, 11))
    ended = night.audit()
    assert ended.returncode == 0, ended.stdout
    assert "committed batch 0" in ended.stdout
    assert "3 answered past the end of the audit: in flight" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("balanced: 10 offsets offered, 10 answered")
    (tmp_path / "checkpoints" / "ztf" / "metadata").write_text("{")
    ended = night.audit()
    assert ended.returncode == 3
    assert "the checkpoint can't be used, so each topic's end counts" in ended.stdout


def test_sources_that_come_again_are_found_by_id_and_points(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-again", tmp_path)
    one, two = (s.data for s in whole("ztf")[:2])
    changed = generate.alert("ztf", "4.01", 3)
    other = changed | {"candidate": changed["candidate"] | {"magpsf": 17.0}}
    values = [one, two, one, *(generate.encode("ztf", "4.01", record) for record in (changed, other)), one]
    send(kafka, night.name, [Alert(value) for value in values])
    places = [Place("ztf", night.name, 0)] * len(values)
    for offset, value in enumerate(values):  # a batch each, so that nothing is marked
        (part,) = classify(hop("ztf", [value], first=offset), assigned("ztf")).rows
        (row_of,) = part.to_pylist()
        marks: Headers = [("alert", night.coordinates(offset).encode()), ("model", b"m@1")]
        night.write([(night.output["classifications"], row_of["value"], marks)])
        if offset == 1:  # by another model: no second source
            night.write([(night.output["classifications"], row_of["value"], [marks[0], ("model", b"m@2")])])
    night.write([(night.output["classifications"], b"Obj\x01 no record", [marks[0], ("model", b"m@3")])])
    night.count((0, 5))
    ended = night.audit("--repeats", "--json", str(tmp_path / "audit.json"))
    assert ended.returncode == 0, ended.stdout
    told = json.loads((tmp_path / "audit.json").read_text())
    (partition,) = told["partitions"]
    assert (partition["came_again"], partition["came_again_changed"]) == ([[2, 2], [5, 5]], [[4, 4]])
    found = {(a["alert"], a["after"], a["same_points"]) for a in told["again"]}
    of = night.coordinates
    assert found == {(of(2), of(0), True), (of(5), of(2), True), (of(4), of(3), False)}
    source_id = changed["candidate"]["candid"]
    assert f"{of(4)}: source {source_id} again, after {of(3)}, other points" in ended.stdout
    assert re.search(r"0-5 +6 +6 +0 +0 +0 +0 +0 +0 +2 +1", ended.stdout)
    assert len(inside([], places[0], 0, 6)[0]) == 0
    assert audit(configs.load(night.config)).again is None


def test_waiting_and_put_back_letters_by_hand() -> None:
    letters, waiting = {"a@1": offsets(1, 2, 3, 4)}, {"a@1": offsets(2, 3, 4)}
    answers = {"a@1": offsets(3), "b@1": offsets(4)}
    records = Records({"a@1": offsets(0, 3), "b@1": offsets(4)}, letters, answers, waiting)
    books = reconcile(window(0, 5), records, [row((0, 4))])
    assert (books.n_repeats, books.answered, books.n_put_back, books.waiting.tolist()) == (0, 5, 2, [2])
    assert books.is_balanced
    twice = replace(records, classifications={"a@1": offsets(0, 3, 3)}, answers={"a@1": offsets(3, 3)})
    assert reconcile(window(0, 5), twice, [row((0, 4))]).repeated.tolist() == [3]
    unmarked = replace(records, answers={})
    assert reconcile(window(0, 5), unmarked, [row((0, 4))]).repeated.tolist() == [3]


def test_since_until_and_hours(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-time", tmp_path)
    start = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=1)
    hours = [(start + timedelta(hours=n)).isoformat(timespec="minutes").replace("+00:00", "Z") for n in range(4)]
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "enable.idempotence": True})
    for minutes in (0, 30, 59, 60, 200, 201):  # hours 0, 1, 3
        stamp = int(start.timestamp() * 1000) + minutes * 60_000
        producer.produce(night.name, value=b"alert", partition=0, timestamp=stamp)
    assert producer.flush(30) == 0
    night.classify([0, 1, 3, 4])  # 2 and 5 are lost
    night.count((0, 1), (3, 4))
    found = audit(configs.load(night.config), by_hour=True)
    assert [(b.window.hour, b.window.offered, b.missing.tolist()) for b in found.books] == [
        (hours[0], 3, [2]),
        (hours[1], 1, []),
        (hours[3], 2, [5]),
    ]
    assert not found.is_balanced
    until = (start + timedelta(minutes=201)).isoformat()
    ended = night.audit("--since", hours[1], "--until", until, "--by-hour")
    assert ended.returncode == 0, ended.stdout
    assert hours[3] in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("balanced: 2 offsets offered, 2 answered")


def test_what_retention_deleted_is_said_and_not_missed(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-gone", tmp_path)
    night.offer(10)
    night.commit(10)
    night.classify(range(10))
    night.count((0, 9))
    delete(kafka, night.name, {0: 4})
    outputs = {0: -1, 1: -1}  # to their ends: the records are gone, the ledger's rows are not
    delete(kafka, night.output["classifications"], outputs)
    ended = night.audit()
    assert ended.returncode == 0, ended.stdout
    assert "retention has deleted 4 offsets (0-3) of the source; 4 of them have no verdict" in ended.stdout
    assert f"records of {night.output['classifications']}:" in ended.stdout
    assert ended.stdout.splitlines()[-1].startswith("balanced: 6 offsets offered, 0 answered, 0 holes, 6 expired")


def delete(kafka: EmbeddedKafka, topic: str, before: dict[int, int]) -> None:
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    places = [TopicPartition(topic, partition, offset) for partition, offset in before.items()]
    for future in admin.delete_records(places).values():
        future.result(30)


def test_reading_ends_while_a_job_writes_on(kafka: EmbeddedKafka) -> None:
    kafka.create_topics({"audit-busy": 2})
    options = {"bootstrap.servers": kafka.bootstrap_servers}
    headers: Headers = [("alert", b"ztf:night:0:5"), ("model", b"m@1")]
    stop, written = threading.Event(), threading.Event()

    def write() -> None:
        producer = Producer(options)
        while not stop.is_set():
            for partition in (0, 1):
                producer.produce("audit-busy", value=b"x" * 100, headers=list(headers), partition=partition)
            producer.flush(30)
            written.set()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        assert written.wait(30)
        found = collect(options, "audit-busy")
    finally:
        stop.set()
        writer.join()
    assert found.n_records >= 2
    assert [*found.offsets] == [(b"ztf:night:0", b"m@1")]
    assert {*found.offsets[b"ztf:night:0", b"m@1"]} == {5}


def test_wrong_usage_is_told(kafka: EmbeddedKafka, tmp_path: Path) -> None:
    night = Night(kafka, "audit-usage", tmp_path)
    for arguments, words in (
        (("--source", "lsst"), "--source lsst: not in"),
        (("--since", "2026-11-20"), "needs a time with a zone"),
        (("--until", "noon"), "--until 'noon'"),
        (("--json", str(tmp_path / "none" / "x.json")), "can't be written"),
    ):
        ended = night.audit(*arguments)
        assert (ended.returncode, words in ended.stderr) == (2, True), ended.stderr
