"""Bootstrap intervals of means and of whole-set metrics, resampling images or whole groups (patients) of images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from zero_shot.result import Result


def bootstrap_mean(
    values: NDArray[np.floating],
    *,
    name: str,
    unit: str = "fraction",
    groups: Sequence[Hashable] | None = None,
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Result:
    """The mean of per-image values with a percentile bootstrap interval (Efron and Tibshirani 1993, chapter 13).

    With `groups`, whole groups are drawn: images of one patient are alike, and drawing them one by one makes intervals
    too narrow. Of a drawn set the mean is over its images. NaN values (undefined for that image) are left out and not
    counted in `n`; without any value the result is NaN.

    Args:
        values: [N] per-image contributions, for example 0/1 for accuracy.
        groups: [N] group of each image; None draws images.
        replicates: drawn sets, at least 100; level: coverage asked for, in (0, 1).

    Raises:
        ValueError: lengths differ, or replicates or level out of range.

    Example:
        >>> result = bootstrap_mean(np.array([1.0, 1.0, 0.0, 1.0]), name="top-1")
        >>> result.value, result.n
        (0.75, 4)
    """
    if values.ndim != 1 or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"values must be [N] and groups of the same length, got {values.shape} and {groups!r:.40}")
    _check_draws(replicates, level)
    known = ~np.isnan(values)
    if not known.any():
        return Result(name=name, value=float("nan"), low=float("nan"), high=float("nan"), n=0, unit=unit)
    sums, counts = _cluster(values, known, groups)
    low, high = _percentiles(_replicates(sums, counts, replicates, np.random.default_rng(seed)), level)
    return Result(name=name, value=float(values[known].mean()), low=low, high=high, n=int(known.sum()), unit=unit)


def bootstrap_metrics(
    metrics: Callable[[NDArray[np.int64]], Sequence[float]],
    *,
    names: Sequence[str],
    n: int,
    unit: str = "fraction",
    groups: Sequence[Hashable] | None = None,
    replicates: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> list[Result]:
    """Metrics of a whole set that are no means over its images, such as macro F1, with percentile intervals.

    Drawn sets for which a metric is undefined (NaN) are left out of its interval.

    Args:
        metrics: from row numbers, with repetitions, to one value per name.
        n: images; groups: [N] group of each image, drawn whole; None draws images.
        replicates: 500 give each end of an interval a standard error of sqrt(.025 * .975 / 500) / .058 = 0.12 of the
            metric's own (normal approximation), 3 % of the interval's width.

    Raises:
        ValueError: no images, another number of groups, or replicates or level out of range.
    """
    if n < 1 or (groups is not None and len(groups) != n):
        raise ValueError(f"n must be at least 1 with as many groups, got {n} and {groups!r:.40}")
    _check_draws(replicates, level)
    unit_of = np.arange(n) if groups is None else unit_numbers(groups)
    # Rows sorted by unit: those of unit u are members[u].
    members = np.split(np.argsort(unit_of, kind="stable"), np.cumsum(np.bincount(unit_of))[:-1])
    rng = np.random.default_rng(seed)
    drawn = np.array(
        [
            metrics(np.concatenate([members[u] for u in rng.integers(0, len(members), len(members))]))
            for _ in range(replicates)
        ]
    )
    results: list[Result] = []
    for name, value, column in zip(names, metrics(np.arange(n)), drawn.T, strict=True):
        low, high = _percentiles(column, level)
        results.append(Result(name=name, value=float(value), low=low, high=high, n=n, unit=unit))
    return results


def mean_of_means(
    parts: Sequence[tuple[NDArray[np.floating], Sequence[Hashable]]],
    *,
    name: str,
    unit: str = "fraction",
    replicates: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> Result:
    """The unweighted mean over tasks of each task's mean, with a percentile bootstrap interval.

    Every task is resampled by its own groups, independently of the others; the tasks themselves are fixed, so the
    interval says nothing about other tasks. `n` counts the values of all tasks.

    Args:
        parts: per task its values [N] without NaN and the group of each.

    Raises:
        ValueError: no tasks; one without values, with NaN or with another number of groups; replicates or level out of
            range.
    """
    if not parts:
        raise ValueError("there are no tasks to average over")
    _check_draws(replicates, level)
    for number, (values, groups) in enumerate(parts):
        if values.ndim != 1 or not len(values) or len(groups) != len(values) or np.isnan(values).any():
            raise ValueError(
                f"task {number}: values must be [N] with N at least 1, no NaN and as many groups, got {values.shape}, "
                f"{int(np.isnan(values).sum())} NaN and {len(groups)} groups"
            )
    rng = np.random.default_rng(seed)
    drawn = np.zeros(replicates)
    for values, groups in parts:
        drawn += _replicates(*_cluster(values, np.ones(len(values), dtype=bool), groups), replicates, rng) / len(parts)
    low, high = _percentiles(drawn, level)
    value = float(np.mean([values.mean() for values, _ in parts]))
    return Result(name=name, value=value, low=low, high=high, n=sum(len(values) for values, _ in parts), unit=unit)


def bootstrap_median(
    values: NDArray[np.floating],
    *,
    name: str,
    unit: str,
    groups: Sequence[Hashable] | None = None,
    replicates: int = 500,
    level: float = 0.95,
    seed: int = 0,
) -> Result:
    """The median with a percentile bootstrap interval, whole groups drawn; of an even number the middle two's mean.

    Values are sorted once and a drawn set is its counts, so that 100,000 values take seconds.

    Args:
        values: [N], at least one, no NaN; groups: [N]; None draws values one by one.

    Raises:
        ValueError: values or groups that are not so, or replicates or level out of range.
    """
    if not len(values) or np.isnan(values).any() or (groups is not None and len(groups) != len(values)):
        raise ValueError(f"values must be [N] with N at least 1, no NaN and as many groups, got {values.shape}")
    _check_draws(replicates, level)
    order = np.argsort(values, kind="stable")
    ordered = values[order].astype(np.float64)
    unit_of = (np.arange(len(values)) if groups is None else unit_numbers(groups))[order]
    units = int(unit_of.max()) + 1
    rng = np.random.default_rng(seed)
    drawn = np.empty(replicates)
    for replicate in range(replicates):
        ends = np.cumsum(np.bincount(rng.integers(0, units, units), minlength=units)[unit_of])
        middle = [(ends[-1] - 1) // 2, ends[-1] // 2]
        drawn[replicate] = ordered[np.searchsorted(ends, middle, side="right")].mean()
    low, high = _percentiles(drawn, level)
    return Result(name=name, value=float(np.median(ordered)), low=low, high=high, n=len(values), unit=unit)


def _check_draws(replicates: int, level: float) -> None:
    if replicates < 100 or not 0 < level < 1:
        raise ValueError(f"replicates must be at least 100 and level in (0, 1), got {replicates} and {level}")


def _cluster(
    values: NDArray[np.floating], known: NDArray[np.bool_], groups: Sequence[Hashable] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Sum and count of the known values of each unit that is drawn."""
    if groups is None:
        return values[known].astype(np.float64), np.ones(int(known.sum()))
    unit = unit_numbers(groups)[known]
    sums = np.bincount(unit, weights=values[known]).astype(np.float64)
    counts = np.bincount(unit).astype(np.float64)
    return sums[counts > 0], counts[counts > 0]


def unit_numbers(groups: Sequence[Hashable]) -> NDArray[np.int64]:
    """Groups as numbers, in the order in which they first appear."""
    number: dict[Hashable, int] = {}
    return np.array([number.setdefault(group, len(number)) for group in groups], dtype=np.int64)


def _percentiles(drawn: NDArray[np.float64], level: float) -> tuple[float, float]:
    """The ends of the interval over the defined values; NaN when there are none."""
    defined = drawn[~np.isnan(drawn)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def _replicates(
    sums: NDArray[np.float64], counts: NDArray[np.float64], replicates: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Means of drawn sets, a few sets at a time so that memory stays under about 32 MB."""
    means = np.empty(replicates)
    step = max(1, 4_000_000 // len(sums))
    for start in range(0, replicates, step):
        stop = min(start + step, replicates)
        drawn = rng.integers(0, len(sums), (stop - start, len(sums)))
        means[start:stop] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


__all__ = ["bootstrap_mean", "bootstrap_median", "bootstrap_metrics", "mean_of_means", "unit_numbers"]
