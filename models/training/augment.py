"""Training batches: every draw is the packet of an alert, cut at its trigger and at the packet's window.

Each row is varied (distance, zero point, redshift, bands, cadence), because the sets differ from the stream in all
of these. Everything is numpy on padded arrays (B, RAW_POINTS), right-aligned: the trigger is the last column.
"""

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from broker.lightcurve import BANDS, WAVELENGTH_NM
from models.training.dataset import CLASSES, LSST_WINDOW_D, OUTLIER, SETS, TRAIN, UNLABELLED, ZTF_WINDOW_D, TrainingSet
from models.training.network import Batch, relative_days

RAW_POINTS = 256  # newest points looked at per draw; 98 % of the packets have fewer
LENGTHS = (16, 32, 48, 64, 96, 128)  # padded lengths of batches: each is compiled once
DETECTION_SNR = 5.0
ROW_D = 1e6  # more than any light curve lasts

LAST_DETECTION = 0.35  # share of draws at the last detection; the others at a log-uniform number of detections
DIMMED = 0.5  # share moved to a larger distance: signal times 0.3-1, same error bars
STRETCH = 0.1  # sigma of log(1+z) changes, applied to time and wavelength of transients
ZERO_POINT = 1.0  # sigma of log flux: without it, a set's typical brightness becomes the class (RR Lyrae)
ONLY_GR = 0.18  # share that keeps g and r only, as ZTF has
ONE_BAND_LOST = 0.12
THINNED = 0.3  # share whose cadence is thinned by 10-60 %
ONLY_DETECTIONS = 0.3  # share without forced points, as ZTF packets without history of forced photometry
SHORT_WINDOW = 0.3  # share of LSST-like curves cut to ZTF's 30 days
NOISY_TRIGGER = 0.25  # share whose trigger has up to 5 times the error: it comes as a detection, not as forced
BRIGHT_NJY = 3e6  # curves brighter than this (Hipparcos' stars) are moved to a random survey-like brightness

WAVELENGTHS = np.array([WAVELENGTH_NM[b] for b in BANDS], np.float32)
IS_GR = np.array([b[-1] in "gr" for b in BANDS])
LETTER = np.array(["ugrizy".index(b[-1]) for b in BANDS])


@dataclass(frozen=True)
class Draw:
    """Padded curves (B, RAW_POINTS) before they become a batch; `keep` False where padded or dropped."""

    mjd: NDArray[np.float64]
    flux: NDArray[np.float32]
    flux_err: NDArray[np.float32]
    band: NDArray[np.int8]
    wavelength_nm: NDArray[np.float32]
    detected: NDArray[np.bool_]
    keep: NDArray[np.bool_]


def class_weights(data: TrainingSet, power: float = 0.5, unlabelled: float = 0.0) -> NDArray[np.float64]:
    """Probability of each training object: its set's weight, shared among classes by count to `power`.

    unlabelled: share of it for objects without a label, in the sets that have such.
    """
    weight = np.zeros(len(data))
    for i, source in enumerate(SETS):
        for c in (*range(len(CLASSES)), OUTLIER):
            rows = (data.about.origin == i) & (data.about.label == c) & (data.split == TRAIN)
            if rows.any():
                weight[rows] = rows.sum() ** (power - 1)
        of_set = (data.about.origin == i) & (weight > 0)
        if of_set.any():
            weight[of_set] *= source.weight / weight[of_set].sum()
        nameless = (data.about.origin == i) & (data.about.label == UNLABELLED) & (data.split == TRAIN)
        if unlabelled and nameless.any() and (source.unlabelled or source.mixed):
            weight[of_set] *= 1 - unlabelled
            weight[nameless] = unlabelled * source.weight / nameless.sum()
    weight /= weight.sum()
    return weight


