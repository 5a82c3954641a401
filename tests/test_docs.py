"""README and docs: every command and block runs, every table says what the code says, every link leads somewhere."""

import ast
import contextlib
import itertools
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import typer
from pydantic import BaseModel
from running import Running
from typer.testing import CliRunner

from broker import config, limits, lookup, surveys, upkeep
from broker.cli import app
from broker.delivery import Filter, Outlet
from broker.embedded import free_port
from broker.verdict import REASONS

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BROKER = Path(sys.executable).with_name("broker")
PORT = "9092"  # what the pages write; the tests take a free one
NOT_RUN = {("README.md", "make wheel"), ("operating.md", "docker compose up --build")}
SHOWN = ("text", "json")  # output and data, nothing to run
LONG_RUNNING = {"kafka": "Kafka listens on", "run": "running: "}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; why_not: the comment in front of one that can't run."""

    page: str
    line: int
    language: str
    text: str
    why_not: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks() -> list[Block]:
    pattern = re.compile(
        r"(?:<!-- not run: (?P<why>[^\n]+) -->\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.M | re.S
    )
    found = []
    for page in PAGES:
        content = page.read_text()
        for match in pattern.finditer(content):
            line = content.count("\n", 0, match.start("text")) + 1
            found.append(Block(page.name, line, match["language"], match["text"], match["why"]))
    return found


BLOCKS = blocks()
RUN = [block for block in BLOCKS if block.why_not is None and block.language not in SHOWN]


@dataclass
class Workspace:
    """A folder with the examples, and what the blocks have started in it."""

    folder: Path
    port: str
    stack: contextlib.ExitStack
    services: dict[str, Running] = field(default_factory=dict)
    done: set[str] = field(default_factory=set)
    n_sent: int = 0

    def command(self, line: str) -> None:
        """Run a line of a shell block, once; those that run until stopped stay up for the blocks behind."""
        line = "broker demo" if line == "make demo" else line.replace(PORT, self.port)
        name, verb, *arguments = shlex.split(line, comments=True)
        assert name == "broker", f"no command of ours: {line}"
        if line in self.done:
            return
        self.done.add(line)
        if verb in LONG_RUNNING:
            service = Running(self.folder / f"{verb}.log", verb, *arguments, command=[str(BROKER)])
            self.services[verb] = self.stack.enter_context(service)
            service.wait_for(LONG_RUNNING[verb])
            return
        ended = self.process([str(BROKER), verb, *arguments])
        if sent := re.search(r"sent (\d+) alerts", ended.stdout):
            self.wait_until_answered(int(sent[1]))

    def python(self, text: str) -> None:
        """Run a Python block, which prints something."""
        assert self.process([sys.executable, "-P", "-W", "error", "-c", text.replace(PORT, self.port)]).stdout.strip()

    def process(self, command: list[str]) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "Traceback" not in ended.stderr
        return ended

    def wait_until_answered(self, n: int) -> None:
        self.n_sent += n
        deadline = time.monotonic() + 120
        while sum(map(int, re.findall(r"(\d+) alerts in", self.services["run"].text))) < self.n_sent:
            assert time.monotonic() < deadline, self.services["run"].text
            time.sleep(0.2)


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workspace]:
    folder, port = tmp_path_factory.mktemp("docs"), str(free_port())
    shutil.copytree(ROOT / "examples", folder / "examples")
    for file in (folder / "examples").glob("*.toml"):
        file.write_text(file.read_text().replace(PORT, port))
    with contextlib.chdir(folder), contextlib.ExitStack() as stack:
        yield Workspace(folder, port, stack)


def test_the_blocks_that_are_not_run_are_these() -> None:
    assert {(b.page, b.text.splitlines()[0]) for b in BLOCKS if b.why_not is not None} == NOT_RUN
    assert {b.language for b in BLOCKS} <= {"sh", "python", "toml", *SHOWN}


