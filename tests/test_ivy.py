"""How Ivy is started: its options, the user's settings, mirrors and proxies; passwords in no process list."""

import stat
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import quote
from xml.sax.saxutils import escape

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.errors import UsageError
from broker.ivy import _escaped, ivy_settings, maven_mirror, options, proxy_properties, pyspark_folder
from broker.java import java

PROXIES = ("https_proxy", "http_proxy", "all_proxy", "no_proxy", "ftp_proxy", "JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without settings."""
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.delenv("IVY_SETTINGS", raising=False)
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def maven(home: Path, inside: str, space: str = "") -> Path:
    path = home / ".m2" / "settings.xml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"<settings{space}>{inside}</settings>")
    return path


def mirror(url: str, of: str = "central") -> str:
    return f"<mirrors><mirror><id>m</id><mirrorOf>{of}</mirrorOf><url>{url}</url></mirror></mirrors>"


# --- options --------------------------------------------------------------------------------------------------------


def test_ivy_is_pyspark_s_own(tmp_path: Path) -> None:
    arguments, flag, jar = options(tmp_path)
    assert arguments == f"@{tmp_path / 'java-options'}"
    assert flag == "-jar"
    assert Path(jar).parent == pyspark_folder() / "jars"
    assert Path(jar).is_file()
    assert (tmp_path / "java-options").read_text() == ""


def test_a_proxy_s_password_is_in_a_file_that_others_can_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", "http://me:correct-horse@gate:3128")
    found = options(tmp_path)
    assert "correct-horse" not in " ".join(found)
    file = tmp_path / "java-options"
    assert '"-Dhttp.proxyPassword=correct-horse"' in file.read_text().splitlines()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_settings_are_handed_on(tmp_path: Path, home: Path) -> None:
    maven(home, mirror("http://m/x"))
    assert options(tmp_path)[-2:] == ["-settings", str(tmp_path / "ivysettings.xml")]


def test_java_reads_back_what_was_escaped(tmp_path: Path) -> None:
    """Quotes and backslashes of a password, by the virtual machine itself."""
    password = 'a "b" \\c\\\\ d\'e #f %20'
    file = tmp_path / "options"
    file.write_text(f'"-Dt2.secret={_escaped(password)}"\n')
    command = [str(java()), f"@{file}", "-XshowSettings:properties", "-version"]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert f"t2.secret = {password}" in shown


# --- settings -------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(st.sampled_from(["http://m/x", "http://m/x/", "http://m/a&b", 'http://m/"q"', "http://m/<odd>"]), st.booleans())
def test_the_mirror_stands_in_the_settings_as_it_is_called(url: str, has_space: bool) -> None:
    """Whatever letters are in its address; with one slash at its end; with XML's namespace or without."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        space = ' xmlns="http://maven.apache.org/SETTINGS/1.0.0"' if has_space else ""
        maven(folder, mirror(escape(url)), space)
        path = ivy_settings(folder, folder)
        assert path == folder / "ivysettings.xml"
        (resolver,) = ET.parse(path).getroot().iter("ibiblio")
        assert resolver.get("root") == url.rstrip("/") + "/"
        assert resolver.get("m2compatible") == "true"


def test_the_user_s_settings_win_in_this_order(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert ivy_settings(home, tmp_path) is None
    maven(home, mirror("http://m"))
    assert ivy_settings(home, tmp_path) == tmp_path / "ivysettings.xml"
    for name in (".ivy2", ".ivy2.5.2"):  # the one of Spark 4 comes last
        (home / name).mkdir()
        (home / name / "ivysettings.xml").write_text("<ivysettings/>")
        assert ivy_settings(home, tmp_path) == home / name / "ivysettings.xml"
    (home / "own.xml").write_text("<ivysettings/>")
    monkeypatch.setenv("IVY_SETTINGS", "~/own.xml")
    assert ivy_settings(home, tmp_path) == home / "own.xml"
    monkeypatch.setenv("IVY_SETTINGS", "~/gone.xml")
    with pytest.raises(UsageError, match=r"IVY_SETTINGS=~/gone\.xml: no such file; name an ivysettings\.xml"):
        ivy_settings(home, tmp_path)


@pytest.mark.parametrize(
    ("pattern", "is_ours"),
    [
        ("*", True),
        ("central", True),
        ("a, central ,b", True),
        ("external:*", True),
        ("external:*,!central", False),
        ("centrals", False),
        ("", False),
    ],
)
def test_a_mirror_of_the_central_repository_is_used(home: Path, pattern: str, is_ours: bool) -> None:
    assert maven_mirror(maven(home, mirror("http://m", pattern))) == ("http://m" if is_ours else None)


def test_the_first_mirror_that_fits_is_used(home: Path) -> None:
    both = mirror("http://a", "jboss").replace("</mirrors>", "") + mirror("http://b").replace("<mirrors>", "")
    assert maven_mirror(maven(home, both)) == "http://b"
    assert maven_mirror(maven(home, mirror(""))) is None
    assert maven_mirror(home / "none.xml") is None


def test_the_environment_is_filled_in(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_TEST_HOST", "mirror.example")
    path = maven(home, mirror("http://${env.T2_TEST_HOST}/${env.T2_TEST_NONE}x"))
    assert maven_mirror(path) == "http://mirror.example/x"


# --- proxies --------------------------------------------------------------------------------------------------------

parts = st.text(st.characters(codec="ascii", categories=["L", "N", "P", "S"]), min_size=1, max_size=8)


@given(parts, parts, st.integers(1, 65_535))
def test_a_login_of_any_letters_arrives(user: str, password: str, port: int) -> None:
    """Percent-encoded in the address, as the address needs it; plain for Java."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("http_proxy", f"http://{quote(user, safe='')}:{quote(password, safe='')}@gate:{port}")
        found = proxy_properties(Path("/nowhere"))
    assert (found["http.proxyHost"], found["http.proxyPort"]) == ("gate", str(port))
    assert (found["http.proxyUser"], found["http.proxyPassword"]) == (user, password)
    assert found["jdk.http.auth.tunneling.disabledSchemes"] == ""


@pytest.mark.parametrize("address", ["gate:3128", "http://gate:3128", "http://gate:3128/"])
def test_an_address_may_be_short(home: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("https_proxy", address)
    assert proxy_properties(home) == {"https.proxyHost": "gate", "https.proxyPort": "3128"}


@pytest.mark.parametrize("address", ["http://gate:port", "http://gate:99999", "http://:80", "http://[::1"])
def test_an_address_that_is_none_is_named(home: Path, monkeypatch: pytest.MonkeyPatch, address: str) -> None:
    monkeypatch.setenv("https_proxy", address)
    with pytest.raises(UsageError, match="https_proxy="):
        proxy_properties(home)


def test_a_wrong_address_is_told_without_its_login(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for address in ("http://me:correct-horse@:80", "http://me:correct-horse@gate:99999"):
        monkeypatch.setenv("http_proxy", address)
        with pytest.raises(UsageError, match="http_proxy='") as told:
            proxy_properties(home)
        assert "correct-horse" not in str(told.value)


def test_the_environment_wins_over_maven(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = "<proxies><proxy><host>maven</host><username>me</username><password>p</password></proxy></proxies>"
    maven(home, proxy)
    found = proxy_properties(home)
    assert (found["https.proxyHost"], found["http.proxyPort"]) == ("maven", "8080")
    assert (found["http.proxyUser"], found["http.proxyPassword"]) == ("me", "p")
    monkeypatch.setenv("http_proxy", "gate:1")
    assert proxy_properties(home)["http.proxyHost"] == "gate"
    assert "https.proxyHost" not in proxy_properties(home)


def test_a_proxy_of_maven_that_is_off_is_not_used(home: Path) -> None:
    maven(home, "<proxies><proxy><active>false</active><host>off</host></proxy><proxy/></proxies>")
    assert proxy_properties(home) == {}
