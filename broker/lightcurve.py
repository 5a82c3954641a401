"""Light curves: flat arrays for a batch of alerts, and the rules that turn measured points into them.

The rules are those of docs/rules.md; RULES_VERSION names them and is carried by every record and every model card.
Serving, training and evaluation call these functions and no others. numpy only: this module must import in Fink.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

RULES_VERSION = 1

Floats = npt.NDArray[np.float64]
Singles = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Codes = npt.NDArray[np.int8]

# Band table, appended to and never reordered: a band is its index here. Values: effective wavelengths in nm.
WAVELENGTH_NM: dict[str, float] = {
    "lsst-u": 367.1,
    "lsst-g": 482.7,
    "lsst-r": 622.3,
    "lsst-i": 754.6,
    "lsst-z": 869.1,
    "lsst-y": 971.2,
    "ztf-g": 478.0,
    "ztf-r": 643.6,
    "ztf-i": 782.9,
    "ps1-g": 486.6,
    "ps1-r": 621.5,
    "ps1-i": 754.5,
    "ps1-z": 867.9,
    "ps1-y": 963.3,
    "des-g": 484.2,
    "des-r": 643.9,
    "des-i": 782.1,
    "des-z": 917.2,
    "sdss-u": 355.7,
    "sdss-g": 470.2,
    "sdss-r": 617.6,
    "sdss-i": 749.0,
    "sdss-z": 894.7,
}
BANDS: tuple[str, ...] = tuple(WAVELENGTH_NM)

FORCED, TRIGGER, DETECTION = 0, 1, 2  # kind of a point; of one exposure the smallest wins
AB_ZERO_POINT_NJY = 31.4
TAI_MINUS_UTC_S = 37.0  # since 2017, before the first alert of any survey we read
WINDOW_D = {"ztf": 30.0, "lsst": 365.0}  # history that a packet holds
MAGNITUDE_TO_RELATIVE_ERROR = 0.4 * float(np.log(10))


@dataclass(frozen=True)
class LightCurves:
    """Light curves of n objects, p points in all, each sorted by time.

    offsets int64 (n+1,): curve i is points offsets[i]:offsets[i+1]; mjd_tai float64 (p,): mid-exposure, days;
    band int8 (p,): index into BANDS; flux, flux_err float32 (p,): nJy, AB zero point 31.4, difference flux;
    detected bool (p,): the point came as a detection, of either sign.
    """

    offsets: Integers
    mjd_tai: Floats
    band: Codes
    flux: Singles
    flux_err: Singles
    detected: Bools

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def counts(self) -> Integers:
        """Points of each curve, int64 (n,)."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Integers:
        """Curve that each point belongs to, int64 (p,)."""
        return np.repeat(np.arange(len(self)), self.counts)

    def select(self, points: npt.NDArray[np.intp] | Bools) -> LightCurves:
        """The same n curves with a subset of their points, in the given order (which must keep curves together)."""
        offsets = offsets_of(self.rows[points], len(self))
        return LightCurves(
            offsets,
            self.mjd_tai[points],
            self.band[points],
            self.flux[points],
            self.flux_err[points],
            self.detected[points],
        )

    def take(self, curves: npt.NDArray[np.intp] | Integers) -> LightCurves:
        """The curves of these indices, in this order."""
        counts = self.counts[curves]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        points = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][curves] - offsets[:-1], counts)
        return LightCurves(
            offsets,
            self.mjd_tai[points],
            self.band[points],
            self.flux[points],
            self.flux_err[points],
            self.detected[points],
        )

    @staticmethod
    def concatenate(parts: list[LightCurves]) -> LightCurves:
        """All curves of the parts, one after the other."""
        counts = np.concatenate([p.counts for p in parts])
        return LightCurves(
            np.concatenate([[0], np.cumsum(counts)]),
            *(
                np.concatenate([getattr(p, name) for p in parts])
                for name in ("mjd_tai", "band", "flux", "flux_err", "detected")
            ),
        )


