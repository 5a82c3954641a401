"""Settings of a job: one TOML file, checked once, frozen afterwards.

`load` is the only way in; every mistake in the file ends there, as one ConfigError that names file, table, key, value
and what is allowed. Secrets are never in the file: it names environment variables, read at the moment of use.
"""

import os
import re
import tomllib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal, NamedTuple, Self

from pydantic import BaseModel, Field, PrivateAttr, ValidationError, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo

from broker.complaint import MASK, is_secret, tell
from broker.delivery import Filter, Outlet, check_outlets
from broker.errors import ConfigError
from broker.limits import Limits
from broker.lookup import Lookup
from broker.night_names import NIGHT, night_in
from broker.setting_types import (
    Bool,
    Count,
    EnvName,
    Number,
    SettingsTable,
    Share,
    Whole,
    check_address,
    check_slug,
    check_topic,
    check_topics,
)
from broker.upkeep import Seconds, Upkeep

Survey = Literal["lsst", "ztf", "elasticc"]

_JAAS = "org.apache.kafka.common.security"
_LOGIN_MODULES = {
    "PLAIN": f"{_JAAS}.plain.PlainLoginModule",
    "SCRAM-SHA-256": f"{_JAAS}.scram.ScramLoginModule",
    "SCRAM-SHA-512": f"{_JAAS}.scram.ScramLoginModule",
}


class Kafka(SettingsTable):
    """[kafka]: the cluster that alerts come from and verdicts go to; `options` holds client settings by Kafka's names.

    A login is two environment variables; `sasl.mechanism` and `security.protocol` in `options` say how it is used.
    """

    bootstrap_servers: Annotated[str, Field(min_length=1)]
    options: dict[str, str] = {}  # noqa: RUF012  # pydantic copies it for each instance
    username_env: EnvName | None = None
    password_env: EnvName | None = None
    startup_timeout_s: Annotated[float, Field(strict=True, ge=0, le=86_400)] = 60.0

    @field_validator("bootstrap_servers")
    @classmethod
    def _host_and_port(cls, servers: str) -> str:
        for server in servers.split(","):
            if not re.fullmatch(r"(\w+://)?(\[[0-9A-Fa-f:.]+\]|[^\s:/]+):\d{1,5}", server.strip()):
                raise ValueError(f"needs HOST:PORT, several joined by commas; {server.strip()!r} is not one")
        return ",".join(server.strip() for server in servers.split(","))

    @field_validator("options")
    @classmethod
    def _no_secrets(cls, options: dict[str, str]) -> dict[str, str]:
        for key in options:
            if key in ("bootstrap.servers", "metadata.broker.list"):
                raise ValueError(f"has {key!r}; write it as kafka.bootstrap_servers")
            if key == "sasl.username" or is_secret(key):
                raise ValueError(
                    f"has {key!r}; logins never stand in the file: put them into environment variables and name those "
                    "in kafka.username_env and kafka.password_env"
                )
        return options

    @model_validator(mode="after")
    def _whole_login(self) -> Self:
        if (self.username_env is None) != (self.password_env is None):
            raise ValueError("needs both username_env and password_env, or neither")
        if self.username_env is None:
            return self
        if self.mechanism not in _LOGIN_MODULES:
            known = ", ".join(_LOGIN_MODULES)
            raise ValueError(f"has a login, so options needs 'sasl.mechanism': {known}; it is {self.mechanism!r}")
        protocol = self.options.get("security.protocol")
        if protocol not in ("SASL_PLAINTEXT", "SASL_SSL"):
            raise ValueError(
                f"has a login, so options needs 'security.protocol': SASL_SSL, SASL_PLAINTEXT; it is {protocol!r}"
            )
        return self

    @property
    def mechanism(self) -> str | None:
        """SASL mechanism by either spelling, or None."""
        return self.options.get("sasl.mechanism", self.options.get("sasl.mechanisms"))


class Model(SettingsTable):
    """[model]: a released model's name, or a folder (a text with a slash; relative to the config file)."""

    name: Annotated[str, Field(min_length=1)] = "t2b-1"

    @field_validator("name")
    @classmethod
    def _folder(cls, name: str, info: ValidationInfo) -> str:
        return str(_beside(info, Path(name))) if "/" in name or os.sep in name else name


