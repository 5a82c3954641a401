"""The kinds of faults, what each breaks, and how it is mended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from confluent_kafka.admin import AdminClient
from confluent_kafka.admin._acl import AclBinding, AclBindingFilter, AclOperation, AclPermissionType
from confluent_kafka.admin._resource import ResourcePatternType, ResourceType

from benchmarks import machine
from benchmarks.fault_load import outlet_topics
from benchmarks.fault_memory import around_day
from benchmarks.fault_registry import around_registry, strike_registry
from benchmarks.fault_run import Kind, Run, kill

FAKETIME = Path(__file__).resolve().parent.parent / ".faults" / "libfaketime/vendor/libfaketime/src/libfaketime.so.1"
AUTHORIZER = {
    "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
    "allow.everyone.if.no.acl.found": "true",
}
ROOMY, SPARE = "6g", 96 * 1024  # tmpfs takes memory only for what lies in it; bytes left when the disk is full


# --- killed ---------------------------------------------------------------------------------------------------------


def _job(run: Run) -> str:
    assert run.job is not None
    kill(run.job.below())
    run.job.process.wait()
    run.snap()
    return "job"


def _driver(run: Run) -> str:
    assert run.job is not None
    run.job.process.kill()
    run.job.process.wait()
    run.snap()
    return "driver"


def _workers(run: Run) -> str:
    assert run.job is not None
    workers = [p for p in run.job.below() if p.pid != run.job.process.pid and p.name != "java"]
    kill(workers)
    if workers:
        run.snap()
    return "workers" if workers else ""


def _kafka(run: Run) -> str:
    run.snap()
    kill([p for p in machine.descendants(os.getpid(), machine.processes()) if _is_kafka(p)])
    run.kafka.stop()
    run.wait(run.result.away_s)
    run.kafka.start()
    return "kafka"


def _is_kafka(process: machine.Process) -> bool:
    try:
        return b"kafka.Kafka" in Path(f"/proc/{process.pid}/cmdline").read_bytes() and process.name == "java"
    except OSError:
        return False


# --- stopped, and another time --------------------------------------------------------------------------------------


def _stop(run: Run) -> str:
    assert run.job is not None
    run.snap()
    stopped = run.job.below()
    kill(stopped, signal.SIGSTOP)
    time.sleep(min(60.0, run.result.away_s))
    kill(stopped, signal.SIGCONT)
    return "stop"


@contextmanager
def _around_clock(run: Run) -> Iterator[None]:
    """The job's processes ask libfaketime, which looks into a file once a second, for the time of day."""
    if not FAKETIME.is_file():
        raise RuntimeError(f"{FAKETIME}: not there; `make faults` installs it")
    clock = run.folder / "clock"
    clock.write_text("+0\n")
    run.environment |= {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME_TIMESTAMP_FILE": str(clock),
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_CACHE_DURATION": "1",
        "FAKETIME_FORCE_MONOTONIC_FIX": "0",  # with it each timed wait of the JVM ends at once: 23 ms of CPU an alert
    }
    yield


def _clock(run: Run) -> str:
    ahead = len(run.result.hits) % 2 == 0
    run.snap()
    new = run.folder / "clock.new"
    new.write_text("+3600\n" if ahead else "+0\n")
    new.replace(run.folder / "clock")
    run.wait(30)
    return "an hour ahead" if ahead else "back"


# --- disks ----------------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(folder: Path) -> Iterator[None]:
    """A file system of its own, in memory: needs root."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={ROOMY}", "tmpfs", str(folder)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def _fill(folder: Path) -> None:
    """No more than a little fits."""
    for _ in range(50):
        used = (lambda s: (s.f_blocks - s.f_bfree) * s.f_frsize)(os.statvfs(folder))
        try:
            _resize(folder, str(used + SPARE))
            return
        except subprocess.CalledProcessError:
            continue  # more was written in between than that: the kernel refuses a size that is below the use
    raise RuntimeError(f"{folder} is written to faster than it can be made full")


def _resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


def _disk_checkpoint(run: Run) -> str:
    run.snap()
    _fill(run.folder / "checkpoints")
    run.wait_for_end(3, "Free space on this machine")
    _resize(run.folder / "checkpoints", ROOMY)
    return "checkpoint"


def _disk_kafka(run: Run) -> str:
    """Kafka ends once it can't write; it is started again when there is space."""
    data = run.folder / "kafka"
    run.snap()
    _fill(data)
    run.wait(90, lambda: not run.kafka.running)
    died = not run.kafka.running
    run.wait(5)
    _resize(data, ROOMY)
    run.kafka.stop()
    run.kafka.start()
    return "Kafka's log, which ended Kafka" if died else "Kafka's log"


