"""The command `broker read`."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Annotated

import typer

from broker.errors import UsageError


def read(
    topic: Annotated[str, typer.Argument(help="Any topic that the broker writes.")],
    config: Annotated[Path | None, typer.Option("--config", help="TOML file with servers and registry.")] = None,
    servers: Annotated[str, typer.Option(help="HOST:PORT, if no config is given.")] = "localhost:9092",
    where: Annotated[str | None, typer.Option(help="SQL condition over the fields of the record.")] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Stop after so many.")] = None,
    follow: Annotated[bool, typer.Option("--follow", help="Go on with what comes, until Ctrl-C.")] = False,
    count: Annotated[bool, typer.Option("--count", help="Print the number alone.")] = False,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Save to this .parquet file.")] = None,
) -> None:
    """Print what an outlet wrote, a line of JSON each; or count it, or save it.

    Example: broker read t2b-classifications --where "probability > 0.9" --limit 5
    """
    from broker import config as settings
    from broker import reading
    from broker.published import Published

    if follow and (count or output is not None):
        raise UsageError("--follow has no end: --count and --output need one")
    if output is not None and output.suffix != ".parquet":
        raise UsageError(f"--output {output}: needs a name that ends in .parquet")
    job = None if config is None else settings.load(config)
    options = {"bootstrap.servers": servers} if job is None else settings.kafka_options(job)
    schema_of = Published(None if job is None else job.output.registry)
    found = reading.pick(reading.records(options, topic, follow, schema_of), where)
    if output is not None:
        typer.echo(f"{reading.save(found, output, limit)} records saved to {output}")
    elif count:
        typer.echo(sum(1 for _ in islice(found, limit)))
    else:
        for record in islice(found, limit):
            typer.echo(reading.line(record))
