"""The table of classes: one spelling, one id, one meaning of each label of the sets."""

import re
from pathlib import Path

import pytest

from broker import classes, model
from broker.errors import ModelError

NAMES = ("SNIa", "SNII", "SNIbc", "SLSN", "TDE", "AGN", "VAR")

LABELS = {
    "SNIa": ["SNIa", "SN Ia", "SN Ia-91T", "SN Iax", "Ia Pec?", "SNIa-SALT2", "SN Ia-CSM", "Ia-02cx", "Type Ia"],
    "SNII": ["SNII", "SN II", "II P", "SN IIn", "IIb", "SNII+HostXT_V19", "SNIIb+HostXT_V19", "SNII-NMF"],
    "SNIbc": ["SNIbc", "SN Ibc", "Ib/c", "Ic??bl??", "SNIb-Templates", "stripped envelope (subtype not given)"],
    "SLSN": ["SLSN", "SLSN-I", "SLSN-II"],
    "TDE": ["TDE", "TDE H+He"],
    "AGN": ["AGN", "QSO"],
    "KN": ["KN", "KN_K17", "KN_B19", "Kilonova"],
    "MDWARF_FLARE": ["MDWARF_FLARE", "Mdwarf-flare", "M dwarf"],
    "VAR": ["VAR", "STAR_OTHER", "ROT_FLARE", "YSO", "Varstar"],
    "RRL": ["RRL", "RR Lyrae"],
    "OTHER": ["SSO"],
    "?": ["Other", "LBV", "LRN", "SN", "SN III", "carbon star", "Ca-rich"],
    None: ["NA", "", "unlabelled", "unclassified", "-", "--", float("nan"), None],
}


def test_names_slugs_and_ids_are_unique() -> None:
    for values in ([e.name for e in classes.TABLE], [e.slug for e in classes.TABLE]):
        assert len(set(values)) == len(values)
    ids = [e.taxonomy_id for e in classes.TABLE]
    assert len(set(ids)) == len(ids)
    tns = [name for e in classes.TABLE for name in e.tns]
    assert len(set(tns)) == len(tns)


def test_entries_are_well_formed() -> None:
    for entry in classes.TABLE:
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", entry.slug)
        assert entry.level in classes.LEVELS
        if entry.within:
            wider = classes.BY_NAME[entry.within]
            assert wider.level == entry.level
            assert not wider.within  # one step: `in_model` looks no further


@pytest.mark.parametrize(("name", "labels"), LABELS.items(), ids=str)
def test_labels_of_the_sets(name: str | None, labels: list[object]) -> None:
    assert {str(label): classes.of_label(label) for label in labels} == {str(label): name for label in labels}


def test_every_name_and_every_name_of_tns_means_its_own_entry() -> None:
    for entry in classes.TABLE:
        for label in (entry.name, *entry.tns):
            if label.upper() != "OTHER":  # as a label it says "none of these"; a subtype may say more
                assert classes.of_label(label) == entry.name


def test_iib_is_the_same_in_every_set() -> None:
    for label, subtype in (("SNIbc", "IIb"), ("SNIbc", "SN IIb"), ("SNII", "SNIIb+HostXT_V19"), ("SN II", "SN IIb")):
        assert classes.of_label(label, subtype) == "SNII"


def test_a_subtype_decides_only_what_the_label_leaves_open() -> None:
    assert classes.of_label("Other", "TDE") == "TDE"
    assert classes.of_label("Other", "LBV") == "?"
    assert classes.of_label("SNIbc", "SN Ibn") == "SNIbc"
    assert classes.of_label("NA", "SN Ia") is None


def test_a_finer_class_counts_as_the_wider_one_that_the_model_has() -> None:
    assert classes.in_model("EB", NAMES) == NAMES.index("VAR")
    assert classes.in_model("EB", (*NAMES, "EB")) == len(NAMES)
    assert classes.in_model("KN", NAMES) == -1
    assert classes.in_model("?", NAMES) == -1


def test_released_cards_agree_with_the_table() -> None:
    cards = model.released()
    assert cards
    for card in cards:
        for c in card.classes:
            assert classes.BY_NAME[c.name].taxonomy_id == c.taxonomy_id


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "SNIbc"', 'name = "SN Ibc"', "class 'SN Ibc' is unknown; .* has SNIa, SNIbc"),
        ("taxonomy_id = 2223", "taxonomy_id = 113", "SNIbc has taxonomy_id 113, the table of classes has 2223"),
        ('name = "SNIbc"', 'name = "SNII"', "SNII, SLSN.* are repeated"),
    ],
)
def test_cards_that_contradict_the_table_are_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    text = (model.find("t2b-1") / model.CARD_FILE).read_text()
    assert old in text
    (tmp_path / "card.toml").write_text(text.replace(old, new))
    with pytest.raises(ModelError, match=message):
        model.read_card(tmp_path / "card.toml")
