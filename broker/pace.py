"""When each alert of a replay is due, in seconds since the first one was sent."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from broker.errors import ConfigError

VISIT_EVERY_S, VISIT_TAKES_S = 39.0, 5.0  # Rubin: the alerts of a visit come within 5 s of every 39


class Timed(Protocol):
    """What is paced: the time of the alert's source in MJD TAI, and how often all alerts were sent before."""

    @property
    def mjd_tai(self) -> float | None: ...
    @property
    def lap(self) -> int: ...


class Pace(Protocol):
    """Any of the three below."""

    def due(self, number: int, alert: Timed) -> float:
        """Seconds since the first one, of the alert with this number (from 0); never less than the one before."""


@dataclass(frozen=True)
class Rate:
    """So many alerts a second."""

    per_s: float

    def due(self, number: int, alert: Timed) -> float:
        """Evenly."""
        return number / self.per_s


@dataclass(frozen=True)
class Visits:
    """So many alerts a visit, in bursts as Rubin sends them."""

    n: int

    def due(self, number: int, alert: Timed) -> float:
        """Evenly over the first 5 s of every 39."""
        visit, within = divmod(number, self.n)
        return visit * VISIT_EVERY_S + within * VISIT_TAKES_S / self.n


@dataclass
class Speed:
    """So many times as fast as the sources were observed; alerts without a time, or out of order, go at once."""

    factor: float
    _began_at: float = field(default=0.0, init=False)
    _began_mjd: float | None = field(default=None, init=False)
    _lap: int = field(default=0, init=False)
    _last: float = field(default=0.0, init=False)

    def due(self, number: int, alert: Timed) -> float:
        """By the time since the first one of its lap; a new lap goes on at once."""
        if alert.lap != self._lap:
            self._lap, self._began_at, self._began_mjd = alert.lap, self._last, None
        if alert.mjd_tai is not None:
            if self._began_mjd is None:
                self._began_mjd = alert.mjd_tai
            own = self._began_at + (alert.mjd_tai - self._began_mjd) * 86_400 / self.factor
            self._last = max(self._last, own)
        return self._last


def pace_of(rate: float | None, speed: float | None, visits: int | None) -> Pace | None:
    """The pace that was asked for, None for as fast as Kafka takes them. Raises ConfigError."""
    given = {"rate": rate, "speed": speed, "visits": visits}
    chosen = [name for name, value in given.items() if value is not None]
    if len(chosen) > 1:
        raise ConfigError(f"{' and '.join(chosen)} are given; a replay has one pace")
    for name, value in given.items():
        if value is not None and not 0 < value < float("inf"):
            what = {"rate": "alerts per second", "speed": "times the original pace", "visits": "alerts per visit"}[name]
            raise ConfigError(f"{name} {value!r}: {what}, more than 0; leave it out to go as fast as Kafka takes them")
    if rate is not None:
        return Rate(rate)
    if speed is not None:
        return Speed(speed)
    return None if visits is None else Visits(visits)
