"""Polygons on the sky against two other rules: signed angles around the place, and plain boxes."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.sky import inside, read_polygon

STABLE = settings(derandomize=True, deadline=None, database=None)


def unit(ra: float, dec: float) -> np.ndarray:
    lon, lat = math.radians(ra), math.radians(dec)
    return np.array([math.cos(lat) * math.cos(lon), math.cos(lat) * math.sin(lon), math.sin(lat)])


def turns(vertices: list[tuple[float, float]], ra: float, dec: float) -> float:
    """How often the edges go round the place, as seen there: +-1 inside, or inside at its antipode; else 0."""
    p, total = unit(ra, dec), 0.0
    for a, b in zip(vertices, vertices[1:] + vertices[:1], strict=True):
        u, v = unit(*a), unit(*b)
        total += math.atan2(p @ np.cross(u, v), u @ v - (p @ u) * (p @ v))
    return total / (2 * math.pi)


def one(vertices: list[tuple[float, float]], ra: float, dec: float) -> bool:
    read = read_polygon("\n".join(f"{a} {d}" for a, d in vertices))
    return bool(inside(read, np.array([ra]), np.array([dec]))[0])


@st.composite
def stars(draw: st.DrawFn) -> tuple[list[tuple[float, float]], tuple[float, float]]:
    """A polygon around some centre: at each bearing a distance; so that it is simple, of any shape, anywhere."""
    centre = draw(st.floats(0, 359.9)), draw(st.sampled_from([-90.0, 90.0]) | st.floats(-90, 90))
    c = unit(*centre)
    east = np.array([-math.sin(math.radians(centre[0])), math.cos(math.radians(centre[0])), 0.0])
    north = np.cross(c, east)
    n, vertices = draw(st.integers(3, 9)), []
    for k in range(n):
        far, bearing = math.radians(draw(st.floats(0.5, 70))), 2 * math.pi * k / n
        p = math.cos(far) * c + math.sin(far) * (math.cos(bearing) * north + math.sin(bearing) * east)
        vertices.append((math.degrees(math.atan2(p[1], p[0])) % 360, math.degrees(math.asin(max(-1, min(1, p[2]))))))
    return vertices, centre


@STABLE
@given(stars(), st.floats(0, 360), st.floats(-90, 90), st.booleans())
def test_like_the_angles_around_the_place(
    made: tuple[list[tuple[float, float]], tuple[float, float]], ra: float, dec: float, is_reversed: bool
) -> None:
    vertices, centre = made
    vertices = vertices[::-1] if is_reversed else vertices
    if len(vertices) > 3:  # of a triangle with wide bearings the centre need not be inside
        assert one(vertices, *centre) == (abs(turns(vertices, *centre)) > 0.5)
    n = turns(vertices, ra, dec)
    near = unit(ra, dec) @ unit(*centre) > 0  # else the antipode would count
    if min(abs(n), abs(abs(n) - 1)) < 1e-6:  # not on an edge
        assert one(vertices, ra, dec) == (near and abs(n) > 0.5)


@pytest.mark.parametrize(
    ("vertices", "within", "without"),
    [
        ([(350, -5), (10, -5), (10, 5), (350, 5)], [(0, 0), (359.9, 4), (9.9, -4)], [(20, 0), (180, 0), (345, 0)]),
        ([(-10, -5), (10, -5), (10, 5), (-10, 5)], [(0, 0), (355, 0)], [(15, 0), (180, 0)]),
        ([(0, 80), (90, 80), (180, 80), (270, 80)], [(12, 90), (200, 85), (45, 86)], [(45, 79), (0, -90), (0, 79.9)]),
        ([(0, -80), (120, -80), (240, -80)], [(77, -90), (0, -81)], [(0, 90), (180, -81), (60, -84.9)]),
        ([(0, 0), (40, 0), (40, 40), (20, 5), (0, 40)], [(20, 2), (2, 30)], [(20, 20), (20, -1)]),
        ([(30, -30), (150, -30), (150, 30), (30, 30)], [(90, 0), (90, 39)], [(20, 0), (270, 0), (90, 60)]),
    ],
)
def test_ra_zero_poles_and_hollows(
    vertices: list[tuple[float, float]], within: list[tuple[float, float]], without: list[tuple[float, float]]
) -> None:
    for place in within:
        assert one(vertices, *place), place
    for place in without:
        assert not one(vertices, *place), place


def test_files_and_their_mistakes() -> None:
    square = read_polygon("# a field\n10, 20\n11 20 # corner\n\n11,21\n10,21\n10,20\n")
    assert square == ((10.0, 20.0), (11.0, 20.0), (11.0, 21.0), (10.0, 21.0))
    assert inside(square, np.array([10.5, np.nan, 10.5]), np.array([20.5, 20.5, np.nan])).tolist() == [
        True,
        False,
        False,
    ]
    for text, complaint in [
        ("", "has 0 vertices"),
        ("1 2\n3 4\n1 2", "has 2 vertices"),
        ("1 2\n3\n", "line 2: '3' is not a pair"),
        ("ra dec\n", "line 1: 'ra dec' is not a pair"),
        ("1 2\n3 95\n", "line 2: '3 95': RA goes from -180 to 360"),
        ("nan 2\n", "RA goes from"),
        ("0 0\n120 0\n240 0\n", "does not lie within 89 degrees of any centre"),
    ]:
        with pytest.raises(ValueError, match=complaint):
            read_polygon(text)
