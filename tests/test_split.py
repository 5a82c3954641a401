"""Who is learned from and who is tested on: groups by name and by sky, and a draw that more data do not move."""

import hashlib
import random

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from broker.split import (
    CALIBRATION,
    CALIBRATION_FRACTION,
    SAME_SKY_ARCSEC,
    TEST,
    TEST_FRACTION,
    TRAIN,
    Floats,
    Strings,
    group,
    names_in,
    neighbours,
    sides,
    sky_name,
)

ARCSEC = 1 / 3600
PLACES = st.lists(st.tuples(st.integers(0, 40), st.integers(-40, 40)), min_size=1, max_size=30)


def arrays(names: list[str], ra: list[float], dec: list[float]) -> tuple[Strings, Floats, Floats]:
    return np.array(names, np.str_), np.array(ra, np.float64), np.array(dec, np.float64)


def apart(n: int) -> tuple[Floats, Floats]:
    """n places that lie a degree from each other."""
    return np.float64(1) * (np.arange(n) % 360), np.arange(n) // 360 - np.float64(40)


def by_hand(names: Strings, ra: Floats, dec: Floats) -> list[set[int]]:
    """Groups by looking at every pair."""
    n = len(names)
    near = {(i, j) for i in range(n) for j in range(n) if names[i] == names[j] or distance(ra, dec, i, j) <= 2}
    groups = [{i} for i in range(n)]
    for i, j in near:
        one, other = (next(g for g in groups if k in g) for k in (i, j))
        if one is not other:
            one |= other
            groups.remove(other)
    return sorted(groups, key=min)


def distance(ra: Floats, dec: Floats, i: int, j: int) -> float:
    """Arcsec, by haversines, which are exact for small angles."""
    a, b = np.radians(ra[[i, j]]), np.radians(dec[[i, j]])
    h = np.sin((b[1] - b[0]) / 2) ** 2 + np.cos(b[0]) * np.cos(b[1]) * np.sin((a[1] - a[0]) / 2) ** 2
    return float(np.degrees(2 * np.arcsin(np.sqrt(h))) * 3600)


# --- names --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "due"),
    [
        ("SN 2019abh", "2019abh"),
        ("SN2019abh", "2019abh"),
        ("AT_2019ABH", "2019abh"),
        ("TDE 2019qiz", "2019qiz"),
        ("2019abh", "2019abh"),
        ("1998bw", "1998bw"),
        ("SN2019", "SN2019"),  # a year alone is no name
        ("ZTF19aaaaaaa", "ZTF19aaaaaaa"),
        ("SN 2119abh", "SN 2119abh"),
        ("SN 2019abh ", "SN 2019abh "),
        ("4711", "4711"),
        ("", ""),
    ],
)
def test_names_of_the_sky_are_known_in_all_their_spellings(name: str, due: str) -> None:
    assert sky_name(name) == due


@given(
    st.from_regex(r"(19|20)\d\d[A-Za-z]{1,5}", fullmatch=True), st.sampled_from(["", "SN", "SN ", "AT", "AT_", "TDE "])
)
def test_a_spelling_does_not_make_another_object(name: str, before: str) -> None:
    assert sky_name(before + name) == sky_name(name) == sky_name(sky_name(before + name))


def test_numbers_of_a_simulation_are_its_own() -> None:
    assert names_in("plasticc", ["1", "2"]).tolist() == ["plasticc:1", "plasticc:2"]
    assert names_in("yse_dr1", ["SN 2020oi", "1"]).tolist() == ["2020oi", "1"]
    assert set(names_in("elasticc", ["7"])) & set(names_in("plasticc", ["7"])) == set()
    assert set(names_in("ztf_bts", ["SN 2020oi"])) == set(names_in("tde_real", ["AT2020OI"]))


# --- groups -------------------------------------------------------------------------------------------------------


@given(PLACES, st.floats(-88, 88), st.integers(0, 9))
@settings(max_examples=150, deadline=None)
def test_groups_are_those_that_looking_at_every_pair_gives(
    places: list[tuple[int, int]], dec0: float, seed: int
) -> None:
    rng = random.Random(seed)
    ra = np.array([180 + x * 0.7 * ARCSEC / np.cos(np.radians(dec0)) for x, _ in places])
    dec = np.array([dec0 + y * 0.7 * ARCSEC for _, y in places])
    names = np.array([f"n{rng.randint(0, 40)}" for _ in places], np.str_)
    label = group(names, ra, dec)
    found = sorted(({*np.flatnonzero(label == g).tolist()} for g in {*label.tolist()}), key=min)
    assert found == by_hand(names, ra, dec)


@pytest.mark.parametrize(("arcsec", "is_one"), [(1.99, True), (2.01, False)])
@pytest.mark.parametrize("dec", [-89.0, -30.0, 0.0, 60.0])
def test_two_arcsec_are_the_limit_everywhere(arcsec: float, is_one: bool, dec: float) -> None:
    assert SAME_SKY_ARCSEC == 2
    beside = group(*arrays(["a", "b"], [10, 10 + arcsec * ARCSEC / np.cos(np.radians(dec))], [dec, dec]))
    above = group(*arrays(["a", "b"], [10, 10], [dec, dec + arcsec * ARCSEC]))
    assert (beside[0] == beside[1]) == (above[0] == above[1]) == is_one


