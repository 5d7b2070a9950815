"""Paired tests against the binomial, direct O(n^2) computation and hand, and how often they err under the null."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import numpy as np
import pytest
from numpy.typing import NDArray

from zero_shot.metrics import auroc, macro_auroc
from zero_shot.significance import auroc_difference, holm, mcnemar, paired_difference, sign_flips


def direct_delong(first: NDArray[np.float64], second: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """The variance of the difference from every pair of a positive and a negative."""
    psi = [
        (s[positive][:, None] > s[~positive]).astype(float) + 0.5 * (s[positive][:, None] == s[~positive])
        for s in (first, second)
    ]
    tens, ones = (np.cov([p.mean(axis=axis) for p in psi]) for axis in (1, 0))
    covariance = tens / positive.sum() + ones / (~positive).sum()
    return covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]


@pytest.mark.parametrize("tied", [False, True])
def test_delong_against_every_pair(tied: bool) -> None:
    rng = np.random.default_rng(int(tied))
    for _ in range(20):
        positive = np.arange(40) < rng.integers(3, 37)
        scores = rng.normal(size=(2, 40)) + positive
        if tied:
            scores = np.round(scores)
        found = auroc_difference(*scores, positive)
        error = math.sqrt(direct_delong(*scores, positive))
        value = auroc(scores[0], positive) - auroc(scores[1], positive)
        assert found.value == pytest.approx(value, abs=1e-12)
        assert found.p == pytest.approx(math.erfc(abs(value) / error / math.sqrt(2)), rel=1e-9)
        assert (found.high - found.low) / 2 == pytest.approx(1.959964 * error, rel=1e-9)
        assert (found.n, found.units, found.test) == (40, 40, "DeLong")
        swapped = auroc_difference(scores[1], scores[0], positive)
        assert (swapped.value, swapped.p) == (-found.value, found.p)


def test_patients_who_are_copied_add_nothing_to_what_is_known() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(30) < 12
    scores = rng.normal(size=(2, 30)) + positive
    once = auroc_difference(*scores, positive)
    copied = auroc_difference(*np.repeat(scores, 3, axis=1), np.repeat(positive, 3), groups=list(np.arange(90) // 3))
    assert (copied.value, copied.p, copied.low) == pytest.approx((once.value, once.p, once.low), abs=1e-12)
    assert (copied.n, copied.units, copied.test) == (90, 30, "DeLong, by patient")
    alone = auroc_difference(*np.repeat(scores, 3, axis=1), np.repeat(positive, 3))
    assert alone.high - alone.low < 0.7 * (copied.high - copied.low)


def test_macro_auroc_against_the_jackknife() -> None:
    rng = np.random.default_rng(2)
    labels = rng.integers(0, 3, 400)
    scores = rng.normal(size=(2, 400, 3)) + (labels[:, None] == np.arange(3))
    found = auroc_difference(*scores, labels[:, None] == np.arange(3))
    left = [np.flatnonzero(np.arange(400) != i) for i in range(400)]
    without = np.array([macro_auroc(scores[0][r], labels[r]) - macro_auroc(scores[1][r], labels[r]) for r in left])
    error = math.sqrt(399 * without.var())
    assert found.value == pytest.approx(macro_auroc(scores[0], labels) - macro_auroc(scores[1], labels), abs=1e-12)
    assert (found.high - found.low) / 2 / 1.96 == pytest.approx(error, rel=0.02)


def test_an_auroc_that_cannot_be_compared_is_undefined_not_significant() -> None:
    positive = np.array([True, True, False, False])
    right, wrong = np.array([3.0, 2.0, 1.0, 0.0]), np.array([0.0, 1.0, 2.0, 3.0])
    assert auroc_difference(right, right, positive).p == 1.0
    # No spread at all: a standard error of 0 is no certainty.
    assert math.isnan(auroc_difference(right, wrong, positive).p)
    single = auroc_difference(right, wrong, np.array([True, False, False, False]))
    assert single.value == 1.0
    assert math.isnan(single.p)
    assert math.isnan(single.low)
    one_class = auroc_difference(right, wrong, np.ones(4, dtype=bool))
    assert math.isnan(one_class.value)
    assert one_class.to_dict()["p"] is None
    for arguments, message in (
        ((right, wrong[:3], positive), "one shape"),
        ((right, wrong * np.nan, positive), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            auroc_difference(*arguments)
    with pytest.raises(ValueError, match="each of 4 images, got 1"):
        auroc_difference(right, wrong, positive, groups=["a"])


def test_mcnemar_is_the_binomial() -> None:
    for better, worse in product(range(7), range(7)):
        first = np.array([1.0] * better + [0.0] * worse + [1.0, 0.0])
        second = np.array([0.0] * better + [1.0] * worse + [1.0, 0.0])
        total, few = better + worse, min(better, worse)
        tail = sum(Fraction(math.comb(total, k), 2**total) for k in range(few + 1))
        assert mcnemar(first, second) == pytest.approx(float(min(Fraction(1), 2 * tail)), abs=1e-15)
    # Far out: 9,000 to 10,000 is 7.25 standard deviations.
    far = mcnemar(np.repeat([1, 0], [10_000, 9_000]), np.repeat([0, 1], [10_000, 9_000]))
    assert far == pytest.approx(math.erfc(999 / math.sqrt(19_000) / math.sqrt(2)), rel=0.01)


def test_sign_flips_of_ones_are_mcnemar() -> None:
    for better, worse in ((3, 0), (5, 2), (6, 6), (0, 0)):
        sums = np.array([1.0] * better + [-1.0] * worse + [0.0] * 5)
        assert sign_flips(sums) == pytest.approx(mcnemar(sums > 0, sums < 0), abs=1e-12)
    # Far out as well, where random flips would find none.
    far = np.array([1.0] * 300 + [-1.0] * 100)
    assert sign_flips(far) == pytest.approx(mcnemar(far > 0, far < 0), rel=1e-9)
    assert sign_flips(far) < 1e-20
    many = np.array([1.0] * 1600 + [-1.0] * 1450)
    # The binomial is discrete: half a step of 2 in 55 standard deviations.
    assert sign_flips(many) == pytest.approx(mcnemar(many > 0, many < 0), rel=0.07)


def test_sign_flips_count_every_way() -> None:
    rng = np.random.default_rng(0)
    for trial in range(20):
        numbers = rng.integers(-3, 4, 9).astype(float) if trial % 2 else rng.normal(0.3, 1, 9)
        ways = np.array(list(product((1, -1), repeat=9))) @ np.abs(numbers)
        expected = (np.abs(ways) >= abs(numbers.sum()) - 1e-9).mean()
        assert sign_flips(numbers) == pytest.approx(expected, abs=1e-12)
    # Against random flips, at 300 numbers of any size: two standard errors of 40,000 flips are 0.0022.
    numbers = rng.exponential(size=300) * np.where(rng.random(300) < 0.55, 1, -1)
    flipped = (rng.integers(0, 2, (40_000, 300)) * 2 - 1) @ numbers
    assert sign_flips(numbers) == pytest.approx((np.abs(flipped) >= abs(numbers.sum())).mean(), abs=0.005)
    assert sign_flips(-numbers) == sign_flips(numbers)


def test_a_difference_keeps_patients_together_and_says_by_which_test() -> None:
    first, second = np.repeat([1.0, 0.0], [40, 20]), np.repeat([0.0, 1.0, 0.0], [6, 34, 20])
    alone = paired_difference(first, second)
    assert alone.value == pytest.approx(0.1)
    assert (alone.test, alone.n, alone.units) == ("McNemar exact", 60, 60)
    assert alone.p == 2 / 2**6
    assert alone.low < 0.1 < alone.high
    # The six images are of one patient: nothing is shown.
    grouped = paired_difference(first, second, groups=[i // 6 for i in range(60)])
    assert (grouped.test, grouped.units, grouped.p) == ("sign flips of patients", 10, 1.0)
    assert paired_difference(first / 2, second).test == "sign flips"
    single = paired_difference(first, second, groups=["a"] * 60)
    assert math.isnan(single.low)
    assert single.p == 1.0
    swapped = paired_difference(second, first)
    assert (swapped.value, swapped.low, swapped.p) == pytest.approx((-alone.value, -alone.high, alone.p), abs=1e-12)
    for values, message in ((np.array([np.nan] * 60), "no NaN"), (np.ones(3), "one length")):
        with pytest.raises(ValueError, match=message):
            paired_difference(first, values)


def test_holm_by_hand() -> None:
    # 0.005 x 4; 0.01 x 3; 0.03 x 2; 0.04 x 1 lies below the one before.
    assert holm([0.04, 0.01, 0.03, 0.005]) == pytest.approx([0.06, 0.03, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
    found = holm([0.02, math.nan, 0.04])
    assert found[0] == 0.04
    assert math.isnan(found[1])
    assert found[2] == 0.04


def test_under_the_null_errors_are_as_rare_as_promised() -> None:
    rng = np.random.default_rng(0)
    trials = 400
    hits = {"mean": 0, "images": 0, "auroc": 0, "family": 0}
    groups = (np.arange(120) // 3).tolist()
    for trial in range(trials):
        # Patients of three images that share what makes them easy, for each model its own.
        shared = np.repeat(rng.normal(size=(2, 40)), 3, axis=1)
        right = (shared + 0.3 * rng.normal(size=(2, 120)) > 0).astype(float)
        found = paired_difference(*right, groups=groups, replicates=100, seed=trial)
        hits["mean"] += found.p < 0.05
        hits["images"] += mcnemar(*right) < 0.05
        positive = np.repeat(rng.random(40) < 0.5, 3)
        hits["auroc"] += auroc_difference(*shared, positive, groups=groups).p < 0.05
        hits["family"] += min(holm(rng.random(10).tolist())) < 0.05
    # Five of a hundred, three standard deviations of 400 trials up or down; without patients far more.
    for name in ("mean", "auroc", "family"):
        assert 0.015 <= hits[name] / trials <= 0.085, hits
    assert hits["images"] / trials > 0.12, hits
