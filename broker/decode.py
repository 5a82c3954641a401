"""Alert bytes to one struct per alert, in the JVM: from_avro with a reader schema pruned to the survey's fields.

A branch per known writer schema. What no branch can read leaves as null and goes, raw, to the second reader.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from pyspark.sql import Column, DataFrame
from pyspark.sql import functions as F
from pyspark.sql.avro.functions import from_avro

from broker.errors import ConfigError, SchemaError
from broker.registry import Schema, Writer, packaged
from broker.surveys import LONGEST_TEXT, Fields, Survey
from broker.wire import FRAME_BYTES, schema_label

# Appended to each body, and read as its last field: a body that ends early or goes on is not an alert.
END = bytes.fromhex("DEADBEEF0123456789ABCDEF00C0FFEE")

# One corrupt array length kills the JVM without these (20 bytes suffice); driver and executors must run with them.
MAX_ITEMS = 100_000
LIMITS = {
    "org.apache.avro.limits.collectionItems.maxLength": MAX_ITEMS,
    "org.apache.avro.limits.bytes.maxLength": 16_777_216,
    "org.apache.avro.limits.string.maxLength": 1_048_576,
}


def schema_pair(writer: Schema, survey: Survey, widest: bool = False) -> tuple[Schema, Schema]:
    """The writer schema, and the survey's fields of it as a reader schema.

    widest: scalars keep the writer's own type where it is wider than ours (the caller converts them).

    Same field order and types for every writer, so that all branches give one struct. Names are the writer's own (a
    namespace that differs would silently yield defaults); a field that this writer lacks is null, unless the
    survey calls it essential: SchemaError, the schema is another survey's. The writer schema comes back with each
    record as a type of its own, so that a history asks for fewer fields than the alert's own source: half as many
    on LSST.
    """
    apart = _apart(writer)
    return apart, _Pruner(survey, apart, widest).record(apart, survey.fields, "")


def type_of(survey: Survey, path: str) -> str:
    """Avro type of a field of the newest alerts of a survey, such as double for diaObject.ra.

    Raises ConfigError where there is none, or where it is no single value.
    """
    writer = packaged(survey.name)[-1]
    pruner, found = _Pruner(survey, writer.schema, False), writer.schema
    named = found
    for name in path.split("."):
        namespace = _full_name(named, "").rpartition(".")[0]
        fields = {str(f["name"]): f["type"] for f in named.get("fields", ())}  # type: ignore[attr-defined]
        if name not in fields:
            known = ", ".join(fields) or "none"
            raise ConfigError(f"alerts of {survey.name} ({writer.label}) have no field {path!r}: of {name!r}: {known}")
        kind = pruner.resolve(fields[name], namespace)
        named = kind if isinstance(kind, dict) and kind.get("type") == "record" else {"name": "none"}
    if not isinstance(kind, str) or kind not in _PRIMITIVE:
        raise ConfigError(f"field {path!r} of alerts of {survey.name} is no single value: name one inside a record")
    return kind


def _apart(writer: Schema) -> Schema:
    """The schema with a copy of a record, of another name, where a field refers to one that stands further up."""
    named = dict(_named_types(writer, ""))
    fields = writer.get("fields")
    if not isinstance(fields, list):
        return writer
    space = _full_name(writer, "").rpartition(".")[0]

    def copy(kind: object, field: str) -> object:
        if isinstance(kind, list):
            return [copy(part, field) for part in kind]
        if isinstance(kind, dict) and kind.get("type") == "array":
            return {**kind, "items": copy(kind["items"], field)}
        record = (named.get(kind) or named.get(f"{space}.{kind}")) if isinstance(kind, str) else None
        return _referring({**record, "name": f"{record['name']}_{field}"}) if record else kind

    return {**writer, "fields": [{**field, "type": copy(field["type"], str(field["name"]))} for field in fields]}


def _referring(record: Schema) -> Schema:
    """The record with its inner records by name: they are defined already."""
    namespace = str(record["name"]).rpartition(".")[0]

    def by_name(kind: object) -> object:
        if isinstance(kind, list):
            return [by_name(part) for part in kind]
        if isinstance(kind, dict) and "name" in kind:
            return _full_name(kind, namespace)
        if isinstance(kind, dict) and kind.get("type") == "array":
            return {**kind, "items": by_name(kind["items"])}
        return kind

    fields: list[dict[str, object]] = record["fields"]  # type: ignore[assignment]
    return {**record, "fields": [{**field, "type": by_name(field["type"])} for field in fields]}


class _Pruner:
    def __init__(self, survey: Survey, writer: Schema, widest: bool) -> None:
        self.survey, self.widest = survey, widest
        self.named = dict(_named_types(writer, ""))
        self.defined: dict[str, Fields] = {}

    def record(self, writer: Schema, fields: Fields, path: str) -> Schema:
        name = _full_name(writer, "")
        self.defined[name] = fields
        namespace = name.rpartition(".")[0]
        have = {str(f["name"]): f["type"] for f in writer["fields"]}  # type: ignore[attr-defined]
        out: list[dict[str, object]] = []
        for field, wanted in fields.items():
            here = f"{path}{field}"
            if field in have:
                out.append({"name": field, "type": ["null", self.type_of(have[field], wanted, f"{here}.", namespace)]})
                continue
            if any(path == here or path.startswith(f"{here}.") for path in self.survey.essential):
                raise SchemaError(f"schema {name!r} has no field {here}: not an alert of {self.survey.name}")
            out.append(
                {"name": field, "type": ["null", _absent(wanted, f"absent_{here.replace('.', '_')}")], "default": None}
            )
        return {"type": "record", "name": name, "fields": out}

    def type_of(self, found: object, wanted: object, path: str, namespace: str) -> object:
        """Reader type for a writer's field: our scalar, or the writer's record (by name where already defined)."""
        found = self.resolve(found, namespace)
        if isinstance(wanted, str):
            return _WIDER.get((wanted, str(found)), wanted) if self.widest else wanted
        if isinstance(wanted, list):
            if not (isinstance(found, dict) and found.get("type") == "array"):
                raise SchemaError(f"field {path[:-1]} is not an array: not an alert of {self.survey.name}")
            return {"type": "array", "items": ["null", self.type_of(found["items"], wanted[0], path, namespace)]}
        if not (isinstance(found, dict) and found.get("type") == "record" and isinstance(wanted, dict)):
            raise SchemaError(f"field {path[:-1]} is not a record: not an alert of {self.survey.name}")
        name = _full_name(found, namespace)
        if self.defined.get(name) == wanted:
            return name
        if name in self.defined:
            raise SchemaError(f"record {name!r} stands for two sets of fields in survey {self.survey.name!r}")
        return self.record({**found, "name": name}, wanted, path)

    def resolve(self, found: object, namespace: str) -> object:
        """The type behind a name or a nullable union."""
        if isinstance(found, list):
            real = [t for t in found if t != "null"]
            found = real[0] if len(real) == 1 else found
        if isinstance(found, dict) and isinstance(found.get("type"), dict | list):
            return self.resolve(found["type"], namespace)
        if isinstance(found, str) and found not in _PRIMITIVE:
            return self.named.get(found) or self.named.get(f"{namespace}.{found}") or found
        return found


_WIDER = {("float", "double"): "double", ("int", "long"): "long"}
_PRIMITIVE = {"null", "boolean", "int", "long", "float", "double", "bytes", "string"}


def _absent(wanted: object, name: str) -> object:
    """Type of a field that the writer lacks: always null, but with the struct's shape."""
    if isinstance(wanted, str):
        return wanted
    if isinstance(wanted, list):
        return {"type": "array", "items": ["null", _absent(wanted[0], name)]}
    assert isinstance(wanted, dict)
    fields = [{"name": f, "type": ["null", _absent(w, f"{name}_{f}")], "default": None} for f, w in wanted.items()]
    return {"type": "record", "name": name, "fields": fields}