class Output(SettingsTable):
    """[output]: the three topics written, and how missing ones are made (`partitions`, `max_message_bytes`).

    `registry`: classifications go out as Confluent frames, with their schema in that registry; None: as containers.
    """

    classifications: str = "t2b-classifications"
    dead_letters: str = "t2b-dead-letters"
    ledger: str = "t2b-ledger"
    create_topics: Bool = False
    partitions: Annotated[int, Field(strict=True, gt=0, le=10_000)] = 4
    max_message_bytes: Annotated[int, Field(strict=True, ge=65_536, le=2_147_483_647)] | None = None
    registry: str | None = None

    _is_address = field_validator("registry")(check_address)
    _topic_names = field_validator("classifications", "dead_letters", "ledger")(check_topic)

    @property
    def topics(self) -> tuple[str, str, str]:
        """Classifications, dead letters, ledger."""
        return self.classifications, self.dead_letters, self.ledger

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.topics)) < 3:
            raise ValueError(
                f"needs three different topics for classifications, dead_letters and ledger; has {self.topics}"
            )
        return self


class Source(SettingsTable):
    """[[source]]: topics of one survey, read by one query with one checkpoint.

    `start` ("earliest", "latest" or a time with a zone) counts only while the checkpoint is new; then None will do.
    `zero_point` is the AB zero point of ELAsTiCC's fluxes; `programids` are the ZTF programs in use (1 = public).
    With `{night}` in its topics it is live, a query and a checkpoint per night and topic (`broker.nights`).
    """

    name: str
    survey: Survey
    topics: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    checkpoint: Path
    start: Literal["earliest", "latest"] | datetime | None = None
    max_alerts_per_batch: Count = 10_000  # one LSST visit; what a batch costs whatever its size: docs/operating.md
    max_alert_bytes: Annotated[int, Field(strict=True, ge=1024, le=268_435_456)] = 16_777_216
    on_data_loss: Literal["stop", "go_on"] = "stop"  # alerts that the topic has deleted before they were read
    zero_point: Number = 31.4
    programids: Annotated[tuple[Whole, ...], Field(min_length=1)] = (1,)

    nights: Count = 7  # as long as ZTF's topics hold their alerts
    night_begins: Annotated[str, Field(pattern=r"^([01]\d|2[0-3]):[0-5]\d(:[0-5]\d)?$")] = "00:00"
    night_quiet_s: Seconds = 1800.0

    _slug = field_validator("name")(check_slug)
    _topic_names = field_validator("topics")(check_topics)

    @field_validator("start", mode="before")
    @classmethod
    def _start(cls, start: object) -> object:
        if start is None or start in ("earliest", "latest"):
            return start
        try:
            when = start if isinstance(start, datetime) else datetime.fromisoformat(str(start))
        except ValueError:
            raise ValueError("needs 'earliest', 'latest' or a time such as 2026-11-20T00:00:00Z") from None
        if when.tzinfo is None:
            raise ValueError("is a time without a zone; add Z for UTC")
        return when

    @field_validator("checkpoint", mode="before")
    @classmethod
    def _folder(cls, checkpoint: object, info: ValidationInfo) -> Path:
        if not isinstance(checkpoint, str | Path) or not str(checkpoint):
            raise ValueError("needs a folder")
        if "://" in str(checkpoint):
            raise ValueError("needs a local folder, not an address: the ledger reads the checkpoint's files")
        return _beside(info, Path(checkpoint))

    @model_validator(mode="after")
    def _of_this_survey(self) -> Self:
        for key, survey in (("zero_point", "elasticc"), ("programids", "ztf")):
            if key in self.model_fields_set and self.survey != survey:
                raise ValueError(f"has {key}, which belongs to survey = '{survey}'; this one is '{self.survey}'")
        for key in ("nights", "night_begins", "night_quiet_s"):
            if key in self.model_fields_set and not self.is_live:
                raise ValueError(f"has {key}, which belongs to topics with {NIGHT} in them, one per night")
        return self

    @property
    def is_live(self) -> bool:
        """Whether its topics are one per night."""
        return NIGHT in self.topics[0]


