"""What wrote a checkpoint: a small file in its folder, held against the config, model and code that go on with it.

Changed for good is what the identity of a verdict hangs on, or what Spark can't follow: the source's name, its survey,
the cluster, a topic that is gone, another Spark. Such a start is refused. A new model, new code, a further topic are a
line in the log.
"""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

from broker import checkpoint
from broker.config import Source
from broker.errors import ConfigError
from broker.outlets import Passport

_log = logging.getLogger(__name__)

FILE = "imprint.json"
_NEW = "give it a new checkpoint and a 'start'"


@dataclass(frozen=True)
class Imprint:
    """What a job was when it wrote to a checkpoint. cluster: Kafka's id; code, spark: versions."""

    source: str
    survey: str
    topics: tuple[str, ...]
    outputs: tuple[str, ...]
    cluster: str
    model: str
    model_sha256: str
    rules: int
    code: str
    spark: str


def imprint(source: Source, outputs: tuple[str, ...], cluster: str, passport: Passport) -> Imprint:
    """That of the job as it is now."""
    return Imprint(
        source=source.name,
        survey=source.survey,
        topics=source.topics,
        outputs=outputs,
        cluster=cluster,
        model=passport.model,
        model_sha256=passport.sha256,
        rules=passport.rules_version,
        code=passport.broker_version,
        spark=version("pyspark"),
    )


def take_over(folder: Path, now: Imprint) -> None:
    """Check that this job may go on with the checkpoint, and write its imprint there, before its first batch.

    Raises ConfigError with what has changed and how to go on; LedgerError, OSError where the folder can't be read.
    """
    before = _read(folder / FILE)
    if before is not None and checkpoint.has_offsets(folder):
        is_unfinished = checkpoint.planned_spans(folder) is not None
        if refused := _incompatible(before, now, is_unfinished):
            raise ConfigError(
                f"source {now.source!r}: the checkpoint {folder} was written for {'; and for '.join(refused)}"
            )
        if told := _changes(before, now):
            _log.info("%s: since the checkpoint's last job: %s", now.source, ", ".join(told))
    if before != now:
        new = folder / f".{FILE}.new"
        new.write_text(json.dumps({"imprint": 1} | asdict(now), indent=1) + "\n", encoding="utf-8")
        new.replace(folder / FILE)


def _read(path: Path) -> Imprint | None:
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        if fields.pop("imprint") != 1:
            raise ConfigError(f"{path}: of a later version of this broker: go on with that one")
        return Imprint(**(fields | {name: tuple(fields[name]) for name in ("topics", "outputs")}))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        _log.warning("%s: can't be read, so nothing is known of the checkpoint's last job: %s", path, error)
        return None


def _incompatible(before: Imprint, now: Imprint, is_unfinished: bool) -> list[str]:
    """What rules out going on, each with the way out."""
    found = []
    for what, old, new in (("source", before.source, now.source), ("survey", before.survey, now.survey)):
        if old != new:
            found.append(f"{what} {old!r}, not {new!r}: correct the config, or {_NEW}")
    if before.cluster != now.cluster:
        found.append(
            f"the Kafka cluster {before.cluster}, and this is {now.cluster}, whose offsets are others: correct "
            f"kafka.bootstrap_servers, or {_NEW}"
        )
    if gone := sorted(set(before.topics) - set(now.topics)):
        found.append(f"the topics {', '.join(gone)} too: name them again (they may be empty), or {_NEW}")
    if _minor(before.spark) != _minor(now.spark):
        found.append(f"Spark {before.spark}, not {now.spark}: install that one again, or {_NEW}")
    if is_unfinished and before.outputs != now.outputs:
        found.append(
            f"the outputs {', '.join(before.outputs)}, and its last batch is unfinished: run it once with those "
            "(broker run --once), then change them"
        )
    return found


def _changes(before: Imprint, now: Imprint) -> list[str]:
    """What has changed that does no harm."""
    found = []
    if added := sorted(set(now.topics) - set(before.topics)):
        found.append(f"topics {', '.join(added)} added")
    if before.outputs != now.outputs:
        found.append(f"outputs {', '.join(before.outputs)} -> {', '.join(now.outputs)}")
    old, new = (f"{one.model} ({one.model_sha256[:12]})" for one in (before, now))
    pairs = (("model", old, new), ("rules", before.rules, now.rules), ("code", before.code, now.code))
    found += [f"{what} {a} -> {b}" for what, a, b in (*pairs, ("Spark", before.spark, now.spark)) if a != b]
    return found


def _minor(spark: str) -> list[str]:
    return spark.split(".")[:2]
