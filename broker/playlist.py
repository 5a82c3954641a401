"""What a replay sends, and in which order: alerts of files or of a topic, chosen, sorted, framed anew, repeated."""

from __future__ import annotations

import pickle
import re
import tempfile
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import lru_cache
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Literal, cast

from broker import container, registry
from broker.archive import Frame, find_files, read_frames
from broker.errors import ArchiveError
from broker.observed import Moment, observed
from broker.tables import is_table
from broker.topics import read_all
from broker.wire import CONTAINER_MAGIC, FRAME_BYTES, frame, schema_id_of

MAX_ALERT_BYTES = 16_777_216
Order = Literal["arrival", "observation"]
NO_TIMESTAMP = 0  # confluent-kafka's TIMESTAMP_NOT_AVAILABLE
_TOPIC = re.compile(r"[^/]+:\d{1,5}/[A-Za-z0-9._-]{1,249}")


@dataclass(frozen=True)
class Play(Frame):
    """A frame with the time of its source (MJD TAI, None: not known) and how often all were sent before."""

    mjd_tai: float | None = None
    lap: int = 0


@dataclass(frozen=True)
class Wish:
    """What to send. Times are those of the alerts' own sources.

    order: `arrival` is that of the files and members, of a topic that of Kafka's time stamps. schema_id: put a frame of
    this id around every body; publish: frames of the id that this gives for each alert's schema; unframed: make
    containers of frames, as ZTF sends them. loop: begin again at the end.
    """

    paths: tuple[str, ...]
    order: Order = "arrival"
    since: Moment | None = None
    until: Moment | None = None
    limit: int | None = None
    loop: bool = False
    schema_id: int | None = None
    unframed: bool = False
    publish: Callable[[str], int] | None = None
    needs_times: bool = False


def play(wish: Wish, options: Mapping[str, str] | None = None) -> Iterator[Play]:
    """The alerts; options: librdkafka's, for those of topics.

    Raises ArchiveError for a file that can't be read or an alert that can't be framed.
    """
    return islice(_laps(wish, options or {}), wish.limit)


def _laps(wish: Wish, options: Mapping[str, str]) -> Iterator[Play]:
    if wish.order == "observation":
        yield from _sorted(_chosen(wish, options), lambda alert: alert.mjd_tai, wish.loop)
    elif any(_is_topic(path) for path in wish.paths):
        yield from _sorted(_chosen(wish, options), _kafka_time, wish.loop)
    else:
        for lap in count() if wish.loop else (0,):
            yield from (replace(alert, lap=lap) for alert in _chosen(wish, options))


def _kafka_time(alert: Play) -> float | None:
    return None if alert.timestamp is None else alert.timestamp.timestamp()


def _chosen(wish: Wish, options: Mapping[str, str]) -> Iterator[Play]:
    """The alerts of all paths within the wished times; one whose time is not known is in no such span."""
    has_span = wish.since is not None or wish.until is not None
    looks = wish.needs_times or has_span or wish.order == "observation"
    for found in _frames(wish.paths, options):
        when = observed(found.value, found.key) if looks else None
        if has_span and when is None:
            continue
        if when is not None:
            if wish.since is not None and when.mjd_tai < wish.since.start(when.survey):
                continue
            if wish.until is not None and when.mjd_tai >= wish.until.end(when.survey):
                continue
        value = _framed(found, wish)
        yield Play(
            found.key, value, found.headers, found.topic, found.partition, found.offset, found.timestamp,
            None if when is None else when.mjd_tai,
        )  # fmt: skip


def _is_topic(path: str) -> bool:
    return _TOPIC.fullmatch(path) is not None and not Path(path).exists()


def _frames(paths: Iterable[str], options: Mapping[str, str]) -> Iterator[Frame]:
    for path in paths:
        if _is_topic(path):
            servers, _, topic = path.partition("/")
            yield from _of_topic({**options, "bootstrap.servers": servers}, topic)
            continue
        folder = Path(path)
        for file in find_files([folder]):
            if is_table(file):
                raise ArchiveError(
                    f"{file}: a table holds no alerts as bytes: broker classify reads it, replay does not"
                )
            yield from read_frames(file, folder if folder.is_dir() else folder.parent, MAX_ALERT_BYTES)


