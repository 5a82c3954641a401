"""Topics that are one night's: their names with `{night}` in them, and which night it is."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta

NIGHT = "{night}"  # YYYYMMDD, a UTC date


def topic_of(name: str, night: date) -> str:
    """The topic of a night by a name with `{night}` in it."""
    return name.replace(NIGHT, night.isoformat().replace("-", ""))


def night_in(name: str, topic: str) -> date | None:
    """The night whose topic this is by a name with `{night}` in it; None where it is none of these."""
    before, found, after = name.partition(NIGHT)
    digits = topic[len(before) : len(topic) - len(after)]
    if not found or not (len(digits) == 8 and digits.isascii() and digits.isdecimal()):
        return None
    try:
        night = date(int(digits[:4]), int(digits[4:6]), int(digits[6:]))
    except ValueError:
        return None
    return night if topic_of(name, night) == topic else None


def night_at(when: datetime, begins: str) -> date:
    """The night of a time with a zone; `begins` is the UTC time of day at which a new one does."""
    at = time.fromisoformat(begins)
    return (when - timedelta(hours=at.hour, minutes=at.minute, seconds=at.second)).date()
