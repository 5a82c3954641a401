"""Figures of a group of packets and differences between two models, by hand."""

import numpy as np
import pytest

from broker import figures
from broker.errors import UsageError
from broker.figures import Said

NAMES = ("SNIa", "SNII")


def said(answer: list[int], label: list[int], row: list[int], names: tuple[str, ...] = NAMES) -> Said:
    """Sure answers to these objects; -1 is none."""
    probability = np.array([np.full(2, np.nan) if a < 0 else np.eye(2)[a] for a in answer]).reshape(-1, 2)
    return Said(names, np.array(row, np.int64), np.array(label, np.int64), probability, np.ones(len(answer), np.bool_))


def test_differences_are_over_objects_that_both_have_answered() -> None:
    first = said([0, 1, 1, -1], [0, 0, 1, 1], [3, 5, 8, 9])
    second = said([0, 0, 1, 1], [0, 1, 1, 1], [5, 8, 9, 10])
    gap = figures.difference(first, second)  # objects 5 and 8: first wrong, right; second right, wrong
    assert gap["n"] == 2
    assert gap["accuracy"] == 0
    better = figures.difference(said([0, 1], [0, 1], [0, 1]), said([0, 0], [0, 1], [0, 1]))
    assert better["accuracy"] == 0.5
    assert better["macro_f1"] == pytest.approx(1 - 1 / 3)
    assert figures.difference(first, said([0], [0], [3], ("SNIa", "TDE"))) == {}


def test_a_group_by_hand() -> None:
    probability = np.array([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [np.nan, np.nan]])
    evident = np.array([True, False, True, False])
    group = Said(NAMES, np.arange(4), np.array([0, 1, 1, 0]), probability, evident)
    found = figures.of_group(group, np.array([0.5, 0.5]))
    assert (found["n"], found["n_without_answer"]) == (3, 1)
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["answer_rate"] == pytest.approx(2 / 3)
    assert found["answered_accuracy"] == 1
    assert found["classes"]["SNIa"]["precision"] == 0.5
    assert found["classes"]["SNII"]["recall"] == 0.5
    # of SNIa at .9: all of it and nothing else; of SNII at .7 and .4: half and all of it, pure
    assert found["classes"]["SNIa"]["completeness_at_95_purity"] == 1
    assert found["classes"]["SNII"]["completeness_at_90_purity"] == 1
    assert found["classes"]["SNII"]["ece"] == pytest.approx((0.1 + 0.6 + 0.3) / 3)


def test_a_group_without_an_object_has_no_figures() -> None:
    nothing = np.zeros(0, np.int64)
    found = figures.of_group(Said(NAMES, nothing, nothing, np.zeros((0, 2)), nothing > 0), np.zeros(2))
    assert found["n"] == 0
    assert np.isnan([found["macro_f1"], found["answer_rate"], *found["answer_rate_interval"]]).all()
    gap = figures.difference(said([], [], []), said([], [], []))
    assert gap["n"] == 0
    assert np.isnan(gap["accuracy"])


@pytest.mark.parametrize(
    ("prior", "expected"), [("set", [0.75, 0.25]), ("flat", [0.5, 0.5]), ("SNII=3,SNIa=1", [0.25, 0.75])]
)
def test_prior_shares(prior: str, expected: list[float]) -> None:
    assert figures.prior_shares(prior, NAMES, np.array([0, 0, 0, 1])) == pytest.approx(expected)


@pytest.mark.parametrize("prior", ["SNIa", "SNIa=-1", "KN=1", "SNIa=inf"])
def test_priors_that_cannot_be_used(prior: str) -> None:
    with pytest.raises(UsageError, match="--prior"):
        figures.prior_shares(prior, NAMES, np.array([0]))