class Sampler:
    """Draws rows with the given probability and turns them into varied packets; one generator, one order."""

    def __init__(self, data: TrainingSet, weight: NDArray[np.float64], seed: int) -> None:
        self.data = data
        self.rng = np.random.default_rng(seed)
        self._cumulative = np.cumsum(weight)
        self._detections = np.flatnonzero(data.curves.detected)
        self._first_detection = np.searchsorted(self._detections, data.curves.offsets)
        self._time = data.curves.rows * ROW_D + data.curves.mjd_tai  # rises over all objects
        self._is_ztf = np.array([s.window_d == ZTF_WINDOW_D for s in SETS])[data.about.origin]
        steady = [CLASSES.index("AGN"), CLASSES.index("VAR")]
        self._is_steady = np.isin(data.about.label, steady)

    def rows(self, n: int) -> NDArray[np.int64]:
        """n objects by weight."""
        found = np.searchsorted(self._cumulative, self.rng.random(n))
        return np.minimum(found, len(self.data) - 1)

    def triggers(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """Flat index of the detection that is each packet's newest point."""
        rng = self.rng
        first = self._first_detection[rows]
        n_detections = self._first_detection[rows + 1] - first
        k = np.floor(np.exp(rng.random(len(rows)) * np.log(n_detections + 0.999))).astype(np.int64)
        k = np.where(rng.random(len(rows)) < LAST_DETECTION, n_detections, np.maximum(k, 1))
        return np.asarray(self._detections[first + k - 1], np.int64)

    def n_points(self, rows: NDArray[np.int64], trigger: NDArray[np.int64]) -> NDArray[np.int64]:
        """How many points each packet can have at most."""
        window = np.where(self._is_ztf[rows], ZTF_WINDOW_D, LSST_WINDOW_D) * np.exp(3 * STRETCH)
        oldest = np.searchsorted(self._time, self._time[trigger] - window)
        oldest = np.maximum(oldest, self.data.curves.offsets[rows])
        return np.asarray(np.minimum(trigger - oldest + 1, RAW_POINTS))

    def packets(self, rows: NDArray[np.int64], trigger: NDArray[np.int64], length: int) -> Draw:
        """One varied packet of each row, of the newest `length` points at most."""
        rng, n = self.rng, len(rows)
        draw = self._gather(rows, trigger, length)
        draw = self._dim(self._stretch(draw, rows))
        protected = np.zeros_like(draw.keep)
        protected[:, -1] = draw.keep[:, -1]
        u = rng.random((n, 1))
        keep = draw.keep & np.where(u < ONLY_GR, IS_GR[draw.band], True)
        lost = LETTER[draw.band] == rng.integers(0, 6, (n, 1))
        keep &= ~((u >= ONLY_GR) & (u < ONLY_GR + ONE_BAND_LOST) & lost)
        keep &= rng.random(keep.shape) >= (rng.random((n, 1)) < THINNED) * rng.uniform(0.1, 0.6, (n, 1))
        keep &= (rng.random((n, 1)) >= ONLY_DETECTIONS) | draw.detected
        window = np.where(self._is_ztf[rows] | (rng.random(n) < SHORT_WINDOW), ZTF_WINDOW_D, LSST_WINDOW_D)
        keep &= draw.mjd >= draw.mjd[:, -1:] - window[:, None]
        draw = _newest_detection_last(replace(draw, keep=keep | protected))
        return self._noisy_trigger(_cut_baseline(draw, rng.uniform(0, 60, (n, 1))))

    def _gather(self, rows: NDArray[np.int64], trigger: NDArray[np.int64], length: int) -> Draw:
        c = self.data.curves
        at = trigger[:, None] + np.arange(1 - length, 1)
        keep = at >= c.offsets[rows][:, None]
        at = np.maximum(at, 0)
        band = c.band[at]
        return Draw(c.mjd_tai[at], c.flux[at], c.flux_err[at], band, WAVELENGTHS[band], c.detected[at] & keep, keep)

    def _stretch(self, draw: Draw, rows: NDArray[np.int64]) -> Draw:
        """Another redshift for transients, and another zero point for all."""
        rng, n = self.rng, len(rows)
        z = np.exp(rng.normal(0, STRETCH, (n, 1)))
        z = np.where(self._is_steady[rows][:, None], 1.0, z)
        gain = np.exp(rng.normal(0, ZERO_POINT, (n, 1)))
        peak = np.where(draw.keep, np.abs(draw.flux), 0).max(1, keepdims=True)
        gain = np.where(peak > BRIGHT_NJY, np.exp(rng.uniform(np.log(1e3), np.log(1e6), (n, 1))) / peak, gain)
        gain = gain.astype(np.float32)
        return replace(
            draw,
            mjd=draw.mjd[:, -1:] + (draw.mjd - draw.mjd[:, -1:]) * z,
            wavelength_nm=(draw.wavelength_nm * z).astype(np.float32),
            flux=draw.flux * gain,
            flux_err=draw.flux_err * gain,
        )

    def _dim(self, draw: Draw) -> Draw:
        """A fainter twin under the same noise; rows without any detection left stay as they were."""
        rng, shape = self.rng, draw.flux.shape
        c = np.where(rng.random((shape[0], 1)) < DIMMED, rng.uniform(0.3, 1, (shape[0], 1)), 1).astype(np.float32)
        noise = rng.standard_normal(shape, dtype=np.float32) * np.sqrt(1 - c**2)
        flux = draw.flux * c + draw.flux_err * noise
        detected = draw.keep & (np.abs(flux) >= DETECTION_SNR * draw.flux_err)
        same = (c == 1) | ~detected.any(1, keepdims=True)
        return replace(draw, flux=np.where(same, draw.flux, flux), detected=np.where(same, draw.detected, detected))

    def _noisy_trigger(self, draw: Draw) -> Draw:
        rng, n = self.rng, len(draw.mjd)
        factor = np.where(rng.random(n) < NOISY_TRIGGER, rng.uniform(1, 5, n), 1).astype(np.float32)
        newest = draw.keep.shape[1] - 1 - np.argmax(draw.keep[:, ::-1], 1)
        row = np.arange(n)
        error = draw.flux_err.copy()
        limit = np.abs(draw.flux[row, newest]) / DETECTION_SNR
        error[row, newest] = np.maximum(error[row, newest], np.minimum(error[row, newest] * factor, limit))
        return replace(draw, flux_err=error)


def _newest_detection_last(draw: Draw) -> Draw:
    """Drop points behind the newest detection that is left: an alert is sent at a detection."""
    seen = draw.keep & draw.detected
    after = np.cumsum(seen[:, ::-1], 1)[:, ::-1] == 0
    none = ~seen.any(1, keepdims=True)
    return replace(draw, keep=draw.keep & (none | ~after))


def _cut_baseline(draw: Draw, days: NDArray[np.float64]) -> Draw:
    """Drop points more than `days` before the first detection that is left."""
    first = np.where(draw.keep & draw.detected, draw.mjd, np.inf).min(1, keepdims=True)
    return replace(draw, keep=draw.keep & ((draw.mjd >= first - days) | ~np.isfinite(first)))


def batch_of(draw: Draw, length: int, rng: np.random.Generator) -> Batch:
    """Left-aligned, at most `length` points; longer rows lose random ones, never the first detection or the newest."""
    keep = draw.keep
    excess = keep.sum(1) > length
    if excess.any():
        seen = keep & draw.detected
        rank = np.where(keep, rng.random(keep.shape), -1.0)
        rank[np.arange(len(keep)), np.argmax(seen, 1)] += 2 * seen.any(1)
        rank[np.arange(len(keep)), keep.shape[1] - 1 - np.argmax(keep[:, ::-1], 1)] += 2
        floor = -np.partition(-rank, length - 1, axis=1)[:, length - 1 : length]
        keep = keep & (rank >= floor)
    order = np.argsort(~keep, axis=1, kind="stable")[:, :length]

    def packed(values: NDArray[np.generic]) -> NDArray[np.generic]:
        return np.take_along_axis(values, order, 1)

    valid = packed(keep).astype(np.bool_)
    detected = packed(draw.detected).astype(np.bool_) & valid
    days = relative_days(packed(draw.mjd).astype(np.float64), detected, valid)
    single = np.float32
    return Batch(
        days,
        np.where(valid, packed(draw.flux), 0).astype(single),
        np.where(valid, packed(draw.flux_err), 1).astype(single),
        packed(draw.wavelength_nm).astype(single),
        detected.astype(single),
        valid.astype(single),
    )


def batches(sampler: Sampler, size: int, per_pool: int = 8) -> list[tuple[Batch, NDArray[np.int64]]]:
    """A pool of draws and their rows in the data, cut into batches of similar length, in random order.

    Half of the packets have 16 points or fewer, and cost a fourth of the longest eighth.
    """
    rows = sampler.rows(size * per_pool)
    trigger = sampler.triggers(rows)
    n_points = sampler.n_points(rows, trigger)
    made = []
    for part in np.split(np.argsort(n_points, kind="stable"), per_pool):
        draw = sampler.packets(rows[part], trigger[part], _padded(n_points[part].max(), RAW_POINTS))
        length = _padded(draw.keep.sum(1).max(), LENGTHS[-1])
        made.append((batch_of(draw, length, sampler.rng), rows[part]))
    return [made[i] for i in sampler.rng.permutation(per_pool)]


def _padded(n_points: int, most: int) -> int:
    """The least of LENGTHS that holds so many; else `most`."""
    return next((x for x in LENGTHS if x >= n_points), most)
