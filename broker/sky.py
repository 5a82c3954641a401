"""Regions of the sky: a polygon with great circles as edges, and which places lie inside.

The polygon is looked at from its centre: the gnomonic projection makes great circles straight lines, so that the
plane's rule (an odd number of edges between the place and infinity) is exact, at the poles and over RA 0 as anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Vertices = tuple[tuple[float, float], ...]  # RA and Dec, degrees

MAX_VERTICES = 10_000
REACH_DEG = 89.0  # from the centre; at 90 degrees the projection ends
_CELLS = 1_000_000  # places times edges at a time
_TRIES = 10_000


def read_polygon(text: str) -> Vertices:
    """Vertices of a file: RA and Dec in degrees, a pair a line, apart by space or comma; # begins a comment.

    Raises ValueError, with the line at fault, for anything else, and for what reaches beyond 89 degrees from a centre.
    """
    vertices = []
    for number, line in enumerate(text.splitlines(), 1):
        parts = line.partition("#")[0].replace(",", " ").split()
        if not parts:
            continue
        try:
            ra, dec = map(float, parts)
        except ValueError:
            raise ValueError(f"line {number}: {line.strip()[:50]!r} is not a pair of RA and Dec in degrees") from None
        if not (-180 <= ra <= 360 and -90 <= dec <= 90):
            raise ValueError(f"line {number}: {line.strip()[:50]!r}: RA goes from -180 to 360, Dec from -90 to 90")
        vertices.append((ra % 360.0, dec))
    if len(vertices) > 1 and vertices[0] == vertices[-1]:
        vertices.pop()  # closed by hand
    if not 3 <= len(vertices) <= MAX_VERTICES:
        raise ValueError(f"has {len(vertices)} vertices; a polygon has 3 to {MAX_VERTICES}")
    _projected(tuple(vertices))
    return tuple(vertices)


def inside(vertices: Vertices, ra: Floats, dec: Floats) -> npt.NDArray[np.bool_]:
    """Which of n places (degrees; NaN is nowhere) lie inside: bool (n,)."""
    axes, corners, least = _projected(vertices)
    places = _unit(ra, dec)
    along = places @ axes[0]
    found = np.zeros(len(along), np.bool_)
    near = np.flatnonzero(along >= least)  # all of the polygon lies in this cap
    x, y = (places[near] @ axes[1]) / along[near], (places[near] @ axes[2]) / along[near]
    step = max(1, _CELLS // len(corners))
    for first in range(0, len(near), step):
        part = slice(first, first + step)
        found[near[part]] = _is_odd(corners, x[part, None], y[part, None])
    return found


def _is_odd(corners: Floats, x: Floats, y: Floats) -> npt.NDArray[np.bool_]:
    """Whether a ray from each point (n, 1) crosses an odd number of edges: (n,)."""
    (x1, y1), (x2, y2) = corners.T, np.roll(corners, -1, axis=0).T
    spans = (y1 > y) != (y2 > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        crossed = spans & (x < x1 + (y - y1) * (x2 - x1) / (y2 - y1))
    return np.asarray(crossed.sum(axis=1) % 2 == 1)


@lru_cache(maxsize=16)
def _projected(vertices: Vertices) -> tuple[Floats, Floats, float]:
    """Axes (3, 3) of the view, the first towards the centre; corners in its plane; cosine of the farthest one."""
    ra, dec = np.array(vertices, np.float64).T
    units = _unit(ra, dec)
    centre = _centre(units)
    side = np.cross(centre, np.eye(3)[np.argmin(np.abs(centre))])
    side /= np.linalg.norm(side)
    axes = np.stack([centre, side, np.cross(centre, side)])
    along = units @ centre
    corners = (units @ axes[1:].T) / along[:, None]
    return axes, corners, float(along.min()) - 1e-12


def _centre(units: Floats) -> Floats:
    """A direction with all vertices within 89 degrees: their mean, turned towards the worst until it will do."""
    centre, least = units.mean(axis=0), np.cos(np.radians(REACH_DEG))
    for _ in range(_TRIES):
        length = np.linalg.norm(centre)
        along = units @ (centre / length) if length > 0 else np.zeros(len(units))
        worst = int(along.argmin())
        if along[worst] >= least:
            return np.asarray(centre / length)
        centre = centre + units[worst]
    raise ValueError(f"does not lie within {REACH_DEG:g} degrees of any centre; cut it into several, an outlet each")


def _unit(ra: Floats | Sequence[float], dec: Floats | Sequence[float]) -> Floats:
    lon, lat = np.radians(ra), np.radians(dec)
    return np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], axis=-1)
