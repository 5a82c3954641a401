"""A registry that is away, slow or empty while alerts come by a schema that only it knows."""

from __future__ import annotations

import json
import select
import socket
import struct
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from broker.embedded import free_port

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT / "tests") not in sys.path:
    sys.path.append(str(ROOT / "tests"))

from registry_server import RegistryServer as RegistryServer  # noqa: E402  # registry_outage takes it from here

if TYPE_CHECKING:
    from benchmarks.fault_run import Run

BASE, FIRST_NEW = 1000, 9001
SUBJECT = "alert-packet"
TEXT = (ROOT / "schemas" / "lsst" / f"{BASE}.avsc").read_text()
WAYS = ("away", "slow", "empty")
LEAST_S, MOST_S = 20.0, 180.0  # how long it is broken: until an alert waits
SLOW_S = 15.0  # before it answers, by which time the job has given up
REGISTRY = '[registry]\nurl = "http://127.0.0.1:{port}/apis/ccompat/v7"\nsubjects = ["{subject}"]\nrefresh_s = 5.0\n'
REGISTRY += 'timeout_s = 5.0\ncache = "schemas"\n'


def successor(number: int) -> str:
    """A schema that LSST might have next: one field more, in front."""
    schema = json.loads(TEXT.replace("v10_0", f"v10_{number}"))
    schema["fields"].insert(0, {"name": f"new_{number}", "type": ["null", "double"]})
    return json.dumps(schema)


class Proxy(threading.Thread):
    """Between the job and the registry; `delay_s` before each piece that it passes on, None where nobody listens."""

    def __init__(self, registry: int) -> None:
        super().__init__(daemon=True)
        self.port, self._registry = free_port(), registry
        self.delay_s: float | None = 0.0
        self.left = threading.Event()

    def run(self) -> None:
        """Until `left`."""
        while not self.left.is_set():
            if not self._listens():
                time.sleep(0.1)
                continue
            with socket.create_server(("127.0.0.1", self.port)) as server:
                server.settimeout(0.2)
                while self._listens() and not self.left.is_set():
                    with suppress(TimeoutError):
                        client, _ = server.accept()
                        threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _listens(self) -> bool:
        return self.delay_s is not None  # another thread sets it

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._registry)) as registry:
            other = {client: registry, registry: client}
            while not self.left.is_set() and self._listens():
                for ready in select.select(list(other), [], [], 0.2)[0]:
                    piece = ready.recv(65_536)
                    if not piece:
                        return
                    if ready is client:
                        time.sleep(self.delay_s or 0.0)
                    other[ready].sendall(piece)


class Registry:
    """What a run needs: the server, the proxy, and the id under which alerts come now."""

    def __init__(self, server: RegistryServer, proxy: Proxy) -> None:
        self.server, self.proxy = server, proxy
        self.schema_id: int | None = None
        self._n = 0

    def dress(self, name: str, value: bytes) -> bytes:
        """Every third alert of schema 1000 comes by the new schema, if there is one."""
        if name != "lsst" or self.schema_id is None or value[1:5] != struct.pack(">I", BASE):
            return value
        self._n += 1
        return value if self._n % 3 else struct.pack(">BI", 0, self.schema_id) + b"\x00" + value[5:]


@contextmanager
def around_registry(run: Run) -> Iterator[None]:
    """Apicurio, and the proxy in front of it."""
    with RegistryServer() as server:
        server.put(SUBJECT, {BASE: TEXT})
        proxy = Proxy(server.port)
        proxy.start()
        registry = Registry(server, proxy)
        run.extra, run.dress = registry, registry.dress
        run.config.write_text(run.config.read_text() + REGISTRY.format(port=proxy.port, subject=SUBJECT))
        try:
            yield
        finally:
            proxy.left.set()


def strike_registry(run: Run) -> str:
    """Broken until alerts wait for a schema; then it is mended, and has it."""
    registry, n = run.extra, len(run.result.hits)
    assert isinstance(registry, Registry)
    assert run.job is not None
    if not run.feed.is_alive():
        return ""  # no alert would come by the new schema
    way, new = WAYS[(n + run.result.seed - 1) % len(WAYS)], FIRST_NEW + n
    begin = len(run.job.said())
    run.snap()
    if way == "empty":
        registry.server.empty(SUBJECT)
    else:
        registry.proxy.delay_s = None if way == "away" else SLOW_S
    registry.schema_id = new
    run.wait(LEAST_S)
    run.wait(MOST_S, lambda: "schema_unavailable" in (run.job.said() if run.job else "")[begin:])
    registry.schema_id, registry.proxy.delay_s = None, 0.0
    known = {BASE: TEXT, new: successor(new)} if way == "empty" else {new: successor(new)}
    registry.server.put(SUBJECT, known, first_version=1 if way == "empty" else n + 2)
    run.wait(MOST_S, lambda: f"alerts that waited for schema {new}: " in (run.job.said() if run.job else "")[begin:])
    return way
