"""The command `broker`. Each command is a few lines; the work is in the modules."""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from broker import __version__
from broker.cli_letters import app as letters_app
from broker.cli_letters import time_of
from broker.cli_read import read
from broker.cli_replay import repeat, replay
from broker.cli_schemas import app as schemas_app
from broker.errors import BrokerError, UsageError

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")
config_app = typer.Typer(no_args_is_help=True, help="Settings in force and where each comes from.")
models_app = typer.Typer(no_args_is_help=True, help="Released models and their cards.")
app.command()(replay)
app.command()(repeat)
app.add_typer(config_app, name="config")
app.add_typer(letters_app, name="dead-letters")
app.add_typer(models_app, name="models")
app.command()(read)
app.add_typer(schemas_app, name="schemas")

out = Console(soft_wrap=True)
ConfigFile = Annotated[Path, typer.Option("--config", help="TOML file with the settings of the job.")]


def main(args: list[str] | None = None) -> None:
    """Entry point, for the command line's own arguments unless some are given.

    Errors become one message and an exit code (2 wrong usage or configuration, 3 failure).
    """
    try:
        app(args)
    except BrokerError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False, highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)


def log_to_terminal(level: int = logging.INFO) -> None:
    """The log of our own modules, line by line, to standard error."""
    handler = logging.StreamHandler()  # one line stays one line: these are read by grep as well as by people
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    logger = logging.getLogger("broker")
    logger.setLevel(level)
    logger.addHandler(handler)
    logger.propagate = False


@letters_app.callback()
def _log_of_letters() -> None:
    log_to_terminal(logging.WARNING)


@app.callback(invoke_without_command=True)
def version(show: Annotated[bool, typer.Option("--version", help="Print the version and end.")] = False) -> None:
    """Classify astronomical alerts of ZTF, LSST and ELAsTiCC: topics in, topics out, every alert accounted for."""
    if show:
        out.print(__version__, highlight=False)
        raise typer.Exit


@app.command()
def run(
    config: ConfigFile,
    once: Annotated[bool, typer.Option("--once", help="End when what is on the topics now has been answered.")] = False,
) -> None:
    """The streaming job: alerts from topics, classifications to topics, until stopped (Ctrl-C or SIGTERM).

    Example: broker run --config examples/ztf.toml
    """
    from broker import config as settings
    from broker.service import Service

    log_to_terminal()
    counts = Service(settings.load(config), once).run()
    out.print(
        f"{counts.total()} alerts answered: " + (", ".join(f"{k} {n}" for k, n in counts.most_common()) or "none")
    )


@app.command()
def health(
    config: ConfigFile,
    ready: Annotated[
        bool, typer.Option("--ready", help="Ask too whether all queries run and the books balance.")
    ] = False,
    within: Annotated[float, typer.Option(help="Seconds since the job last wrote its file.")] = 60.0,
) -> None:
    """For probes: exit code 0 where the job of this config is alive, 3 with the reason where it isn't.

    Example: broker health --config examples/demo.toml --ready
    """
    from broker import config as settings
    from broker.health import complaint

    file = settings.load(config).service.health_file
    if file is None:
        raise UsageError(f"{config}: [service] has no health_file, so the job writes none; give one")
    if (why := complaint(file, within, ready)) is not None:
        raise BrokerError(why)
    out.print("ready" if ready else "alive")


@app.command()
def classify(
    paths: Annotated[list[Path], typer.Argument(help="Files and folders: Avro, tar, gz, Parquet, light curves.")],
    output: Annotated[
        str, typer.Option("-o", "--output", help="FILE.parquet, .avro or .jsonl; '-' prints a table.")
    ] = "-",
    summary: Annotated[Path | None, typer.Option(help="Write the counts as JSON to this file.")] = None,
    model: Annotated[str, typer.Option(help="A released model, or a model folder.")] = "t2b-1",
    master: Annotated[str, typer.Option(help="Spark master.")] = "local[*]",
    unit: Annotated[str | None, typer.Option(help="Unit of light curves' fluxes: nJy, uJy, mJy, Jy, FLUXCAL.")] = None,
    zero_point: Annotated[float | None, typer.Option(help="In place of --unit: AB magnitude of flux 1.")] = None,
    bands: Annotated[str | None, typer.Option(help="Whose letters curves use: lsst, ztf, ps1, des, sdss.")] = None,
) -> None:
    """Classify alerts or plain light curves in files, without Kafka. What they hold is found from the content.

    Example: broker classify examples/alerts -o verdicts.parquet
    """
    from broker.files import classify_files
    from broker.tables import Hints

    log_to_terminal(logging.WARNING)
    classify_files(paths, output, summary, model, master, Hints(unit, zero_point, bands))


