"""Bootstrap intervals: coverage by simulation, whole groups drawn, undefined values left undefined."""

from __future__ import annotations

import numpy as np
import pytest

from zero_shot.intervals import bootstrap_mean, mean_of_means


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    truth, covered, trials = 0.7, 0, 600
    for trial in range(trials):
        values = (rng.random(150) < truth).astype(float)
        result = bootstrap_mean(values, name="top-1", replicates=400, seed=trial)
        covered += result.low <= truth <= result.high
    assert 0.92 <= covered / trials <= 0.98


def test_groups_are_drawn_whole() -> None:
    rng = np.random.default_rng(0)
    truth, trials, grouped, ungrouped = 0.6, 300, 0, 0
    groups = np.repeat(np.arange(60), 5).tolist()
    for trial in range(trials):
        # All five images of a patient share their outcome: 60 independent values, not 300.
        values = np.repeat((rng.random(60) < truth).astype(float), 5)
        whole = bootstrap_mean(values, name="x", groups=groups, replicates=300, seed=trial)
        single = bootstrap_mean(values, name="x", replicates=300, seed=trial)
        grouped += whole.low <= truth <= whole.high
        ungrouped += single.low <= truth <= single.high
        assert whole.value == single.value
    assert 0.91 <= grouped / trials <= 0.985
    assert ungrouped / trials < 0.75


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


def test_mean_of_means_covers_the_truth_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    rates, sizes, trials, covered = (0.9, 0.5, 0.7), (120, 60, 200), 300, 0
    for trial in range(trials):
        # Two images of each patient share their outcome.
        parts = [
            (np.repeat((rng.random(size // 2) < rate).astype(float), 2), (np.arange(size) // 2).tolist())
            for rate, size in zip(rates, sizes, strict=True)
        ]
        result = mean_of_means(parts, name="x", replicates=300, seed=trial)
        covered += result.low <= np.mean(rates) <= result.high
    assert 0.91 <= covered / trials <= 0.985


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
