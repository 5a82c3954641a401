"""Which labelled objects may be learned from: the split that model cards name, by groups of objects.

The split is by group, not by object: objects of any two sets that share a name or lie within 2 arcsec fall on the same
side, because several sets hold the same supernovae. The hash of the group's smallest name decides, so more data move no
old group, and one folder alone gives the side that it had in training (unless it lies near an object of another
folder that carries another name; among the sets of the released models there is none).
"""

from __future__ import annotations

import hashlib
import re

import numpy as np
from numpy.typing import NDArray

RULE = "group-sha256-1"
TRAIN, CALIBRATION, TEST = 0, 1, 2
TEST_FRACTION, CALIBRATION_FRACTION = 0.25, 0.12  # a quarter, because real SLSNe and TDEs are few
SAME_SKY_ARCSEC = 2.0

Strings = NDArray[np.str_]
Floats = NDArray[np.float64]


def sky_name(name: str) -> str:
    """The IAU part of a transient's name ("SN 2019abh", "AT2019abh" -> "2019abh"), else the name itself."""
    found = re.fullmatch(r"(?:SN|AT|TDE)?[ _]?((?:19|20)\d\d[A-Za-z]+)", name)
    return found[1].lower() if found else name


def names_in(set_name: str, names: list[str]) -> Strings:
    """Names by which objects of a set are grouped; numbers of a simulation mean nothing in another set."""
    sky = [sky_name(name) for name in names]
    is_real = re.search("yse|ztf|tde|real", set_name)
    return np.array(sky if is_real else [f"{set_name}:{name}" for name in sky], np.str_)


def group(name: Strings, ra: Floats, dec: Floats) -> NDArray[np.int64]:
    """Number of the group of each object: connected by name, or by lying within 2 arcsec of each other."""
    _, first, by_name = np.unique(name, return_index=True, return_inverse=True)
    pairs = np.concatenate([neighbours(ra, dec), np.stack([np.arange(len(by_name)), first[by_name]], 1)])
    label = np.arange(len(by_name))
    while True:  # each round every object takes the smallest number among its neighbours
        known = label.copy()
        np.minimum.at(label, pairs[:, 0], known[pairs[:, 1]])
        np.minimum.at(label, pairs[:, 1], known[pairs[:, 0]])
        if (label == known).all():
            return label


def neighbours(ra: Floats, dec: Floats) -> NDArray[np.int64]:
    """Pairs (k, 2) of objects within 2 arcsec; ra and dec in degrees, NaN has no neighbour."""
    located = np.flatnonzero(np.isfinite(ra) & np.isfinite(dec))
    located = located[np.argsort(dec[located], kind="stable")]
    a, d = np.radians(ra[located]), np.radians(dec[located])
    on_sphere = np.stack([np.cos(d) * np.cos(a), np.cos(d) * np.sin(a), np.sin(d)], 1)
    limit = np.radians(SAME_SKY_ARCSEC / 3600) * (1 + 1e-9)  # exactly 2 arcsec may come out a rounding error larger
    found = [np.empty((0, 2), np.int64)]
    for step in range(1, len(located)):  # ends at the most objects that share a strip of 2 arcsec in declination
        if not (d[step:] - d[:-step] <= limit).any():
            break
        near = np.flatnonzero(np.linalg.norm(on_sphere[step:] - on_sphere[:-step], axis=1) <= limit)
        found.append(np.stack([located[near], located[near + step]], 1))
    return np.concatenate(found)


def sides(name: Strings, ra: Floats, dec: Floats) -> NDArray[np.int8]:
    """Side of each object: TRAIN, CALIBRATION or TEST."""
    groups = group(name, ra, dec)
    order = np.lexsort((name, groups))
    _, first = np.unique(groups[order], return_index=True)
    draw = np.array([_uniform(str(smallest)) for smallest in name[order][first]])
    rest = np.where(draw < TEST_FRACTION + CALIBRATION_FRACTION, CALIBRATION, TRAIN)
    side = np.where(draw < TEST_FRACTION, TEST, rest)
    return side[np.unique(groups, return_inverse=True)[1]].astype(np.int8)


def _uniform(name: str) -> float:
    return int(hashlib.sha256(f"t2-split:{name}".encode()).hexdigest()[:12], 16) / 16**12
