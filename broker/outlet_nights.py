"""Nights of observation: their dates, and the topics that a template with {night} stands for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import date, timedelta

import numpy as np

from broker.lightcurve import TAI_MINUS_UTC_S, Floats, Integers

NIGHT = "{night}"
OTHER = "other"  # in place of a date: nights that have no topic of their own
MAX_TOPICS_A_MONTH = 200
MONTH = 31
MJD_OF_1970 = 40_587
_DAY_0 = date(1858, 11, 17)
Nights = Mapping[str, Sequence[str]]  # by template: dates that have a topic


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
    mjd_tai = MJD_OF_1970 + (now_s + TAI_MINUS_UTC_S) / 86_400
    tonight = int(dates(survey, np.array([mjd_tai]))[0])
    return [name_of(tonight + i) for i in range(n + 1)]


def expand(topics: Iterable[str], nights: Nights) -> list[str]:
    """Names of topics: each template as the topics of its nights, and the one of all others."""
    return [
        topic.replace(NIGHT, night)
        for topic in dict.fromkeys(topics)
        for night in ((*nights.get(topic, ()), OTHER) if NIGHT in topic else ("",))
    ]


def stands_for(template: str, topic: str) -> bool:
    """Whether a topic's name is one of those that a template stands for."""
    return NIGHT in template and re.fullmatch(_pattern(template), topic) is not None


def among(templates: Iterable[str], names: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """By template, the nights whose topics are among these names, in order."""
    names = list(names)
    return {
        template: tuple(sorted(found[1] for name in names if (found := re.fullmatch(_pattern(template), name))))
        for template in templates
        if NIGHT in template
    }


def _pattern(template: str) -> str:
    start, _, end = template.partition(NIGHT)
    return rf"{re.escape(start)}(\d{{8}}){re.escape(end)}"