def _full_name(schema: Schema, namespace: str) -> str:
    name, space = str(schema["name"]), str(schema.get("namespace") or namespace)
    return name if "." in name or not space else f"{space}.{name}"


def _named_types(schema: object, namespace: str) -> Iterator[tuple[str, Schema]]:
    """Every record of a schema by its full name, carrying that name."""
    if isinstance(schema, list):
        for part in schema:
            yield from _named_types(part, namespace)
    elif isinstance(schema, dict):
        if schema.get("type") == "record":
            name = _full_name(schema, namespace)
            yield name, {**schema, "name": name}
            for field in schema["fields"]:
                yield from _named_types(field["type"], name.rpartition(".")[0])
        elif schema.get("type") == "array":
            yield from _named_types(schema["items"], namespace)
        elif isinstance(schema.get("type"), dict | list):
            yield from _named_types(schema["type"], namespace)


def decode(frames: DataFrame, survey: Survey, writers: tuple[Writer, ...]) -> DataFrame:
    """Adds `schema` (label, null: unknown) and `alert` (struct, null: the second reader's) to rows with `value`.

    Each from_avro stands in a column of its own: taking two fields straight out of the call would decode twice.
    """
    label, ended, schema = schema_label(survey, writers, F.col("value")), F.col("ended"), F.col("schema")
    rows = frames.select("*", label.alias("schema"), F.concat("value", F.lit(END)).alias("ended"))
    found: list[Column] = []
    if survey.framing == "confluent":
        rows = rows.select("*", _by_label(writers, lambda w: _read(_framed, ended, survey, w)).alias("framed"))
        found = [F.when(F.col("framed.end") == F.lit(END), F.col("framed.alert"))]
    known = tuple(w for w in writers if w.headers)
    if known:
        rows = rows.select("*", _by_label(known, lambda w: _read(_container, ended, survey, w)).alias("contained"))
        sound = (F.col("contained.count") == 1) & (F.col("contained.sync") == F.col("contained.sync2"))
        sound = sound & (F.col("contained.end") == F.lit(END))  # else a second block could follow, unread
        found = [*found, F.when(sound, F.col("contained.alert"))]
    if survey.framing == "bare":
        open_ = schema.isNull()
        for number, writer in enumerate(writers):  # nothing says which layout it is: the one that fits to the last byte
            name = f"bare_{number}"
            rows = rows.select("*", F.when(open_, _read(_ended, ended, survey, writer)).alias(name))
            fits = F.coalesce(F.col(f"{name}.end") == F.lit(END), F.lit(False))
            found = [*found, F.when(fits, F.col(f"{name}.alert"))]
            schema, open_ = F.when(fits, F.lit(writer.label)).otherwise(schema), open_ & ~fits
    return rows.select(*frames.columns, F.coalesce(*found).alias("alert"), schema.alias("schema"))


