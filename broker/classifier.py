"""The Python API: class probabilities of light curves in arrays and tables, by the rules and model of the job.

No Spark, Kafka or Java: numpy, pyarrow and onnxruntime (pandas only where a pandas table comes in or goes out).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from broker import model as models
from broker.errors import UsageError
from broker.lightcurve import (
    BANDS,
    MAGNITUDE_TO_RELATIVE_ERROR,
    Bools,
    Codes,
    Floats,
    Integers,
    LightCurves,
    Points,
    flux_of_magnitude,
    merge,
    summarise,
    thin,
)

if TYPE_CHECKING:
    import pandas as pd

# AB magnitude of flux 1 in each unit
UNITS = {"nJy": 31.4, "uJy": 23.9, "mJy": 16.4, "Jy": 8.9, "FLUXCAL": 27.5}
FLUXES, MAGNITUDES = ("flux", "flux_err"), ("mag", "mag_err")
KNOWN = ("object_id", "mjd", "band", *FLUXES, *MAGNITUDES, "detected", "is_negative")
SURVEYS = ("lsst", "ztf")


@dataclass(frozen=True)
class Classifications:
    """Answers for n objects, in the order in which they came (of a table: of their first points).

    model: name@version; object_id (n,); classes: names, in the order of the columns of probabilities;
    probabilities float32 (n, classes), rows of NaN where there is no point that the model reads; evident bool (n,):
    the best class reaches the card's threshold, so the job would call it classified (its other floors apart);
    n_points_used int64 (n,): points that the model saw.
    """

    model: str
    object_id: npt.NDArray[Any]
    classes: tuple[str, ...]
    probabilities: npt.NDArray[np.float32]
    evident: Bools
    n_points_used: Integers

    def __len__(self) -> int:
        return len(self.object_id)

    @property
    def probability(self) -> npt.NDArray[np.float32]:
        """Of the best class, float32 (n,); NaN where there is none."""
        best: npt.NDArray[np.float32] = self.probabilities.max(axis=1)
        return best

    @property
    def class_name(self) -> list[str | None]:
        """The best class of each object; None where the model had nothing to read."""
        best, is_known = self.probabilities.argmax(axis=1), ~np.isnan(self.probability)
        return [self.classes[i] if known else None for i, known in zip(best.tolist(), is_known.tolist(), strict=True)]

    def to_arrow(self) -> pa.Table:
        """object_id, class_name, probability, evident, n_points_used, model, then one column per class; NaN is null."""
        columns: dict[str, Any] = {
            "object_id": pa.array(self.object_id),
            "class_name": pa.array(self.class_name, pa.string()),
            "probability": pa.array(self.probability, from_pandas=True),
            "evident": pa.array(self.evident),
            "n_points_used": pa.array(self.n_points_used),
            "model": pa.array([self.model] * len(self), pa.string()),
        }
        per_class = zip(self.classes, self.probabilities.T, strict=True)
        return pa.table(columns | {name: pa.array(column, from_pandas=True) for name, column in per_class})

    def to_pandas(self) -> pd.DataFrame:
        """The same as a pandas table."""
        frame: pd.DataFrame = self.to_arrow().to_pandas()
        return frame


class Classifier:
    """A released model by name, or the model in a folder. Raises ModelError for neither."""

    def __init__(self, model: str | Path = "t2b-1") -> None:
        self._model = models.load(models.find(str(model)))

    @property
    def card(self) -> models.Card:
        """What the model needs and promises: classes, bands, thresholds, sha256."""
        return self._model.card

    def classify(
        self,
        light_curves: LightCurves | Sequence[Any] | Any,
        *,
        unit: str | None = None,
        zero_point: float | None = None,
        bands: Mapping[Any, str] | None = None,
        survey: str | None = None,
    ) -> Classifications:
        """Class probabilities of difference-flux light curves.

        light_curves: a table of points (pandas, Polars, Arrow, or a mapping of arrays) with object_id, mjd (TAI, middle
        of the exposure), band, flux and flux_err or mag and mag_err, and where known detected (else 5 sigma) and
        is_negative (of a magnitude); or a list of such tables, one per object, whose ids are their places in the list;
        or LightCurves, taken as they are.
        unit: of the fluxes, one of UNITS (nJy unless given), or zero_point: AB magnitude of flux 1.
        bands: names of yours to those of lightcurve.BANDS. survey: whose thresholds count, lsst or ztf; unless given
        ztf where all points of an object are in bands of ZTF.

        Raises UsageError for a missing column, an unknown band or unit, or values of a wrong type.
        """
        if survey not in (None, *SURVEYS):
            raise UsageError(
                f"survey={survey!r}: thresholds are those of {' or '.join(SURVEYS)}; leave it out to guess"
            )
        if isinstance(light_curves, LightCurves):
            if unit is not None or zero_point is not None or bands is not None:
                raise UsageError(
                    "LightCurves are in nJy and have bands of ours: unit, zero_point and bands are for tables"
                )
            return self._answer(np.arange(len(light_curves)), light_curves, survey)
        scale = Scale(unit, zero_point, bands or {})
        object_id, points = points_of_objects(light_curves, scale)
        curves, _ = merge(points, len(object_id), np.full(len(object_id), np.nan))
        return self._answer(object_id, curves, survey)

    def _answer(self, object_id: npt.NDArray[Any], curves: LightCurves, survey: str | None) -> Classifications:
        card = self.card
        used = thin(curves, card.max_points)
        probabilities = self._model.predict(used)
        evident = np.zeros(len(curves), np.bool_)
        for name, where in _surveys(curves, survey).items():
            rows = np.flatnonzero(where)
            if len(rows):
                evident[rows] = card.evident(name, probabilities[rows], summarise(curves.take(rows)))
        evident &= curves.counts >= card.min_points
        names = tuple(c.name for c in card.classes)
        return Classifications(f"{card.name}@{card.version}", object_id, names, probabilities, evident, used.counts)


def _surveys(curves: LightCurves, given: str | None) -> dict[str, Bools]:
    """Which curves (n,) have whose thresholds."""
    if given is not None:
        return {given: np.ones(len(curves), np.bool_)}
    is_lsst = are_lsst(curves.band, curves.rows, len(curves))
    return {"lsst": is_lsst, "ztf": ~is_lsst}


def are_lsst(band: Codes, rows: Integers, n: int) -> Bools:
    """Which of n objects (n,) have a point in a band that is not ZTF's: LSST's thresholds count for them."""
    is_other = np.array([not name.startswith("ztf") for name in BANDS])[band]
    return np.bincount(rows[is_other], minlength=n) > 0


@dataclass(frozen=True)
class Scale:
    """What the caller says of units and bands."""

    unit: Any
    zero_point: Any
    bands: Mapping[Any, str]

    def magnitude_of_1(self) -> float:
        """AB magnitude of flux 1. Raises UsageError for an unknown unit or two that may differ."""
        if self.unit is not None and self.unit not in [*UNITS]:
            raise UsageError(
                f"unit {self.unit!r} is unknown: one of {', '.join(UNITS)}, or zero_point=AB magnitude of flux 1"
            )
        if self.zero_point is None:
            return UNITS["nJy" if self.unit is None else self.unit]
        if self.unit is not None:
            raise UsageError(f"unit {self.unit!r} and zero_point {self.zero_point!r} are both given; give one of them")
        if not isinstance(self.zero_point, Real) or not np.isfinite(float(self.zero_point)):
            raise UsageError(f"zero_point {self.zero_point!r} must be a number: the AB magnitude of flux 1 (nJy: 31.4)")
        return float(self.zero_point)


def points_of_objects(light_curves: Any, scale: Scale) -> tuple[npt.NDArray[Any], Points]:
    """Ids of n objects and all their points."""
    if isinstance(light_curves, Sequence) and not isinstance(light_curves, str | bytes):
        tables = [_table(one, f"light curve {i}: ") for i, one in enumerate(light_curves)]
        parts = [_points(t, np.full(len(t), i), scale, f"light curve {i}: ") for i, t in enumerate(tables)]
        none = np.zeros(0)
        empty = Points.of_table(none.astype(np.int64), none, none.astype(np.int8), none, none)
        return np.arange(len(tables)), Points.concatenate([empty, *parts])
    table = _table(light_curves, "")
    if "object_id" not in table.column_names:
        has = ", ".join(table.column_names)
        raise UsageError(f"no column object_id, which says whose each point is; of the known ones it has {has}")
    row, object_id = encoded(table, "object_id")
    if (row < 0).any():
        raise UsageError(f"object_id is null in {(row < 0).sum()} of {len(table)} points; every point needs one")
    return object_id, _points(table, row, scale, "")


def _table(source: Any, where: str) -> pa.Table:
    """The known columns of whatever speaks Arrow's interface, of a pandas table, or of a mapping of arrays."""
    try:
        if isinstance(source, np.ndarray) and source.dtype.names is not None:
            source = {name: source[name] for name in source.dtype.names}
        if isinstance(source, Mapping):
            arrays = {name: np.asarray(source[name]) for name in KNOWN if name in source}
            source = {name: array for name, array in arrays.items() if array.ndim or name != "object_id"}
        elif hasattr(source, "columns") and hasattr(source, "iloc"):  # pandas: other columns may be of any kind
            source = source[[name for name in KNOWN if name in source.columns]]
        table = pa.table(source)
        table = table.select([name for name in KNOWN if name in table.column_names])
    except (TypeError, ValueError, OverflowError) as error:  # pyarrow's errors of values are ValueError
        raise UsageError(
            f"{where}{type(source).__name__} can't be read as a table ({error}); give a pandas, Polars or Arrow table "
            f"or a mapping of arrays, with columns {', '.join(KNOWN)}"
        ) from error
    has = table.column_names
    missing = [name for name in ("mjd", "band") if name not in has]
    if not any(set(pair) <= set(has) for pair in (FLUXES, MAGNITUDES)):
        missing.append("flux and flux_err (or mag and mag_err)")
    if missing:
        raise UsageError(f"{where}no column {', '.join(missing)}; of the known ones it has {', '.join(has) or 'none'}")
    return table


