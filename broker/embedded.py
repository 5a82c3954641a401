"""A real single-node Kafka in a JVM of its own, for development, the demo and the tests."""

import base64
import json
import logging
import os
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from broker.errors import KafkaError
from broker.java import cache_folder, jars, java
from broker.signals import heard

__all__ = ["EmbeddedKafka", "jars", "java", "serve"]

MAX_MESSAGE_BYTES = 17 * 1024 * 1024  # alerts of up to 16 MiB, and 1 MiB for key, headers and framing
STARTUP_TIMEOUT_S = 60.0
GRACE_S = 10.0
KEPT_LOGS = 20
PORTS = range(20_000, 32_768)

# A small heap and the cheapest compiler and collector: starts in 2 s and takes 350 MB.
JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true")

LOG4J_FILE = "log4j2.properties"
LOG4J = """status=error
appender.console.type=Console
appender.console.name=console
appender.console.layout.type=PatternLayout
appender.console.layout.pattern=%d %p %c{1} %m%n
rootLogger.level=warn
rootLogger.appenderRef.console.ref=console
"""

_quiet = logging.getLogger("broker.embedded.librdkafka")
_quiet.addHandler(logging.NullHandler())
_quiet.propagate = False  # librdkafka reports every refused connection while the broker starts


class EmbeddedKafka:
    """A running Kafka between `with` and its end.

    It ends with the block, with an exception in it, and with the process that started it, even when that is killed: a
    watchdog process waits for the end of a pipe. Ctrl-C does not reach it, so that the block can still use it to drain.

    port: the one to listen on; None takes a free one.
    folder: where the data lives and stays, to be found there at the next start; None takes a temporary one.
    host: the name that clients are told to connect to; any other than loopback makes it listen on all interfaces.
    properties: server properties on top of ours.

    Raises KafkaError, which names the log, when it does not come up; JavaError without Java.
    """

    def __init__(
        self,
        port: int | None = None,
        folder: Path | None = None,
        properties: Mapping[str, str | int] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        self._wanted_port = port
        self._folder = folder
        self._properties = dict(properties or {})
        self._host = host
        self._watchdog: subprocess.Popen[bytes] | None = None
        self.bootstrap_servers = ""
        self.log = Path(os.devnull)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start and wait until a client gets an answer: about 3 s. A free port lost to another process is retried."""
        for tries_left in (2, 1, 0):
            try:
                with ExitStack() as undo:
                    undo.callback(self.stop)
                    self._start(self._wanted_port or free_port())
                    undo.pop_all()
                    return
            except KafkaError:
                if self._wanted_port or not tries_left or "Address already in use" not in self._tail():
                    raise

    def stop(self) -> None:
        """End the JVM and wait for it; a temporary folder is gone afterwards. Harmless when nothing runs."""
        watchdog, self._watchdog = self._watchdog, None
        if watchdog is None:
            return
        assert watchdog.stdin is not None  # it was started with a pipe
        watchdog.stdin.close()
        watchdog.wait()

    @property
    def running(self) -> bool:
        """Whether the JVM is up."""
        return self._watchdog is not None and self._watchdog.poll() is None

    def create_topics(self, topics: Mapping[str, int], config: Mapping[str, str] | None = None) -> None:
        """Create topics (name: partitions), all with the same topic configuration, and wait until clients see them.

        KafkaError names the one refused.
        """
        new = [NewTopic(name, n_partitions, 1, config=dict(config or {})) for name, n_partitions in topics.items()]
        admin = self._admin()  # held: the futures end with it
        for name, future in admin.create_topics(new).items():
            try:
                future.result()
                while name not in admin.list_topics(timeout=30).topics:
                    time.sleep(0.02)  # the controller has it, what clients are told follows a moment later
            except KafkaException as error:
                raise KafkaError(
                    f"can't create topic {name!r} on the embedded Kafka at {self.bootstrap_servers}: "
                    f"{error.args[0].str()}; its log: {self.log}"
                ) from error

    def _admin(self) -> AdminClient:
        return AdminClient({"bootstrap.servers": self.bootstrap_servers}, logger=_quiet)

    def _start(self, port: int) -> None:
        require_free(port, self._listen_address())
        classpath = os.pathsep.join(str(path) for path in jars("kafka"))
        runtime = str(java())
        self.log = new_log(port)
        scratch = None if self._folder else tempfile.mkdtemp(prefix="t2-broker-kafka-")
        with ExitStack() as undo:
            if scratch:
                undo.callback(shutil.rmtree, scratch, ignore_errors=True)
            folder = Path(scratch or self._folder or "").resolve()
            settings = self._write_settings(port, folder)
            jvm = [runtime, *JVM_OPTIONS, f"-Dlog4j2.configurationFile={folder / LOG4J_FILE}", "-cp", classpath]
            commands = [[*jvm, "kafka.Kafka", str(settings)]]
            if not (folder / "data" / "meta.properties").exists():
                cluster = cluster_id()
                commands.insert(0, [*jvm, "kafka.tools.StorageTool", "format", "-t", cluster, "-c", str(settings)])
            self._watch(commands, scratch)
            undo.pop_all()  # from here on the watchdog removes it
        self.bootstrap_servers = f"{self._host}:{port}"
        self._wait()

    def _write_settings(self, port: int, folder: Path) -> Path:
        settings = folder / "server.properties"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            (folder / LOG4J_FILE).write_text(LOG4J)
            settings.write_text("".join(f"{k}={v}\n" for k, v in self._server_properties(port, folder).items()))
        except OSError as error:
            raise KafkaError(f"can't write the folder of the embedded Kafka: {folder}: {error}") from error
        return settings

    def _watch(self, commands: list[list[str]], scratch: str | None) -> None:
        """Start the watchdog, which runs the commands and removes the scratch folder after them."""
        watchdog = str(Path(__file__).with_name("watchdog.py"))
        grace_s = 0.0 if scratch else GRACE_S  # what is thrown away need not be closed in good order
        with self.log.open("ab") as output:
            self._watchdog = subprocess.Popen(
                [sys.executable, "-I", "-S", watchdog, str(grace_s), scratch or "", json.dumps(commands)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # a Ctrl-C in the terminal is for us alone
            )

    def _listen_address(self) -> str:
        return self._host if self._host in ("127.0.0.1", "localhost") else "0.0.0.0"

    def _server_properties(self, port: int, folder: Path) -> dict[str, str | int]:
        controller = free_port()
        while controller == port:  # which nobody listens on yet
            controller = free_port()
        return {
            "process.roles": "broker,controller",
            "node.id": 1,
            "controller.quorum.voters": f"1@127.0.0.1:{controller}",
            "controller.listener.names": "CONTROLLER",
            "listeners": f"PLAINTEXT://{self._listen_address()}:{port},CONTROLLER://127.0.0.1:{controller}",
            "advertised.listeners": f"PLAINTEXT://{self._host}:{port}",
            "listener.security.protocol.map": "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
            "log.dirs": str(folder / "data"),
            "auto.create.topics.enable": "false",
            "offsets.topic.replication.factor": 1,
            "offsets.topic.num.partitions": 1,
            "transaction.state.log.replication.factor": 1,
            "transaction.state.log.min.isr": 1,
            "transaction.state.log.num.partitions": 1,
            "share.coordinator.state.topic.replication.factor": 1,
            "share.coordinator.state.topic.min.isr": 1,
            "group.initial.rebalance.delay.ms": 0,
            "message.max.bytes": MAX_MESSAGE_BYTES,
            "replica.fetch.max.bytes": MAX_MESSAGE_BYTES,
            **self._properties,
        }

    def _wait(self) -> None:
        deadline = time.monotonic() + STARTUP_TIMEOUT_S
        admin = self._admin()
        while time.monotonic() < deadline:
            if not self.running:
                raise KafkaError(f"the embedded Kafka did not start: {self._reason()}; its log: {self.log}")
            try:
                if admin.list_topics(timeout=0.5).brokers:
                    return
            except KafkaException:
                time.sleep(0.05)  # not up yet
        raise KafkaError(
            f"the embedded Kafka at {self.bootstrap_servers} gave no answer within {STARTUP_TIMEOUT_S:.0f} s: "
            f"{self._reason()}; its log: {self.log}"
        )

    def _tail(self) -> str:
        return self.log.read_text(errors="replace")[-8000:] if self.log.is_file() else ""

    def _reason(self) -> str:
        lines = [line.strip() for line in self._tail().splitlines()]
        telling = [line for line in lines if "Exception" in line or " ERROR " in line or " FATAL " in line]
        return (telling or lines or ["it wrote no log"])[-1][:300]


def free_port() -> int:
    """A port of the loopback interface that nothing uses at this moment. Raises KafkaError where none is found.

    Of those that no system gives to clients: somebody's connection could have it by the time that it is listened on.
    """
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise KafkaError(f"no free port of 127.0.0.1 among 100 tried between {PORTS[0]} and {PORTS[-1]}")


def require_free(port: int, address: str = "127.0.0.1") -> None:
    """Raise KafkaError when a port can't be listened on."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the JVM does: closed connections don't count
        try:
            probe.bind((address, port))
        except (OSError, OverflowError) as error:
            raise KafkaError(
                f"the embedded Kafka can't listen on port {port} of {address}: {error}; stop what uses it "
                f"(`ss -ltnp 'sport = :{port}'` names it) or choose another port"
            ) from error


def new_log(port: int) -> Path:
    """A fresh log file in the cache folder, where it outlives the data; the newest 20 are kept."""
    folder = cache_folder() / "logs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in sorted(folder.glob("kafka-*.log"))[: -KEPT_LOGS + 1]:
            old.unlink(missing_ok=True)
        path = folder / f"kafka-{time.strftime('%Y%m%dT%H%M%S')}-{port}.log"
        path.touch()
    except OSError as error:
        raise KafkaError(
            f"can't write the log of the embedded Kafka: {folder}: {error}; set T2_BROKER_CACHE"
        ) from error
    return path


def cluster_id() -> str:
    """A new id for a cluster: 22 characters of base64, the first no '-' (Kafka's tool would take it for an option)."""
    while (text := base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")).startswith("-"):
        pass
    return text


def serve(
    port: int | None, folder: Path | None, host: str = "127.0.0.1", topics: Mapping[str, int] | None = None
) -> None:
    """Run an embedded Kafka until SIGINT or SIGTERM: the command `broker kafka`.

    Prints where it listens and logs. With a folder, data outlive the run. `topics` (name: partitions) are created.
    Raises KafkaError when it fails to start, or ends by itself. Call it from the main thread.
    """
    asked_to_stop = threading.Event()

    with heard(lambda _: asked_to_stop.set()), EmbeddedKafka(port, folder, host=host) as kafka:
        if topics:
            kafka.create_topics(topics)
        print(f"Kafka listens on {kafka.bootstrap_servers}\nlog: {kafka.log}", flush=True)
        while not asked_to_stop.wait(0.5):
            if not kafka.running:
                raise KafkaError(f"the embedded Kafka ended by itself; its log: {kafka.log}")
