"""Mean ranks of models over tasks, and how far apart two must lie to differ (Demsar, JMLR 2006)."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


def task_ranks(values: Floats) -> Doubles:
    """Ranks [T, M] of M models on T tasks, 1 for the highest value; equal ones share the mean of their ranks.

    Raises:
        ValueError: not [T, M] with at least one task and two models, or NaN.

    Example:
        >>> task_ranks(np.array([[0.9, 0.8, 0.9]])).tolist()
        [[1.5, 3.0, 1.5]]
    """
    if values.ndim != 2 or values.shape[0] < 1 or values.shape[1] < 2 or np.isnan(values).any():
        raise ValueError(f"values must be [tasks, models], at least 1 x 2 and without NaN, got {values.shape}")
    higher = (values[:, None, :] > values[:, :, None]).sum(axis=2)
    equal = (values[:, None, :] == values[:, :, None]).sum(axis=2)
    return higher + (equal + 1) / 2


def friedman_p(ranks: Floats, *, draws: int = 10_000, seed: int = 0) -> float:
    """p that all models are alike: how often ranks shuffled within each task give mean ranks as far apart.

    Friedman's statistic is a multiple of the variance of the mean ranks; its chi-squared distribution needs more than
    about ten tasks, shuffling does not.
    """
    rng = np.random.default_rng(seed)
    observed = float(ranks.mean(axis=0).var()) * (1 - 1e-12)
    as_far = 0
    for start in range(0, draws, 1000):
        count = min(1000, draws - start)
        shuffled = rng.permuted(np.broadcast_to(ranks, (count, *ranks.shape)), axis=2)
        as_far += int((shuffled.mean(axis=1).var(axis=1) >= observed).sum())
    return (as_far + 1) / (draws + 1)


def critical_difference(models: int, tasks: int, *, level: float = 0.05) -> float:
    """Nemenyi's: mean ranks of two of `models` models over `tasks` tasks that lie further apart differ.

    q sqrt(M (M + 1) / (6 T)), with q the upper quantile of the range of M standard normal values over sqrt(2). With few
    tasks it is coarse: M models on T tasks can hardly differ where it nears M - 1, the largest difference there is.

    Example:
        >>> round(critical_difference(4, 14), 3)
        1.254
    """
    if models < 2 or tasks < 1 or not 0 < level < 1:
        raise ValueError(f"at least 2 models, 1 task and a level in (0, 1) are needed, got {models}, {tasks}, {level}")
    return _range_quantile(models, 1 - level) / math.sqrt(2) * math.sqrt(models * (models + 1) / (6 * tasks))


def _range_quantile(count: int, share: float) -> float:
    """The width that the range of `count` standard normal values exceeds with probability 1 - share, to 5 digits.

    P(range <= w) is the integral over the smallest value z of count phi(z) (Phi(z + w) - Phi(z))^(count - 1).
    """
    step, span = 0.005, 3600
    points = np.arange(2 * span) * step - 9.0
    below = np.array([(1 + math.erf(z / math.sqrt(2))) / 2 for z in points.tolist()])
    density = np.exp(-np.square(points[:span]) / 2) / math.sqrt(2 * math.pi)

    def within(width: int) -> float:
        inside = below[width : width + span] - below[:span]
        return float(count * (density * inside ** (count - 1)).sum() * step)

    low, high = 0, span
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if within(middle) < share else (low, middle)
    before, after = within(low), within(high)
    return step * (low + (share - before) / (after - before))


__all__ = ["critical_difference", "friedman_p", "task_ranks"]