def _points(table: pa.Table, row: Integers, scale: Scale, where: str) -> Points:
    """Points of a table in our units, not yet merged; row int64 (p,): whose each point is."""
    try:
        mjd = _numbers(table, "mjd")
        julian = mjd[(mjd > 2_400_000) & (mjd < 2_500_000)]
        if len(julian):
            raise UsageError(f"mjd {julian[0]} is a JD: subtract 2400000.5, and add 37 s where it is UTC")
        magnitude_of_1 = scale.magnitude_of_1()
        if set(FLUXES) <= set(table.column_names):
            unit = flux_of_magnitude(np.asarray(magnitude_of_1), np.asarray(True))
            flux, flux_err = (_numbers(table, name) * unit for name in FLUXES)
        elif (scale.unit, scale.zero_point) != (None, None):
            raise UsageError("unit and zero_point are for a flux; mag and mag_err are AB magnitudes")
        else:
            mag, mag_err = (_numbers(table, name) for name in MAGNITUDES)
            flux = flux_of_magnitude(mag, ~_flags(table, "is_negative"))
            flux_err = MAGNITUDE_TO_RELATIVE_ERROR * mag_err * np.abs(flux)
        detected = _flags(table, "detected") if "detected" in table.column_names else None
        return Points.of_table(row, mjd, _bands(table, scale.bands), flux, flux_err, detected)
    except UsageError as error:
        raise UsageError(f"{where}{error}") from None