@dataclass(frozen=True)
class Points:
    """Measured points of a batch before the rules, p in all, in any order.

    alert int64 (p,): row of the alert; mjd_tai float64, days; band int8: index into BANDS, -1 unknown;
    flux, flux_err float64, nJy; kind int8: FORCED, TRIGGER or DETECTION; detected bool: counts as a detection;
    exposure int64: equal for the points of one exposure (and band) of one alert;
    usable bool: neither withdrawn nor barred by its owner.
    """

    alert: Integers
    mjd_tai: Floats
    band: Codes
    flux: Floats
    flux_err: Floats
    kind: Codes
    detected: Bools
    exposure: Integers
    usable: Bools

    @staticmethod
    def concatenate(parts: list[Points]) -> Points:
        """All points of the parts."""
        return Points(*(np.concatenate([getattr(p, name) for p in parts]) for name in Points.__dataclass_fields__))

    @staticmethod
    def of_table(
        alert: Integers, mjd_tai: Floats, band: Codes, flux: Floats, flux_err: Floats, detected: Bools | None = None
    ) -> Points:
        """Points of a plain table of light curves (training sets), one exposure per (curve, time, band).

        Without a column of detections, abs(flux)/flux_err >= 5 counts as one.
        """
        with np.errstate(all="ignore"):
            found = np.abs(flux) >= 5 * flux_err if detected is None else detected
        exposure = np.ascontiguousarray(mjd_tai, np.float64).view(np.int64)
        kind = np.full(len(alert), DETECTION, np.int8)
        return Points(alert, mjd_tai, band, flux, flux_err, kind, found, exposure, np.ones(len(alert), np.bool_))


@dataclass(frozen=True)
class PointCounts:
    """What became of the points of each alert: offered, dropped as unusable, used after merging; int64 (n,) each."""

    offered: Integers
    dropped: Integers
    used: Integers


def offsets_of(rows: npt.NDArray[np.integer], n: int) -> Integers:
    """Offsets (n+1,) of n groups from the sorted group number of each item."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=n))]).astype(np.int64)


def _order(group: Integers, value: npt.NDArray[np.generic]) -> npt.NDArray[np.intp]:
    """Stable order by (group, value). numpy sorts 16 bits by radix: 2 us per deep alert in place of lexsort's 27."""
    order = np.argsort(value, kind="stable")
    small = len(group) > 0 and group.max() <= np.iinfo(np.uint16).max
    return order[np.argsort(group[order].astype(np.uint16) if small else group[order], kind="stable")]


def merge(points: Points, n: int, newest: Floats) -> tuple[LightCurves, PointCounts]:
    """Points of n alerts to light curves: drop what is unusable, one point per exposure, sort by time.

    newest float64 (n,): time of each alert's own source; later points are dropped (NaN: none is). Of one exposure the
    forced point wins and keeps the detection flag of the others; without one the alert's own source, then the
    detection. Exposures are compared exactly, without tolerance.
    """
    limit = np.where(np.isnan(newest), np.inf, newest)
    with np.errstate(over="ignore"):
        flux, flux_err = points.flux.astype(np.float32), points.flux_err.astype(np.float32)
    usable = points.usable & (points.band >= 0) & np.isfinite(points.mjd_tai) & np.isfinite(flux)
    usable &= np.isfinite(flux_err) & (flux_err > 0) & (points.mjd_tai <= limit[points.alert])
    # Each order is stable, so that equals stay in the order before: by kind, then by band and exposure.
    kept = np.flatnonzero(usable)
    kept = kept[np.argsort(points.kind[kept], kind="stable")]
    group, exposure = points.alert[kept] * len(BANDS) + points.band[kept], points.exposure[kept]
    order = _order(group, exposure)
    kept, group, exposure = kept[order], group[order], exposure[order]
    first = np.ones(len(kept), np.bool_)
    first[1:] = (np.diff(group) != 0) | (np.diff(exposure) != 0)
    starts = np.flatnonzero(first)
    detected = np.logical_or.reduceat(points.detected[kept], starts) if len(starts) else np.zeros(0, np.bool_)
    kept = kept[starts]
    order = _order(points.alert[kept], points.mjd_tai[kept])
    kept, detected = kept[order], detected[order]
    offsets = offsets_of(points.alert[kept], n)
    curves = LightCurves(offsets, points.mjd_tai[kept], points.band[kept], flux[kept], flux_err[kept], detected)
    offered = np.bincount(points.alert, minlength=n)
    dropped = np.bincount(points.alert[~usable], minlength=n)
    return curves, PointCounts(offered, dropped, curves.counts)


