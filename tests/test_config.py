"""Settings: what a file may say, what it means, and how a mistake in it is told."""

from datetime import UTC, datetime
from pathlib import Path

import pytest
from pydantic import ValidationError

from broker.config import Config, Policy, Source, effective, kafka_options, load, spark_kafka_options
from broker.errors import ConfigError

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
LEAST = """
[kafka]
bootstrap_servers = "host:9092"
[[source]]
name = "ztf"
survey = "ztf"
topics = ["night"]
checkpoint = "checkpoints/ztf"
"""
LOGIN = LEAST.replace(
    "[[source]]",
    """username_env = "T2_USER"
password_env = "T2_PASSWORD"
options = { "sasl.mechanism" = "SCRAM-SHA-512", "security.protocol" = "SASL_SSL", "ssl.ca.location" = "/ca.pem" }
[[source]]""",
)


def read(folder: Path, text: str) -> Config:
    path = folder / "job.toml"
    path.write_text(text)
    return load(path)


def refuse(folder: Path, text: str) -> str:
    with pytest.raises(ConfigError) as error:
        read(folder, text)
    assert error.value.exit_code == 2
    assert all(line.startswith(f"config {folder / 'job.toml'}: ") for line in str(error.value).splitlines())
    return str(error.value).replace(f"config {folder / 'job.toml'}: ", "")


def test_the_least_file_gets_the_defaults(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST)
    (source,) = config.sources
    assert config.file == tmp_path / "job.toml"
    assert source.checkpoint == tmp_path / "checkpoints" / "ztf"
    assert (source.start, source.max_alerts_per_batch, source.max_alert_bytes) == (None, 10_000, 16_777_216)
    assert source.programids == (1,)
    assert config.model.name == "t2b-1"
    assert config.output.topics == ("t2b-classifications", "t2b-dead-letters", "t2b-ledger")
    assert config.policy == Policy()
    assert (config.policy.ztf_max_nbad, config.policy.ztf_min_drb, config.policy.ztf_min_rb) == (0, 0.5, 0.55)
    assert (config.policy.solar_system_arcsec, config.policy.moving_min_minutes) == (5.0, 30.0)
    assert (config.spark.master, config.spark.driver_memory) == ("local[*]", "2g")


@pytest.mark.parametrize("name", ["demo", "ztf", "lsst", "elasticc"])
def test_examples_load(name: str) -> None:
    config = load(EXAMPLES / f"{name}.toml")
    assert all(source.start is not None for source in config.sources)
    assert all(source.checkpoint.is_relative_to(EXAMPLES) for source in config.sources)
    assert len(config.sources) == (3 if name == "demo" else 1)


def test_folders_are_relative_to_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("/")
    text = LEAST.replace('"checkpoints/ztf"', f'"{tmp_path}/x/../own"') + '[model]\nname = "../models/own"\n'
    config = read(tmp_path, text)
    assert config.sources[0].checkpoint == tmp_path / "own"
    assert config.model.name == str(tmp_path.parent / "models" / "own")
    monkeypatch.chdir(tmp_path)
    assert load("job.toml").sources[0].checkpoint == tmp_path / "own"


@pytest.mark.parametrize(
    ("text", "start"),
    [
        ('"earliest"', "earliest"),
        ('"latest"', "latest"),
        ('"2026-11-20T01:02:03Z"', datetime(2026, 11, 20, 1, 2, 3, tzinfo=UTC)),
        ('"2026-11-20T03:02:03+02:00"', datetime(2026, 11, 20, 1, 2, 3, tzinfo=UTC)),
        ("2026-11-20T01:02:03Z", datetime(2026, 11, 20, 1, 2, 3, tzinfo=UTC)),
    ],
)
def test_start(tmp_path: Path, text: str, start: object) -> None:
    assert read(tmp_path, LEAST + f"start = {text}\n").sources[0].start == start


def test_settings_are_frozen(tmp_path: Path) -> None:
    config = read(tmp_path, LEAST)
    with pytest.raises(ValidationError):
        config.policy.ztf_min_rb = 0.1


