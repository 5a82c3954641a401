"""Every command told something wrong: exit code 2 and a line that says what, or 3 for a file that is of no use.

In this process, by the entry point that the installed command calls; nothing here reaches for Kafka or Spark.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from running import write_config
from samples import ALERTS, whole

from broker import model as models
from broker.cli import main
from broker.verdict import REASONS

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    """Commands send our log to the terminal; the next test gets it as it was."""
    logger = logging.getLogger("broker")
    before = logger.handlers[:], logger.level, logger.propagate
    yield
    logger.handlers[:], logger.level, logger.propagate = before


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Run `broker ARGS`: exit code, standard output, standard error, white space and frames of tables left out."""
    monkeypatch.setenv("COLUMNS", "250")
    monkeypatch.setenv("TERMINAL_WIDTH", "250")
    monkeypatch.setenv("T2_BROKER_CACHE", str(tmp_path / "cache"))

    def run_it(*args: str | Path) -> tuple[int, str, str]:
        try:
            main([*map(str, args)])
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        told = capsys.readouterr()
        out, errors = (" ".join(text.replace("│", " ").split()) for text in told)
        return code, out, errors

    return run_it


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """A sound config of a Kafka that is not there."""
    source = {"name": "night", "survey": "ztf", "topics": ["in"]}
    return write_config(tmp_path, "127.0.0.1:9", [source])


# --- what the command line itself refuses ---------------------------------------------------------------------------

WRONG_USAGE = {
    "jog": "no such command 'jog'",
    "models jog": "no such command 'jog'",
    "config jog": "no such command 'jog'",
    "run": "missing option '--config'",
    "run --config x --twice": "no such option: --twice",
    "health": "missing option '--config'",
    "health --config x --within soon": "invalid value for '--within'",
    "classify": "missing argument 'paths",
    "classify x --zero-point bright": "invalid value for '--zero-point'",
    "evaluate": "missing argument 'dataset",
    "kafka --port http": "invalid value for '--port'",
    "audit": "missing option '--config'",
    "config show": "missing option '--config'",
    "config check": "missing option '--config'",
    "models compare a.avro": "missing argument 'there",
    "models list t2b-1": "unexpected extra argument",
    "dead-letters list": "missing option '--config'",
    "dead-letters list --config x --limit 0": "invalid value for '--limit'",
    "dead-letters show --config x": "missing argument 'alert",
    "dead-letters replay": "missing option '--config'",
    "schemas fetch one": "invalid value for 'ids'",
    "schemas check --newest 0": "invalid value for '--newest'",
    "read": "missing argument 'topic",
    "read x --limit 0": "invalid value for '--limit'",
    "replay x": "missing option '--to'",
    "replay --to h:1/t": "missing argument 'paths",
    "replay x --to h:1/t --order random": "invalid value for '--order'",
    "replay x --to h:1/t --limit 0": "invalid value for '--limit'",
    "replay x --to h:1/t --framed -1": "invalid value for '--framed'",
    "replay x --to h:1/t --create 0": "invalid value for '--create'",
    "replay x --to h:1/t --rate fast": "invalid value for '--rate'",
    "replay x --to h:1/t --visits 2.5": "invalid value for '--visits'",
    "repeat --config x": "missing option '--into'",
    "repeat --into x": "missing option '--config'",
}


@pytest.mark.parametrize("line", WRONG_USAGE)
def test_a_wrong_command_line_is_told_with_the_way_to_the_help(run: Run, line: str) -> None:
    code, out, told = run(*line.split())
    assert code == 2
    assert WRONG_USAGE[line] in told.lower()
    assert "--help" in told
    assert out == ""


# --- what the commands refuse ---------------------------------------------------------------------------------------

