"""A science module for Fink: class, score and model version of each alert as a `pandas_udf` over Fink's own columns.

Runs in Fink's environment: Spark 3.4 to 4, pandas 2, numpy, pyarrow, onnxruntime; of ours it needs the rules, the model
and the errors alone. One answer per row, null where there is none; what a row holds never raises.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from pyspark.sql import Column
from pyspark.sql.pandas.functions import pandas_udf
from pyspark.sql.types import FloatType, StringType, StructField, StructType

from broker.errors import UsageError
from broker.lightcurve import (
    BANDS,
    DETECTION,
    FORCED,
    MAGNITUDE_TO_RELATIVE_ERROR,
    TRIGGER,
    Codes,
    Floats,
    Integers,
    LightCurves,
    Points,
    flux_of_magnitude,
    merge,
    mjd_tai_of_jd_utc,
)
from broker.model import Model, find, load

MODEL = "t2b-1"
RESULT = StructType(
    [StructField("class", StringType()), StructField("score", FloatType()), StructField("model_version", StringType())]
)
Lists = Collection[Any]  # one list or array (or None) per alert


@dataclass(frozen=True)
class Contract:
    """Fink's columns of one survey: what each list holds -> field, in the order of the arguments.

    The only raw names outside broker/surveys, which Fink's environment need not have; a test compares the two.
    """

    current: str
    history: str
    detections: Mapping[str, str]
    forced_history: str
    forced: Mapping[str, str]
    bands: Mapping[Any, str]
    missing_value: float = -99999.0
    positive: tuple[str, ...] = ()  # spellings of a positive difference
    exposure_s: float | None = None  # None: times are MJD TAI at mid-exposure; else JD UTC at its start

    @property
    def columns(self) -> tuple[str, ...]:
        """Names that concat_col gives: history, then the alert's own source."""
        return tuple(f"c{name}" for name in self.detections.values())

    @property
    def forced_columns(self) -> tuple[str, ...]:
        """Paths of the optional lists of forced photometry."""
        return tuple(f"{self.forced_history}.{name}" for name in self.forced.values())


_RUBIN_POINT = {"time": "midpointMjdTai", "flux": "psfFlux", "flux_err": "psfFluxErr", "band": "band"}
RUBIN = Contract(
    current="diaSource",
    history="prvDiaSources",
    detections=_RUBIN_POINT,
    forced_history="prvDiaForcedSources",
    forced=_RUBIN_POINT,
    bands={letter: f"lsst-{letter}" for letter in "ugrizy"},
)
ZTF = Contract(
    current="candidate",
    history="prv_candidates",
    detections={"time": "jd", "band": "fid", "mag": "magpsf", "mag_err": "sigmapsf", "sign": "isdiffpos"},
    forced_history="fp_hists",
    forced={
        "time": "jd",
        "band": "fid",
        "flux": "forcediffimflux",
        "flux_err": "forcediffimfluxunc",
        "zero_point": "magzpsci",
    },
    bands={1: "ztf-g", 2: "ztf-r", 3: "ztf-i"},
    positive=("t", "1"),
    exposure_s=30.0,  # Fink's modules get no exposure times
)


def _udf(function: Callable[..., pd.DataFrame]) -> Callable[..., Column]:
    """As a scalar pandas UDF. By the types of its arguments: given as a number, Spark 3 and 4 warn."""
    made: Callable[..., Column] = pandas_udf(function, RESULT)  # type: ignore[call-overload]  # stubs lack this form
    return made


@_udf
def classify_rubin(
    time: pd.Series, flux: pd.Series, flux_err: pd.Series, band: pd.Series, *more: pd.Series
) -> pd.DataFrame:
    """Class, score and model version of LSST alerts.

    Columns cmidpointMjdTai, cpsfFlux, cpsfFluxErr, cband, as concat_col makes them; then, where there are any, flags of
    what counts as a detection, and the same four of prvDiaForcedSources.
    """
    return table(RUBIN, (time, flux, flux_err, band), more, _model())


@_udf
def classify_ztf(
    time: pd.Series, band: pd.Series, mag: pd.Series, mag_err: pd.Series, sign: pd.Series, *more: pd.Series
) -> pd.DataFrame:
    """Class, score and model version of ZTF alerts.

    Columns cjd, cfid, cmagpsf, csigmapsf, cisdiffpos, as concat_col makes them; then, where there are any, flags of
    what counts as a detection, and jd, fid, forcediffimflux, forcediffimfluxunc and magzpsci of fp_hists.
    """
    return table(ZTF, (time, band, mag, mag_err, sign), more, _model())


@cache
def _model() -> Model:
    """Once per Python worker."""
    return load(find(MODEL))


def table(contract: Contract, detections: Sequence[Lists], more: Sequence[Lists], model: Model) -> pd.DataFrame:
    """The answers as Spark takes them: columns of RESULT, null where there is none."""
    best, score = classify(contract, detections, more, model)
    card = model.card
    rows = [(card.classes[i].name, f"{card.name}@{card.version}") if i >= 0 else (None, None) for i in best.tolist()]
    name, version = zip(*rows, strict=True) if rows else ((), ())
    texts = {"class": pd.Series(name, dtype=object), "model_version": pd.Series(version, dtype=object)}
    return pd.DataFrame(texts | {"score": score})[RESULT.names]


