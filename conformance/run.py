"""`make conformance`: the clients that people use, each in an environment of its own, read what the job wrote.

Real and made-up alerts of each survey go through `broker run` on the embedded Kafka, with poison among them; every
outlet takes all that was read. Then each client reads its topic to the end. The samples go once more through a job, in
the form in which Fink sends alerts on, without forced photometry: `broker.fink` in Fink's Spark must say the same of
them. And Rubin's and AMPEL's readers must see in the samples what ours see. Prints a line a client; exit code 1 where
one has stopped, or has read less than was written.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import fastavro  # noqa: E402
import pyarrow as pa  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
from fink_form import as_fink_sends, record_of  # noqa: E402
from generate import LABELS, generated  # noqa: E402
from registry_server import RegistryServer  # noqa: E402
from running import Alert, broker, read_outcome, send, topics_of, write_config  # noqa: E402
from samples import Sample, originals, whole  # noqa: E402

from broker.archive import read_frames  # noqa: E402
from broker.deadletter import struct_of  # noqa: E402
from broker.embedded import EmbeddedKafka  # noqa: E402
from broker.fink import RUBIN, ZTF  # noqa: E402
from broker.outlets import native  # noqa: E402
from broker.outlets.fastdb import MORE_BYTES  # noqa: E402
from broker.second_reader import Read  # noqa: E402
from broker.second_reader import read as second_reader  # noqa: E402
from broker.surveys import find as surveys_table  # noqa: E402
from broker.topics import read_all  # noqa: E402

HERE = ROOT / "conformance"
KINDS = {"json": "json", "lasair": "anno_t2b", "hop": "hop", "elasticc": "elasticc", "fink-ai": "fink_ai_t2b"}
MAX_ALERT_BYTES = 4_194_304
POISON = (None, b"", b"junk", b"Obj\x01", b"\x00\x00\x00\x30\x39")
CONTRACTS = {"ztf": ZTF, "lsst": RUBIN}
# Every source that Fink passes on counts as a detection; the job asks its floors first
NO_FLOORS = """[policy]
ztf_max_nbad = 1000000000
ztf_min_drb = 0.0
ztf_min_rb = 0.0
lsst_min_reliability = 0.0
lsst_abstains_on_psf_flux_flag = false
lsst_abstains_on_bad_pixels = false
lsst_abstains_on_cosmic_ray_center = false
lsst_abstains_on_saturated_center = false
lsst_abstains_on_dipole = false
lsst_abstains_on_glint_trail = false
"""
ODD = ("281323062375219200", "synthetic-wire")  # Rubin's example packet: its visits contradict their times
ENVIRONMENTS = ("fink", "hop", "plain", "module", "oracle")
Counts = dict[str, int]


def alerts_of(survey: str, n: int) -> list[Alert]:
    """Every sample, then made-up alerts up to n; each fiftieth message is poison beside them."""
    found = [s.data for s in whole(survey)][:n]
    found += generated(survey, LABELS[survey][-1], (n - len(found)) // 2, seed=7)
    found += generated(survey, LABELS[survey][0], n - len(found), seed=8)
    alerts: list[Alert] = []
    for i, value in enumerate(found):
        if i % 50 == 0:
            alerts.append(Alert(POISON[i // 50 % len(POISON)]))
        alerts.append(Alert(value, str(i).encode()))
    return alerts


def outlets(survey: str) -> str:
    """[[outlet]] blocks of every kind that the survey has, all of them without a filter."""
    topics = {kind: f"{topic}_{survey}" for kind, topic in KINDS.items()}
    if survey != "elasticc":
        topics["fink"] = f"fink_t2b_{survey}"
    if survey == "lsst":
        topics["fastdb"] = "fastdb"
    text = ""
    for kind, topic in topics.items():
        text += f'[[outlet]]\nname = "{kind}-{survey}"\nkind = "{kind}"\ntopic = "{topic}"\nsources = ["{survey}"]\n'
        text += 'class_name = "SNIa"\n' if kind == "fink-ai" else ""
        text += '[outlet.filter]\nstatuses = ["classified", "abstained"]\n'
    return text


def run_job(kafka: EmbeddedKafka, registry: str, folder: Path, surveys: list[str], n: int) -> None:
    """All alerts of all surveys through one job, to its end."""
    sources: list[dict[str, object]] = []
    kafka.create_topics({f"{survey}-in": 2 for survey in surveys})
    for survey in surveys:
        send(kafka, f"{survey}-in", alerts_of(survey, n), 2)
        sources.append(
            {"name": survey, "survey": survey, "topics": [f"{survey}-in"], "max_alert_bytes": MAX_ALERT_BYTES}
        )
    settings = {**topics_of("all"), "create_topics": True, "partitions": 3, "registry": registry}
    settings["max_message_bytes"] = MAX_ALERT_BYTES + MORE_BYTES
    config = write_config(folder, kafka.bootstrap_servers, sources, settings)
    config.write_text(config.read_text() + "".join(map(outlets, surveys)))
    done = broker("run", "--config", config, "--once", timeout_s=900)
    print(done.stdout.strip() or done.stderr[-2000:])
    assert done.returncode == 0, done.stderr
    audit = broker("audit", "--config", config, timeout_s=300)
    print(audit.stdout[-1500:])
    assert audit.returncode == 0, audit.stdout


def client(*command: str | Path, home: Path | None = None) -> str:
    """What a client prints. Raises AssertionError where it stops."""
    environment = {**os.environ, **({"HOME": str(home)} if home else {}), "COLUMNS": "200"}
    done = subprocess.run(
        list(map(str, command)), capture_output=True, text=True, timeout=900, env=environment, check=False
    )
    assert done.returncode == 0, f"{command}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "Traceback" not in done.stderr, done.stderr[-2000:]
    return done.stdout


def finkctl(python: Path, servers: str, survey: str, n: int, home: Path) -> Counts:
    """`finkctl stream` as its manual says: register, subscribe, then save, then display."""
    command, topic = python.with_name("finkctl"), f"fink_t2b_{survey}"
    register = ("auth", "register", "-survey", survey, "-username", "u", "-servers", servers, "-maxtimeout", "5")
    counts = {}
    for what in ("save", "display"):
        own = home / f"{what}-{survey}"  # register asks before it overwrites what is in the home folder
        out = own / "alerts"
        out.mkdir(parents=True)
        client(command, *register, "-groupid", f"{what}-{survey}", home=own)
        client(command, "topic", "subscribe", "-survey", survey, "-name", topic, home=own)
        asked = ("stream", "-survey", survey, "-limit", str(n), "-outdir", str(out), "-start_at", "earliest")
        text = client(command, *asked, f"--{what}", home=own)
        counts[f"finkctl --{what}"] = len(list(out.glob("*.avro"))) if what == "save" else text.count(f" | {topic} | ")
    return counts


def written(servers: str, topic: str) -> list[tuple[bytes, ...]]:
    """Keys and headers on a topic."""
    return [(message.key() or b"",) for message in read_all({"bootstrap.servers": servers}, topic)]


def plain(pythons: dict[str, Path], servers: str, registry: str, topics: dict[str, str]) -> Counts:
    """What the plain readers have read, by kind."""
    asked = [f"{kind}={topic}" for kind, topic in topics.items()]
    found: Counts = json.loads(
        client(pythons["plain"], HERE / "client_plain.py", servers, ROOT / "schemas", registry, *asked)
    )
    return found


def read_back(pythons: dict[str, Path], servers: str, registry: str, survey: str, folder: Path) -> Counts:
    """What each client has read of a survey."""
    topics = {kind: f"{topic}_{survey}" for kind, topic in KINDS.items()}
    asked = {kind: topics[kind] for kind in ("json", "lasair", "elasticc")} | {"container": topics["hop"]}
    found = plain(pythons, servers, registry, asked | ({"fastdb": "fastdb"} if survey == "lsst" else {}))
    found |= json.loads(client(pythons["hop"], HERE / "client_hop.py", servers, topics["hop"]).splitlines()[-1])
    if survey != "elasticc":
        fink = f"fink_t2b_{survey}"
        n = len(written(servers, fink))
        arguments = (servers, survey, fink, str(n), topics["fink-ai"])
        found |= json.loads(client(pythons["fink"], HERE / "client_fink.py", *arguments).splitlines()[-1])
        found |= finkctl(pythons["fink"], servers, survey, n, folder)
    return found


def due(servers: str, survey: str) -> Counts:
    """What each client has to read: the records of its topic (files that are saved: its sources)."""
    n = {kind: len(written(servers, f"{topic}_{survey}")) for kind, topic in KINDS.items()}
    wanted = {"json": n["json"], "lasair": n["lasair"], "elasticc": n["elasticc"], "hop-client": n["hop"]}
    wanted["container"] = n["hop"]
    if survey == "lsst":
        wanted["fastdb"] = len(written(servers, "fastdb"))
    if survey != "elasticc":
        fink = len(written(servers, f"fink_t2b_{survey}"))
        alerts = [json.loads(m.value() or b"") for m in read_all({"bootstrap.servers": servers}, f"json_{survey}")]
        names = {(a["object_id"] if survey == "ztf" else None, a["source_id"]) for a in alerts}
        wanted |= {"AlertConsumer": fink, "fink-ai": n["fink-ai"]}
        wanted |= {"finkctl --save": len(names), "finkctl --display": fink}
    return wanted


# --- broker.fink in Fink's environment ----------------------------------------------------------------------------


def said_by_the_job(kafka: EmbeddedKafka, samples: dict[str, list[Sample]], folder: Path) -> dict[str, dict[int, Any]]:
    """Record of each sample by its number: Fink's topics in, no forced photometry, no floors."""
    sources: list[dict[str, object]] = []
    for survey, chosen in samples.items():
        kafka.create_topics({f"fink-{survey}": 1})
        send(kafka, f"fink-{survey}", [as_fink_sends(sample, has_forced=False) for sample in chosen])
        more = {"programids": [1, 2, 3]} if survey == "ztf" else {}
        sources.append({"name": survey, "survey": survey, "topics": [f"fink-{survey}"], **more})
    folder.mkdir()
    settings = {**topics_of("module"), "create_topics": True}
    config = write_config(folder, kafka.bootstrap_servers, sources, settings, NO_FLOORS)
    done = broker("run", "--config", config, "--once", timeout_s=900)
    print(done.stdout.strip() or done.stderr[-2000:])
    assert done.returncode == 0, done.stderr
    found: dict[str, dict[int, Any]] = {survey: {} for survey in samples}
    for place, (message,) in read_outcome(kafka.bootstrap_servers, settings).classifications.items():
        found[place.topic.removeprefix("fink-")][place.offset] = native.read(message.value() or b"")
    return found