def cut(curves: LightCurves, newest: Floats, window_d: Floats | float) -> LightCurves:
    """The curves as packets sent at `newest` (n,): no later point, none older than window_d days (NaN: no point)."""
    age = newest[curves.rows] - curves.mjd_tai
    window = np.broadcast_to(np.asarray(window_d), len(curves))
    return curves.select((age >= 0) & (age <= window[curves.rows]))


def night_of(mjd_tai: Floats) -> Integers:
    """Number of the observing night. It changes at 18 h UTC, daytime at Cerro Pachon as well as at Palomar."""
    return np.floor(mjd_tai - 0.75).astype(np.int64)


def thin(curves: LightCurves, max_points: int) -> LightCurves:
    """Shorten curves of more than max_points: the past is blurred first, the newest point and the first detection stay.

    Points of one (night, band) are averaged by inverse variance, oldest nights first, as far as needed; what is still
    too long loses every other of its oldest points (more of them, evenly, where that does not do).
    """
    long = np.flatnonzero(curves.counts > max_points)
    if not len(long):
        return curves
    shortened = _thin_evenly(*_average_nights(curves.take(long), max_points), max_points)
    if len(long) == len(curves):
        return shortened
    everything = LightCurves.concatenate([curves, shortened])
    place = np.arange(len(curves))
    place[long] = len(curves) + np.arange(len(long))
    return everything.take(place)


def _protected(curves: LightCurves) -> Bools:
    """Points that always stay: the first detection and the newest point of each (non-empty) curve, bool (p,)."""
    stays = np.zeros(len(curves.mjd_tai), np.bool_)
    stays[curves.offsets[1:][curves.counts > 0] - 1] = True
    found = np.flatnonzero(curves.detected)
    _, first = np.unique(curves.rows[found], return_index=True)
    stays[found[first]] = True
    return stays


def _average_nights(curves: LightCurves, max_points: int) -> tuple[LightCurves, Bools]:
    """Average the points of one (night, band), oldest night first, until a curve fits max_points or is done.

    Also says which of the points are protected: an average may lie before the first detection and be one itself.
    """
    rows, stays = curves.rows, _protected(curves)
    night, place = night_of(curves.mjd_tai), np.arange(len(rows))
    turn = np.ones(len(rows), np.bool_)  # a new curve or night; points are in time order already
    turn[1:] = (np.diff(rows) != 0) | (np.diff(night) != 0)
    group = np.cumsum(turn) * len(BANDS) + curves.band
    alone = np.where(stays, place + 1, 0)  # a protected point is a group of its own
    order = np.lexsort((alone, group))
    new = np.ones(len(order), np.bool_)
    new[1:] = (np.diff(group[order]) != 0) | (np.diff(alone[order]) != 0)
    starts = np.flatnonzero(new)
    saved = np.diff(np.append(starts, len(order))) - 1
    owner = rows[order[starts]]
    before = np.cumsum(saved) - saved
    before -= before[np.searchsorted(owner, owner)]  # saved by older groups of the same curve
    averaged = before < (curves.counts - max_points)[owner]
    new |= ~averaged[np.cumsum(new) - 1]
    return _averages(curves, stays, order, np.flatnonzero(new))


