"""Alerts in files: containers, Confluent frames and bare bodies, packed or not, shaped like Kafka's records.

In folders and tar archives, files named *.avro and *.bin (also with .gz) hold alerts, *.tar, *.tar.gz and *.tgz hold
such files; all else is passed over. What a file is shows in its bytes, not in its name; a file given by name is always
read. Memory stays flat: nothing is unpacked beyond its limit.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, cast

from broker import container
from broker.errors import ArchiveError
from broker.recognise import survey_of_schema, survey_of_value
from broker.registry import Writer
from broker.wire import CONTAINER_MAGIC

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

ALERT_SUFFIXES = (".avro", ".avro.gz", ".bin", ".bin.gz")
PACKED_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_GZIP_MAGIC = b"\x1f\x8b"
_BAD_PACKING = (EOFError, gzip.BadGzipFile, zlib.error, tarfile.TarError)
_TAR_HEADER_BYTES = 512
_MAX_TAR_NAME_BYTES = 2**16
_LOOK_AT = 10  # alerts that survey_of reads


@dataclass(frozen=True)
class Frame:
    """One alert as it came, shaped like a Kafka record.

    topic: path relative to the argument, with the member's name for an archive; partition is 0; offset is the number
    of the record within that file or member. A value longer than max_alert_bytes is cut one byte behind the limit.
    """

    key: bytes | None
    value: bytes | None
    headers: list[tuple[str, bytes]]
    topic: str
    partition: int
    offset: int
    timestamp: datetime | None = None


def _frame(value: bytes, topic: str, offset: int) -> Frame:
    return Frame(None, value, [], topic, 0, offset)


# --- which files --------------------------------------------------------------------------------------------------


def find_files(paths: Sequence[Path], suffixes: tuple[str, ...] = ALERT_SUFFIXES + PACKED_SUFFIXES) -> list[Path]:
    """The files given, and those below the folders given by their suffix, sorted; each file once.

    Hidden files are passed over; symbolic links are followed, into no folder twice. Raises ArchiveError: a path does
    not exist, or a folder holds no such file.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if path.is_dir():
            files = [file for file in _walk(path) if file.name.endswith(suffixes)]
            if not files:
                raise ArchiveError(f"folder {path} holds no file named {', '.join('*' + s for s in suffixes)}")
        elif path.exists():
            files = [path]
        else:
            raise ArchiveError(f"no file or folder {path}: check the path")
        for file in files:
            found.setdefault(file.resolve(), file)
    return list(found.values())


def _walk(folder: Path) -> Iterator[Path]:
    """Files below a folder, sorted by their path."""
    seen: set[Path] = set()
    for name, folders, files in os.walk(folder, followlinks=True):
        here = Path(name)
        if here.resolve() in seen:
            folders.clear()
            continue
        seen.add(here.resolve())
        folders[:] = sorted(f for f in folders if not f.startswith("."))
        yield from (here / file for file in sorted(files) if not file.startswith("."))


# --- one file -----------------------------------------------------------------------------------------------------


def read_frames(path: Path, root: Path, max_alert_bytes: int) -> Iterator[Frame]:
    """Every alert of a file, in order. root: the argument that the file was found under (or the file itself).

    Raises ArchiveError, after the alerts that were whole: the file can't be opened, ends too early, or holds none.
    """
    topic = path.name if root == path else path.relative_to(root).as_posix()
    n_frames = 0
    try:
        with path.open("rb") as file:
            for frame in _of_file(file, topic, max_alert_bytes):
                yield frame
                n_frames += 1
    except OSError as error:
        if isinstance(error, gzip.BadGzipFile):
            raise _failure(path, n_frames, str(error)) from error
        raise _failure(path, n_frames, error.strerror or str(error)) from error
    except (*_BAD_PACKING, container.Unreadable) as error:
        raise _failure(path, n_frames, str(error) or type(error).__name__) from error
    if n_frames == 0:
        raise _failure(path, 0, f"it holds no file named {', '.join('*' + s for s in ALERT_SUFFIXES)}")


def _failure(path: Path, n_frames: int, why: str) -> ArchiveError:
    return ArchiveError(f"{path}: {why}; {n_frames} alerts of it were read")


def _of_file(file: BinaryIO, topic: str, max_bytes: int) -> Iterator[Frame]:
    """Alerts of an open file: unpacks gzip, opens tar, takes containers apart."""
    start = file.read(len(_GZIP_MAGIC))
    plain: BinaryIO = io.BufferedReader(_Joined(start, file))
    if start == _GZIP_MAGIC:
        plain = cast(BinaryIO, gzip.GzipFile(fileobj=plain))
    start = plain.read(_TAR_HEADER_BYTES)
    plain = io.BufferedReader(_Joined(start, plain))
    if start[257:262] == b"ustar":
        yield from _of_tar(plain, topic, max_bytes)
        return
    head = plain.read(max_bytes + 1)
    if len(head) <= max_bytes or not head.startswith(CONTAINER_MAGIC):
        yield from _of_bytes(head, topic, max_bytes, is_member=False)
    else:
        yield from _of_long_container(head, plain, topic)


