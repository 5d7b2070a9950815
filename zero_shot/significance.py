"""Whether one model is better than another on the same images: paired tests that keep a patient's images together."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean, unit_numbers
from zero_shot.result import without_nan

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Outcomes = NDArray[np.number] | NDArray[np.bool_]

# Above 2,000 patients the sum of what they add is as good as normal.
_NORMAL_FROM: Final = 2000
# Additions that counting the ways to turn signs may take, some 20 ms.
_CELLS: Final = 20_000_000


@dataclass(frozen=True, kw_only=True)
class Difference:
    """First less second: `value` with its 95 % interval, and the two-sided `p` that there is none.

    `units` patients (or images, where none is known) were compared on `n` images. `test` says where p comes from; NaN
    where there is too little to say. `error`: the standard error, where p comes from one.
    """

    value: float
    low: float
    high: float
    p: float
    n: int
    units: int
    test: str
    error: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: undefined values are None."""
        return without_nan(asdict(self))


def paired_difference(
    first: Floats, second: Floats, *, groups: Sequence[Hashable] | None = None, replicates: int = 1000, seed: int = 0
) -> Difference:
    """The difference of two means over the same images, such as top-1, with a paired bootstrap interval.

    The interval draws whole patients. p is McNemar's exact one where both have one 0 or 1 for each of independent
    images; else the share of all ways to swap the two models, patient by patient, that give a difference as large
    (sign-flip test). On 0 and 1 of single images these are the same test. A p from the bootstrap would be too small
    where few images tell the models apart: with two of 200, both for the first, it says 0.14 and not 0.5.

    Args:
        first, second: [N] what each model gets for each image, no NaN.
        groups: [N] patients; None: every image for itself.

    Raises:
        ValueError: no images, NaN, or lengths that differ.
    """
    for name, values in (("first", first), ("second", second)):
        if values.ndim != 1 or not len(values) or np.isnan(values).any():
            raise ValueError(f"{name} must be [N] with N at least 1 and no NaN, got {values.shape}")
    if len(first) != len(second) or (groups is not None and len(groups) != len(first)):
        raise ValueError(f"first, second and groups must be of one length, got {len(first)} and {len(second)}")
    differences = first.astype(np.float64) - second.astype(np.float64)
    mean = bootstrap_mean(differences, name="difference", groups=groups, replicates=replicates, seed=seed)
    sums = unit_sums(differences, groups)
    binary = np.isin(first, (0, 1)).all() and np.isin(second, (0, 1)).all()
    if len(sums) == len(first) and binary:
        test, p = "McNemar exact", mcnemar(first, second)
    else:
        test, p = "sign flips of patients" if len(sums) < len(first) else "sign flips", sign_flips(sums)
    low, high = (mean.low, mean.high) if len(sums) > 1 else (math.nan, math.nan)
    return Difference(value=mean.value, low=low, high=high, p=p, n=len(first), units=len(sums), test=test)


def mcnemar(first: Outcomes, second: Outcomes) -> float:
    """McNemar's exact two-sided p: of the images that only one model gets right, is it one model's more often?

    2 P(X <= min(b, c)), at most 1, with X binomial of b + c draws at 1/2. Images count as independent.

    Args:
        first, second: [N] of 0 and 1.

    Example:
        >>> mcnemar(np.array([1, 1, 1, 1, 1, 1, 0]), np.array([0, 0, 0, 0, 0, 0, 1]))
        0.125
    """
    better, worse = int((first > second).sum()), int((first < second).sum())
    total, few = better + worse, min(better, worse)
    ways, tail = 1, 0
    for k in range(few + 1):
        tail += ways
        ways = ways * (total - k) // (k + 1)
    # Whole numbers of any length, so that the quotient is rounded only once.
    return min(1.0, 2 * tail / 2**total)


def sign_flips(sums: Doubles) -> float:
    """Two-sided p that each of [U] independent numbers is as likely to be of either sign: of all 2^U ways, the share
    whose sum is as far from 0.

    All ways are counted, sum by sum, so that small p are as good as large ones, which corrections for many tests need.
    Whole numbers are counted exactly; others on a grid of at least 10,000 steps from 0 to the sum of all, an error of
    some thousandths of a standard deviation. Above 2,000 numbers (zeros left out) their sum is taken as normal.

    Example:
        >>> sign_flips(np.array([1.0, 1.0, 1.0, 0.0]))
        0.25
    """
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    if len(sums) > _NORMAL_FROM:
        return math.erfc(abs(float(sums.sum())) / math.sqrt(2 * float(np.square(sums).sum())))
    steps = _CELLS // len(sums)
    whole = np.rint(sums)
    if np.array_equal(whole, sums) and np.abs(whole).sum() <= steps:
        numbers = whole.astype(np.int64)
    else:
        numbers = np.rint(sums / np.abs(sums).sum() * steps).astype(np.int64)
    total, observed = int(np.abs(numbers).sum()), abs(int(numbers.sum()))
    # Turning numbers that add up to s takes 2 s off the sum of all; half of the extreme ways are those up to `most`.
    most = (total - observed) // 2
    ways = np.zeros(most + 1)
    ways[0] = 1.0
    for number in np.abs(numbers).tolist():
        ways *= 0.5
        if 0 < number <= most:
            ways[number:] += ways[:-number].copy()
        elif number == 0:
            ways *= 2.0
    return min(1.0, 2 * float(ways.sum()))