def classify(
    contract: Contract, detections: Sequence[Lists], more: Sequence[Lists], model: Model
) -> tuple[Integers, npt.NDArray[np.float32]]:
    """Best class of n alerts, int64 (n,), index into the card's classes, and its probability, float32 (n,).

    -1 and NaN where no point is usable, or fewer than the card asks for.
    Raises UsageError for a wrong number of columns.
    """
    curves = light_curves(contract, detections, more)
    probabilities = model.predict(curves)
    score: npt.NDArray[np.float32] = probabilities.max(axis=1)
    score[curves.counts < model.card.min_points] = np.nan
    return np.where(np.isnan(score), -1, probabilities.argmax(axis=1)), score


def light_curves(contract: Contract, detections: Sequence[Lists], more: Sequence[Lists] = ()) -> LightCurves:
    """Light curves of n alerts by the rules, from their lists.

    more: nothing; or flags, false where a source does not count as a detection; or the contract's columns of forced
    photometry; or both, in this order. An alert whose lists are of unequal length has no point: nothing tells which
    value belongs to which time.
    """
    roles = [*contract.detections]
    if len(more) in (1, 1 + len(contract.forced)):
        roles, detections, more = [*roles, "detected"], [*detections, more[0]], more[1:]
    for given, names in ((detections, roles), (more or contract.forced, contract.forced)):
        if len(given) != len(names):
            wanted = ", ".join((*contract.columns, "flags of detections (optional)", *contract.forced_columns))
            raise UsageError(f"{len(given)} columns given where {len(names)} belong; they are {wanted} (optional)")
    found, last = _points(contract, roles, detections, DETECTION)
    found.kind[last] = TRIGGER
    newest = np.full(len(detections[0]), np.nan)
    newest[found.alert[last]] = found.mjd_tai[last]
    if more:
        found = Points.concatenate([found, _points(contract, contract.forced, more, FORCED)[0]])
    curves, _ = merge(found, len(newest), newest)
    return curves


def _points(
    contract: Contract, roles: Iterable[str], lists: Sequence[Lists], kind: int
) -> tuple[Points, npt.NDArray[np.intp]]:
    """All entries of the lists as points in our units, and which of them are the last of an alert."""
    alert, parts = _flattened(lists)
    column = dict(zip(roles, parts, strict=True))
    with np.errstate(all="ignore"):
        time = _numbers(column["time"])
        mjd_tai = time if contract.exposure_s is None else mjd_tai_of_jd_utc(time, np.array(contract.exposure_s))
        if "mag" in column:
            positive = _codes(column["sign"], dict.fromkeys(contract.positive, 1))
            flux = flux_of_magnitude(_numbers(column["mag"]), positive == 1)
            flux_err = MAGNITUDE_TO_RELATIVE_ERROR * _numbers(column["mag_err"]) * np.abs(flux)
        else:
            flux, flux_err = (_numbers(column[role], contract.missing_value) for role in ("flux", "flux_err"))
        if "zero_point" in column:
            count = flux_of_magnitude(_numbers(column["zero_point"]), np.array(True))
            flux, flux_err = flux * count, flux_err * count
    detected = np.full(len(alert), kind != FORCED)
    if "detected" in column:
        detected = _codes(column["detected"], {False: 0}) != 0
    points = Points(
        alert,
        mjd_tai,
        _codes(column["band"], {label: BANDS.index(name) for label, name in contract.bands.items()}),
        flux,
        flux_err,
        np.full(len(alert), kind, np.int8),
        detected,
        np.ascontiguousarray(time).view(np.int64),  # an exposure is known by its time and band
        np.ones(len(alert), np.bool_),
    )
    return points, np.flatnonzero(np.diff(alert, append=-1))


def _flattened(lists: Sequence[Lists]) -> tuple[Integers, list[list[Any]]]:
    """Alert of each entry, int64 (p,), and for each column the non-empty lists of the alerts whose lists agree."""
    lengths = np.array([[_length(values) for values in column] for column in lists], np.int64)
    agree = (lengths == lengths[0]).all(axis=0) & (lengths[0] > 0)
    rows = np.flatnonzero(agree)
    columns = [list(column) for column in lists]
    return np.repeat(rows, lengths[0][rows]), [[column[row] for row in rows.tolist()] for column in columns]


def _length(values: Any) -> int:
    """Entries of a list or array; what is neither has none."""
    is_list = isinstance(values, list | tuple) or (isinstance(values, np.ndarray) and values.ndim > 0)
    return len(values) if is_list else 0


def _numbers(parts: list[Any], missing_value: float = np.nan) -> Floats:
    """All entries as float64 (p,), NaN for null, the missing value, and what is no number."""
    size = sum(map(len, parts))
    try:
        found = np.concatenate([np.zeros(0), *parts]).astype(np.float64)
    except (TypeError, ValueError, OverflowError):
        found = np.zeros(0)
    if found.shape != (size,):
        found = np.array([_number(value) for value in chain.from_iterable(parts)], np.float64)
    found[found == missing_value] = np.nan
    return found


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _codes(parts: list[Any], codes: Mapping[Any, int]) -> Codes:
    """The code of each entry, int8 (p,), -1 for null and what has none."""
    return np.array([_code(value, codes) for value in chain.from_iterable(parts)], np.int8)


def _code(value: Any, codes: Mapping[Any, int]) -> int:
    try:
        return codes.get(value, -1)
    except TypeError:  # a list has no hash
        return -1