def is_odd(sample: Sample) -> bool:
    """Whether exposures can't be known by their times, by which broker.fink knows them."""
    return any(name in repr(sample) for name in ODD)


def columns_of(survey: str, samples: list[Sample], said: dict[int, Any]) -> pa.Table:
    """What concat_col makes of the alerts that the job has a record of, and what it said."""
    contract = CONTRACTS[survey]
    columns: dict[str, list[Any]] = {name: [] for name in (*contract.columns, "due_class", "due_score")}
    for number, record in sorted(said.items()):
        alert, _ = record_of(samples[number])
        for name, field in zip(contract.columns, contract.detections.values(), strict=True):
            past = [point.get(field) for point in alert[contract.history] or ()]
            columns[name].append([*past, alert[contract.current].get(field)])
        columns["due_class"].append(record["class_name"])
        columns["due_score"].append(record["probability"])
    return pa.table(columns)


def module(python: Path, kafka: EmbeddedKafka, surveys: list[str], folder: Path, alerts: Path | None) -> bool:
    """Whether broker.fink says what the job says, of all samples (and of a folder of original alerts)."""
    samples = {
        survey: [s for s in (*whole(survey), *(originals(alerts, survey) if alerts else ())) if not is_odd(s)]
        for survey in surveys
        if survey in CONTRACTS
    }
    said, is_fine = said_by_the_job(kafka, samples, folder), True
    for survey, chosen in samples.items():
        path = folder / f"{survey}.parquet"
        pq.write_table(columns_of(survey, chosen, said[survey]), path)
        found = json.loads(client(python, HERE / "client_module.py", survey, path).splitlines()[-1])
        is_right = found["same"] == found["alerts"] == len(said[survey]) > 0
        is_fine &= is_right
        told = f"{found['same']:6} of {found['alerts']:6} the same, {found['alerts_per_s']} alerts/s on one core"
        print(f"{survey:9} {'broker.fink':18} {told} {'' if is_right else 'WRONG'}")
    return is_fine