def _numbers(table: pa.Table, name: str) -> Floats:
    """A column as float64 (p,), null as NaN."""
    column = table[name]
    kind = column.type
    if not (
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind) or pa.types.is_null(kind)
    ):
        raise UsageError(f"column {name} holds {kind}, expected numbers")
    numbers: Floats = column.cast(pa.float64(), safe=False).fill_null(np.nan).to_numpy()
    return numbers


def _flags(table: pa.Table, name: str) -> Bools:
    """A column of flags, bool (p,): null, or no such column, is False."""
    if name not in table.column_names:
        return np.zeros(len(table), np.bool_)
    kind = table[name].type
    if not (pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise UsageError(f"column {name} holds {kind}, expected true and false")
    flags: Bools = table[name].cast(pa.bool_()).fill_null(False).to_numpy()
    return flags


def _bands(table: pa.Table, names: Mapping[Any, str]) -> Codes:
    """Indices into BANDS, int8 (p,); a null is -1, which no rule keeps."""
    row, found = encoded(table, "band")
    ours = [names.get(label, label) for label in found.tolist()]
    unknown = [label for label, name in zip(found.tolist(), ours, strict=True) if name not in BANDS]
    if unknown:
        raise UsageError(
            f"band {', '.join(map(repr, unknown))} is unknown: one of {', '.join(BANDS)}; say which of them yours are "
            "with bands={'g': 'ztf-g'}"
        )
    codes = np.array([BANDS.index(name) for name in ours] + [-1], np.int8)
    return codes[row]


def encoded(table: pa.Table, name: str) -> tuple[Integers, npt.NDArray[Any]]:
    """Index of each value among the distinct ones, int64 (p,), -1 for null; the distinct ones as they appear."""
    column = table[name]
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if kind == pa.string_view():  # Polars' texts, which pyarrow 17 casts to nothing
        column = pa.chunked_array([pa.array(column.to_pylist(), pa.string())])
    elif kind != column.type:
        column = column.cast(kind)
    encoded = column.combine_chunks().dictionary_encode()
    index: Integers = encoded.indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    return index, encoded.dictionary.to_numpy(zero_copy_only=False)
