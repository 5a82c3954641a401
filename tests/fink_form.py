"""Alerts in the form in which Fink sends them on: the schema as key, a body without frame or header."""

import json
from io import BytesIO
from typing import Any

import fastavro
from running import Alert
from samples import SCHEMAS, Sample

FORCED = {"ztf": "fp_hists", "lsst": "prvDiaForcedSources"}


def record_of(sample: Sample) -> tuple[Any, Any]:
    """An alert in full by fastavro, and its writer schema."""
    if sample.survey == "ztf":
        reader = fastavro.reader(BytesIO(sample.data))
        return next(reader), json.loads(reader.metadata["avro.schema"])
    layout = json.loads((SCHEMAS / sample.survey / f"{sample.schema}.avsc").read_text())
    return fastavro.schemaless_reader(BytesIO(sample.data[5:]), fastavro.parse_schema(layout), None), layout


def as_fink_sends(sample: Sample, has_forced: bool = True) -> Alert:
    """As Spark writes it there: record `topLevelRecord`, every field a union [type, "null"], Fink's own columns."""
    record, schema = record_of(sample)
    if not has_forced and FORCED[sample.survey] in record:
        record[FORCED[sample.survey]] = None

    def optional(kind: Any) -> Any:
        return [*(k for k in (kind if isinstance(kind, list) else [kind]) if k != "null"), "null"]

    fields = [{"name": f["name"], "type": optional(f["type"])} for f in schema["fields"]]
    fields += [{"name": "cdsxmatch", "type": ["string", "null"]}, {"name": "fink_score", "type": ["double", "null"]}]
    name = schema["name"] if "." in schema["name"] else f"{schema.get('namespace', '')}.{schema['name']}".lstrip(".")
    layout = {"type": "record", "name": f"{name.rpartition('.')[0]}.topLevelRecord".lstrip("."), "fields": fields}
    body = BytesIO()
    more = {"cdsxmatch": "Unknown", "fink_score": 0.5}
    fastavro.schemaless_writer(body, fastavro.parse_schema(json.loads(json.dumps(layout))), record | more)
    return Alert(body.getvalue(), json.dumps(layout).encode())
