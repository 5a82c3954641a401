"""How Ivy is started on this machine: the user's mirrors and proxies, none of our own."""

import importlib.util
import os
import re
import xml.etree.ElementTree as ET
from pathlib import Path
from urllib.parse import unquote, urlsplit
from urllib.request import getproxies
from xml.sax.saxutils import quoteattr

from broker.errors import BrokerError, UsageError

MAVEN_SETTINGS = Path(".m2") / "settings.xml"


def options(scratch: Path) -> list[str]:
    """What follows `java` on the command line to start Ivy, with the settings it is to use.

    Files that this writes go into `scratch`. Repository addresses come from the user's Ivy or Maven settings, else from
    Ivy's own default chain.
    """
    ivy = sorted((pyspark_folder() / "jars").glob("ivy-*.jar"))
    if not ivy:
        raise BrokerError(f"pyspark is incomplete: no ivy-*.jar in {pyspark_folder() / 'jars'}; install pyspark anew")
    arguments = scratch / "java-options"  # a file, since a proxy's password must not show in the process list
    arguments.touch(mode=0o600)
    arguments.write_text("".join(f'"-D{k}={_escaped(v)}"\n' for k, v in proxy_properties(Path.home()).items()))
    settings = ivy_settings(Path.home(), scratch)
    return [f"@{arguments}", "-jar", str(ivy[-1]), *(["-settings", str(settings)] if settings else [])]


def pyspark_folder() -> Path:
    """Where pyspark is installed, found without importing it."""
    spec = importlib.util.find_spec("pyspark")
    if spec is None or not spec.submodule_search_locations:
        raise BrokerError("pyspark is not installed in this environment; install t2-broker with its dependencies")
    return Path(next(iter(spec.submodule_search_locations)))


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"')


def ivy_settings(home: Path, scratch: Path) -> Path | None:
    """The Ivy settings file to use: IVY_SETTINGS, ~/.ivy2*/ivysettings.xml, or the mirror of ~/.m2/settings.xml.

    None means Ivy's defaults. Raises UsageError when IVY_SETTINGS names no file.
    """
    if named := os.environ.get("IVY_SETTINGS"):
        path = Path(named).expanduser()
        if not path.is_file():
            raise UsageError(f"IVY_SETTINGS={named}: no such file; name an ivysettings.xml, or unset it")
        return path.absolute()
    if own := sorted(home.glob(".ivy2*/ivysettings.xml")):
        return own[-1]
    mirror = maven_mirror(home / MAVEN_SETTINGS)
    if mirror is None:
        return None
    path = scratch / "ivysettings.xml"
    path.write_text(
        '<ivysettings><settings defaultResolver="mirror"/><resolvers>'
        f'<ibiblio name="mirror" m2compatible="true" root={quoteattr(mirror.rstrip("/") + "/")}/>'
        "</resolvers></ivysettings>"
    )
    return path


def _maven(path: Path) -> ET.Element | None:
    """The root of Maven's settings with namespaces dropped and ${env.X} filled in; None where there is no such file."""
    if not path.is_file():
        return None
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise UsageError(f"{path} is not valid XML: {error}; Maven's mirrors and proxies are read from it") from error
    for element in root.iter():
        element.tag = element.tag.rpartition("}")[2]
        text = (element.text or "").strip()
        element.text = re.sub(r"\$\{env\.(\w+)\}", lambda match: os.environ.get(match[1], ""), text)
    return root


def maven_mirror(path: Path) -> str | None:
    """The address that Maven's settings put in the place of its central repository, or None."""
    root = _maven(path)
    for mirror in root.iter("mirror") if root is not None else ():
        patterns = [part.strip() for part in mirror.findtext("mirrorOf", "").split(",")]
        if {"*", "central", "external:*"}.intersection(patterns) and "!central" not in patterns:
            return mirror.findtext("url") or None
    return None


def proxy_properties(home: Path) -> dict[str, str]:
    """JVM properties for the proxies of the environment (https_proxy, http_proxy, no_proxy), else of Maven's settings.

    Empty where JAVA_TOOL_OPTIONS or JDK_JAVA_OPTIONS already choose a proxy: the JVM reads those by itself.
    """
    if any("proxyHost" in os.environ.get(name, "") for name in ("JAVA_TOOL_OPTIONS", "JDK_JAVA_OPTIONS")):
        return {}
    proxies = getproxies()
    properties: dict[str, str] = {}
    for scheme in ("https", "http"):
        if address := proxies.get(scheme):
            properties |= _proxy(scheme, address)
    if properties and (bypass := proxies.get("no")):
        hosts = [host.strip() for host in bypass.split(",") if host.strip()]
        properties["http.nonProxyHosts"] = "|".join(f"*{host}" if host.startswith(".") else host for host in hosts)
    return properties or _maven_proxy(home / MAVEN_SETTINGS)


def _proxy(scheme: str, address: str) -> dict[str, str]:
    told = f"{scheme}_proxy={address.rpartition('@')[2]!r}"  # without the login
    try:
        parts = urlsplit(address if "//" in address else f"//{address}")
        host, port = parts.hostname, parts.port or 80
    except ValueError as error:
        raise UsageError(f"{told}: {error}; write http://HOST:PORT") from None
    if not host:
        raise UsageError(f"{told}: no host in it; write http://HOST:PORT")
    properties = {f"{scheme}.proxyHost": host, f"{scheme}.proxyPort": str(port)}
    if parts.username:  # Java refuses Basic logins to proxies unless told otherwise
        properties |= {"http.proxyUser": unquote(parts.username), "http.proxyPassword": unquote(parts.password or "")}
        properties["jdk.http.auth.tunneling.disabledSchemes"] = ""
    return properties


def _maven_proxy(path: Path) -> dict[str, str]:
    root = _maven(path)
    for proxy in root.iter("proxy") if root is not None else ():
        if proxy.findtext("active", "true") == "false" or not proxy.findtext("host"):
            continue
        properties: dict[str, str] = {}
        for scheme in ("https", "http"):
            properties[f"{scheme}.proxyHost"] = proxy.findtext("host", "")
            properties[f"{scheme}.proxyPort"] = proxy.findtext("port") or "8080"
        if user := proxy.findtext("username"):
            properties |= {"http.proxyUser": user, "http.proxyPassword": proxy.findtext("password", "")}
            properties["jdk.http.auth.tunneling.disabledSchemes"] = ""
        if bypass := proxy.findtext("nonProxyHosts"):
            properties["http.nonProxyHosts"] = bypass
        return properties
    return {}
