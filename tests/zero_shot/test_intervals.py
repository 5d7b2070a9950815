"""Bootstrap intervals: seeded, against brute force, undefined values left undefined."""

from __future__ import annotations

import numpy as np
import pytest

from zero_shot.intervals import bootstrap_mean, mean_of_means


def test_seeded_and_bounded_in_memory_by_steps() -> None:
    values = np.arange(5000) % 2.0
    first, again = (bootstrap_mean(values, name="x", replicates=2000) for _ in range(2))
    assert first == again
    assert first != bootstrap_mean(values, name="x", replicates=2000, seed=1)
    assert first.low < 0.5 < first.high
    assert first.high - first.low == pytest.approx(2 * 1.96 * 0.5 / np.sqrt(5000), rel=0.1)


def test_undefined_values_are_left_out_and_not_counted() -> None:
    result = bootstrap_mean(np.array([1.0, np.nan, 0.0]), name="x", groups=["a", "b", "a"])
    assert (result.value, result.n) == (0.5, 2)
    empty = bootstrap_mean(np.array([np.nan]), name="x")
    assert empty.n == 0
    assert np.isnan(empty.value)
    assert np.isnan(empty.low)
    assert result.to_dict()["unit"] == "fraction"


def test_bad_input_is_named() -> None:
    with pytest.raises(ValueError, match="same length"):
        bootstrap_mean(np.zeros(3), name="x", groups=["a"])
    with pytest.raises(ValueError, match="replicates"):
        bootstrap_mean(np.zeros(3), name="x", replicates=10)


def test_mean_of_means_against_brute_force() -> None:
    rng = np.random.default_rng(0)
    parts = [(rng.random(n), rng.integers(0, n // 2, n).tolist()) for n in (8, 30)]
    result = mean_of_means(parts, name="mean", replicates=20_000)
    drawn = np.zeros(20_000)
    for values, groups in parts:
        members = [values[np.array(groups) == group] for group in sorted(set(groups))]
        for replicate in range(len(drawn)):
            chosen = [members[i] for i in rng.integers(0, len(members), len(members))]
            drawn[replicate] += np.concatenate(chosen).mean() / 2
    assert result.value == pytest.approx((parts[0][0].mean() + parts[1][0].mean()) / 2, abs=1e-12)
    # Two standard errors of the two quantiles at 20,000 draws are about 0.003.
    assert (result.low, result.high) == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.005)
    assert (result.n, result.name, result.unit) == (38, "mean", "fraction")
    assert result == mean_of_means(parts, name="mean", replicates=20_000)
    # Tasks are drawn independently, also where they have equally many groups: the interval narrows by sqrt(2).
    one, two = (mean_of_means([parts[1]] * count, name="x", replicates=20_000) for count in (1, 2))
    assert (one.high - one.low) / (two.high - two.low) == pytest.approx(2**0.5, rel=0.05)
    assert result != mean_of_means(parts, name="mean", replicates=20_000, seed=1)


def test_a_mean_over_tasks_is_not_ruled_by_the_large_one_and_refuses_what_it_cannot_average() -> None:
    large, small = (np.ones(1000), list(range(1000))), (np.zeros(2), ["a", "a"])
    result = mean_of_means([large, small], name="x")
    assert (result.value, result.low, result.high, result.n) == (0.5, 0.5, 0.5, 1002)
    for parts, message in (
        ([], "no tasks"),
        ([large, (np.zeros(0), [])], "task 1: .*at least 1"),
        ([(np.array([1.0, np.nan]), [0, 1])], "task 0: .*1 NaN"),
        ([(np.ones(2), ["a"])], "1 groups"),
    ):
        with pytest.raises(ValueError, match=message):
            mean_of_means(parts, name="x")
    with pytest.raises(ValueError, match="replicates"):
        mean_of_means([large], name="x", replicates=10)
    with pytest.raises(ValueError, match="level"):
        mean_of_means([large], name="x", level=1.0)
