"""The Java side: a runtime of version 17 or later, and the jars that Kafka and Spark need, fetched once.

`python -m broker.java` only checks the runtime; it needs nothing but Python's own library (and `broker.errors`).
"""

import hashlib
import logging
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Literal

from broker.errors import BrokerError, JavaError
from broker.ivy import options

log = logging.getLogger(__name__)

OLDEST_JAVA = 17
DATA = Path(__file__).parent / "jars"

Kind = Literal["kafka", "spark"]

# What Ivy prints when a server, the network or a proxy fails, as against an artefact that does not exist.
_TRANSIENT = re.compile(
    r"server access error|download failed|timed? ?out|connection|unknownhost"
    r"|invalid (sha|md)|premature|reset|HTTP.*50[234]",
    re.IGNORECASE,
)


def install_command() -> str:
    """The command that installs a Java runtime on this machine, as far as its package tools tell."""
    for tool, command in {
        "apt-get": "sudo apt-get install openjdk-17-jre-headless",
        "dnf": "sudo dnf install java-21-openjdk-headless",
        "brew": "brew install openjdk@17",
        "conda": "conda install -c conda-forge openjdk=17",
    }.items():
        if shutil.which(tool):
            return command
    return "sudo apt-get install openjdk-17-jre-headless"


def java() -> Path:
    """The `java` that Spark and Kafka are to use: the one of JAVA_HOME where that is set, else the first on PATH.

    Raises JavaError, in one line, when there is none, it doesn't run, or it is older than version 17.
    """
    home = os.environ.get("JAVA_HOME")
    found = shutil.which("java", path=str(Path(home) / "bin")) if home else shutil.which("java")
    source = f"JAVA_HOME={home}" if home else "PATH"
    remedy = f"install Java {OLDEST_JAVA} or later: {install_command()}"
    if found is None:
        raise JavaError(f"Java is missing: no java in {source}; {remedy}")
    try:
        run = subprocess.run([found, "-version"], capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise JavaError(f"Java doesn't run: {found} (from {source}): {error}; {remedy}") from error
    version = re.search(r'version "(?:1\.)?(\d+)', run.stderr)
    if run.returncode != 0 or version is None:
        said = " ".join(run.stderr.split())[:200]
        raise JavaError(f"Java doesn't run: {found} -version (from {source}) said {said!r}; {remedy}")
    if int(version[1]) < OLDEST_JAVA:
        raise JavaError(f"Java is too old: {found} (from {source}) is version {version[1]}; {remedy}")
    return Path(found)


def cache_folder() -> Path:
    """Where downloads stay: T2_BROKER_CACHE, else the platform's cache folder."""
    if chosen := os.environ.get("T2_BROKER_CACHE"):
        return Path(chosen).expanduser().absolute()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "t2-broker"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "t2-broker"


def jars(kind: Kind) -> list[Path]:
    """The jars of the Kafka server (`kafka`) or those that Spark lacks (`spark`), as absolute paths; see `fetched`."""
    return fetched(kind, DATA)


def fetched(kind: str, data: Path) -> list[Path]:
    """The files that `kind`.xml in the folder `data` asks for and `kind`.sha256 lists, as absolute paths.

    The first call downloads them through the Ivy that ships with pyspark, later ones work offline. Raises BrokerError
    when they can't be had, JavaError without Java.
    """
    description = (data / f"{kind}.xml").read_bytes()
    lines = (data / f"{kind}.sha256").read_text().splitlines()
    sums = {name: digest for digest, name in map(str.split, lines)}
    folder = cache_folder() / "jars" / f"{kind}-{hashlib.sha256(description).hexdigest()[:12]}"
    wanted = [folder / name for name in sorted(sums)]
    if all(path.is_file() for path in wanted):
        return wanted
    log.info("downloading the jars of %s once, into %s", kind, folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{kind}-", dir=folder.parent) as scratch:
            fresh = _fetch(data / kind, sums, Path(scratch))
            _put(fresh, folder, Path(scratch))
    except OSError as error:
        raise BrokerError(
            f"can't write the cache of Java libraries: {folder.parent}: {error}; "
            "set T2_BROKER_CACHE to a folder with 100 MB to spare"
        ) from error
    return wanted


def _fetch(description: Path, sums: dict[str, str], scratch: Path) -> Path:
    """Have Ivy fetch the jars into a new folder, with further tries when the network was at fault."""
    # not at the top: the check of the runtime runs before anything is installed
    from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential

    into, kind = scratch / "jars", description.name
    command = [
        str(java()),
        *options(scratch),
        *("-cache", str(scratch / "ivy")),
        *("-ivy", f"{description}.xml", "-confs", "default"),
        *("-retrieve", f"{into}/[artifact]-[revision](-[classifier]).[ext]"),
    ]

    def once() -> None:
        _run_ivy(command, description)
        _check(description, into, sums, scratch)

    tries = Retrying(
        retry=retry_if_exception_type(ConnectionError),
        stop=stop_after_attempt(3),
        wait=wait_exponential(min=1, max=10),
        before_sleep=lambda state: log.warning(
            "fetching the jars of %s failed, try %d of 3", kind, state.attempt_number
        ),
        reraise=True,
    )
    try:
        tries(once)
    except ConnectionError as error:
        raise BrokerError(str(error)) from error
    return into


def _run_ivy(command: list[str], description: Path) -> None:
    """One run of Ivy. Raises ConnectionError when the network was at fault, BrokerError when another try is in vain."""
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    output = run.stdout + run.stderr
    if run.returncode == 0 and "UNRESOLVED DEPENDENCIES" not in output and "FAILED DOWNLOADS" not in output:
        return
    lines = [
        line.strip(": \t") for line in output.splitlines() if re.search(r"error|failed|not found|exception", line, re.I)
    ]
    said = "; ".join(dict.fromkeys(lines[:4])) or output[-300:]
    message = (
        f"can't download the Java libraries of {description.name} (named in {description}.xml): {said}. "
        "Check the network; a proxy is taken from https_proxy, a mirror from ~/.m2/settings.xml or the ivysettings.xml "
        "that IVY_SETTINGS names"
    )
    raise ConnectionError(message) if _TRANSIENT.search(output) else BrokerError(message)


def _check(description: Path, folder: Path, sums: dict[str, str], scratch: Path) -> None:
    """Compare what was fetched with the sums that ship with the package.

    Raises ConnectionError, with Ivy's own cache emptied, since a cut-off download may be complete at the next try.
    """
    for name, expected in sums.items():
        path = folder / name
        got = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
        if got != expected:
            shutil.rmtree(scratch / "ivy", ignore_errors=True)
            shutil.rmtree(folder, ignore_errors=True)
            raise ConnectionError(
                f"the repository served other Java libraries than {description}.sha256 lists: {name}: sha256 {got}, "
                f"expected {expected}; nothing was kept. Check the mirror in use"
            )


def _put(fresh: Path, folder: Path, scratch: Path) -> None:
    """Move the finished folder to its place in one step; where another process was faster, its folder stays."""
    if folder.exists() and any(not (folder / path.name).is_file() for path in fresh.iterdir()):
        folder.rename(scratch / "incomplete")
    try:
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():
            raise


def main() -> int:
    """Check the runtime; the exit code is 0 or 2."""
    try:
        java()
    except JavaError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
