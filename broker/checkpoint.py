"""Spark's checkpoint folder, read for the ledger: which batches were planned and committed, over which offsets.

Format as Spark 4.1.1 writes it: `offsets/N` (planned) holds "v1", a line of metadata, one line of JSON per source;
`commits/N` marks it done; `sources/0/0` holds the offsets that the first batch started from, after a zero byte;
`metadata` the query's id. Files that are not numbers (checksums, temporary ones) are Spark's own business.
"""

import json
from dataclasses import dataclass
from pathlib import Path

from broker.errors import LedgerError
from broker.ledger import Offsets, Span, spans


@dataclass(frozen=True)
class Committed:
    """The newest committed batch: its spans, the query's id, when it was planned (ms since 1970).

    `planned` is a later batch that was planned and not committed; Spark runs it again over the very same offsets.
    """

    query: str
    batch: int
    spans: list[Span]
    planned_at_ms: int
    planned: int | None = None


def has_offsets(checkpoint: Path) -> bool:
    """Whether a query has planned a batch here, so that starting offsets no longer count."""
    return bool(_batches(checkpoint / "offsets"))


def initial_offsets(checkpoint: Path) -> Offsets | None:
    """Offsets that the first batch started from, or None while no query has run here."""
    path = checkpoint / "sources" / "0" / "0"
    return _offsets(path, _lines(path)[1]) if path.exists() else None


def committed_batches(checkpoint: Path) -> list[int]:
    """Numbers of the committed batches that Spark still keeps (about 100), ascending."""
    return _batches(checkpoint / "commits")


def committed_spans(checkpoint: Path, number: int | None = None) -> Committed | None:
    """The newest committed batch (or the one of this number), None if there is none yet.

    Raises LedgerError if the folder is not whole.
    """
    committed, planned = _batches(checkpoint / "commits"), _batches(checkpoint / "offsets")
    if not committed:
        return None
    batch = committed[-1] if number is None else number
    planned_at, end = _planned(checkpoint, batch)
    start = initial_offsets(checkpoint) if batch == 0 else _planned(checkpoint, batch - 1)[1]
    if start is None:
        raise LedgerError(f"checkpoint {checkpoint}: sources/0/0 is missing; restore the folder or start a new one")
    later = planned[-1] if planned and planned[-1] > batch else None
    return Committed(query_id(checkpoint), batch, spans(start, end), planned_at, later)


def planned_spans(checkpoint: Path) -> tuple[int, list[Span]] | None:
    """The batch that was planned and not committed, and its spans; None where there is none."""
    planned, committed = _batches(checkpoint / "offsets"), _batches(checkpoint / "commits")
    if not planned or (committed and committed[-1] >= planned[-1]):
        return None
    batch = planned[-1]
    start = initial_offsets(checkpoint) if batch == 0 else _planned(checkpoint, batch - 1)[1]
    return batch, spans(start, _planned(checkpoint, batch)[1])


def next_offsets(checkpoint: Path) -> dict[tuple[str, int], int] | None:
    """Where the next batch begins (the unfinished one, if there is one), by topic and partition; None when all is new.

    Raises LedgerError if the folder is not whole.
    """
    planned, committed, initial = planned_spans(checkpoint), committed_spans(checkpoint), initial_offsets(checkpoint)
    if planned is not None:
        return {(span.topic, span.partition): span.first for span in planned[1]}
    if committed is not None:
        return {(span.topic, span.partition): span.last_exclusive for span in committed.spans}
    if initial is None:
        return None
    return {(topic, int(partition)): first for topic, parts in initial.items() for partition, first in parts.items()}


def newest_planned(checkpoint: Path) -> int | None:
    """Number of the newest batch that was planned, committed or not."""
    planned = _batches(checkpoint / "offsets")
    return planned[-1] if planned else None


def planned_at_ms(checkpoint: Path, batch: int) -> int:
    """When a batch was planned, by the driver's clock, ms since 1970. Raises LedgerError if its entry is not whole."""
    return _planned(checkpoint, batch)[0]


def query_id(checkpoint: Path) -> str:
    """Id of the query that owns the folder. Raises LedgerError if it has none."""
    path = checkpoint / "metadata"
    try:
        return str(json.loads(path.read_text(encoding="utf-8"))["id"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LedgerError(f"checkpoint {path}: no query id: {error}; restore the folder or start a new one") from error


def _batches(folder: Path) -> list[int]:
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def _planned(checkpoint: Path, batch: int) -> tuple[int, Offsets]:
    """When a batch was planned (ms since 1970), and its end."""
    path = checkpoint / "offsets" / str(batch)
    lines = _lines(path)
    if len(lines) != 3:
        raise LedgerError(
            f"checkpoint {path}: offsets of {len(lines) - 2} sources; a query of this broker has exactly one"
        )
    end = _offsets(path, lines[2])
    try:
        planned_at = int(json.loads(lines[1])["batchTimestampMs"])
    except (ValueError, KeyError, TypeError) as error:
        raise LedgerError(
            f"checkpoint {path}: no batchTimestampMs in {lines[1][:100]!r}; restore the folder or start a new one"
        ) from error
    return planned_at, end


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8").lstrip("\0").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LedgerError(
            f"checkpoint {path}: can't be read: {error}; restore the folder or start a new one"
        ) from error
    if len(lines) < 2 or lines[0] != "v1":
        raise LedgerError(
            f"checkpoint {path}: starts with {lines[:1]}, not with 'v1': damaged or from another Spark version"
        )
    return lines


def _offsets(path: Path, line: str) -> Offsets:
    try:
        offsets: Offsets = json.loads(line)
        return {t: {str(int(p)): int(offset) for p, offset in parts.items()} for t, parts in offsets.items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise LedgerError(
            f"checkpoint {path}: offsets are not JSON of topics and partitions: {line[:100]!r}"
        ) from error
