"""The commands `broker dead-letters ...`."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from broker.errors import UsageError

if TYPE_CHECKING:
    from broker.deadletter import Selection

app = typer.Typer(no_args_is_help=True, help="What was rejected, why, and a second try.")
ConfigFile = Annotated[Path, typer.Option("--config", help="TOML file with the settings of the job.")]
SourceName = Annotated[str | None, typer.Option("--source", help="Only alerts of this source.")]
Reason = Annotated[str | None, typer.Option("--reason", help="Only those with this reason.")]
Schema = Annotated[
    str | None,
    typer.Option("--schema", help="Only those whose form on the wire holds this text, such as 1101."),
]
Since = Annotated[str | None, typer.Option("--since", help="Only those written from this time on.")]
out = Console(soft_wrap=True)


def time_of(option: str, text: str | None) -> datetime | None:
    """A time with a zone, from the command line. Raises UsageError."""
    try:
        when = None if text is None else datetime.fromisoformat(text)
    except ValueError:
        when = datetime.min
    if when is not None and when.tzinfo is None:
        raise UsageError(f"{option} {text!r}: needs a time with a zone, such as 2026-11-20T00:00:00Z")
    return when


def _selection(source: str | None, reason: str | None, schema: str | None, since: str | None) -> Selection:
    from broker.deadletter import Selection
    from broker.verdict import REASONS

    if reason is not None and reason not in REASONS["rejected"]:
        raise UsageError(f"--reason {reason!r}: the reasons are {', '.join(REASONS['rejected'])}")
    return Selection(source, reason, schema, time_of("--since", since))


@app.command("list")
def list_letters(
    config: ConfigFile,
    source: SourceName = None,
    reason: Reason = None,
    schema: Schema = None,
    since: Since = None,
    each: Annotated[bool, typer.Option("--each", help="A line per letter, with time, alert and detail.")] = False,
    limit: Annotated[int, typer.Option(min=1, help="With --each: the newest so many.")] = 50,
) -> None:
    """Rejected alerts, counted by hour, source, reason and schema; or each of them.

    Example: broker dead-letters list --config examples/ztf.toml --reason damaged --each --limit 20
    """
    from broker import config as settings
    from broker import deadletter, letter_report

    found = deadletter.letters(settings.load(config), _selection(source, reason, schema, since))
    if each:
        letter_report.show_list(*deadletter.pick(found, limit), out)
    else:
        letter_report.show_groups(letter_report.grouped(found), out)


@app.command("show")
def show_letter(
    config: ConfigFile,
    alert: Annotated[str, typer.Argument(help="source:topic:partition:offset, as in the list.")],
) -> None:
    """One rejected alert: headers, what the present code says of it, its values up to the fault, the bytes around it.

    Example: broker dead-letters show --config examples/ztf.toml ztf:ztf_20261120_programid1:3:81234
    """
    from broker import config as settings
    from broker import deadletter, letter_report
    from broker.dissect import dissect

    loaded = settings.load(config)
    for letter in deadletter.find(loaded, alert):
        parts = dissect(letter.value, deadletter.survey_of_letter(letter, loaded), letter.key)
        letter_report.show(letter, deadletter.second_opinion(letter, loaded), parts, out)


@app.command("replay")
def replay_letters(
    config: ConfigFile,
    source: SourceName = None,
    reason: Reason = None,
    schema: Schema = None,
    since: Since = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would come of it; write nothing.")] = False,
) -> None:
    """Try rejected alerts again by the present code; what it can answer goes to the classifications, once.

    Example: broker dead-letters replay --config examples/ztf.toml --reason schema_unavailable --dry-run
    """
    from broker import config as settings
    from broker import letter_report
    from broker.putback import put_back

    selection = _selection(source, reason, schema, since)
    with Console(stderr=True).status("replaying ...") as status:  # prints nothing where no terminal is
        done = put_back(settings.load(config), selection, dry_run, lambda n: status.update(f"{n} letters"))
    letter_report.show_replay(done, dry_run, out)
