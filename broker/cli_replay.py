"""The commands `broker replay` and `broker repeat`."""

from __future__ import annotations

import time
from itertools import islice
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from broker.errors import UsageError


def replay(
    paths: Annotated[list[str], typer.Argument(help="Files and folders of alerts, or HOST:PORT/TOPIC.")],
    to: Annotated[str, typer.Option("--to", help="HOST:PORT/TOPIC; the topic must exist.")],
    rate: Annotated[float | None, typer.Option(help="Alerts per second; else as fast as Kafka takes them.")] = None,
    speed: Annotated[float | None, typer.Option(help="So many times as fast as the sources were observed.")] = None,
    visits: Annotated[int | None, typer.Option(help="So many alerts in 5 s of every 39, as Rubin sends.")] = None,
    order: Annotated[
        Literal["arrival", "observation"], typer.Option(help="As they lie there, or by time of the source.")
    ] = "arrival",
    since: Annotated[str | None, typer.Option(help="Sources from this time or night on.")] = None,
    until: Annotated[str | None, typer.Option(help="Sources before this time, or to the end of this night.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="So many alerts in all.")] = None,
    loop: Annotated[bool, typer.Option("--loop", help="Begin again at the end, until Ctrl-C or --limit.")] = False,
    framed: Annotated[int | None, typer.Option(min=0, help="Put each alert into a frame of this schema id.")] = None,
    registry: Annotated[
        str | None, typer.Option(help="URL of a registry: frames of the ids that it gives the alerts' schemas.")
    ] = None,
    unframed: Annotated[bool, typer.Option("--unframed", help="Make containers of frames, as ZTF sends.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on where the same replay stopped.")] = False,
    create: Annotated[int | None, typer.Option(min=1, help="Make a missing topic with so many partitions.")] = None,
    config: Annotated[Path | None, typer.Option(help="TOML file whose [kafka] has the login and options.")] = None,
) -> None:
    """Put an archive, or what is on a topic, onto a Kafka topic: bytes, keys and headers as they were.

    Example: broker replay examples/alerts/ztf.tar.gz --to localhost:9092/ztf_20260310_programid1 --rate 100
    """
    from broker.bookmark import Bookmark
    from broker.observed import moment
    from broker.pace import pace_of
    from broker.playlist import Wish, play
    from broker.published import Publisher
    from broker.replay import Replayed
    from broker.replay import replay as send
    from broker.topics import check_topics

    servers, _, topic = to.partition("/")
    if not topic:
        raise UsageError(f"--to {to!r}: needs HOST:PORT/TOPIC, such as localhost:9092/ztf_20260310_programid1")
    if (framed is not None) + (registry is not None) + unframed > 1:
        raise UsageError("--framed, --registry and --unframed: give one of them")
    pace = pace_of(rate, speed, visits)
    wish = Wish(
        tuple(paths), order, moment("--since", since), moment("--until", until), limit, loop, framed, unframed,
        None if registry is None else Publisher(registry, topic), needs_times=speed is not None,
    )  # fmt: skip
    options = _options(config) | {"bootstrap.servers": servers}
    terminal = Console(stderr=True)
    # What is sent, and in which order; the pace may change on the way.
    about = [[str(Path(p).absolute()) for p in paths], order, since, until, framed, registry, unframed]
    with Bookmark(to, about) as bookmark:
        n_before = _n_before(bookmark.read(), resume, terminal)
        if create is not None:
            check_topics(options, [topic], create=True, partitions=create)
        progress = _Progress(terminal)
        with progress.status:  # prints nothing where no terminal is
            frames = islice(play(wish, options), n_before, None)
            due = None if pace is None else pace.due
            sent: Replayed = send(
                frames, options, topic, progress=progress.tell, due=due, note=bookmark, n_before=n_before
            )
        if not sent.was_interrupted:
            bookmark.remove()
    what = "interrupted; sent" if sent.was_interrupted else "sent"
    per_s = sent.n / sent.seconds if sent.seconds > 0 else 0.0
    out = Console(soft_wrap=True)
    out.print(
        f"{what} {sent.n} alerts, {sent.n_bytes / 1e6:.1f} MB in {sent.seconds:.1f} s, {per_s:.0f} alerts/s; "
        f"last: {sent.last or 'none'}" + ("; --resume goes on behind it" if sent.was_interrupted and sent.n else ""),
        markup=False,
    )


def repeat(
    config: Annotated[Path, typer.Option("--config", help="TOML file with the settings of the live job.")],
    into: Annotated[str, typer.Option(help="Start of the names of its output topics.")],
    since: Annotated[str | None, typer.Option(help="Alerts from this time or these offsets on; else all.")] = None,
    until: Annotated[str | None, typer.Option(help="Alerts before this time or these offsets; else up to now.")] = None,
    source: Annotated[list[str] | None, typer.Option(help="This source alone; as often as needed.")] = None,
    folder: Annotated[
        Path | None, typer.Option(help="Folder of its checkpoints; else named as --into, beside the config.")
    ] = None,
) -> None:
    """The job over a part of its topics once more, with output topics and checkpoints of its own.

    Example: broker repeat --config examples/ztf.toml --into again --since 2026-11-20T00:00:00Z
    """
    from broker import config as settings
    from broker.cli import log_to_terminal
    from broker.part import Part, is_done, prepare

    log_to_terminal()
    loaded = settings.load(config)
    place = folder or config.absolute().parent / f"repeat-{into}"
    part, ends = prepare(loaded, into, place, tuple(source or ()), since, until)
    out = Console(soft_wrap=True)
    if all(is_done(s.checkpoint, ends[s.name]) for s in part.sources):
        out.print(f"done already; to do it again, give another --into or remove {place}", markup=False)
        return
    counts = Part(part, ends).run()
    told = ", ".join(f"{reason} {n}" for reason, n in counts.most_common()) or "none"
    out.print(f"{counts.total()} alerts answered into {into}-classifications: {told}", markup=False)


def _options(config: Path | None) -> dict[str, str]:
    from broker.config import kafka_options, load

    return {} if config is None else kafka_options(load(config))


def _n_before(left: tuple[int, str] | None, resume: bool, terminal: Console) -> int:
    """How many alerts an earlier replay of the same sent, where it is to be resumed."""
    if resume and left is None:
        raise UsageError("--resume: no replay of these alerts to this topic has stopped half-way on this machine")
    if left is None:
        return 0
    said = "resumes" if resume else "an earlier replay stopped (--resume goes on there)"
    terminal.print(f"{said} behind alert {left[0]}, {left[1]}", markup=False, highlight=False, soft_wrap=True)
    return left[0] if resume else 0


class _Progress:
    """A line on a terminal: alerts and bytes so far, and the rate of the last seconds."""

    def __init__(self, terminal: Console) -> None:
        self.status = terminal.status("replaying ...")
        self._marks = [(time.monotonic(), 0)]

    def tell(self, n: int, n_bytes: int) -> None:
        """Alerts and bytes acknowledged."""
        now = time.monotonic()
        self._marks = [mark for mark in self._marks if now - mark[0] < 5] or self._marks[-1:]
        began, before = self._marks[0]
        per_s = (n - before) / (now - began) if now > began else 0.0
        self._marks.append((now, n))
        self.status.update(f"{n} alerts, {n_bytes / 1e6:.1f} MB, {per_s:.0f} alerts/s")