def oracles(python: Path, folder: Path) -> bool:
    """Whether others' readers see in the samples what ours do: the LSST frames, and a night of ZTF as a tar.gz."""
    folder.mkdir()
    table = surveys_table("lsst")
    for number, sample in enumerate(whole("lsst")):
        found = second_reader(sample.data, table, MAX_ALERT_BYTES, struct_of(table))
        assert isinstance(found, Read)
        (folder / f"{number}.bin").write_bytes(sample.data)
        ours = {"fields": table.fields, "alert": found.alert[0].as_py()}
        (folder / f"{number}.json").write_text(json.dumps(ours))
    night = folder / "night.tar.gz"
    with tarfile.open(night, "w:gz", compresslevel=1) as archive:
        for number, sample in enumerate(whole("ztf")):
            member = tarfile.TarInfo(f"{number}.avro")
            member.size = len(sample.data)
            archive.addfile(member, io.BytesIO(sample.data))
    frames = [frame.value or b"" for frame in read_frames(night, night, MAX_ALERT_BYTES)]
    alerts = [alert for value in frames for alert in fastavro.reader(io.BytesIO(value))]
    night.with_name("night.json").write_text(json.dumps([[a["objectId"], a["candid"]] for a in alerts]))
    found_by = json.loads(client(python, HERE / "client_oracle.py", folder).splitlines()[-1])
    for survey, name in (("lsst", "lsst-alert-packet"), ("ztf", "ampel-alerts")):
        n_same, n = found_by[survey]
        right = "" if n_same == n == len(whole(survey)) else "WRONG"
        print(f"{survey:9} {name:18} {n_same:6} of {n:6} {right}")
    return all(n_same == n == len(whole(survey)) for survey, (n_same, n) in found_by.items())