@app.command()
def evaluate(
    dataset: Annotated[Path, typer.Argument(help="Folder with lightcurves.parquet and metadata.parquet.")],
    model: Annotated[
        list[str] | None, typer.Option(help="Released model or folder; give it as often as needed.")
    ] = None,
    detections: Annotated[str, typer.Option(help="Packets by number of detections.")] = "1,2,3,5,10,all",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.")] = None,
    label_column: Annotated[str | None, typer.Option(help="Column of classes; found by name if not given.")] = None,
    survey: Annotated[
        str | None, typer.Option(help="lsst or ztf: length of packets, thresholds; else by bands.")
    ] = None,
    zero_point: Annotated[float | None, typer.Option(help="AB magnitude of flux 1; found if not given.")] = None,
    bands: Annotated[
        str | None, typer.Option(help="Whose letters: lsst, ztf, ps1, des, sdss; found if not given.")
    ] = None,
    band: Annotated[list[str] | None, typer.Option(help="One passband, as V=ztf-g; as often as needed.")] = None,
    subtract_median: Annotated[bool, typer.Option("--subtract-median", help="Total fluxes: subtract medians.")] = False,
    prior: Annotated[str, typer.Option(help="Shares for purity: set, flat or SNIa=0.7,SNII=0.3.")] = "set",
    held_out: Annotated[bool, typer.Option("--held-out", help="Only objects of the model's test side.")] = False,
) -> None:
    """Figures of models on a labelled set of light curves, by detections, nights and days.

    Example: broker evaluate datasets/spcc --held-out --json figures.json
    """
    from broker.evaluate import check_output, save, show
    from broker.evaluate import evaluate as measure
    from broker.labelled import Options

    if json_file is not None:
        check_output(json_file)
    named = dict(item.partition("=")[::2] for item in band or ())
    options = Options(label_column, survey, zero_point, bands, named, subtract_median)
    wanted = tuple(part.strip() for part in detections.split(","))
    figures = measure(dataset, model or ["t2b-1"], options, wanted, prior, held_out=held_out)
    if json_file is not None:
        save(figures, json_file)
    show(figures, out)


@app.command()
def demo(
    alerts: Annotated[Path, typer.Option(help="Folder of sample alerts.")] = Path("examples/alerts"),
    output: Annotated[Path, typer.Option(help="Folder for what comes out.")] = Path("demo-output"),
) -> None:
    """Everything at once, on this machine: Kafka, a replay of real alerts, the job, and its answers. Ends by itself.

    Example: broker demo
    """
    from broker.demo import run_demo

    log_to_terminal()
    run_demo(alerts, output, out)


@app.command()
def kafka(
    port: Annotated[int | None, typer.Option(help="Port to listen on; a free one if not given.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Where the data stays; a temporary folder if not given.")] = None,
    host: Annotated[str, typer.Option(help="Name that clients are told to connect to.")] = "127.0.0.1",
    topic: Annotated[
        list[str] | None, typer.Option(help="Make this topic, with one partition; give it as often as needed.")
    ] = None,
) -> None:
    """A single-node Kafka for development, until Ctrl-C.

    Example: broker kafka --port 9092 --topic ztf_demo_programid1
    """
    from broker.embedded import serve

    serve(port, folder, host, dict.fromkeys(topic or (), 1))


