"""Writer schemas from a real registry and its cache, and from one that is away, empty, slow or talks rubbish."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from fastavro.schema import to_parsing_canonical_form
from registry_server import RegistryServer
from samples import SCHEMAS

from broker import registry
from broker.errors import SchemaError
from broker.lookup import Lookup
from broker.published import Publisher
from broker.registry_client import RegistryClient, RegistryError, cached

NEWEST = (SCHEMAS / "lsst" / "1101.avsc").read_text()
SUBJECT = "alert-packet"


@pytest.fixture(scope="module")
def server() -> Iterator[RegistryServer]:
    with RegistryServer() as running:
        yield running


def client(url: str, folder: Path, *subjects: str, timeout_s: float = 30.0) -> RegistryClient:
    return RegistryClient(Lookup(url=url, subjects=subjects, cache=folder, timeout_s=timeout_s))


def kept(url: str, folder: Path) -> list[registry.Writer]:
    return cached(Lookup(url=url, cache=folder))


def successor(number: int, text: str = NEWEST) -> str:
    """A schema as LSST's next: another namespace, and one field that nobody knows."""
    schema = json.loads(text.replace("v11_1", f"v11_{number}"))
    schema["fields"].append({"name": f"new_{number}", "type": ["null", "double"]})
    return json.dumps(schema)


def with_namespaces(text: str) -> str:
    """The older text form: namespaces, docs and defaults in place of dotted names."""
    schema = json.loads(text)
    space, _, name = schema["name"].rpartition(".")
    schema |= {"namespace": space, "name": name, "doc": "an alert"}
    for field in schema["fields"]:
        field["doc"] = f"doc of {field['name']}"
        if isinstance(field["type"], list) and field["type"][0] == "null":
            field["default"] = None
    return json.dumps(schema)


def test_versions_of_a_subject_are_learnt_as_they_come(server: RegistryServer, tmp_path: Path) -> None:
    asking = client(server.url, tmp_path, "growing")
    with pytest.raises(RegistryError, match="has no versions of 'growing'"):
        list(asking.ask_subjects())
    server.put("growing", {1101: NEWEST, 1502: successor(2)})
    (first,) = asking.ask_subjects()  # 1101 ships with the package
    assert (first.label, first.schema_id) == ("1502", 1502)
    assert list(asking.ask_subjects()) == []
    server.put("growing", {1503: with_namespaces(successor(3))}, first_version=3)
    (second,) = asking.ask_subjects()
    assert second.text == to_parsing_canonical_form(second.schema)
    assert json.loads(second.text)["name"] == "lsst.v11_3.alert"
    server.empty("growing")
    with pytest.raises(RegistryError, match="has no versions"):
        list(asking.ask_subjects())
    assert {writer.text for writer in kept(server.url, tmp_path)} == {first.text, second.text}


def test_by_id_from_package_cache_and_registry(server: RegistryServer, tmp_path: Path) -> None:
    server.put("single", {1601: successor(1)})
    asking = client(server.url, tmp_path)
    assert asking.fetch(1101) is registry.packaged("lsst")[-1]
    fetched = asking.fetch(1601)
    with pytest.raises(RegistryError, match="has no schema 1699"):
        asking.fetch(1699)
    nowhere = client("http://127.0.0.1:9", tmp_path, timeout_s=1)
    with pytest.raises(RegistryError, match="does not answer"):
        nowhere.fetch(1601)  # the cache of another registry is not asked
    nowhere.folder = asking.folder
    assert nowhere.fetch(1601) == fetched


def test_a_damaged_cache_is_fetched_again(
    server: RegistryServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.put("damaged", {1701: successor(1)})
    asking = client(server.url, tmp_path)
    fetched = asking.fetch(1701)
    path = asking.folder / "1701.avsc"
    for damage in (path.read_bytes()[:500], b"", b"\xff\xfe", b"[1]"):
        path.write_bytes(damage)
        assert kept(server.url, tmp_path) == []
        again = client(server.url, tmp_path)
        assert again.fetch(1701) == fetched
        assert kept(server.url, tmp_path) == [fetched]
    assert "left out" in caplog.text
    assert "fetched again" in caplog.text


def test_what_is_no_alert_of_lsst_is_left_out(
    server: RegistryServer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = json.dumps({"type": "record", "name": "other", "fields": [{"name": "x", "type": "int"}]})
    server.put("mixed", {1801: other, 1802: successor(2)})
    asking = client(server.url, tmp_path, "mixed")
    assert [writer.label for writer in asking.ask_subjects()] == ["1802"]
    assert list(asking.ask_subjects()) == []
    assert caplog.text.count("version 1, of the registry is left out") == 1
    with pytest.raises(SchemaError):
        asking.fetch(1801)


@contextmanager
def answering(status: int, body: bytes, wait_s: float = 0.0) -> Iterator[str]:
    """A server that gives the same answer to everything."""
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            released.wait(wait_s)
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (404, b'{"error_code": 40403, "message": "Schema not found"}', "has no"),
        (404, b"<html>nothing</html>", "has no"),
        (500, b"oops", "refused"),
        (503, b'{"error_code": 50301, "message": "later"}', "refused"),
        (401, b"", "refused"),
        (200, b"<html>a login page</html>", "rubbish"),
        (200, b"", "rubbish"),
        (200, b"null", "rubbish"),
        (200, b'"text"', "rubbish"),
        (200, b"[[]]", "rubbish"),
        (200, b'{"schema": 7}', "not Avro|rubbish"),
        (200, b'{"schema": "{\\"type\\": 5}"}', "no record's"),
        (200, b'{"schema": "\\"string\\""}', "no record's"),
        (200, b'{"schema": "[]"}', "no record's"),
    ],
)
def test_every_way_to_fail_is_told(tmp_path: Path, status: int, body: bytes, words: str) -> None:
    with answering(status, body) as url:
        asking = client(url, tmp_path, SUBJECT)
        with pytest.raises((RegistryError, SchemaError), match=words):
            asking.fetch(1999)
        with pytest.raises(RegistryError):
            list(asking.ask_subjects())
    assert kept(url, tmp_path) == []


def test_an_id_that_means_another_schema_to_this_package() -> None:
    """A frame of it would be misread by the job."""
    text = '{"type": "record", "name": "other", "fields": []}'
    told = {"id": 1000, "version": 1, "subject": "alerts-value", "schema": text}
    with answering(200, json.dumps(told).encode()) as url:
        with pytest.raises(SchemaError, match="under id 1000, by which this package knows one of Rubin's"):
            Publisher(url, "alerts")(text)
        rubin = registry.packaged("lsst")[-1]
        told |= {"id": rubin.schema_id, "schema": rubin.text}
    with answering(200, json.dumps(told).encode()) as url:
        assert Publisher(url, "alerts")(rubin.text) == rubin.schema_id


def test_a_slow_registry_is_left_after_its_time(tmp_path: Path) -> None:
    with answering(200, b"[]", wait_s=30) as url:
        since = time.monotonic()
        with pytest.raises(RegistryError, match="does not answer"):
            client(url, tmp_path, timeout_s=0.5).fetch(1999)
        assert time.monotonic() - since < 10


def test_a_registry_needs_an_address(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="no registry is configured"):
        RegistryClient(Lookup(cache=tmp_path))