def test_the_first_meridian_parts_nobody() -> None:
    label = group(*arrays(["a", "b", "c"], [359.9999, 0.0001, 180], [0, 0, 0]))
    assert label[0] == label[1] != label[2]


def test_a_chain_is_one_group() -> None:
    """Each lies near the next one only, and a name joins the two ends of another chain."""
    n = 40
    ra, dec = [100.0] * n, [i * 1.5 * ARCSEC for i in range(n)]
    names = [f"a{i}" for i in range(n)]
    assert len(set(group(*arrays(names, ra, dec)))) == 1
    far_ra, far_dec = [*ra, 200.0], [*dec, 50.0]
    assert len(set(group(*arrays([*names, "a7"], far_ra, far_dec)))) == 1
    assert len(set(group(*arrays([*names, "b7"], far_ra, far_dec)))) == 2


def test_what_has_no_place_has_no_neighbours() -> None:
    nan = float("nan")
    assert neighbours(np.array([nan, nan, 1.0]), np.array([nan, 1.0, nan])).shape == (0, 2)
    assert neighbours(np.empty(0), np.empty(0)).shape == (0, 2)
    names, ra, dec = arrays(["a", "a", "b"], [nan, 1.0, nan], [nan, 1.0, 1.0])
    label = group(names, ra, dec)
    assert label[0] == label[1] != label[2]


@given(PLACES)
@example([(0, -3), (0, -5)])  # just 2 arcsec
@settings(deadline=None)
def test_each_pair_of_neighbours_comes_once(places: list[tuple[int, int]]) -> None:
    ra, dec = (np.array(part) * ARCSEC for part in zip(*places, strict=True))
    pairs = {tuple(sorted(pair)) for pair in neighbours(ra, dec).tolist()}
    assert len(pairs) == len(neighbours(ra, dec))
    n = len(places)
    assert pairs == {(i, j) for i in range(n) for j in range(i + 1, n) if distance(ra, dec, i, j) <= 2 + 1e-9}


# --- sides --------------------------------------------------------------------------------------------------------


def test_the_draw_is_by_the_hash_of_the_smallest_name() -> None:
    """The rule of the model cards, by hand."""
    names = [f"object {i}" for i in range(500)]
    found = sides(np.array(names), *apart(500))
    for name, side in zip(names, found, strict=True):
        draw = int(hashlib.sha256(f"t2-split:{name}".encode()).hexdigest()[:12], 16) / 16**12
        assert side == (TEST if draw < 0.25 else CALIBRATION if draw < 0.37 else TRAIN)


def test_shares_are_as_they_were_agreed() -> None:
    n = 20_000
    found = sides(np.array([str(i) for i in range(n)]), *apart(n))
    for side, share in ((TEST, TEST_FRACTION), (CALIBRATION, CALIBRATION_FRACTION)):
        assert (found == side).mean() == pytest.approx(share, abs=4 * np.sqrt(share * (1 - share) / n))
    assert {*found.tolist()} == {TRAIN, CALIBRATION, TEST}


@given(st.lists(st.tuples(st.integers(0, 15), st.integers(0, 30)), min_size=1, max_size=40), st.integers(0, 9))
@settings(deadline=None)
def test_a_group_lies_on_one_side_whatever_the_order(objects: list[tuple[int, int]], seed: int) -> None:
    names, ra, dec = arrays([f"n{a}" for a, _ in objects], [b * 1.2 * ARCSEC for _, b in objects], [0] * len(objects))
    found, label = sides(names, ra, dec), group(names, ra, dec)
    assert all(len({*found[label == g].tolist()}) == 1 for g in {*label.tolist()})
    order = np.random.default_rng(seed).permutation(len(objects))
    assert sides(names[order], ra[order], dec[order]).tolist() == found[order].tolist()


@given(st.integers(1, 200), st.integers(0, 200))
@settings(max_examples=40, deadline=None)
def test_more_data_move_no_old_group(n: int, more: int) -> None:
    ra, dec = apart(n + more)
    names = np.array([f"o{i}" for i in range(n + more)])
    assert sides(names[:n], ra[:n], dec[:n]).tolist() == sides(names, ra, dec)[:n].tolist()


def test_the_smallest_name_of_a_group_decides_for_all_of_it() -> None:
    names = [f"k{i}" for i in range(60)]
    alone = dict(zip(names, sides(np.array(names), *apart(60)).tolist(), strict=True))
    assert {*alone.values()} == {TRAIN, CALIBRATION, TEST}
    for one in names:
        for other in names[:5]:
            both = sides(*arrays([one, other], [10, 10], [1, 1 + ARCSEC]))
            assert both.tolist() == [alone[min(one, other)]] * 2
