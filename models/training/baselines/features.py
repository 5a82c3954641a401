"""Hand-made features of light curves for boosted trees: counts, signal, timing, per-band shape, colours.

Bands of all surveys count by their letter; times are relative to the first detection or to the peak, fluxes to the
curve's scale, whose logarithm is a feature of its own. What a curve does not have is NaN, which trees understand.
"""

import numpy as np
import numpy.typing as npt
from numpy.typing import NDArray

from broker.lightcurve import BANDS, LightCurves, night_of
from models.training.baselines.packets import Padded, chunks

LETTERS = "ugrizy"
LETTER = np.array([LETTERS.index(name[-1]) for name in BANDS])
AROUND_PEAK_D = ((-40, -8), (-8, -2), (2, 10), (10, 20), (20, 40), (40, 80), (80, 200))
COLOURS = (("u", "g"), ("g", "r"), ("r", "i"), ("i", "z"), ("z", "y"), ("g", "i"))
SECURE = 5.0  # fluxes below this many errors count less in scale and peak
FAR = 1e9
Floats = NDArray[np.float64]


def of_curves(curves: LightCurves) -> NDArray[np.float32]:
    """Features of n curves, float32 (n, features)."""
    found: NDArray[np.float32] | None = None
    for rows, part in chunks(curves):
        values = of_padded(part)
        found = np.empty((len(curves), values.shape[1]), np.float32) if found is None else found
        found[rows] = values
    return np.zeros((0, 0), np.float32) if found is None else found


def of_padded(p: Padded) -> NDArray[np.float32]:
    """The same for padded arrays."""
    snr = p.flux / p.flux_err
    secure = np.minimum(np.abs(snr) / SECURE, 1)
    scale = np.where(p.keep, np.abs(p.flux) * secure, 0).max(1, keepdims=True) + 1e-3
    first = np.where(p.detected, p.mjd, FAR).min(1, keepdims=True)
    peak = np.argmax(np.where(p.keep, p.flux * secure, -FAR), 1)[:, None]
    at_peak = np.take_along_axis(p.mjd, peak, 1)
    columns = _general(p, snr, scale, first, at_peak)
    highest = {}
    for i, letter in enumerate(LETTERS):
        of_band = p.keep & (LETTER[p.band] == i)
        highest[letter], shape = _band(p, of_band, p.flux / scale, (p.flux_err / scale), first, at_peak)
        columns += shape
    for blue, red in COLOURS:
        columns.append(np.log10(np.maximum(highest[blue], 1e-6) / np.maximum(highest[red], 1e-6)))
    return np.stack([np.asarray(c, np.float32) for c in columns], 1)


def _general(p: Padded, snr: Floats, scale: Floats, first: Floats, at_peak: Floats) -> list[Floats]:
    last = np.where(p.keep, p.mjd, -FAR).max(1)
    last_detection = np.where(p.detected, p.mjd, -FAR).max(1)
    start, top = first[:, 0], at_peak[:, 0]
    n_detected = p.detected.sum(1)
    negative = (p.detected & (p.flux < 0)).sum(1)
    return [
        *(np.asarray(c, np.float64) for c in (p.keep.sum(1), n_detected, negative)),
        negative / np.maximum(n_detected, 1),
        _nights(p.mjd, p.keep),
        _nights(p.mjd, p.detected),
        np.log10(scale[:, 0]),
        last - start,
        top - start,
        last - top,
        last_detection - start,
        start - np.where(p.keep, p.mjd, FAR).min(1),
        np.where(p.keep, snr, -FAR).max(1),
        np.where(p.keep, snr, FAR).min(1),
        (p.keep & (snr <= -3)).sum(1).astype(np.float64),
    ]


def _nights(mjd: Floats, these: NDArray[np.bool_]) -> Floats:
    """Nights that have one of these points; rows are sorted by time."""
    latest = np.maximum.accumulate(np.where(these, night_of(mjd), -1), axis=1)
    return np.asarray((np.diff(latest, axis=1, prepend=-1) > 0).sum(1), np.float64)


def _band(
    p: Padded, of_band: NDArray[np.bool_], flux: Floats, error: Floats, first: Floats, at_peak: Floats
) -> tuple[Floats, list[Floats]]:
    """Highest flux where the band has a detection, else NaN; and the shape of the band's curve about the peak."""
    n = of_band.sum(1)
    has, several = n > 0, n > 1
    detected = of_band & p.detected
    seen = detected.any(1)
    weight = np.where(of_band, error**-2.0, 0)
    mean = _mean(weight, flux)
    off = np.where(of_band, flux - mean[:, None], 0)
    days = np.where(of_band, p.mjd - first, 0)
    centred = np.where(of_band, days - _mean(of_band, days)[:, None], 0)
    positive = np.where(of_band, np.maximum(flux, 0), 0)
    centre = _mean(positive, days)
    width = np.sqrt(_mean(positive, (days - centre[:, None]) ** 2))
    top = np.argmax(np.where(of_band, flux, -FAR), 1)[:, None]
    highest = np.take_along_axis(flux, top, 1)[:, 0]
    newest = (of_band.shape[1] - 1 - np.argmax(of_band[:, ::-1], 1))[:, None]
    shape = [
        n.astype(np.float64),
        detected.sum(1).astype(np.float64),
        _where(has, highest),
        _where(has, (np.take_along_axis(p.mjd, top, 1) - first)[:, 0]),
        _where(has, mean),
        _where(several, np.sqrt((off**2).sum(1) / np.maximum(n, 1))),
        _where(several, np.log10(((off / error) ** 2 * of_band).sum(1) / np.maximum(n - 1, 1) + 1e-3)),
        _where(several, (centred * off).sum(1) / np.maximum((centred**2).sum(1), 1e-6)),
        _where(seen, centre + (first - at_peak)[:, 0]),
        _where(seen, width),
        _where(has, np.take_along_axis(flux, newest, 1)[:, 0]),
    ]
    for low, high in AROUND_PEAK_D:
        inside = of_band & (p.mjd - at_peak >= low) & (p.mjd - at_peak < high)
        shape.append(_where(inside.any(1), _mean(np.where(inside, weight, 0), flux)))
    return _where(seen, highest), shape


def _mean(weight: Floats | NDArray[np.bool_], values: Floats) -> Floats:
    total = np.maximum(np.asarray(weight, np.float64).sum(1), 1e-30)
    return np.asarray((weight * values).sum(1) / total)


def _where(known: npt.ArrayLike, values: Floats) -> Floats:
    return np.where(np.asarray(known), values, np.nan)