def _of_topic(options: Mapping[str, str], topic: str) -> Iterator[Frame]:
    for message in read_all(options, topic):
        kind, time_ms = message.timestamp()
        when = datetime.fromtimestamp(time_ms / 1000, UTC) if kind != NO_TIMESTAMP else None
        headers = cast("list[tuple[str, bytes]]", message.headers() or [])
        yield Frame(
            message.key(), message.value(), headers, topic, message.partition() or 0, message.offset() or 0, when
        )


# --- frames -------------------------------------------------------------------------------------------------------


def _framed(alert: Frame, wish: Wish) -> bytes | None:
    try:
        if wish.schema_id is not None:
            return in_frame(alert.value, wish.schema_id)
        if wish.publish is not None:
            return in_published_frame(alert.value, wish.publish)
        return in_container(alert.value) if wish.unframed else alert.value
    except container.Unreadable as error:
        raise ArchiveError(f"{alert.topic}:{alert.offset}: {error}") from error


def in_frame(value: bytes | None, schema_id: int) -> bytes | None:
    """The alert's body in a Confluent frame. Raises Unreadable where its bytes are not of the schema with this id."""
    if not value:
        return value
    body = value
    if value.startswith(CONTAINER_MAGIC):
        header, end = container.read_header(value)
        body = next(container.records(header, BytesIO(value[end:])), b"")
    elif (own := schema_id_of(value)) is not None and registry.by_id(own) is not None:
        if own != schema_id:
            raise container.Unreadable(
                f"is in a frame of schema {own} already, which --framed {schema_id} can't change"
            )
        return value
    known = registry.by_id(schema_id)
    if known is not None and not container.fits(known[1].text, body):
        raise container.Unreadable(f"is no alert of schema {schema_id}: a frame of that id would make it unreadable")
    return frame(schema_id, body)


def in_published_frame(value: bytes | None, publish: Callable[[str], int]) -> bytes | None:
    """The alert's body in a frame of the id that its schema is published under. Raises Unreadable without one."""
    if not value:
        return value
    if value.startswith(CONTAINER_MAGIC):
        header, end = container.read_header(value)
        return frame(publish(header.schema), next(container.records(header, BytesIO(value[end:])), b""))
    own = schema_id_of(value)
    if own is not None and (known := registry.by_id(own)) is not None:
        return frame(publish(known[1].text), value[FRAME_BYTES:])
    bare = next((w for w in registry.writers("elasticc") if container.fits(w.text, value)), None)
    if bare is None:
        raise container.Unreadable("has no schema that is known, so none to publish")
    return frame(publish(bare.text), value)


def in_container(value: bytes | None) -> bytes | None:
    """A framed alert as a container of its own with the schema inside; others stay as they are."""
    schema_id = schema_id_of(value or b"")
    if value is None or schema_id is None:
        return value
    known = registry.by_id(schema_id)
    if known is None:
        raise container.Unreadable(f"is in a frame of schema {schema_id}, which is not known: --unframed can't be done")
    return _header(known[1].text).wrap(value[FRAME_BYTES:])


@lru_cache(maxsize=32)
def _header(schema: str) -> container.Header:
    return container.header_of(schema)


# --- order --------------------------------------------------------------------------------------------------------


def _sorted(alerts: Iterable[Play], number: Callable[[Play], float | None], loop: bool) -> Iterator[Play]:
    """By a number, out of a temporary file; alerts without one follow the alert before."""
    with tempfile.TemporaryFile(prefix="t2-broker-replay-") as file:
        places, numbers, last = array("q"), array("d"), float("-inf")
        for alert in alerts:
            last = last if (own := number(alert)) is None else own
            places.append(file.tell())
            numbers.append(last)
            pickle.dump(alert, file)
        order = sorted(range(len(places)), key=numbers.__getitem__)
        for lap in count() if loop else (0,):
            for i in order:
                file.seek(places[i])
                yield replace(pickle.load(file), lap=lap)  # our own bytes
