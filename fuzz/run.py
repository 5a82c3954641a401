"""`make fuzz`: atheris throws mutated alerts at the readers in Python; what gets the better of one is kept, minimised.

Runs in an environment of its own: atheris, and behind it the packages of .venv. The corpus in build/fuzz grows from run
to run; a find lies in build/fuzz/finds. Exit code: libFuzzer's, 0 where nothing was found.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha1
from io import BytesIO
from pathlib import Path
from typing import Any

import atheris
import fastavro

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))
# All of ours; fastavro, numpy and Arrow are machine code, and Spark's decoder runs in its JVM: neither can be followed.
with atheris.instrument_imports(include=["broker"]):
    import fuzzing

import generate  # noqa: E402
from samples import damaged  # noqa: E402

from broker import surveys  # noqa: E402
from broker.container import Unreadable, read_header, unpacked  # noqa: E402
from broker.decode import schema_pair  # noqa: E402

FOLDER = ROOT / "build" / "fuzz"
FINDS = ROOT / "tests" / "finds"
MAX_BYTES = 60_000  # a container with the longest schema, and room
CODECS = ("null", "deflate", "snappy", "zstandard")
TYPES = ["null", "boolean", "int", "long", "float", "double", "bytes", "string", "nobody.Knows", "", 7, None, []]
TYPES += [
    {"type": "array", "items": "null"},
    {"type": "map", "values": "int"},
    {"type": "fixed", "name": "F", "size": 0},
]
TYPES += [{"type": "enum", "name": "E", "symbols": ["a"]}, {"type": "record", "name": "R", "fields": []}]


def seeds() -> Iterator[bytes]:
    """Small alerts of every layout, and containers of all codecs whose schema has the survey's fields and no others."""
    yield from (sample.data for sample in damaged())
    for survey, labels in generate.LABELS.items():
        for label in labels:
            record = generate.alert(survey, label, 1, n_detections=1, n_forced=1)
            yield generate.encode(survey, label, record)
            writer, reader = schema_pair(generate.schema_of(survey, label), surveys.find(survey), widest=True)
            body = BytesIO(generate.body(record, writer))
            less = fastavro.schemaless_reader(body, fastavro.parse_schema(writer), fastavro.parse_schema(reader))
            yield from (generate.container([less], reader, codec) for codec in CODECS)
    yield from (b"", b"Obj\x01", b"\x00\x00\x00\x04\x4c", generate.zero_byte_bomb(), generate.nested_schema(2000))
    yield generate.zero_byte_bomb(inside="3.3")
    yield generate.recursive(200, inside="3.3")


def mutate(value: bytes, max_size: int, seed: int) -> bytes:
    """A container with another schema or body, and lengths that fit; else, and of any other value, other bytes."""
    rng = random.Random(seed)
    if rng.random() < 0.6:
        try:
            return of_container(value, max_size, rng)[:max_size]
        except (Unreadable, ValueError, KeyError, EOFError, IndexError, TypeError, RecursionError):
            pass  # no container, or one that is spoilt already
    return atheris.Mutate(value, max_size)


def of_container(value: bytes, max_size: int, rng: random.Random) -> bytes:
    header, end = read_header(value)
    rest = BytesIO(value[end:])
    count, size = (fastavro.schemaless_reader(rest, "long", None) for _ in range(2))
    body = unpacked(rest.read(size), header.codec)
    schema, codec = json.loads(header.schema), rng.choice(CODECS)
    if rng.random() < 0.5:
        body = atheris.Mutate(body, min(max_size, len(body) + 200))
    else:
        schema = of_schema(schema, rng)
    return (
        generate.header(schema, codec) + header.sync + generate.block(generate.packed(body, codec), count, header.sync)
    )


def of_schema(schema: Any, rng: random.Random) -> Any:
    """The schema with one place of it replaced, dropped, doubled, renamed, or wrapped in a union or an array."""
    places = [*_places(schema)]
    if not places:
        return rng.choice(TYPES)
    at, key = rng.choice(places)
    deed, other = rng.randrange(6), rng.choice(places)
    if deed == 0:
        at[key] = rng.choice(TYPES)
    elif deed == 1:
        at[key] = json.loads(json.dumps(other[0][other[1]]))
    elif deed == 2:
        del at[key]
    elif deed == 3:
        at[key] = [at[key], rng.choice(TYPES)]
    elif deed == 4:
        at[key] = {"type": "array", "items": at[key]}
    elif isinstance(at, list):
        at.insert(key, rng.choice(TYPES))
    else:
        at[rng.choice(["type", "name", "namespace", "fields", "items", "default", "size", "aliases"])] = at[key]
    return schema


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key or index) of a JSON value."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, inner in pairs:
        yield node, key
        yield from _places(inner)


def fuzz(seconds: int, seed: int) -> None:
    """Until the time is over or something is found; libFuzzer ends the process."""
    warnings.simplefilter("error")
    corpus, finds = FOLDER / "corpus", FOLDER / "finds"
    for folder in (corpus, finds):
        folder.mkdir(parents=True, exist_ok=True)
    for value in (*seeds(), *(path.read_bytes() for path in FINDS.iterdir())):
        (corpus / sha1(value).hexdigest()).write_bytes(value)
    options = [f"-max_total_time={seconds}", f"-max_len={MAX_BYTES}", f"-artifact_prefix={finds}/", f"-seed={seed}"]
    options += ["-timeout=20", "-rss_limit_mb=3000", "-print_final_stats=1", "-use_value_profile=1"]
    atheris.Setup([sys.argv[0], *options, str(corpus)], fuzzing.check, custom_mutator=mutate)
    atheris.Fuzz()


def minimise(path: Path) -> None:
    """Print the smallest value that still ends `check` in the same exception, and write it beside the find."""
    found, why = path.read_bytes(), complaint(path.read_bytes())
    size = len(found) // 2
    while size:
        at = 0
        while at < len(found):
            less = found[:at] + found[at + size :]
            found, at = (less, at) if complaint(less) == why else (found, at + size)
        size //= 2
    smaller = path.with_suffix(".small")
    smaller.write_bytes(found)
    print(f"{path.stat().st_size} bytes to {len(found)}: {smaller}\n{why}")


def complaint(value: bytes) -> str | None:
    """Where and by what `check` was ended; None where it was not."""
    with ThreadPoolExecutor(1) as pool:
        error = pool.submit(fuzzing.check, value).exception()
    if error is None:
        return None
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{type(error).__name__} in line {trace.tb_lineno if trace else 0}: {error}"[:80]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**31))
    parser.add_argument("--minimise", type=Path, metavar="FIND")
    given = parser.parse_args()
    minimise(given.minimise) if given.minimise else fuzz(given.seconds, given.seed)
