"""What the tests of a worker share: an embedded Kafka and a Spark session; and a skipped test is a failure."""

import logging
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from pyspark.sql import SparkSession

from broker import session
from broker.embedded import EmbeddedKafka

ROOT = Path(__file__).parent.parent
# No property judges a time: another worker's Spark may have the processor for a moment.
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")
# A shell without job control has what it runs behind (`make test &`) ignore SIGINT, and the commands of tests after it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def kafka() -> Iterator[EmbeddedKafka]:
    """One embedded Kafka for all tests of a worker. Each test takes topic names of its own."""
    with EmbeddedKafka() as running:
        yield running


@pytest.fixture(scope="session")
def spark() -> Iterator[SparkSession]:
    """One Spark session for all tests of a worker, with the job's own limits."""
    running = session.start("tests", "local[2]", "2g")
    yield running
    running.stop()


@pytest.fixture(autouse=True)
def _log_of_nobody() -> None:
    """A command that ran in this process has sent the log to its terminal; each test finds it as it is at first."""
    logger = logging.getLogger("broker")
    logger.propagate = True
    logger.setLevel(logging.NOTSET)
    logger.handlers.clear()


@pytest.fixture(scope="session")
def shared_alerts() -> Path:
    """The folder of real alerts, given to `make test-shared` as ALERTS; tests that need it are marked `shared`."""
    return _given("T2_ALERTS")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of data sets, given to `make test-shared` as DATA; tests that need it are marked `shared`."""
    return _given("T2_DATA")


def _given(variable: str) -> Path:
    folder = Path(os.environ.get(variable, ""))
    if not os.environ.get(variable) or not folder.is_dir():
        pytest.fail(
            f"{variable}={os.environ.get(variable)!r} names no folder; run `make test-shared ALERTS=DIR DATA=DIR`"
        )
    return folder


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Turn a skip into a failure: what was not run proves nothing."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure here: {report.longrepr}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """The same for a whole module that skips itself."""
    report = yield
    if report.skipped:
        report.outcome = "failed"
        report.longrepr = f"skipped, which counts as a failure here: {report.longrepr}"
    return report


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """`make test` leaves the tests marked `shared` out; `make test-shared` runs them alone, by their mark.

    Tests that compute with JAX come last in each worker: it warns of every later fork, and Spark and we do fork.
    """
    items.sort(key=lambda item: item.path.stem in ("test_baselines", "test_training"))
    if config.option.markexpr:
        return
    shared = [item for item in items if item.get_closest_marker("shared")]
    if shared and len(shared) < len(items):
        config.hook.pytest_deselected(items=shared)
        items[:] = [item for item in items if not item.get_closest_marker("shared")]