class Policy(SettingsTable):
    """[policy]: quality floors. An alert below one is `abstained` with that reason; its probabilities are still given.

    Scores (`drb`, `rb`, reliability) run from 0 to 1; `solar_system_arcsec` is ZTF's distance to a known moving object;
    `moving_min_minutes` is the time that two detections must lie apart before an object counts as not moving.
    """

    ztf_max_nbad: Annotated[int, Field(strict=True, ge=0)] = 0
    ztf_min_drb: Share = 0.5
    ztf_min_rb: Share = 0.55
    lsst_min_reliability: Share = 0.5
    lsst_abstains_on_dipole: Bool = True
    lsst_abstains_on_glint_trail: Bool = True
    lsst_abstains_on_psf_flux_flag: Bool = True
    lsst_abstains_on_bad_pixels: Bool = True
    lsst_abstains_on_cosmic_ray_center: Bool = True
    lsst_abstains_on_saturated_center: Bool = True
    lsst_abstains_on_injected: Bool = True
    solar_system_arcsec: Annotated[float, Field(strict=True, ge=0, le=3600)] = 5.0
    moving_min_minutes: Annotated[float, Field(strict=True, ge=0, le=1440)] = 30.0


class Spark(SettingsTable):
    """[spark]: where the job runs; `extra` holds further settings by Spark's names."""

    master: Annotated[str, Field(min_length=1)] = "local[*]"
    driver_memory: Annotated[str, Field(pattern=r"^\d+[kmgKMG]$")] = "2g"
    extra: dict[str, str] = {}  # noqa: RUF012  # the same

    @field_validator("extra")
    @classmethod
    def _spark_names(cls, extra: dict[str, str]) -> dict[str, str]:
        for key in extra:
            if not key.startswith("spark."):
                raise ValueError(f"has {key!r}; Spark's settings start with 'spark.'")
        return extra


class Config(SettingsTable):
    """A whole config file. Sources keep the order of the file."""

    kafka: Kafka
    model: Model = Model()
    output: Output = Output()
    sources: Annotated[tuple[Source, ...], Field(alias="source")]
    outlets: Annotated[tuple[Outlet, ...], Field(alias="outlet")] = ()
    policy: Policy = Policy()
    limits: Limits = Limits()
    spark: Spark = Spark()
    service: Upkeep = Upkeep()
    registry: Lookup = Lookup()
    _file: Path = PrivateAttr(default=Path("config"))

    @property
    def file(self) -> Path:
        """The file that the settings came from."""
        return self._file

    @model_validator(mode="after")
    def _separate(self) -> Self:
        if not self.sources:
            raise ValueError("has no [[source]]; at least one says which topics to read")
        owners: dict[str, Source] = {}
        for source in self.sources:
            if any(source.name == other.name for other in owners.values()):
                raise ValueError(f"two sources are called {source.name!r}; each needs a name of its own")
            checkpoint = os.path.realpath(source.checkpoint)
            if checkpoint in owners:
                pair = f"{owners[checkpoint].name!r} and {source.name!r}"
                raise ValueError(f"sources {pair} share the checkpoint {source.checkpoint}; each needs one of its own")
            owners[checkpoint] = source
            for topic in (t for t in self.output.topics if any(t == n or night_in(n, t) for n in source.topics)):
                raise ValueError(f"topic {topic!r} is read by source {source.name!r} and written by [output]: a loop")
        read = {topic for source in self.sources for topic in source.topics}
        check_outlets(self.outlets, {s.name: s.survey for s in self.sources}, read, set(self.output.topics))
        return self


def load(path: Path | str) -> Config:
    """Read and check a config file; relative folders in it are relative to the file. Raises ConfigError."""
    path = Path(path)
    try:
        data = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"config {path}: can't be read: {error.strerror}; give the path of a TOML file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"config {path}: not UTF-8 text (byte {error.start})") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"config {path}: not TOML: {error}") from error
    try:
        config = Config.model_validate(data, context={"folder": path.absolute().parent})
    except ValidationError as error:
        lines = [f"config {path}: {tell(detail, Config, data)}" for detail in error.errors(include_url=False)]
        raise ConfigError("\n".join(lines)) from None
    config._file = path
    return config


