"""Every sample of the repository put into frames and containers and out again; order, limit and laps of a play."""

import io
import random
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import fastavro
import pytest
import reference
from hypothesis import given, settings
from hypothesis import strategies as st
from samples import Sample, whole

from broker import container, registry
from broker.errors import ArchiveError
from broker.observed import observed
from broker.playlist import Order, Wish, in_container, in_frame, play
from broker.wire import FRAME_BYTES, frame, schema_id_of

FREE_ID = 99_999  # an id that no known schema has


def body_of(sample: Sample) -> bytes:
    """The bare record of a sample, by fastavro's own reader where it is a container."""
    if sample.survey == "lsst":
        return sample.data[FRAME_BYTES:]
    if sample.survey == "elasticc":
        return sample.data
    header, end = container.read_header(sample.data)
    (body,) = container.records(header, io.BytesIO(sample.data[end:]))
    return body


def plain(value: Any) -> str:
    return repr(value)  # NaN is NaN


# --- frames ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("survey", ["lsst", "ztf", "elasticc"])
def test_a_frame_of_an_unknown_id_holds_the_body_as_it_is(survey: str) -> None:
    assert registry.by_id(FREE_ID) is None
    for sample in whole(survey):
        if survey == "lsst":
            with pytest.raises(container.Unreadable, match=f"in a frame of schema {sample.schema} already"):
                in_frame(sample.data, FREE_ID)
            continue
        framed = in_frame(sample.data, FREE_ID)
        assert framed == frame(FREE_ID, body_of(sample))
        assert schema_id_of(framed) == FREE_ID


def test_a_container_of_a_frame_is_read_by_any_reader() -> None:
    """Without a registry: the schema is inside; the record is the same."""
    for sample in whole("lsst")[::5]:
        packed = in_container(sample.data)
        assert packed is not None
        (record,) = fastavro.reader(io.BytesIO(packed))
        assert plain(record) == plain(reference.decode(sample.data)), sample


def test_what_is_no_frame_stays_as_it_is() -> None:
    for survey in ("ztf", "elasticc"):
        for sample in whole(survey):
            assert in_container(sample.data) == sample.data
    for value in (None, b""):
        assert in_container(value) == value
        assert in_frame(value, 1000) == value


def test_a_frame_once_made_is_not_framed_again() -> None:
    for sample in whole("lsst"):
        packed = in_container(sample.data)
        once = in_frame(packed, int(sample.schema))
        assert once == sample.data
        assert in_frame(once, int(sample.schema)) == once
        assert in_container(once) == packed


def test_a_body_is_framed_by_a_schema_that_reads_it_alone() -> None:
    """The bodies of one schema, offered to all known ids: where a frame is given, the body is one datum of it."""
    known = [writer.schema_id for writer in registry.writers("lsst") if writer.schema_id]
    assert len(known) > 3
    for sample in {s.schema: s for s in whole("lsst")}.values():
        packed = in_container(sample.data)
        n_refused = 0
        for schema_id in known:
            found = registry.by_id(schema_id)
            assert found is not None
            try:
                framed = in_frame(packed, schema_id)
            except container.Unreadable:
                n_refused += 1
                assert not container.fits(found[1].text, body_of(sample))
            else:
                assert framed == frame(schema_id, body_of(sample))
                assert container.fits(found[1].text, body_of(sample))
        assert n_refused < len(known)
        assert n_refused > 0


@given(st.binary(max_size=40))
def test_bytes_of_any_kind_are_framed_or_refused(data: bytes) -> None:
    """And nothing else is raised."""
    for schema_id, value in ((1000, data), (7, b"Obj\x01" + data), (None, data)):
        try:
            found = in_container(value) if schema_id is None else in_frame(value, schema_id)
        except container.Unreadable:
            continue
        assert found is not None


# --- choice and order -------------------------------------------------------------------------------------------------

ALERTS = [*whole("ztf")[:12], *whole("elasticc")[:6], *whole("lsst")[:12]]


def laid_out(folder: Path, samples: list[Sample]) -> None:
    for i, sample in enumerate(samples):
        (folder / f"{i:02}.avro").write_bytes(sample.data)


def time_of(sample: Sample) -> float | None:
    when = observed(sample.data)
    return None if when is None else when.mjd_tai


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(ALERTS), min_size=1, max_size=10), st.integers(1, 25), st.booleans())
def test_a_play_is_so_many_alerts_of_so_many_laps(samples: list[Sample], limit: int, is_sorted: bool) -> None:
    order: Order = "observation" if is_sorted else "arrival"
    with TemporaryDirectory() as name:
        laid_out(Path(name), samples)
        once = list(play(Wish((name,), order)))
        looped = list(play(Wish((name,), order, limit=limit, loop=True)))
        cut = list(play(Wish((name,), order, limit=limit)))
    assert len(once) == len(samples)
    assert [a.lap for a in once] == [0] * len(samples)
    assert [a.value for a in looped] == [once[i % len(once)].value for i in range(limit)]
    assert [a.lap for a in looped] == [i // len(once) for i in range(limit)]
    assert [a.value for a in cut] == [a.value for a in once[:limit]]
    assert sorted(a.value or b"" for a in once) == sorted(s.data for s in samples)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.sampled_from(ALERTS), min_size=1, max_size=10, unique_by=lambda s: s.data), st.integers(0, 2**20))
def test_the_order_of_observation_does_not_hang_on_that_of_the_files(samples: list[Sample], seed: int) -> None:
    known = [sample for sample in samples if time_of(sample) is not None]
    mixed = random.Random(seed).sample(known, len(known))
    found = []
    for one in (known, mixed):
        with TemporaryDirectory() as name:
            (Path(name) / "empty").mkdir()
            laid_out(Path(name), one)
            found.append([a.mjd_tai for a in play(Wish((name,), "observation"))] if one else [])
    due = sorted(time_of(sample) or 0 for sample in known)
    assert found == [due, due]


def test_alerts_of_one_time_keep_their_order(tmp_path: Path) -> None:
    """And one whose time is not known follows the alert before it."""
    sample = whole("ztf")[0]
    later = max(whole("ztf")[:20], key=lambda s: time_of(s) or 0)
    for name, data in (("a", later.data), ("b", b"no alert"), ("c", sample.data), ("d", sample.data)):
        (tmp_path / f"{name}.avro").write_bytes(data)
    found = [a.topic for a in play(Wish((str(tmp_path),), "observation"))]
    assert found == ["c.avro", "d.avro", "a.avro", "b.avro"]


def test_frames_and_containers_are_made_on_the_way(tmp_path: Path) -> None:
    sample = next(s for s in whole("lsst") if s.schema == "1000")
    (tmp_path / "a.bin").write_bytes(sample.data)
    (unframed,) = play(Wish((str(tmp_path),), unframed=True))
    assert unframed.value == in_container(sample.data)
    (tmp_path / "a.bin").write_bytes(unframed.value or b"")
    (framed,) = play(Wish((str(tmp_path),), schema_id=1000))
    assert framed.value == sample.data
    assert (framed.topic, framed.partition, framed.offset, framed.lap) == ("a.bin", 0, 0, 0)


def test_a_path_that_is_no_file_and_no_topic_is_named(tmp_path: Path) -> None:
    for path in (str(tmp_path / "gone.avro"), str(tmp_path / "gone")):
        with pytest.raises(ArchiveError, match="gone"):
            list(play(Wish((path,))))
