"""Bootstrap intervals: coverage by simulation, whole groups drawn, undefined values left undefined."""

from __future__ import annotations

import numpy as np
import pytest

from zero_shot.intervals import bootstrap_mean


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
