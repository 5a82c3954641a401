"""The commands `broker schemas ...`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from broker.errors import UsageError
from broker.lookup import Lookup

app = typer.Typer(no_args_is_help=True, help="Writer schemas that alerts are read by.")
out = Console(soft_wrap=True)
ConfigFile = Annotated[Path | None, typer.Option("--config", help="TOML file with the settings of the job.")]
Url = Annotated[str | None, typer.Option("--registry", help="Address of a registry, in place of the config's.")]


def _lookup(config: Path | None, url: str | None) -> Lookup:
    """[registry] of a config, or a registry by its address. Raises UsageError where its address is none."""
    from broker.config import load

    lookup = load(config).registry if config else Lookup()
    if url is None:
        return lookup
    try:
        return Lookup(**(lookup.model_dump() | {"url": url}))
    except ValueError as error:
        said = str(error).splitlines()[2].strip().removeprefix("Value error, ")
        raise UsageError(f"--registry: {said}") from error


@app.command("list")
def list_schemas(config: ConfigFile = None, registry: Url = None) -> None:
    """Known writer schemas: those of the package, and those in the cache of a registry.

    Example: broker schemas list
    """
    from broker import registry as known
    from broker import surveys
    from broker.registry_client import cached
    from broker.schema_check import origin

    known.learn(cached(_lookup(config, registry)))
    table = Table("survey", "schema", "found by", "from")
    for survey in surveys.NAMES:
        for writer in known.writers(survey):
            by = f"id {writer.schema_id}" if writer.schema_id else f"{len(writer.headers)} container headers"
            table.add_row(survey, writer.label, by if writer.schema_id or writer.headers else "layout", origin(writer))
    out.print(table)


@app.command("fetch")
def fetch(
    ids: Annotated[list[int] | None, typer.Argument(help="Schema ids; none: all versions of the subjects.")] = None,
    config: ConfigFile = None,
    registry: Url = None,
    subject: Annotated[list[str] | None, typer.Option("--subject", help="In place of the config's.")] = None,
) -> None:
    """Fill the cache from a registry, so that the job knows the schemas when it starts.

    Example: broker schemas fetch --registry http://localhost:8081 --subject alert-packet
    """
    from broker.registry_client import RegistryClient

    lookup = _lookup(config, registry)
    if subject:
        lookup = lookup.model_copy(update={"subjects": tuple(subject)})
    if lookup.url is None:
        raise UsageError("which registry? give --registry URL, or a --config with 'url' in [registry]")
    if not ids and not lookup.subjects:
        raise UsageError("which schemas? give schema ids, or --subject, or 'subjects' in [registry] of the config")
    client = RegistryClient(lookup)
    found = [client.fetch(schema_id) for schema_id in ids] if ids else list(client.ask_subjects())
    names = ", ".join(writer.label for writer in found) or "no new schema"
    out.print(f"{names}; the cache is {client.folder}", highlight=False)


@app.command("check")
def check(
    paths: Annotated[list[Path] | None, typer.Argument(help="Files, folders or archives of alerts.")] = None,
    config: ConfigFile = None,
    registry: Url = None,
    newest: Annotated[int, typer.Option(min=1, help="Of each topic of the config: the newest so many alerts.")] = 200,
) -> None:
    """Whether the known schemas read the alerts of files, or of the topics of a config; exit code 3 where not all.

    Example: broker schemas check examples/alerts
    """
    from broker import registry as known
    from broker import schema_check
    from broker.config import kafka_options, load
    from broker.nights import each_night
    from broker.registry_client import cached

    known.learn(cached(_lookup(config, registry)))
    if paths:
        found = schema_check.check(schema_check.of_files(paths))
    elif config:
        settings = load(config)
        found = sum(
            (
                schema_check.check(schema_check.of_topic(kafka_options(settings), topic, newest), source.survey)
                for source in settings.sources
                for part in each_night(source, kafka_options(settings), datetime.now(UTC), [])
                for topic in part.topics
            ),
            start=type(schema_check.check([]))(),
        )
    else:
        raise UsageError("check what? give files or folders, or a --config whose topics are meant")
    table = Table("survey", "schema", "alerts", "read")
    for (survey, schema, answer), n in sorted(found.items()):
        table.add_row(survey, schema, f"{n:,}", answer)
    out.print(table)
    if any(answer != "ok" for _, _, answer in found):
        raise typer.Exit(3)