def _averages(
    curves: LightCurves, stays: Bools, order: npt.NDArray[np.intp], starts: npt.NDArray[np.intp]
) -> tuple[LightCurves, Bools]:
    """One point per run order[starts[i]:starts[i+1]], weighted by inverse variance, back in time order."""
    error = curves.flux_err[order].astype(np.float64)
    length = np.diff(np.append(starts, len(order)))
    smallest = np.minimum.reduceat(error, starts)
    weight = (np.repeat(smallest, length) / error) ** 2  # relative to the best point: neither overflows nor vanishes
    total = np.add.reduceat(weight, starts)

    def mean(values: Floats) -> Floats:
        return np.add.reduceat(weight * values, starts) / total

    single = length == 1  # unaveraged points keep their very bits
    point = order[starts]
    mjd = np.where(single, curves.mjd_tai[point], mean(curves.mjd_tai[order]))
    flux = np.where(single, curves.flux[point], mean(curves.flux[order].astype(np.float64)).astype(np.float32))
    flux_err = np.where(single, curves.flux_err[point], (smallest / np.sqrt(total)).astype(np.float32))
    detected = np.logical_or.reduceat(curves.detected[order], starts)
    rows, band = curves.rows[point], curves.band[point]
    back = _order(rows, mjd)  # stable: points of one time stay in the order of their bands
    offsets = offsets_of(rows, len(curves))
    averaged = LightCurves(offsets, mjd[back], band[back], flux[back], flux_err[back], detected[back])
    return averaged, stays[point][back]


def _thin_evenly(curves: LightCurves, stays: Bools, max_points: int) -> LightCurves:
    """Drop points evenly from the oldest part of what is still too long."""
    rows, counts = curves.rows, curves.counts
    position = np.arange(len(rows)) - curves.offsets[:-1][rows]
    excess = np.maximum(counts - max_points, 0)
    block = np.minimum(counts, 2 * excess)[rows]
    keep = block - excess[rows]
    with np.errstate(divide="ignore", invalid="ignore"):
        even = (position >= block) | ((position + 1) * keep // block > position * keep // block)
    rank = np.where(stays, 2, even.astype(np.int64))
    order = np.lexsort((-position, -rank, rows))
    chosen = order[position < max_points]  # order keeps curves together, so positions count the ranks as well
    return curves.select(np.sort(chosen))


@dataclass(frozen=True)
class Summary:
    """What the record says of each curve, (n,) each: detections, positive ones, nights, days, span and points per band.

    first_detection, last_detection, first_point, last_point float64, MJD TAI (NaN: none); per_band int64 (n, bands).
    """

    n_detections: Integers
    n_positive: Integers
    n_nights: Integers
    first_detection: Floats
    last_detection: Floats
    first_point: Floats
    last_point: Floats
    per_band: Integers


def summarise(curves: LightCurves) -> Summary:
    """Counts and spans of n curves; empty ones have zeros and NaN."""
    n, rows, found = len(curves), curves.rows, curves.detected
    first, last = np.full((2, n), np.inf), np.full((2, n), -np.inf)
    for i, points in enumerate((found, np.ones(len(rows), np.bool_))):
        np.minimum.at(first[i], rows[points], curves.mjd_tai[points])
        np.maximum.at(last[i], rows[points], curves.mjd_tai[points])
    first[np.isinf(first)] = np.nan
    last[np.isinf(last)] = np.nan
    night = night_of(curves.mjd_tai)
    change = np.ones(len(rows), np.bool_)
    change[1:] = (np.diff(night) != 0) | (np.diff(rows) != 0)
    per_band = np.bincount(rows * len(BANDS) + curves.band, minlength=n * len(BANDS)).reshape(n, len(BANDS))
    return Summary(
        np.bincount(rows[found], minlength=n),
        np.bincount(rows[found & (curves.flux > 0)], minlength=n),
        np.bincount(rows[change], minlength=n),
        first[0],
        last[0],
        first[1],
        last[1],
        per_band,
    )


def flux_of_magnitude(mag: Floats, positive: Bools) -> Floats:
    """AB magnitude of a difference image to flux in nJy: +-10^(0.4 (31.4 - mag))."""
    return np.where(positive, 1.0, -1.0) * 10 ** (0.4 * (AB_ZERO_POINT_NJY - mag))


def mjd_tai_of_jd_utc(jd: Floats, exposure_s: Floats) -> Floats:
    """JD UTC at the start of an exposure to MJD TAI at its middle, days."""
    return jd - 2400000.5 + (TAI_MINUS_UTC_S + exposure_s / 2) / 86400
