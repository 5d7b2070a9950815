"""Mean ranks, Friedman's test and the critical difference against published values and enumeration."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest

from zero_shot.model_ranks import critical_difference, friedman_p, task_ranks


def test_ranks_share_what_is_equal() -> None:
    values = np.array([[0.1, 0.9, 0.5], [0.5, 0.5, 0.5], [0.7, 0.2, 0.7]])
    assert task_ranks(values).tolist() == [[3, 1, 2], [2, 2, 2], [1.5, 3, 1.5]]
    assert (task_ranks(np.random.default_rng(0).random((9, 5))).sum(axis=1) == 15).all()
    for bad in (np.ones((0, 2)), np.ones((3, 1)), np.array([[np.nan, 1.0]])):
        with pytest.raises(ValueError, match="at least 1 x 2"):
            task_ranks(bad)


def test_critical_differences_are_those_of_the_published_table() -> None:
    # Demsar 2006, table 5 (a), q at 0.05 of 2 to 10 models, times sqrt(k (k + 1) / 6 N).
    table = {2: 1.960, 3: 2.343, 4: 2.569, 5: 2.728, 6: 2.850, 7: 2.949, 8: 3.031, 9: 3.102, 10: 3.164}
    for models, q in table.items():
        expected = q * np.sqrt(models * (models + 1) / (6 * 14))
        assert critical_difference(models, 14) == pytest.approx(expected, rel=5e-4)
    assert critical_difference(4, 14, level=0.1) == pytest.approx(2.291 * np.sqrt(20 / 84), rel=5e-4)
    with pytest.raises(ValueError, match="at least 2 models"):
        critical_difference(1, 5)


def test_friedman_against_every_order() -> None:
    ranks = np.array([[1.0, 2.0, 3.0], [1.0, 3.0, 2.0], [1.0, 2.0, 3.0]])
    observed = ranks.mean(axis=0).var()
    orders = list(permutations((1.0, 2.0, 3.0)))
    exact = np.mean([np.mean(o, axis=0).var() >= observed - 1e-12 for o in product(orders, repeat=3)])
    assert friedman_p(ranks) == pytest.approx(exact, abs=0.015)
    assert friedman_p(np.full((4, 3), 2.0)) == 1.0