@app.command()
def audit(
    config: ConfigFile,
    source: Annotated[list[str] | None, typer.Option(help="This source alone; give it as often as needed.")] = None,
    since: Annotated[str | None, typer.Option(help="Alerts from this time on, by Kafka's time stamps.")] = None,
    until: Annotated[str | None, typer.Option(help="Alerts before this time.")] = None,
    by_hour: Annotated[bool, typer.Option("--by-hour", help="A line per hour of the alerts.")] = False,
    repeats: Annotated[bool, typer.Option("--repeats", help="Find sources that the survey has sent again.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file.")] = None,
) -> None:
    """Check from the topics alone that every alert has exactly one verdict; exit code 3 where that does not hold.

    Example: broker audit --config examples/ztf.toml --since 2026-11-20T00:00:00Z --json audit.json
    """
    from broker import audit_report
    from broker import config as settings
    from broker.audit import audit as reconcile

    log_to_terminal(logging.WARNING)
    loaded = settings.load(config)
    known = {s.name for s in loaded.sources}
    if unknown := sorted(set(source or ()) - known):
        raise UsageError(f"--source {unknown[0]}: not in {config}; its sources are {', '.join(sorted(known))}")
    with Console(stderr=True).status("reading ...") as status:
        found = reconcile(
            loaded,
            source or (),
            time_of("--since", since),
            time_of("--until", until),
            by_hour,
            lambda topic, n: status.update(f"{topic}: {n} records"),
            repeats,
        )
    if json_file is not None:
        audit_report.save(found, json_file)
    audit_report.show(found, out)
    if not found.is_balanced:
        raise typer.Exit(3)


@config_app.command("show")
def config_show(config: ConfigFile) -> None:
    """Every setting in force and where it comes from; secrets are masked.

    Example: broker config show --config examples/ztf.toml
    """
    from broker import config as settings

    table = Table(box=None)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("from", no_wrap=True)
    for row in settings.effective(settings.load(config)):
        table.add_row(*map(Text, row))  # as text: keys hold brackets, which rich would take for markup
    out.print(table)


@config_app.command("check")
def config_check(config: ConfigFile) -> None:
    """Check a config file and the model it names.

    Example: broker config check --config examples/ztf.toml
    """
    from broker import config as settings
    from broker.job import check_outlets

    loaded = settings.load(config)
    card = check_outlets(loaded)
    n = f"{len(loaded.sources)} source(s), " + (f"{len(loaded.outlets)} outlet(s), " if loaded.outlets else "")
    out.print(f"{config}: fine; {n}model {card.name}@{card.version}")


@models_app.command("list")
def models_list() -> None:
    """Released models.

    Example: broker models list
    """
    from broker import model as models

    table = Table("model", "version", "classes", "longest light curve", "sha256")
    for card in models.released():
        names = ", ".join(c.name for c in card.classes)
        table.add_row(card.name, card.version, names, str(card.max_points), card.sha256[:12])
    out.print(table)


@models_app.command("show")
def models_show(name: Annotated[str, typer.Argument(help="A released model, or a model folder.")] = "t2b-1") -> None:
    """The card of a model: classes, training data, held-out figures, weaknesses.

    Example: broker models show t2b-1
    """
    from broker import model as models

    out.print((models.find(name) / models.CARD_FILE).read_text(), highlight=False, markup=False)


@models_app.command("compare")
def models_compare(
    here: Annotated[str, typer.Argument(help="FILE of classify, or HOST:PORT/TOPIC,TOPIC of the job.")],
    there: Annotated[str, typer.Argument(help="Another one, of the same alerts.")],
    config: Annotated[Path | None, typer.Option(help="TOML file with login, options and registry.")] = None,
) -> None:
    """Compare two sets of verdicts bit for bit: live and replayed, or of two models; exit code 3 where they differ.

    Example: broker models compare verdicts.parquet localhost:9092/t2b-classifications
    """
    from broker import config as settings
    from broker.compare import compare, show
    from broker.published import Published

    job = None if config is None else settings.load(config)
    options = {} if job is None else settings.kafka_options(job)
    found = compare(here, there, options, Published(None if job is None else job.output.registry))
    show(found, here, there, out)
    if not found.is_same:
        raise typer.Exit(3)