WRONG_VALUES = {
    "classify nowhere.avro": "nowhere.avro: no such file or folder",
    "classify {alert} -o verdicts.fits": "ends in '.fits'; .parquet, .avro and .jsonl are written",
    "classify {alert} -o verdicts": "ends in ''; .parquet, .avro and .jsonl are written",
    "classify {alert} -o {folder}/none/a.avro": "there is no folder {folder}/none",
    "classify {alert} --unit erg": "--unit 'erg': one of nJy, uJy, mJy, Jy, FLUXCAL",
    "classify {alert} --bands 2mass": "--bands '2mass': lsst, ztf, ps1, des, sdss are known",
    "classify {alert} --unit nJy --zero-point 31.4": "--unit and --zero-point are both given",
    "classify {alert} --model t2b-0": "no model 't2b-0': neither a released one (t2-paper, t2b-1, t2b-1-open) nor a",
    "evaluate {folder} --json {folder}": "needs a file name in a folder that exists",
    "evaluate {folder} --json {folder}/none/a.json": "needs a file name in a folder that exists",
    "evaluate {folder} --survey hst": "--survey 'hst': lsst and ztf are known",
    "evaluate {folder} --bands hst": "--bands 'hst': lsst, ztf, ps1, des, sdss are known",
    "evaluate {folder} --band V=johnson-v": "--band: johnson-v is no band; there are lsst-u",
    "evaluate {folder} --zero-point 99": "--zero-point 99: an AB magnitude",
    "evaluate {folder} --model none": "no model 'none'",
    "models show none": "no model 'none'",
    "models compare verdicts.fits {alert}": "a set of verdicts is a file .parquet, .avro or .jsonl, or HOST:PORT/TOPIC",
    "read t --follow --count": "--follow has no end: --count and --output need one",
    "read t --follow -o a.parquet": "--follow has no end: --count and --output need one",
    "read t -o a.csv": "--output a.csv: needs a name that ends in .parquet",
    "replay x --to localhost:9092": "needs HOST:PORT/TOPIC, such as localhost:9092/ztf",
    "replay x --to h:1/t --framed 3 --unframed": "--framed, --registry and --unframed: give one of them",
    "replay x --to h:1/t --rate 0": "rate 0.0: alerts per second, more than 0",
    "replay x --to h:1/t --speed -2": "speed -2.0: times the original pace, more than 0",
    "replay x --to h:1/t --visits 0": "visits 0: alerts per visit, more than 0",
    "replay x --to h:1/t --rate 5 --speed 2": "rate and speed are given; a replay has one pace",
    "replay x --to h:1/t --since today": "--since 'today': needs a time with a zone",
    "replay x --to h:1/t --until 2026-13-01": "--until '2026-13-01': needs a time with a zone",
    "replay x --to h:1/t --resume": "--resume: no replay of these alerts to this topic has stopped half-way",
    "audit --config {config} --since 2026-11-20": "--since '2026-11-20': needs a time with a zone, such as 2026-11-20T",
    "audit --config {config} --until noon": "--until 'noon': needs a time with a zone",
    "audit --config {config} --source day": "--source day: not in {config}; its sources are night",
    "dead-letters list --config {config} --reason odd": "--reason 'odd': the reasons are {reasons}",
    "dead-letters list --config {config} --since noon": "--since 'noon': needs a time with a zone",
    "dead-letters replay --config {config} --reason ok": "--reason 'ok': the reasons are {reasons}",
    "dead-letters replay --config {config} --since noon": "--since 'noon': needs a time with a zone",
    "health --config {config}": "[service] has no health_file, so the job writes none; give one",
    "schemas list --registry ftp://x": "--registry: needs http://HOST:PORT",
}


@pytest.mark.parametrize("line", WRONG_VALUES)
def test_a_wrong_value_is_one_line_that_names_it(run: Run, line: str, config: Path, tmp_path: Path) -> None:
    names = {
        "folder": tmp_path,
        "config": config,
        "alert": ALERTS / "elasticc.tar.gz",
        "reasons": ", ".join(REASONS["rejected"]),
    }
    code, out, told = run(*line.format_map(names).split())
    assert (code, out) == (2, "")
    assert told.startswith("error: ")
    assert WRONG_VALUES[line].format_map(names) in told


WITH_CONFIG = (
    "run",
    "health",
    "audit",
    "config show",
    "config check",
    "dead-letters list",
    "dead-letters show a:b:0:1",
    "dead-letters replay",
    "schemas list",
    "schemas check",
    "schemas fetch 7",
    "read t",
    "repeat --into x",
    "replay x --to h:1/t",
    "models compare a.avro b.avro",
)
BROKEN = {
    "none.toml": (None, "can't be read"),
    "broken.toml": ("[kafka\n", "broken.toml"),
    "empty.toml": ("", "kafka"),
    "unknown.toml": ('[kafka]\nbootstrap_servers = "h:1"\n[kafak]\n', "did you mean 'kafka'?"),
    "folder": ("/", "can't be read"),
}


