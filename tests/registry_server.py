"""A real schema registry (Apicurio, with Confluent's interface) in a JVM of its own, with ids that we choose."""

import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from broker import watchdog
from broker.embedded import free_port
from broker.java import fetched, java

DESCRIBED = Path(__file__).parent / "registry"
JVM_OPTIONS = ("-Xmx512m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
STARTUP_S = 120.0


class RegistryServer:
    """Runs between `with` and its end, empty at first; it ends with the process that started it, too."""

    def __init__(self, port: int | None = None) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}/apis/ccompat/v7"

    def __enter__(self) -> Self:
        scratch = tempfile.mkdtemp(prefix="t2-broker-registry-")
        (archive,) = fetched("registry", DESCRIBED)
        with tarfile.open(archive) as tar:
            tar.extractall(scratch, filter="data")
        (runner,) = Path(scratch).glob("*-runner.jar")
        where = (f"-Dquarkus.http.port={self.port}", "-Dquarkus.http.host=127.0.0.1")
        commands = [[str(java()), *JVM_OPTIONS, *where, "-jar", str(runner)]]
        self._log = Path(scratch) / "log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(watchdog.__file__), "0", scratch, json.dumps(commands)],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        deadline = time.monotonic() + STARTUP_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                text = self._log.read_text(errors="replace")[-2000:] if self._log.is_file() else ""
                self.__exit__(None, None, None)
                raise RuntimeError(f"the registry did not start: {text}")
            time.sleep(0.1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def _answers(self) -> bool:
        try:
            return self.call("/apis/ccompat/v7/subjects") is not None
        except OSError:
            return False

    def put(self, subject: str, schemas: dict[int, str], first_version: int = 1) -> None:
        """Schemas under the ids that they are to have, as successive versions of one subject."""
        packed = io.BytesIO()
        with zipfile.ZipFile(packed, "w") as archive:
            about = {"systemVersion": "2.6.13.Final", "systemName": "apicurio-registry", "exportVersion": "1.0"}
            archive.writestr("manifest-1.Manifest.json", json.dumps(about))
            for number, (schema_id, text) in enumerate(schemas.items(), start=first_version):
                content = {"contentId": schema_id, "canonicalHash": f"c{schema_id}", "contentHash": f"h{schema_id}"}
                archive.writestr(f"content/h{schema_id}.Content.json", json.dumps(content))
                archive.writestr(f"content/h{schema_id}.Content.data", text)
                version = {
                    "globalId": schema_id,
                    "artifactId": subject,
                    "version": str(number),
                    "versionId": number,
                    "artifactType": "AVRO",
                    "state": "ENABLED",
                    "createdBy": "",
                    "createdOn": 1_795_000_000_000 + number,
                    "isLatest": number == first_version + len(schemas) - 1,
                    "contentId": schema_id,
                }
                place = f"groups/default/artifacts/{subject}/versions/{number}.ArtifactVersion.json"
                archive.writestr(place, json.dumps(version))
        ids = {"X-Registry-Preserve-GlobalId": "true", "X-Registry-Preserve-ContentId": "true"}
        self.call("/apis/registry/v2/admin/import", packed.getvalue(), {"Content-Type": "application/zip", **ids})

    def empty(self, subject: str) -> None:
        """Remove a subject with all its versions."""
        self.call(f"/apis/ccompat/v7/subjects/{subject}", method="DELETE")
        self.call(f"/apis/ccompat/v7/subjects/{subject}?permanent=true", method="DELETE")

    def call(
        self, path: str, data: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> Any:
        """A request of our own, beside the client under test."""
        asked = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers or {}, method=method)
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return json.loads(answer.read() or b"null")
