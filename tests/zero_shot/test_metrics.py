"""Metrics against scikit-learn and brute force over every way of breaking ties."""

from __future__ import annotations

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk

from zero_shot.metrics import (
    auroc,
    balanced_accuracy,
    confusion_matrix,
    macro_auroc,
    macro_f1,
    quadratic_kappa,
    recall_at_k,
    sensitivity_at_specificity,
    top_k_accuracy,
)

# Few distinct values, negative ones among them, so that ties are the rule.
SCORES = st.lists(st.sampled_from([-2.0, -1.0, 0.0, 0.5]), min_size=4, max_size=4)


def brute_force(scores: list[float], relevant: list[bool], k: int) -> float:
    """Share of all orders that sort the scores (ties in every order) with a relevant item among the first k."""
    orders = [
        order for order in permutations(range(len(scores))) if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    return float(np.mean([any(relevant[i] for i in order[:k]) for order in orders]))


@settings(max_examples=200, deadline=None)
@given(SCORES, st.lists(st.booleans(), min_size=4, max_size=4), st.integers(1, 5))
def test_recall_at_k_is_the_expectation_over_ties(scores: list[float], relevant: list[bool], k: int) -> None:
    best = max((score for score, right in zip(scores, relevant, strict=True) if right), default=None)
    if best is None:
        return
    tied = [right for score, right in zip(scores, relevant, strict=True) if score == best]
    counts = (sum(score > best for score in scores), len(tied), sum(tied))
    got = recall_at_k(*(np.array([count]) for count in counts), k)[0]
    assert got == pytest.approx(brute_force(scores, relevant, k), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(SCORES, st.integers(0, 3), st.integers(1, 4))
def test_top_k_accuracy_is_the_expectation_over_ties(scores: list[float], label: int, k: int) -> None:
    relevant = [c == label for c in range(4)]
    got = top_k_accuracy(np.array([scores]), np.array([label]), k)[0]
    assert got == pytest.approx(brute_force(scores, relevant, k), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 3.0]), st.booleans()), min_size=2, max_size=12))
def test_auroc_matches_scikit_learn(pairs: list[tuple[float, bool]]) -> None:
    scores, positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])
    if positive.all() or not positive.any():
        assert np.isnan(auroc(scores, positive))
    else:
        assert auroc(scores, positive) == pytest.approx(sk.roc_auc_score(positive, scores), abs=1e-12)


def test_classification_metrics_match_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    scores, labels = rng.normal(size=(200, 5)), rng.integers(0, 5, 200)
    predicted = scores.argmax(axis=1)
    confusion = confusion_matrix(predicted, labels, 5)
    np.testing.assert_array_equal(confusion, sk.confusion_matrix(labels, predicted))
    assert balanced_accuracy(confusion) == pytest.approx(sk.balanced_accuracy_score(labels, predicted), abs=1e-12)
    assert macro_f1(confusion) == pytest.approx(sk.f1_score(labels, predicted, average="macro"), abs=1e-12)
    assert top_k_accuracy(scores, labels).mean() == pytest.approx(sk.accuracy_score(labels, predicted), abs=1e-12)
    top_3 = sk.top_k_accuracy_score(labels, scores, k=3)
    assert top_k_accuracy(scores, labels, 3).mean() == pytest.approx(top_3, abs=1e-12)
    softmax = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    expected = sk.roc_auc_score(labels, softmax, multi_class="ovr", average="macro")
    assert macro_auroc(softmax, labels) == pytest.approx(expected, abs=1e-12)


def test_single_class_and_empty_sets_are_nan_not_a_number_made_up() -> None:
    empty = np.zeros((0, 3))
    none = np.zeros(0, dtype=np.int64)
    assert top_k_accuracy(empty, none).shape == (0,)
    assert np.isnan(macro_auroc(empty, none))
    assert np.isnan(balanced_accuracy(confusion_matrix(none, none, 3)))
    assert np.isnan(macro_f1(confusion_matrix(none, none, 3)))
    only = np.zeros(4, dtype=np.int64)
    assert balanced_accuracy(confusion_matrix(only, only, 3)) == 1.0
    assert np.isnan(macro_auroc(np.ones((4, 3)), only))


def test_bad_input_is_named() -> None:
    scores = np.zeros((2, 3))
    for arguments, message in (
        ((scores, np.array([0, 3])), "labels must lie in 0 .. 2"),
        ((scores, np.array([0])), "labels"),
        ((scores * np.nan, np.array([0, 1])), "finite"),
        ((scores, np.array([0, 1]), 4), "k must lie in 1 .. 3"),
    ):
        with pytest.raises(ValueError, match=message):
            top_k_accuracy(*arguments)
    with pytest.raises(ValueError, match="predicted must lie"):
        confusion_matrix(np.array([3]), np.array([0]), 3)
    none, one = np.array([0]), np.array([1])
    with pytest.raises(ValueError, match="good at least 1"):
        recall_at_k(none, one, none, 1)
    with pytest.raises(ValueError, match="k must be at least 1"):
        recall_at_k(none, one, one, 0)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=12))
def test_quadratic_kappa_matches_scikit_learn(pairs: list[tuple[int, int]]) -> None:
    truth, answer = (np.array(column) for column in zip(*pairs, strict=True))
    got = quadratic_kappa(confusion_matrix(answer, truth, 4))
    if len({*truth.tolist(), *answer.tolist()}) == 1:
        assert np.isnan(got)
    else:
        expected = sk.cohen_kappa_score(truth, answer, labels=range(4), weights="quadratic")
        assert got == pytest.approx(expected, abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 3.0]), st.booleans()), min_size=2, max_size=12),
    st.sampled_from([0.0, 0.5, 0.75, 0.9, 1.0]),
)
def test_sensitivity_at_specificity_is_the_best_of_all_rules(
    pairs: list[tuple[float, bool]], specificity: float
) -> None:
    scores, positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])
    got = sensitivity_at_specificity(scores, positive, specificity)
    if positive.all() or not positive.any():
        assert np.isnan(got)
        return
    rules = [scores >= t for t in (*scores, np.inf)]
    allowed = [rule[positive].mean() for rule in rules if 1 - rule[~positive].mean() >= specificity - 1e-12]
    assert got == pytest.approx(max(allowed), abs=1e-12)


def test_a_specificity_that_whole_images_reach_exactly_is_reached() -> None:
    scores, positive = np.arange(20.0), np.arange(20) >= 10
    scores[9] = 12.5  # one false alarm of ten, above three positives
    assert sensitivity_at_specificity(scores, positive, 0.9) == 1.0
    assert sensitivity_at_specificity(scores, positive, 0.91) == 0.7
    with pytest.raises(ValueError, match=r"0 \.\. 1, got 90\.0"):
        sensitivity_at_specificity(scores, positive, 90.0)