@pytest.mark.parametrize("block", RUN, ids=str)
def test_block_runs(block: Block, workspace: Workspace) -> None:
    """In the order of the pages: later blocks read what earlier ones made."""
    if block.language == "sh":
        for line in filter(None, block.text.splitlines()):
            workspace.command(line)
    elif block.language == "python":
        workspace.python(block.text)
    else:
        (workspace.folder / "block.toml").write_text(block.text)
        assert config.load(workspace.folder / "block.toml").sources


def test_what_ran_until_now_ends_when_told(workspace: Workspace) -> None:
    for verb in ("run", "kafka"):  # the job first
        service = workspace.services[verb]
        os.kill(service.process.pid, signal.SIGTERM)
        assert service.end(60) == 0, service.text
        assert "Traceback" not in service.text
        service.assert_nothing_left()


def test_a_file_that_is_no_alert_is_named(workspace: Workspace) -> None:
    summary = workspace.folder / "nothing.json"
    command = [str(BROKER), "classify", "examples/alerts/damaged/unknown-schema-12345.avro", "--summary", str(summary)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert ended.returncode == 3, ended.stderr
    assert "rejected: unknown-schema-12345.avro:0:0: schema_unavailable: schema id 12345 is not known" in ended.stderr
    assert "error: nothing could be classified: 1 alerts rejected" in ended.stderr
    assert json.loads(summary.read_text())["rejected"] == {"schema_unavailable": 1}


# --- the command line ---------------------------------------------------------------------------------------------


def leaves(group: Any, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with its names; Any, because typer carries a click of its own that it doesn't publish."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from leaves(command, (*names, name))
        else:
            yield (*names, name), command


COMMANDS = dict(leaves(typer.main.get_command(app)))


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_help_has_an_example_that_parses(names: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(app, [*names, "--help"])
    assert shown.exit_code == 0
    assert "Example: broker" in shown.output
    (example,) = re.findall(r"^ *Example: (broker .+?)$", COMMANDS[names].help, re.M)
    words = shlex.split(example)
    assert tuple(words[1 : 1 + len(names)]) == names
    COMMANDS[names].make_context(names[-1], words[1 + len(names) :])  # raises on what it doesn't know


def test_every_command_is_documented() -> None:
    text = (ROOT / "README.md").read_text()
    assert [name for name in {names[0] for names in COMMANDS} if f"| `broker {name}` |" not in text] == []


# --- tables -------------------------------------------------------------------------------------------------------


def rows(page: Path, header: str) -> list[list[str]]:
    """Cells of the table of a page whose header line starts so."""
    found, inside = [], False
    for line in page.read_text().splitlines():
        if line.startswith(header):
            inside = True
        elif not line.startswith("|"):
            inside = False
        elif inside and not line.startswith("|---"):
            found.append([cell.strip() for cell in line[1:-1].split("|")])
    return found


def avro(kind: Any) -> str:
    """An Avro type in words."""
    if isinstance(kind, str):
        return kind
    if isinstance(kind, list):
        return f"{avro(kind[1])} or null"
    if "logicalType" in kind:
        return f"{kind['type']} ({kind['logicalType']})"
    if kind["type"] == "record":
        inside = (f"{inner['name']} {avro(inner['type'])}" for inner in kind["fields"])
        return f"{kind['name']} ({', '.join(inside)})"
    return f"{kind['type']} of {avro(kind['items' if kind['type'] == 'array' else 'values'])}"


def test_record_is_the_schema() -> None:
    fields = json.loads((ROOT / "schemas" / "output" / "classification.avsc").read_text())["fields"]
    table = rows(ROOT / "docs" / "record.md", "| field | type |")
    assert [row[:2] for row in table] == [[f"`{f['name']}`", avro(f["type"])] for f in fields]
    told = [f.get("doc") or row[2] for f, row in zip(fields, table, strict=True)]
    assert [row[2] for row in table] == told
    assert all(told)


def default(model: type[BaseModel], key: str) -> str:
    """A default as TOML writes it."""
    info = model.model_fields[key]
    if info.is_required():
        return "must be given"
    if info.default is None:
        return "none"
    if isinstance(info.default, BaseModel):
        return "see below"
    return "{}" if info.default == {} else json.dumps(info.default)


def test_configuration_is_the_code() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text()
    tables: dict[str, type[BaseModel]] = {"kafka": config.Kafka, "model": config.Model, "output": config.Output}
    tables |= {"[source]": config.Source, "policy": config.Policy, "limits": limits.Limits, "spark": config.Spark}
    tables |= {"service": upkeep.Upkeep, "registry": lookup.Lookup, "[outlet]": Outlet, "outlet.filter": Filter}
    parts = re.split(r"^## ", page, flags=re.M)
    for name, model in tables.items():
        (part,) = [part for part in parts if part.startswith(f"[{name}]\n")]
        table = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", part, re.M)
        assert [(k, d.strip("`")) for k, d in table] == [(key, default(model, key)) for key in model.model_fields]
    assert re.findall(r"^## \[(.+)\]$", page, re.M) == list(tables)


def test_reasons_are_the_closed_lists() -> None:
    table = rows(ROOT / "docs" / "rules.md", "| status | reason |")
    assert [row[:2] for row in table] == [[status, reason] for status, names in REASONS.items() for reason in names]


def test_floors_are_the_surveys() -> None:
    """Reason, setting with its default, and whether history is looked at, in order; the flags of injection as one."""
    floors = rows(ROOT / "docs" / "rules.md", "| survey | order")
    told = [(row[0], row[2], re.split("[ ,]", row[4])[0], row[5]) for row in floors]
    due = []
    for name in ("ztf", "lsst"):
        for floor in surveys.find(name).floors:
            setting = floor.policy or floor.switch or ""
            setting = "(`[[source]]`" if setting == "programids" else setting
            due.append((name, floor.reason, setting, "yes" if floor.history else ""))
    solar = ("lsst", "solar_system", "", "")
    injected = ("lsst", "injected", "lsst_abstains_on_injected", "")
    assert told == [row for row, _ in itertools.groupby(due)]
    assert due.count(injected) == 4
    assert due.count(solar) == 2
    for row in floors:
        if match := re.fullmatch(r"(\w+), ([\w.]+)", row[4]):
            assert default(config.Policy, match[1]) == match[2]


def test_figures_are_those_of_the_model() -> None:
    measured = (ROOT / "models" / "README.md").read_text().splitlines()
    table = rows(ROOT / "README.md", "| model `t2b-1`")
    assert len(table) == 6
    assert [row for row in table if f"| {' | '.join(row)} |" not in measured] == []


# --- links and names ----------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", page.read_text(), re.M)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def test_named_tests_exist() -> None:
    defined = {
        name
        for file in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"^def (\w+)", file.read_text(), re.M)
    }
    named = {name for page in PAGES for name in re.findall(r"`(test_\w+)`", page.read_text())}
    assert named - defined == set()


def test_imports_point_down() -> None:
    """The layers of CONTRIBUTING.md: a module imports from its own layer and those below."""
    layer: dict[str, int] = {}
    for depth, row in enumerate(rows(ROOT / "CONTRIBUTING.md", "| layer |")):
        layer |= dict.fromkeys(re.findall(r"`(\w+)`", row[1]), depth)
    modules = {path.stem if path.is_file() else path.name: path for path in (ROOT / "broker").iterdir()}
    modules = {name: path for name, path in modules.items() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert layer.keys() | {"__init__"} == modules.keys()
    upward = []
    for name, path in modules.items():
        if name == "__init__":
            continue  # it hands out the Python API when that is asked for, and imports nothing before
        for file in [path] if path.is_file() else path.glob("*.py"):
            used = set(imports(ast.parse(file.read_text())))
            upward += [f"{name} -> {other}" for other in used if layer.get(other, 99) < layer.get(name, 99)]
    assert upward == []


def imports(tree: ast.Module) -> Iterator[str]:
    """Modules of ours that are imported by name, at the top or within a function."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("broker"):
            _, _, rest = (node.module or "").partition(".")
            yield from [rest.split(".")[0]] if rest else [alias.name for alias in node.names]