def test_no_file_no_toml_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: can't be read: No such file"):
        load(tmp_path / "none.toml")
    with pytest.raises(ConfigError, match="can't be read: Is a directory"):
        load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# \xe9")
    with pytest.raises(ConfigError, match=r"not UTF-8 text \(byte 2\)"):
        load(tmp_path / "latin.toml")
    assert "not TOML" in refuse(tmp_path, LEAST + "start = earliest\n")
    assert "line 9" in refuse(tmp_path, LEAST + "start = earliest\n")


def test_misspelt_keys_come_with_the_nearest(tmp_path: Path) -> None:
    assert refuse(tmp_path, LEAST + '[polcy]\nx = "1"\n') == (
        "the file has an unknown table [polcy]: did you mean 'policy'? "
        "allowed are kafka, model, output, source, outlet, policy, limits, spark, service, registry"
    )
    text = refuse(tmp_path, LEAST + "max_alert_per_batch = 3\n")
    assert text.startswith(
        "[[source]] 'ztf' has an unknown key 'max_alert_per_batch': did you mean 'max_alerts_per_batch'?"
    )
    assert "allowed are name, survey, topics, checkpoint, start," in text
    assert "[policy] has an unknown key 'zzz': allowed are ztf_max_nbad," in refuse(
        tmp_path, LEAST + "[policy]\nzzz = 1\n"
    )
    assert "[sources]: did you mean 'source'?" in refuse(tmp_path, LEAST.replace("[[source]]", "[[sources]]"))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('topics = ["night"]', "", "[[source]] 'ztf' lacks the key 'topics', which must be given"),
        ('name = "ztf"', "", "[[source]] number 1 lacks the key 'name', which must be given"),
        ('checkpoint = "checkpoints/ztf"', "", "lacks the key 'checkpoint'"),
        ('bootstrap_servers = "host:9092"', "", "[kafka] lacks the key 'bootstrap_servers'"),
        ('[kafka]\nbootstrap_servers = "host:9092"', "", "the file lacks the table [kafka], which must be given"),
        ('"host:9092"', '"host"', "[kafka] bootstrap_servers = 'host': needs HOST:PORT"),
        ('"host:9092"', '"a:1, b"', "'b' is not one"),
        ('"host:9092"', "9092", "[kafka] bootstrap_servers = 9092: should be text in quotes"),
        ("[kafka]", "[kafka]\nstartup_timeout_s = -1", "startup_timeout_s = -1: should be greater than or equal to 0"),
        ('survey = "ztf"', 'survey = "atlas"', "survey = 'atlas': should be 'lsst', 'ztf' or 'elasticc'"),
        ('name = "ztf"', 'name = "My ZTF"', "[[source]] 'My ZTF' name = 'My ZTF': needs small letters"),
        ('["night"]', '"night"', "topics = 'night': should be a list"),
        ('["night"]', "[]", "topics = []: should have at least one item"),
        ('["night"]', '["a", "a"]', "names a topic twice"),
        ('["night"]', '["ztf_.*_programid1"]', "Patterns are refused"),
        ('["night"]', '["z_{night}", "z"]', "has topics with {night} and others; make two sources of them"),
        ('["night"]', '["z_{night}_{night}"]', "has 'z_{night}_{night}', which is not a topic name"),
        ('["night"]', '["z_{day}"]', "has 'z_{day}', which is not a topic name"),
        ('["night"]', '["z"]\nnights = 3', "'ztf' has nights, which belongs to topics with {night} in them"),
        ('["night"]', '["z_{night}"]\nnights = 0', "nights = 0: should be greater than 0"),
        ('["night"]', '["z_{night}"]\nnight_begins = "24:00"', "night_begins = '24:00': should match pattern"),
        ('["night"]', '["z_{night}"]\nnight_quiet_s = 0', "night_quiet_s = 0: should be greater than 0"),
        (
            'topics = ["night"]\ncheckpoint = "checkpoints/ztf"',
            'topics = ["z_{night}"]\ncheckpoint = "c"\n[output]\nledger = "z_20261120"',
            "'z_20261120' is read by source 'ztf' and written by [output]",
        ),
        ('["night"]', '["a,b"]', "has 'a,b', which is a list in one text"),
        ('["night"]', '["t2b-ledger"]', "topic 't2b-ledger' is read by source 'ztf' and written by [output]: a loop"),
        ('"checkpoints/ztf"', '"s3://bucket/x"', "needs a local folder"),
        ('"checkpoints/ztf"', '""', "checkpoint = '': needs a folder"),
        ("[[source]]", "[source]", "[source] should be a list"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert old in LEAST
    assert message in refuse(tmp_path, LEAST.replace(old, new, 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ('start = "yesterday"', "start = 'yesterday': needs 'earliest', 'latest' or a time such as 2026-"),
        ("start = 2026-11-20T00:00:00", "start = 2026-11-20T00:00:00: is a time without a zone"),
        ("start = 2026-11-20", "start = 2026-11-20: is a time without a zone"),
        ("start = 5", "start = 5: needs 'earliest'"),
        ("max_alerts_per_batch = 0", "max_alerts_per_batch = 0: should be greater than 0"),
        ('max_alerts_per_batch = "4"', "max_alerts_per_batch = '4': should be a whole number"),
        ("max_alerts_per_batch = true", "max_alerts_per_batch = true: should be a whole number"),
        ("zero_point = 27.5", "[[source]] 'ztf' has zero_point, which belongs to survey = 'elasticc'"),
        ("[policy]\nztf_min_drb = 1.5", "[policy] ztf_min_drb = 1.5: should be less than or equal to 1"),
        ("[policy]\nztf_min_drb = nan", "[policy] ztf_min_drb = nan: should be"),
        ("[policy]\nlsst_abstains_on_dipole = 1", "lsst_abstains_on_dipole = 1: should be true or false"),
        ('[output]\nledger = "t2b-classifications"', "[output] needs three different topics"),
        ('[output]\nledger = "a b"', "[output] ledger = 'a b': is not a topic name"),
        ("[output]\npartitions = 0", "partitions = 0: should be greater than 0"),
        ('[spark]\ndriver_memory = "lots"', "driver_memory = 'lots': should match pattern"),
        ('[spark]\nextra = { "executor.cores" = "2" }', "Spark's settings start with 'spark.'"),
        (
            '[spark]\nextra = { "spark.executor.cores" = 2 }',
            "extra.spark.executor.cores = 2: should be text in quotes",
        ),
    ],
)
def test_wrong_additions_are_named(tmp_path: Path, more: str, message: str) -> None:
    assert message in refuse(tmp_path, LEAST + more + "\n")


def test_sources_must_be_apart(tmp_path: Path) -> None:
    block = LEAST[LEAST.index("[[source]]") :]
    assert "two sources are called 'ztf'" in refuse(tmp_path, LEAST + block)
    second = block.replace('"ztf"', '"z2"', 1).replace("checkpoints/ztf", "./checkpoints/../checkpoints/ztf/")
    assert "sources 'ztf' and 'z2' share the checkpoint" in refuse(tmp_path, LEAST + second)
    assert "has no [[source]]" in refuse(tmp_path, "source = []\n" + LEAST[: LEAST.index("[[source]]")])


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    text = refuse(tmp_path, LEAST + "max_alerts_per_batch = 0\n[policy]\nztf_min_rb = 2.0\n[spark]\nmaster = 3\n")
    assert len(text.splitlines()) == 3


def test_login_reaches_both_clients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_USER", "bob")
    monkeypatch.setenv("T2_PASSWORD", 'pa"ss\\w\n')
    config = read(tmp_path, LOGIN)
    assert kafka_options(config) == {
        "bootstrap.servers": "host:9092",
        "sasl.mechanism": "SCRAM-SHA-512",
        "security.protocol": "SASL_SSL",
        "ssl.ca.location": "/ca.pem",
        "sasl.username": "bob",
        "sasl.password": 'pa"ss\\w\n',
    }
    assert spark_kafka_options(config) == {
        "kafka.bootstrap.servers": "host:9092",
        "kafka.sasl.mechanism": "SCRAM-SHA-512",
        "kafka.security.protocol": "SASL_SSL",
        "kafka.ssl.truststore.type": "PEM",
        "kafka.ssl.truststore.location": "/ca.pem",
        "kafka.sasl.jaas.config": "org.apache.kafka.common.security.scram.ScramLoginModule required "
        'username="bob" password="pa\\"ss\\\\w\\n";',
    }


def test_client_settings_go_where_they_are_understood(tmp_path: Path) -> None:
    options = 'options = { "sasl.mechanisms" = "GSSAPI", "ssl.truststore.location" = "/t.jks" }\n[[source]]'
    config = read(tmp_path, LEAST.replace("[[source]]", options))
    assert kafka_options(config) == {"bootstrap.servers": "host:9092", "sasl.mechanisms": "GSSAPI"}
    assert spark_kafka_options(config) == {
        "kafka.bootstrap.servers": "host:9092",
        "kafka.sasl.mechanism": "GSSAPI",
        "kafka.ssl.truststore.location": "/t.jks",
    }


def test_missing_variable_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_USER", "bob")
    monkeypatch.delenv("T2_PASSWORD", raising=False)
    config = read(tmp_path, LOGIN)  # loading needs no secrets
    for options in (kafka_options, spark_kafka_options):
        with pytest.raises(ConfigError, match=r"job.toml: .*T2_PASSWORD"):
            options(config)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('password_env = "T2_PASSWORD"', "", "[kafka] needs both username_env and password_env, or neither"),
        ('"sasl.mechanism" = "SCRAM-SHA-512", ', "", "needs 'sasl.mechanism': PLAIN, SCRAM-SHA-256, SCRAM-SHA-512"),
        ("SCRAM-SHA-512", "GSSAPI", "it is 'GSSAPI'"),
        ("SASL_SSL", "SSL", "needs 'security.protocol': SASL_SSL, SASL_PLAINTEXT; it is 'SSL'"),
        ('"sasl.mechanism"', '"bootstrap.servers" = "x:1", "sasl.mechanism"', "write it as kafka.bootstrap_servers"),
    ],
)
def test_half_a_login_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    assert message in refuse(tmp_path, LOGIN.replace(old, new))


