"""The command `broker read`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from broker.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from broker.outlets.native import SchemaOf


def read(
    topic: Annotated[str, typer.Argument(help="Any topic that the broker writes.")],
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with servers and registry.")] = None,
    servers: Annotated[str, typer.Option(help="HOST:PORT, if no config is given.")] = "localhost:9092",
    where: Annotated[str | None, typer.Option(help="SQL condition over the fields of the record.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print the number alone.")] = False,
    object_id: Annotated[str | None, typer.Option("--plot", help="Draw this object's light curve instead.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Save to this .parquet or .png file.")] = None,
) -> None:
    """Print what an outlet wrote, a line of JSON each; or count it, or save it; or draw the light curve of an object.

    Example: broker read t2b-classifications --where "probability > 0.9" --limit 5
    """
    from broker import config as settings
    from broker import reading
    from broker.published import Published

    if follow and (count or output is not None):
        raise UsageError("--follow has no end: --count and --output need one")
    suffix = ".parquet" if object_id is None else ".png"
    if output is not None and output.suffix != suffix:
        raise UsageError(f"--output {output}: needs a name that ends in {suffix}")
    if object_id is not None and (follow or count or where is not None or limit is not None):
        raise UsageError("--plot draws the newest alert of an object: it goes with --output alone")
    job = None if config is None else settings.load(config)
    options = {"bootstrap.servers": servers} if job is None else settings.kafka_options(job)
    schema_of = Published(None if job is None else job.output.registry)
    if object_id is not None:
        _draw(options, topic, object_id, schema_of, output)
        return
    found = reading.pick(reading.records(options, topic, follow, schema_of), where)
    if output is not None:
        typer.echo(f"{reading.save(found, output, limit)} records saved to {output}")
    elif count:
        typer.echo(sum(1 for _ in islice(found, limit)))
    else:
        for record in islice(found, limit):
            typer.echo(reading.line(record))


def _draw(options: Mapping[str, str], topic: str, object_id: str, schema_of: SchemaOf, output: Path | None) -> None:
    from broker import plot

    drawn = plot.drawing(options, topic, object_id, schema_of)
    if output is None:
        typer.echo(plot.in_terminal(drawn))
        return
    plot.as_png(drawn, output)
    typer.echo(f"{len(drawn.curve.mjd_tai)} points drawn to {output}")