def auroc_difference(
    first: Floats, second: Floats, positive: NDArray[np.bool_], *, groups: Sequence[Hashable] | None = None
) -> Difference:
    """The difference of two AUROCs on the same images by DeLong's covariance (DeLong et al. 1988), in O(N log N).

    With patients, sums over their images take the place of images (Obuchowski 1997), but for the factor of the term
    between positives and negatives of one patient: here the root of those of the two, so that the variance cannot be
    negative. With several columns it is the difference of the means over the columns that have both positives and
    negatives (macro AUROC), and covariances between columns count. Midranks by Sun and Xu 2014.

    Args:
        first, second: scores [N] or [N, K]; positive: the same shape, labels one-vs-rest or of K findings.

    Raises:
        ValueError: shapes that differ, scores that are not finite, or other groups than images.
    """
    if not first.shape == second.shape == positive.shape or first.ndim not in (1, 2):
        raise ValueError(
            f"first, second and positive must have one shape [N] or [N, K], got {first.shape}, {second.shape} and "
            f"{positive.shape}"
        )
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        raise ValueError("scores must be finite")
    count = len(first)
    if groups is not None and len(groups) != count:
        raise ValueError(f"groups must hold one for each of {count} images, got {len(groups)}")
    units = np.arange(count) if groups is None else unit_numbers(groups)
    columns = positive.reshape(count, -1)
    present = np.flatnonzero(columns.any(axis=0) & ~columns.all(axis=0))
    value, influence, enough = math.nan, np.zeros(count), len(present) > 0
    if enough:
        parts = [
            [_influence(scores.reshape(count, -1)[:, k].astype(np.float64), columns[:, k], units) for k in present]
            for scores in (first, second)
        ]
        value = float(np.mean([a[0] for a in parts[0]]) - np.mean([b[0] for b in parts[1]]))
        influence = np.mean([a[1] - b[1] for a, b in zip(*parts, strict=True)], axis=0)
        # A single patient with or without a finding says nothing of how it varies.
        enough = all(len(np.unique(units[columns[:, k] == side])) > 1 for k in present for side in (True, False))
    error = math.sqrt(float(np.square(np.bincount(units, weights=influence)).sum())) if count else 0.0
    low = high = p = math.nan
    if not enough:
        error = math.nan
    else:
        low, high = max(-1.0, value - 1.959964 * error), min(1.0, value + 1.959964 * error)
        # 1e-12 of rounding is no difference; a real one without any spread has no standard error to be divided by.
        if abs(value) < 1e-12:
            p = 1.0
        elif error > 1e-12:
            p = math.erfc(abs(value) / error / math.sqrt(2))
    test = "DeLong, by patient" if len(np.unique(units)) < count else "DeLong"
    return Difference(
        value=value, low=low, high=high, p=p, n=count, units=len(np.unique(units)), test=test, error=error
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted so that, over the whole family, any false finding has at most the probability asked for.

    Holm 1979: the i-th smallest of m times m - i + 1, never below the one before it. Undefined ones (NaN) stay so and
    do not count in m: nothing was tested.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    known = [number for number, p in enumerate(p_values) if not math.isnan(p)]
    adjusted = [math.nan] * len(p_values)
    highest = 0.0
    for place, number in enumerate(sorted(known, key=lambda number: p_values[number])):
        highest = max(highest, min(1.0, p_values[number] * (len(known) - place)))
        adjusted[number] = highest
    return adjusted


def _influence(scores: Doubles, positive: NDArray[np.bool_], units: NDArray[np.int64]) -> tuple[float, Doubles]:
    """AUROC, and what each image adds to its error: squares of sums over patients add up to DeLong's variance."""
    inside, outside = scores[positive], scores[~positive]
    midranks = _midranks(scores)
    above = (midranks[positive] - _midranks(inside)) / len(outside)
    below = 1 - (midranks[~positive] - _midranks(outside)) / len(inside)
    area = float(above.mean())
    influence = np.empty(len(scores))
    for mask, values in ((positive, above), (~positive, below)):
        own = len(np.unique(units[mask]))
        factor = math.sqrt(own / (own - 1)) if own > 1 else 1.0
        influence[mask] = (values - area) / len(values) * factor
    return area, influence


def _midranks(values: Doubles) -> Doubles:
    """Ranks from 1; equal values share the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(counts) - (counts - 1) / 2)[inverse]


def unit_sums(values: Doubles, groups: Sequence[Hashable] | None) -> Doubles:
    """The sum of values [N] of each patient; without groups the values themselves."""
    return values if groups is None else np.bincount(unit_numbers(groups), weights=values).astype(np.float64)


__all__ = ["Difference", "auroc_difference", "holm", "mcnemar", "paired_difference", "sign_flips", "unit_sums"]
