"""Figures against small examples worked out by hand, and properties that hold for any labels and probabilities."""

import math
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from broker import scores

TRUTH_ANSWER = np.array([[8.0, 2.0, 0.0], [1.0, 4.0, 0.0], [0.0, 0.0, 0.0]])
LABEL = np.array([0, 0, 1, 1])
PROBABILITY = np.array([[0.8, 0.2, 0.0], [0.5, 0.4, 0.1], [0.3, 0.6, 0.1], [0.7, 0.2, 0.1]])


def test_confusion_counts_truth_by_answer() -> None:
    found = scores.confusion(np.array([0, 0, 1, 2]), np.array([0, 1, 1, 0]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [1, 0, 0]]


def test_figures_of_a_confusion_by_hand() -> None:
    assert scores.macro_f1(TRUTH_ANSWER) == pytest.approx((2 * 8 / (10 + 9) + 2 * 4 / (5 + 6)) / 2)
    assert scores.accuracy(TRUTH_ANSWER) == pytest.approx(12 / 15)
    assert scores.balanced_accuracy(TRUTH_ANSWER) == pytest.approx((8 / 10 + 4 / 5) / 2)
    assert scores.precision(TRUTH_ANSWER)[:2] == pytest.approx([8 / 9, 4 / 6])
    assert scores.recall(TRUTH_ANSWER)[:2] == pytest.approx([0.8, 0.8])
    assert np.isnan([scores.precision(TRUTH_ANSWER)[2], scores.recall(TRUTH_ANSWER)[2]]).all()


def test_a_class_that_does_not_occur_takes_f1_only_by_its_false_answers() -> None:
    matrix = np.array([[9.0, 1.0], [0.0, 0.0]])
    assert scores.macro_f1(matrix) == pytest.approx(2 * 9 / (10 + 9))
    assert scores.balanced_accuracy(matrix) == pytest.approx(0.9)


def test_flat_weighted_log_loss_by_hand() -> None:
    of_0 = -(math.log(0.8) + math.log(0.5)) / 2
    of_1 = -(math.log(0.6) + math.log(0.2)) / 2
    assert scores.weighted_log_loss(LABEL, PROBABILITY) == pytest.approx((of_0 + of_1) / 2)
    fewer = np.array([0, 2, 3])  # classes weigh the same however many objects they have
    expected = (-math.log(0.8) + of_1) / 2
    assert scores.weighted_log_loss(LABEL[fewer], PROBABILITY[fewer]) == pytest.approx(expected)
    assert scores.weighted_log_loss(np.array([2]), PROBABILITY[:1]) == pytest.approx(-math.log(1e-15))


def test_expected_calibration_error_by_hand() -> None:
    # bins of width 1/15: .8 in bin 12, .5 in 7, .6 in 9, .7 in 10; right, right, right, wrong
    assert scores.ece(LABEL, PROBABILITY) == pytest.approx((0.2 + 0.5 + 0.4 + 0.7) / 4)
    same_bin = np.array([[0.81, 0.19], [0.83, 0.17], [0.82, 0.18], [0.84, 0.16]])
    assert scores.ece(np.array([0, 0, 1, 0]), same_bin) == pytest.approx(abs(0.825 - 0.75))


def test_brier_by_hand() -> None:
    first = 0.2**2 + 0.2**2
    second = 0.5**2 + 0.4**2 + 0.1**2
    assert scores.brier(LABEL[:2], PROBABILITY[:2]) == pytest.approx((first + second) / 2)


def test_purity_and_completeness_by_hand() -> None:
    is_class = np.array([True, True, False, True, False])
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.1])
    curve = scores.purity_curve(is_class, score, np.ones(5))
    assert curve[0] == pytest.approx([1 / 3, 2 / 3, 2 / 3, 1, 1])
    assert curve[1] == pytest.approx([1, 1, 2 / 3, 3 / 4, 3 / 5])
    assert scores.completeness_at(0.9, curve) == pytest.approx(2 / 3)
    assert scores.completeness_at(0.7, curve) == pytest.approx(1)
    assert scores.purity_at(0.5, curve) == pytest.approx(1)
    assert scores.purity_at(0.9, curve) == pytest.approx(3 / 4)


def test_equal_scores_are_taken_or_left_together() -> None:
    curve = scores.purity_curve(np.array([True, False]), np.array([0.5, 0.5]), np.ones(2))
    assert curve[1].tolist() == [0.5]
    assert scores.completeness_at(0.9, curve) == 0


