"""Nights of observation: the date of each."""

from __future__ import annotations

from datetime import date, timedelta

import numpy as np

from broker.lightcurve import TAI_MINUS_UTC_S, Floats, Integers

_MJD_OF_1970 = 40_587
_DAY_0 = date(1858, 11, 17)


def dates(survey: str, mjd_tai: Floats) -> Integers:
    """Date of the night of each time, as the MJD of its begin, -1 for NaN: (n,).

    ZTF's night is the UTC date; the others' begins at 12 h UTC of its date, which is Rubin's day_obs.
    """
    with np.errstate(invalid="ignore"):
        days = np.floor(mjd_tai - TAI_MINUS_UTC_S / 86_400 - (0.0 if survey == "ztf" else 0.5))
    return np.where(np.isfinite(days), days, -1).astype(np.int64)


def name_of(day: int) -> str:
    """A date in a topic's name, such as 20261120."""
    return (_DAY_0 + timedelta(days=day)).strftime("%Y%m%d")


def coming(survey: str, now_s: float, n: int) -> list[str]:
    """The night of a moment (seconds since 1970) and the n nights after it."""
    mjd_tai = _MJD_OF_1970 + (now_s + TAI_MINUS_UTC_S) / 86_400
    tonight = int(dates(survey, np.array([mjd_tai]))[0])
    return [name_of(tonight + i) for i in range(n + 1)]