def _of_tar(file: BinaryIO, topic: str, max_bytes: int) -> Iterator[Frame]:
    """Alerts of a tar archive's members, as a stream. A damaged member stops none of the others."""
    with tarfile.open(fileobj=file, mode="r|", tarinfo=_Member) as archive:
        while (member := archive.next()) is not None:
            # They would pile up, some kB for each of a night's 300,000 alerts.
            archive.members.clear()  # type: ignore[attr-defined]  # not in typeshed
            name = member.name.rpartition("/")[2]
            content = archive.extractfile(member) if member.isfile() else None
            if content is None or name.startswith(".") or not name.endswith(ALERT_SUFFIXES):
                continue
            wanted = min(member.size, max_bytes + 1)
            data = content.read(wanted)
            if len(data) < wanted:
                raise tarfile.ReadError(f"ends within its member {member.name}")
            if data.startswith(_GZIP_MAGIC):
                data = _unpacked(data, max_bytes)
            yield from _of_bytes(data, f"{topic}/{member.name}", max_bytes, is_member=True)


class _Member(tarfile.TarInfo):
    """A member whose long name may not ask for gigabytes, as tarfile would grant it."""

    def _proc_member(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        about_names = self.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)
        about_names |= self.type in (tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if about_names and self.size > _MAX_TAR_NAME_BYTES:
            raise tarfile.ReadError(f"a member's name or attributes take {self.size} bytes")
        proceed = super()._proc_member  # type: ignore[misc]  # not in typeshed; tarfile calls it for every member
        return cast(tarfile.TarInfo, proceed(archive))


def _unpacked(data: bytes, max_bytes: int) -> bytes:
    """A gzipped member's bytes, at most max_bytes + 1; as they are where they don't unpack: they will be refused."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
            return file.read(max_bytes + 1)
    except _BAD_PACKING:
        return data


def _of_bytes(data: bytes, topic: str, max_bytes: int, is_member: bool) -> Iterator[Frame]:
    """The alerts of one file's or member's bytes. What can't be taken apart is passed on whole: it will be refused.

    Damage behind whole records: a file raises Unreadable, a member yields the damaged rest as one more frame.
    """
    if not data.startswith(CONTAINER_MAGIC) or len(data) > max_bytes:
        yield _frame(data, topic, 0)
        return
    n_frames = 0
    try:
        header, end = container.read_header(data)
        if container.is_single(header, data[end:]):
            yield _frame(data, topic, 0)
            return
        for record in container.records(header, io.BytesIO(data[end:])):
            yield _frame(header.wrap(record), topic, n_frames)
            n_frames += 1
    except container.Unreadable:
        if n_frames and not is_member:
            raise
        yield _frame(data, topic, n_frames)
        return
    if n_frames == 0:
        yield _frame(data, topic, 0)  # a container without a record


def _of_long_container(head: bytes, rest: BinaryIO, topic: str) -> Iterator[Frame]:
    """The alerts of a container longer than one alert may be, block by block."""
    n_frames = 0
    try:
        header, end = container.read_header(head)
        for record in container.records(header, io.BufferedReader(_Joined(head[end:], rest))):
            yield _frame(header.wrap(record), topic, n_frames)
            n_frames += 1
    except container.Unreadable:
        if n_frames:
            raise
        yield _frame(head, topic, 0)


class _Joined(io.RawIOBase):
    """Bytes already read from a stream, and the rest of it."""

    def __init__(self, start: bytes, rest: BinaryIO) -> None:
        self._start, self._rest = io.BytesIO(start), rest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: ReadableBuffer) -> int:
        """Fill the buffer as far as one read goes; 0 at the end."""
        view = memoryview(buffer)
        data = self._start.read(len(view)) or self._rest.read(len(view))
        view[: len(data)] = data
        return len(data)


# --- schemas beside them ------------------------------------------------------------------------------------------


def schemas_beside(folders: Sequence[Path]) -> tuple[list[Writer], list[tuple[Path, str]]]:
    """Writer schemas of LSST in the files ID.json and ID.avsc below the folders; and those files that hold none.

    A file holds the schema itself or a registry's answer, {"schema": "..."}. They are for `registry.learn`.
    """
    found: list[Writer] = []
    failed: list[tuple[Path, str]] = []
    for path in (file for folder in folders if folder.is_dir() for file in _walk(folder)):
        if path.suffix not in (".json", ".avsc") or not path.stem.isascii() or not path.stem.isdigit():
            continue
        schema_id = int(path.stem)
        try:
            told = json.loads(path.read_text(encoding="utf-8"))
            text = (
                told["schema"] if isinstance(told, dict) and isinstance(told.get("schema"), str) else json.dumps(told)
            )
            container.walkable(text)
            survey = survey_of_schema(json.loads(text))
        except (OSError, ValueError, RecursionError, container.Unreadable) as error:
            failed.append((path, f"is no Avro schema: {error}"))
            continue
        if survey == "lsst":
            found.append(Writer(str(schema_id), text, schema_id))
    return found, failed


# --- whose alerts -------------------------------------------------------------------------------------------------


def survey_of(path: Path, max_alert_bytes: int = 16_777_216) -> str | None:
    """lsst, ztf or elasticc, by what is in a file's first alerts; None where none of the first ten tells."""
    try:
        for number, frame in enumerate(read_frames(path, path, max_alert_bytes), start=1):
            survey = survey_of_value(frame.value or b"")
            if survey is not None or number == _LOOK_AT:
                return survey
    except ArchiveError:
        return None
    return None
