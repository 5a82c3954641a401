"""Which verdicts pass an outlet's filter: the plain conditions by numpy, the SQL expression by Polars.

Of the two engines tried (256 verdicts of 44 columns, five of them in the expression, two busy cores): Polars takes
0.19 ms a batch, 0.33 s and 44 MB to import; DuckDB 1.5 ms, 0.11 s and 31 MB, and it takes `snr > 'a'` for sound.
Polars is imported only where an outlet has such an expression.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from broker.delivery import Cone, Filter, Outlet
from broker.errors import ConfigError
from broker.lightcurve import BANDS, Bools, Floats
from broker.model import Card
from broker.outlets import columns as of_verdicts
from broker.sky import inside

if TYPE_CHECKING:
    import polars as pl


def check(outlets: Iterable[Outlet], card: Card) -> None:
    """Raise ConfigError, with the outlet and the part at fault, unless the model and the columns have what they ask."""
    known = [c.name for c in card.classes]
    for outlet in outlets:
        asked = [*outlet.filter.classes, *([outlet.class_name] if outlet.class_name else [])]
        for name in asked:
            if name not in known:
                raise ConfigError(
                    f"outlet {outlet.name!r}: model {card.name} has no class {name!r}; it has {', '.join(known)}"
                )
        for band in outlet.filter.bands:
            if band not in BANDS:
                raise ConfigError(f"outlet {outlet.name!r}: no band is called {band!r}; they are {', '.join(BANDS)}")
        if outlet.filter.where is not None:
            _check_where(outlet.name, outlet.filter.where, card)


def passes(wanted: Filter, verdicts: pa.RecordBatch) -> Bools:
    """Which of n verdicts (columns.table) pass, bool (n,)."""
    passed = _is_in(verdicts, "status", wanted.statuses)
    if wanted.classes:
        passed &= _is_in(verdicts, "class_name", wanted.classes)
    if wanted.bands:
        passed &= _is_in(verdicts, "band", wanted.bands)
    limits = (
        ("probability", wanted.min_probability or None, None),
        ("n_detections", wanted.min_detections or None, wanted.max_detections),
        ("magnitude", wanted.brightest_mag, wanted.faintest_mag),
    )
    for name, low, high in limits:
        if low is not None or high is not None:
            values = _numbers(verdicts, name)
            passed &= (values >= (-np.inf if low is None else low)) & (values <= (np.inf if high is None else high))
    if wanted.cone is not None:
        passed &= (
            _separation(wanted.cone, _numbers(verdicts, "ra"), _numbers(verdicts, "dec")) <= wanted.cone.radius_deg
        )
    if wanted.polygon is not None:
        passed &= inside(wanted.polygon.vertices, _numbers(verdicts, "ra"), _numbers(verdicts, "dec"))
    if wanted.where is not None and passed.any():
        passed &= _meets(wanted.where, verdicts)
    return passed


def _is_in(verdicts: pa.RecordBatch, name: str, wanted: Iterable[str]) -> Bools:
    found: Bools = pc.is_in(verdicts.column(name), value_set=pa.array(list(wanted), pa.string())).to_numpy(
        zero_copy_only=False
    )
    return found.copy()  # Arrow's memory can't be written to


def _numbers(verdicts: pa.RecordBatch, name: str) -> Floats:
    """A column, NaN where it is null: no comparison with that holds."""
    found: Floats = verdicts.column(name).cast(pa.float64()).fill_null(np.nan).to_numpy(zero_copy_only=False)
    return found


def _separation(cone: Cone, ra: Floats, dec: Floats) -> Floats:
    """Degrees from the centre, by the haversine formula, which is exact for small angles too."""
    lon, lat, lon0, lat0 = (np.radians(angle) for angle in (ra, dec, cone.ra, cone.dec))
    half = np.sin((lat - lat0) / 2) ** 2 + np.cos(lat) * np.cos(lat0) * np.sin((lon - lon0) / 2) ** 2
    return np.asarray(np.degrees(2 * np.arcsin(np.sqrt(np.clip(half, 0, 1)))))


@lru_cache(maxsize=64)
def _expression(where: str) -> tuple[pl.Expr, tuple[str, ...]]:
    """The expression and the columns that it reads."""
    import polars as pl

    found = pl.sql_expr(where)
    return found, tuple(dict.fromkeys(found.meta.root_names()))


def _meets(where: str, verdicts: pa.RecordBatch) -> Bools:
    """Where the expression is true; false and null are not."""
    import polars as pl

    found, names = _expression(where)
    frame = pl.from_arrow(verdicts.select(names), rechunk=False)
    assert isinstance(frame, pl.DataFrame)
    met: Bools = frame.select(found.fill_null(False).alias("met"))["met"].to_numpy()
    return met


def _check_where(name: str, where: str, card: Card) -> None:
    """By evaluating it on two verdicts of nulls: what it reads, and whether it gives one truth per verdict."""
    import polars as pl

    schema = of_verdicts.schema(card)
    start = f"outlet {name!r}: filter.where = {where!r}"
    try:
        found, names = _expression(where)
    except pl.exceptions.PolarsError as error:
        raise ConfigError(f"{start}: {_first_line(error)}; it must be one SQL condition") from None
    for column in names:
        if column not in schema.names:
            raise ConfigError(f"{start}: there is no column {column!r}; they are {', '.join(schema.names)}")
    if not names:
        raise ConfigError(f"{start}: reads no column of the verdict")
    nulls = pa.RecordBatch.from_arrays([pa.nulls(2, field.type) for field in schema], schema=schema)
    frame = pl.from_arrow(nulls.select(names))
    assert isinstance(frame, pl.DataFrame)
    try:
        result = frame.select(found.alias("met"))["met"]
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException) as error:
        raise ConfigError(f"{start}: {_first_line(error)}") from None
    if result.dtype != pl.Boolean or len(result) != 2:
        raise ConfigError(f"{start}: gives {result.dtype}, not true or false for each verdict")


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