@pytest.mark.parametrize(
    "line",
    [
        'password = "hunter2"',
        'password_env = "hunter2!"',
        'options = { "sasl.password" = "hunter2" }',
        'options = { "sasl.username" = "hunter2" }',
        'options = { "ssl.key.password" = "hunter2" }',
        'options = { "sasl.jaas.config" = "x password=hunter2;" }',
    ],
)
def test_secrets_in_the_file_are_refused_and_not_repeated(tmp_path: Path, line: str) -> None:
    text = refuse(tmp_path, LEAST.replace("[[source]]", f"{line}\n[[source]]"))
    assert "hunter2" not in text


def test_effective_settings_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("T2_USER", "bob")
    monkeypatch.delenv("T2_PASSWORD", raising=False)
    text = LOGIN + "start = 2026-11-20T00:00:00Z\n[policy]\nztf_min_rb = 0.6\n[output]\ncreate_topics = true\n"
    rows = {row.key: row for row in effective(read(tmp_path, text))}
    file = str(tmp_path / "job.toml")
    assert rows["policy.ztf_min_rb"][1:] == ("0.6", file)
    assert rows["policy.ztf_min_drb"][1:] == ("0.5", "default")
    assert rows["output.create_topics"][1:] == ("true", file)
    assert rows["source[ztf].topics"][1:] == ("night", file)
    assert rows["source[ztf].start"].value.startswith("2026-11-20")
    assert rows["output.max_message_bytes"][1:] == ("(none)", "default")
    assert rows["kafka.username"][1:] == ("********", "environment variable T2_USER")
    assert rows["kafka.password"][1:] == ("(not set)", "environment variable T2_PASSWORD")
    assert "bob" not in str(rows)
    assert set(Source.model_fields) == {key.partition("].")[2] for key in rows if key.startswith("source[")}