class Setting(NamedTuple):
    """One effective setting: its key with the table, its value as text (secrets masked), and where it comes from."""

    key: str
    value: str
    origin: str


def effective(config: Config) -> list[Setting]:
    """Every setting in force, in the order of the tables; the origin is the file, 'default' or the environment."""
    rows = []
    tables: list[tuple[str, BaseModel]] = [(name, getattr(config, name)) for name in ("kafka", "model", "output")]
    tables += [(f"source[{source.name}]", source) for source in config.sources]
    for outlet in config.outlets:
        tables += [(f"outlet[{outlet.name}]", outlet), (f"outlet[{outlet.name}].filter", outlet.filter)]
    tables += [(name, getattr(config, name)) for name in ("policy", "limits", "spark", "service", "registry")]
    for table, model in tables:
        for name in type(model).model_fields:
            if isinstance(getattr(model, name), Filter):
                continue  # a table of its own
            origin = str(config.file) if name in model.model_fields_set else "default"
            rows.append(Setting(f"{table}.{name}", _show(getattr(model, name)), origin))
    for name, variable in (("username", config.kafka.username_env), ("password", config.kafka.password_env)):
        if variable is not None:
            value = MASK if os.environ.get(variable) else "(not set)"
            rows.append(Setting(f"kafka.{name}", value, f"environment variable {variable}"))
    return rows


def kafka_options(config: Config) -> dict[str, str]:
    """Settings for librdkafka, with the login from the environment. Raises ConfigError for a missing variable."""
    options = {k: v for k, v in config.kafka.options.items() if not k.startswith(("ssl.truststore.", "ssl.keystore."))}
    options["bootstrap.servers"] = config.kafka.bootstrap_servers
    login = _login(config)
    if login is not None:
        options["sasl.username"], options["sasl.password"] = login
    return options


def spark_kafka_options(config: Config) -> dict[str, str]:
    """Options of Spark's Kafka source and sink (`kafka.` prefixed), with the login from the environment.

    librdkafka's `ssl.ca.location` becomes Java's PEM truststore. Raises ConfigError for a missing variable.
    """
    options = {f"kafka.{key}": value for key, value in config.kafka.options.items()}
    options["kafka.bootstrap.servers"] = config.kafka.bootstrap_servers
    if (authorities := options.pop("kafka.ssl.ca.location", None)) is not None:
        options.update({"kafka.ssl.truststore.type": "PEM", "kafka.ssl.truststore.location": authorities})
    if (mechanism := options.pop("kafka.sasl.mechanisms", None)) is not None:
        options.setdefault("kafka.sasl.mechanism", mechanism)
    login = _login(config)
    if login is not None:
        module = _LOGIN_MODULES[str(config.kafka.mechanism)]
        username, password = map(_quote, login)
        options["kafka.sasl.jaas.config"] = f"{module} required username={username} password={password};"
    return options


def _beside(info: ValidationInfo, path: Path) -> Path:
    folder = (info.context or {}).get("folder", Path.cwd())
    return Path(os.path.normpath(Path(folder) / path.expanduser()))


def _login(config: Config) -> tuple[str, str] | None:
    variables = config.kafka.username_env, config.kafka.password_env
    if variables[0] is None or variables[1] is None:
        return None
    values = []
    for name in variables:
        value = os.environ.get(str(name), "")
        if not value:
            raise ConfigError(f"config {config.file}: [kafka] names the environment variable {name}; it is not set")
        values.append(value)
    return values[0], values[1]


def _quote(text: str) -> str:
    """Quote for a JAAS entry, whose quoted texts know backslash escapes and end at a raw newline."""
    for raw, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(raw, escaped)
    return f'"{text}"'


def _show(value: object) -> str:
    if value is None:
        return "(none)"
    if isinstance(value, tuple):
        return ", ".join(map(str, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={MASK if is_secret(key) else item}" for key, item in value.items()) or "(none)"
    return str(value).lower() if isinstance(value, bool) else str(value)