def test_a_prior_reweights_purity() -> None:
    label = np.array([0, 1, 1, 1])
    weight = scores.prior_weights(label, np.array([0.9, 0.1, 0.0]))
    assert weight == pytest.approx([0.9, 0.1 / 3, 0.1 / 3, 0.1 / 3])
    curve = scores.purity_curve(label == 0, np.array([0.6, 0.6, 0.1, 0.1]), weight)
    assert curve[1][0] == pytest.approx(0.9 / (0.9 + 0.1 / 3))
    only = scores.prior_weights(np.array([0, 0]), np.array([0.2, 0.8]))
    assert only == pytest.approx([0.5, 0.5])  # shares of classes that do not occur go to the others
    assert scores.prior_weights(np.array([0]), np.array([0.0, 1.0])).tolist() == [0.0]


def test_nothing_gives_nan_and_no_error() -> None:
    none, probability = np.array([], np.int64), np.empty((0, 3))
    assert np.isnan([f(none, probability) for f in (scores.weighted_log_loss, scores.ece, scores.brier)]).all()
    assert np.isnan(scores.confusion_interval(np.zeros((3, 3)), scores.macro_f1)).all()
    assert all(np.isnan(pair).all() for pair in scores.probability_intervals(none, probability).values())


def test_intervals_are_seeded_and_shrink_with_more_objects() -> None:
    few = scores.confusion_interval(TRUTH_ANSWER, scores.macro_f1)
    assert few == scores.confusion_interval(TRUTH_ANSWER, scores.macro_f1)
    many = scores.confusion_interval(TRUTH_ANSWER * 100, scores.macro_f1)
    assert few[0] < many[0] < float(scores.macro_f1(TRUTH_ANSWER)) < many[1] < few[1]


def test_chance_of_answers_that_know_nothing() -> None:
    label = np.repeat([0, 1], 500)
    assert scores.chance_macro_f1(label, label, 2) == pytest.approx(0.5, abs=0.03)


def test_intervals_per_class_are_of_the_resamples_that_have_it() -> None:
    found = scores.per_class_intervals(TRUTH_ANSWER, scores.recall)
    assert found[0][0] < 0.8 < found[0][1]
    assert np.isnan(found[2]).all()
    assert np.isnan(scores.per_class_intervals(np.zeros((3, 3)), scores.recall)).all()


def test_shares_and_their_intervals() -> None:
    low, high = scores.share_interval(np.repeat([True, False], [30, 10]))
    assert 0.55 < low < 0.75 < high < 0.92
    assert scores.share_interval(np.ones(5, np.bool_)) == (1, 1)
    assert np.isnan(scores.share_interval(np.zeros(0, np.bool_))).all()


def test_reliability_by_hand() -> None:
    n, mean, right = scores.reliability(LABEL, PROBABILITY)
    assert n.tolist() == [0, 0, 0, 0, 0, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0]
    assert mean[[7, 9, 10, 12]] == pytest.approx([0.5, 0.6, 0.7, 0.8])
    assert right[[7, 9, 10, 12]].tolist() == [1, 1, 0, 1]
    assert (n @ np.nan_to_num(np.abs(mean - right))) / 4 == pytest.approx(scores.ece(LABEL, PROBABILITY))


def test_calibration_error_of_a_class_by_hand() -> None:
    # of class 1: .2 and .2 share bin 3 (one is of the class), .4 in 6, .6 in 9 (of the class)
    assert scores.class_ece(LABEL == 1, PROBABILITY[:, 1]) == pytest.approx((abs(0.4 - 1) + 0.4 + 0.4) / 4)
    assert np.isnan(scores.class_ece(np.zeros(0, np.bool_), np.zeros(0)))


def test_paired_differences_by_hand() -> None:
    label = np.repeat([0, 1], 50)
    worse = label.copy()
    worse[:10] = 1
    gap, low, high = scores.paired_interval(label, (label, worse), 2, scores.accuracy)
    assert gap == pytest.approx(0.1)
    assert 0.03 < low < 0.1 < high < 0.18
    assert scores.paired_interval(label, (worse, worse), 2, scores.macro_f1) == (0, 0, 0)
    assert scores.paired_interval(label, (worse, label), 2, scores.accuracy)[0] == pytest.approx(-0.1)
    none = np.zeros(0, np.int64)
    assert np.isnan(scores.paired_interval(none, (none, none), 2, scores.accuracy)).all()


def test_pairing_narrows_an_interval() -> None:
    """Two answerers that fail on the same objects: their difference is known better than each figure."""
    rng = np.random.default_rng(5)
    label = rng.integers(0, 3, 400)
    first = np.where(rng.random(400) < 0.7, label, (label + 1) % 3)
    second = np.where(rng.random(400) < 0.02, (first + 1) % 3, first)
    _, low, high = scores.paired_interval(label, (first, second), 3, scores.accuracy)
    alone = scores.confusion_interval(scores.confusion(label, first, 3), scores.accuracy)
    assert high - low < 0.5 * (alone[1] - alone[0])


