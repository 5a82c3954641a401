"""The one table of classes: our name, slug for topics and files, DESC's taxonomy id, first level, TNS's names.

The ids are ELAsTiCC 2's (SN Ia 2222). A model card may use these names with these ids and no others.

Relabelling: type IIb is SNII in every set, as in DESC's taxonomy, whose ids the records carry. ELAsTiCC and YSE label
it so already (284 objects); mallorn and real_transients put it into SNIbc (34). Subtypes of Ia (91T, 91bg, CSM, and
Iax, which YSE alone calls "Other") count as SNIa, IIn as SNII; Ic-BL, Ibn and stripped envelopes without a subtype
count as SNIbc.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

TRANSIENT, AGN, VARIABLE, OTHER = LEVELS = ("transient", "AGN", "variable star", "other")


@dataclass(frozen=True)
class Entry:
    """One class. tns: names that TNS uses for it, the one to report first; within: the wider class it is part of."""

    name: str
    slug: str
    taxonomy_id: int
    level: str
    tns: tuple[str, ...] = ()
    within: str = ""


TABLE: tuple[Entry, ...] = (
    Entry("SNIa", "sn-ia", 2222, TRANSIENT, ("SN Ia",)),
    Entry("SNIbc", "sn-ibc", 2223, TRANSIENT, ("SN Ib/c", "SN Ib", "SN Ic", "SN Ic-BL", "SN Ibn", "SN Icn")),
    Entry("SNII", "sn-ii", 2224, TRANSIENT, ("SN II", "SN IIP", "SN IIL", "SN IIn", "SN IIb")),
    Entry("KN", "kilonova", 2232, TRANSIENT, ("Kilonova",)),
    Entry("SLSN", "slsn", 2242, TRANSIENT, ("SLSN-I", "SLSN-II", "SLSN-R")),
    Entry("TDE", "tde", 2243, TRANSIENT, ("TDE",)),
    Entry("AGN", "agn", 2332, AGN, ("AGN", "QSO")),
    Entry("VAR", "variable", 2100, VARIABLE, ("Varstar",)),
    Entry("MDWARF_FLARE", "m-dwarf-flare", 2233, VARIABLE, ("M dwarf",)),
    Entry("CV", "cv", 2234, VARIABLE, ("CV",), "VAR"),
    Entry("CEP_DSCT", "cepheid", 2322, VARIABLE, (), "VAR"),
    Entry("RRL", "rr-lyrae", 2323, VARIABLE, (), "VAR"),
    Entry("EB", "eclipsing-binary", 2325, VARIABLE, (), "VAR"),
    Entry("LPV", "lpv", 2326, VARIABLE, (), "VAR"),
    Entry("BOGUS", "bogus", 200, OTHER),
    Entry("OTHER", "other", 300, OTHER, ("Other",)),
)
BY_NAME = {entry.name: entry for entry in TABLE}

UNLABELLED = frozenset(
    {"", "na", "nan", "none", "null", "unknown", "unclassified", "unlabelled", "?", "-", "--", "<na>"}
)

# Labels of the sets, lower case, spaces, hyphens and underscores left out. The first pattern that matches the whole
# label decides; what a simulation appends to its models' names ("SNII+HostXT_V19", "KN_K17") is allowed for.
_PATTERNS = (
    ("SLSN", r"(sn)?slsn.*"),
    ("SNII", r"(sn|type)?ii(?!i).*"),
    ("SNIbc", r"(sn|type)?i(b|c|\?)(?!i).*|strippedenvelope.*"),
    ("SNIa", r"(sn|type)?ia.*"),
    ("KN", r"kn(\d.*|k\d.*|b\d.*)?|kilonova.*"),
    ("TDE", r"tde.*"),
    ("AGN", r"agn.*|qso|quasar"),
    ("MDWARF_FLARE", r"mdwarf(flare)?"),
    ("CV", r"cv|dwarfnova.?|cataclysmic.*"),
    ("CEP_DSCT", r"cepdsct|ceph(eid)?|deltascuti|dsct"),
    ("RRL", r"rrl(yrae)?.*"),
    ("EB", r"eb|eclipsingbinary"),
    ("LPV", r"lpv|mira"),
    ("VAR", r"var(iable|star)?|yso|starother|rotflare"),
    ("BOGUS", r"bogus|residual|artefact|artifact"),
    ("OTHER", r"sso|asteroid"),
)


def of_label(label: object, subtype: object = None) -> str | None:
    """Our name of a set's label; None where the label says nothing, "?" where it names no class of the table.

    subtype, where a set has one, decides what the label leaves open: an "Other" that is a TDE, a IIb under SNIbc.
    """
    if _plain(label) in UNLABELLED:
        return None
    fine = _plain(subtype)
    if re.match(r"(sn)?iib(?![a-z])", fine):
        return "SNII"
    return _matching(_plain(label)) or _matching(fine) or "?"


def in_model(name: str, classes: tuple[str, ...]) -> int:
    """Index of a class of ours among those of a model, by its wider class where the model has that one; else -1."""
    for known in (name, BY_NAME[name].within if name in BY_NAME else ""):
        if known in classes:
            return classes.index(known)
    return -1


def _plain(label: object) -> str:
    return "" if label is None else re.sub(r"[ _-]", "", str(label)).lower() or str(label)


def _matching(plain: str) -> str | None:
    return next((name for name, pattern in _PATTERNS if re.fullmatch(pattern, plain)), None)
