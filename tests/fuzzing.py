"""What no value may do to the readers in Python: `make fuzz` calls it with many thousands, a test with the finds."""

import json
import math
from contextlib import suppress
from io import BytesIO

import numpy as np
import pyarrow as pa
from decoding import MAX_ALERT_BYTES, policy, struct_of

from broker import surveys
from broker.container import Unreadable, read_header, records
from broker.dissect import dissect
from broker.gather import gather, implausible
from broker.lightcurve import merge, summarise, thin
from broker.observed import observed
from broker.recognise import survey_of_value
from broker.second_reader import Refusal, read
from broker.verdict import REASONS, REJECTED
from broker.wire import schema_id_of

STRUCTS = {name: struct_of(name) for name in surveys.NAMES}
N_POINTS = 20  # thinned to so few, so that thinning has something to do


def check(value: bytes) -> set[str]:
    """Read the value in every way; gives the surveys as whose alert it can be read.

    Raises AssertionError, or what a reader raised.
    """
    assert survey_of_value(value) in (None, *surveys.NAMES)
    seen = observed(value)
    assert seen is None or (seen.survey in surveys.NAMES and math.isfinite(seen.mjd_tai))
    number = schema_id_of(value)
    assert number is None or 0 <= number < 2**32
    _take_apart(value)
    _dissect(value, "elasticc")  # whose bodies are bare; no other value's layout depends on the survey
    readable = set()
    for survey in surveys.NAMES:
        found = read(value, surveys.find(survey), MAX_ALERT_BYTES, STRUCTS[survey])
        if isinstance(found, Refusal):
            assert found.reason in REASONS[REJECTED]
            json.dumps([found.detail]).encode()
            assert len(found.detail.encode()) < 1000
        else:
            _gather(found.alert, survey)
            assert found.schema.encode()
            readable.add(survey)
    return readable


def _take_apart(value: bytes) -> None:
    """As `broker classify` and `broker replay` take a container of many alerts apart."""
    with suppress(Unreadable):
        header, end = read_header(value)
        for record in records(header, BytesIO(value[end:])):
            header.wrap(record)


def _dissect(value: bytes, survey: str) -> None:
    found = dissect(value, survey)
    offsets = [v.offset for v in found.values]
    assert all(0 <= offset <= len(found.data) for offset in offsets)
    assert found.fault_at is None or 0 <= found.fault_at <= len(found.data)
    assert (found.fault_at is None) == (not found.fault) or not found.data


def _gather(alert: pa.StructArray, survey: str) -> None:
    """Points and light curve of what was read, as the job makes them of every alert that is plausible."""
    table = surveys.find(survey)
    if any(wrong.any() for wrong, _ in implausible(alert, table)):
        return
    gathered = gather(alert, table, policy())
    curves, _ = merge(gathered.points, 1, gathered.mjd_tai)
    summarise(curves)
    used = thin(curves, N_POINTS)
    assert used.counts[0] == min(curves.counts[0], N_POINTS)
    assert np.isfinite(used.flux).all()