PURITIES = {"complete": partial(scores.completeness_at, 0.9), "pure": partial(scores.purity_at, 0.5)}


def test_purity_intervals_hold_the_prior_and_the_figure() -> None:
    rng = np.random.default_rng(1)
    label = rng.integers(0, 3, 300)
    probability = rng.dirichlet(np.ones(4), 300)
    probability[np.arange(300), label] += 0.4
    prior = np.array([0.1, 0.2, 0.7, 0.0])
    found = scores.purity_intervals(label, probability, prior, PURITIES)
    assert found == scores.purity_intervals(label, probability, prior, PURITIES)
    for i in range(3):
        curve = scores.purity_curve(label == i, probability[:, i], scores.prior_weights(label, prior))
        low, high = found[i]["pure"]
        assert 0 <= low <= float(scores.purity_at(0.5, curve)) <= high <= 1
    assert np.isnan(found[3]["pure"]).all()
    none = scores.purity_intervals(label[:0], probability[:0], prior, PURITIES)
    assert np.isnan([figure["complete"] for figure in none]).all()


def test_purity_intervals_do_not_depend_on_how_many_fit_into_memory() -> None:
    label, probability = np.tile(LABEL, 20), np.tile(PROBABILITY, (20, 1))
    prior = np.array([0.5, 0.5, 0.0])
    whole = scores.purity_intervals(label, probability, prior, PURITIES)
    parts = scores.purity_intervals(label, probability, prior, PURITIES, most_drawn=7 * len(label))
    assert [whole[i]["pure"] for i in (0, 1)] == [parts[i]["pure"] for i in (0, 1)]


@st.composite
def cases(draw: st.DrawFn) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    n, n_classes = draw(st.integers(1, 60)), draw(st.integers(2, 8))
    probability = rng.dirichlet(np.full(n_classes, draw(st.sampled_from([0.05, 1.0, 20.0]))), n)
    return rng.integers(0, n_classes, n), probability


@settings(deadline=None, max_examples=40)
@given(cases())
def test_ranges_and_order(case: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    label, probability = case
    n_classes = probability.shape[1]
    matrix = scores.confusion(label, probability.argmax(1), n_classes)
    assert matrix.sum() == len(label)
    for figure in (scores.macro_f1, scores.accuracy, scores.balanced_accuracy):
        low, high = scores.confusion_interval(matrix, figure)
        assert 0 <= low <= high <= 1
        assert 0 <= figure(matrix) <= 1
    assert scores.weighted_log_loss(label, probability) >= 0
    assert 0 <= scores.ece(label, probability) <= 1
    assert 0 <= scores.brier(label, probability) <= 2 + 1e-9
    for low, high in scores.probability_intervals(label, probability).values():
        assert low <= high
    order = np.random.default_rng(0).permutation(len(label))
    for of_all in (scores.weighted_log_loss, scores.ece, scores.brier):
        assert of_all(label[order], probability[order]) == pytest.approx(of_all(label, probability))


@settings(deadline=None, max_examples=40)
@given(cases())
def test_the_right_answer_with_certainty_is_perfect(case: tuple[NDArray[np.int64], NDArray[np.float64]]) -> None:
    label, probability = case
    sure = np.eye(probability.shape[1])[label]
    matrix = scores.confusion(label, sure.argmax(1), probability.shape[1])
    assert scores.macro_f1(matrix) == scores.accuracy(matrix) == scores.balanced_accuracy(matrix) == 1
    assert scores.weighted_log_loss(label, sure) == scores.ece(label, sure) == scores.brier(label, sure) == 0
    weight = scores.prior_weights(label, np.ones(probability.shape[1]))
    curve = scores.purity_curve(label == label[0], sure[:, label[0]], weight)
    assert scores.completeness_at(0.95, curve) == pytest.approx(1)
    assert scores.purity_at(0.5, curve) == pytest.approx(1)


@settings(deadline=None, max_examples=40)
@given(cases(), st.floats(0.05, 0.95))
def test_completeness_against_every_threshold(
    case: tuple[NDArray[np.int64], NDArray[np.float64]], purity: float
) -> None:
    label, probability = case
    score, is_class = probability[:, label[0]], label == label[0]
    best = 0.0
    for limit in np.unique(score):
        said = score >= limit
        if is_class[said].mean() >= purity:
            best = max(best, (is_class & said).sum() / is_class.sum())
    curve = scores.purity_curve(is_class, score, np.ones(len(label)))
    assert scores.completeness_at(purity, curve) == pytest.approx(best)