# --- output topics --------------------------------------------------------------------------------------------------


def _readonly(run: Run) -> str:
    """The classifications, then an outlet."""
    kind = ("classifications", "json")[len(run.result.hits) % 2]
    topic = f"{run.run}-{kind}"
    admin = AdminClient(dict(run.options))
    who = (ResourceType.TOPIC, topic, ResourcePatternType.LITERAL, "User:ANONYMOUS", "*")
    run.snap()
    denied = AclBinding(*who, AclOperation.WRITE, AclPermissionType.DENY)
    admin.create_acls([denied])[denied].result(30)
    run.wait_for_end(3, "Grant the login that right")
    (lifted,) = admin.delete_acls([AclBindingFilter(*who, AclOperation.ANY, AclPermissionType.ANY)]).values()
    lifted.result(30)
    return f"{kind} read-only"


def _deleted(run: Run) -> str:
    """What was on it is gone, so all is answered anew: no output topic, no checkpoint, from the earliest alert."""
    assert run.job is not None
    admin = AdminClient(dict(run.options))
    run.snap()
    admin.delete_topics([run.outputs[0]])[run.outputs[0]].result(30)
    run.wait_for_end(3, "Kafka lacks the topic")
    run.moment = None  # the topic that would tell is gone
    rest = [run.outputs[1], f"{run.run}-ledger", *(t for topics in outlet_topics(run.run).values() for t in topics)]
    for done in admin.delete_topics(rest).values():
        done.result(30)
    shutil.rmtree(run.folder / "checkpoints")
    run.look_after()
    run.wait_until_running()
    run.look_anew()
    return "classifications deleted"


# --- a day ----------------------------------------------------------------------------------------------------------


def _any(run: Run) -> str:
    """One of them, by the seed."""
    strikes = {_workers: 6, _kafka: 4, _stop: 4, _driver: 2, _job: 2}
    (strike,) = run.rng.choices(list(strikes), list(strikes.values()))
    return strike(run)


def _nothing(_: Run) -> str:
    return ""


KINDS = {
    kind.name: kind
    for kind in (
        Kind("job", 30, 6, _job, about="SIGKILL of the whole job (driver, JVM, workers)", all_phases=True),
        Kind("driver", 10, 5, _driver, about="SIGKILL of the driver alone", all_phases=True),
        Kind("workers", 10, 5, _workers, about="SIGKILL of all Python workers", all_phases=True),
        Kind("kafka", 5, 2, _kafka, about="Kafka killed, {away} s away, started again"),
        Kind(
            "registry",
            5,
            3,
            strike_registry,
            around=around_registry,
            slower=4,
            about="registry away, slow, empty, while alerts of a new schema come",
        ),
        Kind(
            "disk-checkpoint",
            2,
            2,
            _disk_checkpoint,
            exits=(3,),
            disk="checkpoints",
            about="no space for the checkpoint",
        ),
        Kind("disk-kafka", 2, 2, _disk_kafka, disk="kafka", about="no space for Kafka's log"),
        Kind("damaged-1", 2, 0, _nothing, about="1 % of the alerts damaged"),
        Kind("damaged-60", 2, 0, _nothing, damaged=0.6, about="60 % of the alerts damaged"),
        Kind("readonly", 2, 2, _readonly, exits=(3,), kafka=AUTHORIZER, about="an output topic made read-only by ACL"),
        Kind("deleted", 2, 1, _deleted, exits=(3,), about="classifications topic deleted"),
        Kind("clock", 2, 2, _clock, around=_around_clock, about="the job's clock an hour ahead, and back"),
        Kind("stop", 2, 2, _stop, about="SIGSTOP of the whole job for 60 s"),
        Kind(
            "day",
            1,
            1000,
            _any,
            every_s=60.0,
            visits_s=10.0,
            around=around_day,
            about="a day condensed: visits, and a random fault of the above each minute",
        ),
        Kind(
            "calm",
            1,
            0,
            _nothing,
            visits_s=10.0,
            around=around_day,
            about="a day condensed without a fault, for its memory",
        ),
    )
}
