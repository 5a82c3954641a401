"""The Java runtime and the jars: what a bare machine, a mirror and a bad network do."""

import http.server
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import broker.java
from broker.errors import JavaError, UsageError
from broker.ivy import ivy_settings, maven_mirror, proxy_properties
from broker.java import cache_folder, jars, java

FETCH = "import sys; from broker.java import jars; print(len(jars('spark')))"


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python code in a process of its own, where an uncaught BrokerError ends as in the command line."""
    wrapped = (
        "import sys\nfrom broker.errors import BrokerError\n"
        f"try:\n    exec({code!r})\n"
        "except BrokerError as error:\n    print(error, file=sys.stderr)\n    sys.exit(error.exit_code)"
    )
    return subprocess.run(
        [sys.executable, "-P", "-c", wrapped],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


def test_java_is_found() -> None:
    assert java().is_file()


def test_java_missing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "JAVA_HOME"}
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "broker.java"],
        env={**environment, "PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.count("\n") == 1
    assert "Java is missing: no java in PATH" in ended.stderr
    assert "apt-get install openjdk-17-jre-headless" in ended.stderr


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ('openjdk version "11.0.2" 2019-01-15', "is version 11"),
        ('java version "1.8.0_292"', "is version 8"),
        ("no JVM could be found", "doesn't run"),
    ],
)
def test_unfit_java_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, expected: str) -> None:
    program = tmp_path / "bin" / "java"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho '{said}' >&2\n".replace("doesn't", "does not"))
    program.chmod(0o755)
    monkeypatch.setenv("JAVA_HOME", str(tmp_path))
    with pytest.raises(JavaError, match=expected) as caught:
        java()
    assert f"JAVA_HOME={tmp_path}" in str(caught.value)
    assert "install Java 17 or later" in str(caught.value)


def test_the_check_needs_nothing_but_python() -> None:
    source = Path(broker.java.__file__).parent.parent
    ended = subprocess.run(
        [
            sys.executable,
            "-I",
            "-S",
            "-c",
            f"import sys; sys.path.append({str(source)!r}); import broker.java; print(len(sys.modules))",
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr


@pytest.mark.parametrize(
    ("kind", "n", "name"), [("kafka", 45, "kafka_2.13-4.1.1.jar"), ("spark", 5, "spark-avro_2.13-4.1.1.jar")]
)
def test_jars_once_resolved_are_found_offline(kind: broker.java.Kind, n: int, name: str) -> None:
    first = jars(kind)
    assert len(first) == n
    assert name in [path.name for path in first]
    again = run(f"from broker.java import jars; print(len(jars({kind!r})))", https_proxy="http://127.0.0.1:1", PATH="")
    assert again.stdout == f"{n}\n", again.stderr


def test_no_network_is_one_clear_error_and_no_half_cache(tmp_path: Path) -> None:
    ended = run(FETCH, T2_BROKER_CACHE=str(tmp_path), HOME=str(tmp_path), https_proxy="http://127.0.0.1:1")
    assert ended.returncode == 3, ended.stderr
    message = ended.stderr.splitlines()[-1]
    assert "can't download the Java libraries of spark" in message
    assert "https_proxy" in message
    assert list((tmp_path / "jars").iterdir()) == []


def test_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ended = run(FETCH, T2_BROKER_CACHE=str(tmp_path / "file"))
    assert ended.returncode == 3
    assert f"can't write the cache of Java libraries: {tmp_path}/file" in ended.stderr


class Mirror(http.server.BaseHTTPRequestHandler):
    """A Maven repository with the jars of the cache; the first answer for one of them breaks off half way."""

    asked: list[str]
    truncated = "commons-pool2-2.12.1.jar"

    def do_GET(self) -> None:
        found = next((path for path in jars("spark") if path.name == self.path.rpartition("/")[2]), None)
        self.send_response(404 if found is None else 200)
        body = b"" if found is None else found.read_bytes()
        if found is not None and found.name == self.truncated and self.path not in self.asked:
            body = body[: len(body) // 2]
        self.asked.append(self.path)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_HEAD(self) -> None:
        known = any(path.name == self.path.rpartition("/")[2] for path in jars("spark"))
        self.send_response(200 if known else 404)
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[http.server.ThreadingHTTPServer]:
    Mirror.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Mirror) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def test_mavens_mirror_serves_the_jars_and_a_cut_off_download_is_tried_again(
    tmp_path: Path, mirror: http.server.ThreadingHTTPServer
) -> None:
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text(
        '<settings xmlns="http://maven.apache.org/SETTINGS/1.0.0"><mirrors><mirror><id>near</id>'
        f"<mirrorOf>*</mirrorOf><url>http://127.0.0.1:{mirror.server_port}/maven</url></mirror></mirrors></settings>"
    )
    no_proxy = {"https_proxy": "", "http_proxy": "", "HTTPS_PROXY": "", "HTTP_PROXY": ""}
    ended = run(FETCH, T2_BROKER_CACHE=str(tmp_path / "cache"), HOME=str(tmp_path), IVY_SETTINGS="", **no_proxy)
    assert ended.stdout == "5\n", ended.stderr
    pool = "/maven/org/apache/commons/commons-pool2/2.12.1/commons-pool2-2.12.1.jar"
    assert Mirror.asked.count(pool) == 2
    assert "try 1 of 3" in ended.stderr
    (folder,) = (tmp_path / "cache" / "jars").iterdir()
    assert len(list(folder.iterdir())) == 5


def test_settings_of_the_user_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IVY_SETTINGS", raising=False)
    assert ivy_settings(tmp_path, tmp_path) is None
    (tmp_path / ".ivy2").mkdir()
    own = tmp_path / ".ivy2" / "ivysettings.xml"
    own.write_text("<ivysettings/>")
    assert ivy_settings(tmp_path, tmp_path) == own
    named = tmp_path / "named.xml"
    monkeypatch.setenv("IVY_SETTINGS", str(named))
    with pytest.raises(UsageError, match=r"named\.xml: no such file"):
        ivy_settings(tmp_path, tmp_path)
    named.write_text("<ivysettings/>")
    assert ivy_settings(tmp_path, tmp_path) == named


def test_a_mirror_of_something_else_is_not_used(tmp_path: Path) -> None:
    settings = tmp_path / "settings.xml"
    for pattern, used in {"central": True, "*,!central": False, "own": False, "external:*": True}.items():
        settings.write_text(
            f"<settings><mirrors><mirror><mirrorOf>{pattern}</mirrorOf><url>m:/x</url></mirror></mirrors></settings>"
        )
        assert maven_mirror(settings) == ("m:/x" if used else None)
    settings.write_text("<settings>")
    with pytest.raises(UsageError, match="not valid XML"):
        maven_mirror(settings)


def test_proxies_of_the_environment_reach_the_jvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("https_proxy", "http_proxy", "no_proxy", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert proxy_properties(tmp_path) == {}
    monkeypatch.setenv("https_proxy", "http://me:s%40fe@gate:3128")
    monkeypatch.setenv("no_proxy", "localhost,.example.org")
    assert proxy_properties(tmp_path) == {
        "https.proxyHost": "gate",
        "https.proxyPort": "3128",
        "http.proxyUser": "me",
        "http.proxyPassword": "s@fe",
        "jdk.http.auth.tunneling.disabledSchemes": "",
        "http.nonProxyHosts": "localhost|*.example.org",
    }
    monkeypatch.setenv("https_proxy", "http://:3128")
    with pytest.raises(UsageError, match="no host in it"):
        proxy_properties(tmp_path)
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dhttps.proxyHost=other")
    assert proxy_properties(tmp_path) == {}


def test_proxy_of_mavens_settings_is_used_where_the_environment_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "http_proxy", "all_proxy", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    (tmp_path / ".m2").mkdir()
    (tmp_path / ".m2" / "settings.xml").write_text(
        "<settings><proxies><proxy><active>false</active><host>off</host></proxy>"
        "<proxy><host>gate</host><port>81</port><nonProxyHosts>*.here</nonProxyHosts></proxy></proxies></settings>"
    )
    found = proxy_properties(tmp_path)
    assert (found["https.proxyHost"], found["https.proxyPort"], found["http.nonProxyHosts"]) == ("gate", "81", "*.here")


def test_cache_folder_is_chosen_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_BROKER_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("T2_BROKER_CACHE")
    assert cache_folder().name == "t2-broker"