def main() -> int:
    """Everything; 0 where each client has read all."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--environments", type=Path, default=ROOT / ".conformance")
    options.add_argument("--alerts", type=int, default=1000, help="of each survey")
    options.add_argument("--surveys", default="lsst,ztf,elasticc")
    options.add_argument("--originals", type=Path, help="a folder of original alerts, for broker.fink")
    asked = options.parse_args()
    pythons = {name: asked.environments / name / "bin" / "python" for name in ENVIRONMENTS}
    surveys, is_fine = asked.surveys.split(","), True
    with tempfile.TemporaryDirectory() as scratch, EmbeddedKafka() as kafka, RegistryServer() as registry:
        folder, servers = Path(scratch), kafka.bootstrap_servers
        run_job(kafka, registry.url, folder, surveys, asked.alerts)
        for survey in surveys:
            found, wanted = read_back(pythons, servers, registry.url, survey, folder), due(servers, survey)
            for name in wanted:
                is_right = found.get(name) == wanted[name] > 0
                is_fine &= is_right
                print(f"{survey:9} {name:18} {found.get(name, 0):6} of {wanted[name]:6} {'' if is_right else 'WRONG'}")
        n = plain(pythons, servers, registry.url, {"frame": "all-classifications"})["frame"]
        due_n = len(written(servers, "all-classifications"))
        is_fine &= n == due_n > 0
        print(f"{'all':9} {'AvroDeserializer':18} {n:6} of {due_n:6} {'' if n == due_n > 0 else 'WRONG'}")
        is_fine &= module(pythons["module"], kafka, surveys, folder / "module", asked.originals)
        is_fine &= oracles(pythons["oracle"], folder / "oracles")
    return 0 if is_fine else 1


if __name__ == "__main__":
    sys.exit(main())
