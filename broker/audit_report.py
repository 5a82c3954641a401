"""What `broker audit` shows: one table, what does not balance by its offsets, and a last line that says it all."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker.audit import Audit
from broker.errors import UsageError
from broker.ledger import runs
from broker.reconcile import Books, Integers, Outside, Window
from broker.repeats import Again, inside

RUNS_SHOWN = 20
_FAULTS: tuple[tuple[str, Callable[[Books], Integers]], ...] = (
    ("missing, no trace in the ledger", Books.unexplained),
    ("missing, though the ledger has a verdict", lambda books: books.in_ledger),
    ("answered more than once", lambda books: books.repeated),
    ("answered, but not in the ledger", lambda books: books.not_in_ledger),
)
_BEYOND = "answered, but the source never had it (was the topic deleted and made again?)"


def show(audit: Audit, console: Console) -> None:
    """The bounds, the table, the faults, the notes, the last line."""
    for line in _bounds(audit):
        _say(console, line, "")
    console.print(_table(audit))
    for fault, place, offsets in faults(audit):
        found = runs(offsets)
        named = ", ".join(map(_run, found[:RUNS_SHOWN]))
        more = f" and {len(found) - RUNS_SHOWN} more runs (all of them with --json)" if len(found) > RUNS_SHOWN else ""
        _say(console, f"{place}: {fault}: {offsets.size}: {named}{more}", "red")
    for one in audit.outlets:
        told = f"outlet {one.outlet} ({one.topic}): {one.found} of {one.written + one.filtered} verdicts are there"
        if one.is_by_night and one.found < one.written:
            told += f", of {one.written} written: were topics of nights deleted?"
        wrong = f"; the ledger has {one.written} written, {one.n_repeats} records are repeats"
        _say(console, told if one.is_balanced else told + wrong, "" if one.is_balanced else "red")
    for line in _again(audit):
        _say(console, line, "")
    for note in notes(audit):
        _say(console, f"note: {note}", "yellow")
    _say(console, f"{audit.n_records} records read in {audit.seconds:.1f} s", "dim")
    _say(console, last_line(audit), "bold green" if audit.is_balanced else "bold red")


def faults(audit: Audit) -> Iterator[tuple[str, str, Integers]]:
    """What does not balance: the fault, the partition (and hour), the offsets of the alerts."""
    for books in audit.books:
        for fault, offsets_of in _FAULTS:
            offsets = offsets_of(books)
            if offsets.size:
                hour = "" if books.window.hour is None else f" {books.window.hour}"
                yield fault, f"{books.window.place}{hour}", offsets
    for outside in audit.outside:
        if outside.beyond.size:
            yield _BEYOND, str(outside.place), outside.beyond


def last_line(audit: Audit) -> str:
    """Balanced or not, in numbers."""
    offered, holes, expired, answered = (
        sum(n) for n in zip(*((b.window.offered, b.holes, b.expired, b.answered) for b in audit.books), strict=True)
    )
    waiting = sum(b.waiting.size for b in audit.books)
    told = f"{offered} offsets offered, {answered} answered, {holes} holes"
    told += (f", {expired} expired" if expired else "") + (f", {waiting} waiting for a schema" if waiting else "")
    if audit.is_balanced:
        return f"balanced: {told}; no alert without a verdict, none with two"
    missing = sum(b.missing.size for b in audit.books)
    repeats = sum(b.n_repeats for b in audit.books)
    unknown = sum(b.not_in_ledger.size for b in audit.books)
    beyond = sum(o.beyond.size for o in audit.outside)
    outlets = sum(not o.is_balanced for o in audit.outlets)
    parts = [(missing, "missing"), (repeats, "repeated"), (unknown, "not in the ledger"), (beyond, "never offered")]
    parts += [(outlets, "outlets that differ from the ledger")]
    return f"NOT balanced: {told}; " + ", ".join(f"{n} {what}" for n, what in parts if n)


def notes(audit: Audit) -> list[str]:
    """What is no fault, but must be known to judge the table."""
    found = list(audit.notes)
    for window, beside in zip(audit.windows, audit.outside, strict=True):
        if window.first > window.begin:
            found.append(_deleted(window, beside))
        if beside.in_flight:
            found.append(f"{window.place}: {beside.in_flight} answered past the end of the audit: in flight")
        if beside.earlier:
            found.append(f"{window.place}: {beside.earlier} answered before the audit's first offset: not looked at")
    for name, n in sorted(audit.elsewhere.items()):
        found.append(f"{n} records of {name}, which is not audited")
    for topic, strays in audit.strays.items():
        for partition, offsets in sorted(strays.items()):
            found.append(f"{topic}:{partition}: {len(offsets)} records without our headers, first at {offsets[0]}")
    return found


def to_json(audit: Audit) -> dict[str, Any]:
    """Everything, with all runs of offsets as [first, last]."""
    return {
        "audit": 1,
        "balanced": audit.is_balanced,
        "summary": last_line(audit),
        "records": audit.n_records,
        "seconds": round(audit.seconds, 3),
        "models": dict(audit.models),
        "notes": notes(audit),
        "partitions": [_books(books, audit.again) for books in audit.books],
        "outlets": [{**asdict(one), "balanced": one.is_balanced} for one in audit.outlets],
        "again": [_line_of(a) for a in audit.again or ()],
        "beyond": [{**o.place._asdict(), "offsets": runs(o.beyond)} for o in audit.outside if o.beyond.size],
    }


def save(audit: Audit, file: Path) -> None:
    """Write `to_json` to a file. Raises UsageError if it can't be written."""
    try:
        file.write_text(json.dumps(to_json(audit), indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"--json {file}: can't be written: {error.strerror}; give a file in a folder that exists"
        ) from error


def _table(audit: Audit) -> Table:
    """A line per window; the hour, what has expired and what was put back only where there is any."""
    windows = [books.window for books in audit.books]
    by_hour, expired = any(w.hour is not None for w in windows), any(b.expired for b in audit.books)
    put_back = any(b.n_put_back for b in audit.books)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("source")
    table.add_column("topic", overflow="fold")
    for name in ("part.", *(("hour (UTC)",) if by_hour else ()), "offsets"):
        table.add_column(name, no_wrap=True)
    counts = ("offered", "answered", "letters", "waiting", *(("put back",) if put_back else ()), "holes")
    counts += ("expired",) if expired else ()
    for name in (*counts, "missing", "repeated", "no row", *(() if audit.again is None else ("again", "changed"))):
        table.add_column(name, justify="right", no_wrap=True)
    for window, books in zip(windows, audit.books, strict=True):
        span = _run((window.first, window.last_exclusive - 1)) if window.offered else "none"
        right = (window.offered, books.answered, books.n_dead_letters, books.waiting.size)
        right += (*((books.n_put_back,) if put_back else ()), books.holes, *((books.expired,) if expired else ()))
        wrong = (books.missing.size, books.n_repeats, books.not_in_ledger.size)
        again = () if audit.again is None else tuple(o.size for o in _came_again(audit.again, window))
        table.add_row(
            window.place.source,
            Text(window.place.topic),
            str(window.place.partition),
            *((window.hour or "",) if by_hour else ()),
            span,
            *map(str, right),
            *(Text(str(n), "bold red" if n else "") for n in wrong),
            *map(str, again),
        )
    return table


def _came_again(again: list[Again], window: Window) -> tuple[Integers, Integers]:
    return inside(again, window.place, window.first, window.last_exclusive)


def _again(audit: Audit) -> Iterator[str]:
    """Alerts of a source that had one before, each with that one; what a survey sends again is no fault."""
    places = {window.place for window in audit.windows}
    found = [a for a in audit.again or () if a.place in places]
    for a in found[:RUNS_SHOWN]:
        points = "the same points" if a.is_same else "other points"
        yield f"{a.place}:{a.offset}: source {a.source_id} again, after {a.earlier}, {points}"
    if len(found) > RUNS_SHOWN:
        yield f"and {len(found) - RUNS_SHOWN} more alerts of sources that came before (all of them with --json)"


def _bounds(audit: Audit) -> list[str]:
    """From where to where each source is audited, and who says so."""
    told = {(w.place.source, f"from {w.begin_by} to {w.end_by}"): None for w in audit.windows}
    return [f"{source}: {bounds}" for source, bounds in told]


def _books(books: Books, again: list[Again] | None) -> dict[str, Any]:
    window = books.window
    names = ("came_again", "came_again_changed")
    found = {} if again is None else {n: runs(o) for n, o in zip(names, _came_again(again, window), strict=True)}
    return {
        **window.place._asdict(),
        "hour": window.hour,
        "first": window.first,
        "last_exclusive": window.last_exclusive,
        "deleted": window.first - window.begin,
        "begin_by": window.begin_by,
        "end_by": window.end_by,
        "offered": window.offered,
        "answered": books.answered,
        "classifications": books.n_classifications,
        "dead_letters": books.n_dead_letters,
        "waiting_for_a_schema": runs(books.waiting),
        "put_back": books.n_put_back,
        "holes": books.holes,
        "expired": books.expired,
        "balanced": books.is_balanced,
        "missing": runs(books.missing),
        "missing_but_in_ledger": runs(books.in_ledger),
        "repeats": books.n_repeats,
        "repeated": runs(books.repeated),
        "not_in_ledger": runs(books.not_in_ledger),
        **found,
    }


def _line_of(again: Again) -> dict[str, Any]:
    alert = f"{again.place}:{again.offset}"
    return {"source_id": again.source_id, "alert": alert, "after": again.earlier, "same_points": again.is_same}


def _deleted(window: Window, beside: Outside) -> str:
    told = f"{window.place}: retention has deleted {window.first - window.begin} offsets"
    told += f" ({_run((window.begin, window.first - 1))}) of the source"
    n = beside.deleted_unanswered.size
    if not n:
        return f"{told}; all of them are answered"
    booked = f"; the ledger says of {beside.expired} that they expired before they were read" if beside.expired else ""
    return f"{told}; {n} of them have no verdict on the topics any more (or never had a record){booked}"


def _run(run: tuple[int, int]) -> str:
    return str(run[0]) if run[0] == run[1] else f"{run[0]}-{run[1]}"


def _say(console: Console, text: str, style: str) -> None:
    console.print(text, style=style, markup=False, highlight=False)