def implausible(survey: Survey) -> Column:
    """Whether `alert` lacks a mandatory value in its plausible range (the same table as gather.implausible)."""
    plausible = F.lit(True)
    for path, (low, high) in survey.mandatory.items():
        plausible = plausible & F.col(f"alert.{path}").cast("double").between(float(low), float(high))
    for path in survey.texts:
        fits = F.octet_length(f"alert.{path}") <= LONGEST_TEXT
        plausible = plausible & F.coalesce(fits, F.lit(True))
    return ~F.coalesce(plausible, F.lit(False))


def _by_label(writers: tuple[Writer, ...], read: Callable[[Writer], Column]) -> Column:
    """A branch per writer schema, side by side: nested, each would have the types of all below it compared again."""
    first, *others = writers
    branches = F.when(F.col("schema") == first.label, read(first))
    for writer in others:
        branches = branches.when(F.col("schema") == writer.label, read(writer))
    return branches


def _read(wrap: Callable[[Schema, bool], Schema], data: Column, survey: Survey, writer: Writer) -> Column:
    """The wrapped alert by one writer schema. PERMISSIVE gives a struct of nulls for bytes that it can't read."""
    apart, reader = schema_pair(writer.schema, survey)
    options = {"avroSchema": _text(wrap(reader, True)), "mode": "PERMISSIVE"}
    return from_avro(data, _text(wrap(apart, False)), options)


def _text(schema: Schema) -> str:
    """Without blanks: each batch sends the texts of all schemas to each task."""
    return json.dumps(schema, separators=(",", ":"))


def _ended(alert: Schema, reader: bool) -> Schema:
    """Record of an alert and the known last bytes."""
    end = {"type": "fixed", "name": "End", "size": len(END)}
    return {
        "type": "record",
        "name": "Ended",
        "fields": [{"name": "alert", "type": alert}, {"name": "end", "type": end}],
    }


def _framed(alert: Schema, reader: bool) -> Schema:
    """The same behind a frame, read over as a field: cutting it off would copy every alert once more."""
    ended = _ended(alert, reader)
    frame = {"name": "frame", "type": {"type": "fixed", "name": "Frame", "size": FRAME_BYTES}}
    return ended if reader else {**ended, "fields": [frame, *ended["fields"]]}  # type: ignore[misc]


def _container(alert: Schema, reader: bool) -> Schema:
    """A container with one record and no codec is itself a datum: the reader keeps what proves that it was one."""
    sync = {"type": "fixed", "name": "Sync", "size": 16}
    kept = [{"name": "sync", "type": sync}, {"name": "count", "type": "long"}]
    end = {"type": "fixed", "name": "End", "size": len(END)}
    last = [{"name": "alert", "type": alert}, {"name": "sync2", "type": "Sync"}, {"name": "end", "type": end}]
    magic: list[Schema] = [
        {"name": "magic", "type": {"type": "fixed", "name": "Magic", "size": 4}},
        {"name": "meta", "type": {"type": "map", "values": "bytes"}},
    ]
    fields = kept + last if reader else [*magic, *kept, {"name": "size", "type": "long"}, *last]
    return {"type": "record", "name": "Container", "fields": fields}