@pytest.mark.parametrize("line", WITH_CONFIG)
@pytest.mark.parametrize("name", BROKEN)
def test_a_config_that_can_not_be_used_is_named(run: Run, line: str, name: str, tmp_path: Path) -> None:
    """By every command that takes one, and before it does anything else."""
    text, wanted = BROKEN[name]
    path = tmp_path / name
    if text == "/":
        path.mkdir()
    elif text is not None:
        path.write_text(text)
    code, out, told = run(*line.split(), "--config", path)
    assert (code, out) == (2, "")
    assert told.startswith("error: ")
    assert str(path) in told
    assert wanted in told


# --- files of no use ------------------------------------------------------------------------------------------------


def test_a_folder_without_alerts_is_a_failure_and_no_wrong_usage(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    (tmp_path / "notes.csv").write_text("a,b\n1,2\n")
    for path, words in ((empty, "empty"), (tmp_path / "notes.csv", "neither alerts of a survey nor light curves")):
        code, out, told = run("classify", path)
        assert (code, out) == (3, "")
        assert told.startswith("error: ")
        assert words in told


def test_a_labelled_set_that_is_none_is_named(run: Run, tmp_path: Path) -> None:
    code, out, told = run("evaluate", tmp_path)
    assert (code, out) == (3, "")
    assert f"{tmp_path / 'metadata.parquet'}: can't be read" in told
    assert "a labelled set is a folder with this file" in told


def test_what_is_compared_is_told_on_standard_output(run: Run, tmp_path: Path) -> None:
    record: dict[str, object] = {
        "source_id": 1,
        "status": "classified",
        "class_name": "SNIa",
        "flux": 1.5,
        "alert_offset": 7,
    }
    paths = [tmp_path / f"{name}.jsonl" for name in ("a", "b", "c")]
    changes: list[dict[str, object]] = [{}, {"alert_offset": 9}, {"flux": 1.25}]
    for path, change in zip(paths, changes, strict=True):
        path.write_text(json.dumps(record | change) + "\n")
    code, out, told = run("models", "compare", paths[0], paths[1])
    assert (code, told) == (0, "")
    assert "1 the same to the bit, 0 differ, 0 only here, 0 only there" in out
    code, out, told = run("models", "compare", paths[0], paths[2])
    assert (code, told) == (3, "")
    assert "the first difference: source 1 flux: 1.5 here, 1.25 there" in out
    code, out, told = run("models", "compare", paths[0], tmp_path / "none.jsonl")
    assert (code, out) == (3, "")
    assert "none.jsonl: can't be read" in told


def test_the_probe_says_why_a_job_is_not_alive(run: Run, tmp_path: Path) -> None:
    rest = f'[service]\nhealth_file = "{tmp_path / "health.json"}"'
    source = {"name": "night", "survey": "ztf", "topics": ["in"]}
    config = write_config(tmp_path, "127.0.0.1:9", [source], rest=rest)
    code, out, told = run("health", "--config", config)
    assert (code, out) == (3, "")
    assert "the job has not started, or writes another file" in told
    (tmp_path / "health.json").write_text("{}")
    code, _, told = run("health", "--config", config)
    assert code == 3
    assert "not a health file" in told


# --- what is fine ---------------------------------------------------------------------------------------------------


def test_schemas_of_files_are_checked_by_count(run: Run) -> None:
    code, out, told = run("schemas", "check", ALERTS / "elasticc.tar.gz")
    assert (code, told) == (0, "")
    assert f"elasticc elasticc-0.9 {len(whole('elasticc'))} ok" in out


def test_models_are_listed_with_their_cards(run: Run) -> None:
    card = models.load(models.find("t2b-1")).card
    code, out, told = run("models", "list")
    assert (code, told) == (0, "")
    for part in (card.name, card.version, str(card.max_points), card.sha256[:12], *(c.name for c in card.classes)):
        assert part in out


def test_no_command_at_all_shows_the_help(run: Run) -> None:
    for group in ((), ("config",), ("models",), ("dead-letters",), ("schemas",)):
        _, out, told = run(*group)
        assert "Usage: " in out + told
        assert "Commands" in out + told
