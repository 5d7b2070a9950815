"""Whether probabilities mean what they say: errors, curves, temperature scaling and conformal sets.

In NumPy, in double precision. What is fitted must be fitted on other patients than it is judged on.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Bin:
    """Images whose highest probability lies in (low, high]: how many, their mean probability and share of right ones.

    NaN for both in an empty bin.
    """

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


def softmax(logits: Floats, temperature: float = 1.0) -> Doubles:
    """Probabilities [N, C] of logits [N, C] over a temperature."""
    scaled = logits.astype(np.float64) / temperature
    exponentials = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def reliability_curve(probabilities: Floats, labels: Ints, *, bins: int = 15) -> tuple[Bin, ...]:
    """Equal bins of the highest probability (Guo et al., arXiv 1706.04599, section 2).

    Raises:
        ValueError: no bins, or probabilities and labels that do not fit.
    """
    _check(probabilities, labels)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    # (low, high]: 1 belongs to the last bin.
    number = np.clip(np.ceil(confidence * bins).astype(np.int64) - 1, 0, bins - 1)
    found: list[Bin] = []
    for b in range(bins):
        own = number == b
        n = int(own.sum())
        found.append(
            Bin(
                low=b / bins,
                high=(b + 1) / bins,
                n=n,
                confidence=float(confidence[own].mean()) if n else float("nan"),
                accuracy=float(right[own].mean()) if n else float("nan"),
            )
        )
    return tuple(found)


def expected_calibration_error(probabilities: Floats, labels: Ints, *, bins: int = 15) -> float:
    """sum_b n_b / N |accuracy_b - confidence_b| (Naeini et al. 2015; Guo et al., equation 3).

    It depends on the number of bins, and is biased upwards on small sets: with N images, K bins and confidences spread
    over 0 .. 1, a perfectly calibrated classifier has about sqrt(K / N) / 3 (sampling error of each bin's accuracy).
    """
    curve = reliability_curve(probabilities, labels, bins=bins)
    return float(sum(b.n * abs(b.accuracy - b.confidence) for b in curve if b.n) / len(labels))


def brier_score(probabilities: Floats, labels: Ints) -> float:
    """mean_i sum_c (p_ic - [y_i = c])^2, from 0 to 2 (Brier 1950); a proper score."""
    _check(probabilities, labels)
    wrong = probabilities.astype(np.float64).copy()
    wrong[np.arange(len(labels)), labels] -= 1
    return float((wrong**2).sum(axis=1).mean())


def negative_log_likelihood(logits: Floats, labels: Ints, temperature: float = 1.0) -> float:
    """Mean -log p of the true class, from logits."""
    _check_shapes(logits, labels)
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(axis=1)
    total = highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1))
    return float((total - scaled[np.arange(len(labels)), labels]).mean())


def fit_temperature(logits: Floats, labels: Ints, *, low: float = 1e-3, high: float = 1e3) -> float:
    """The T that minimises the negative log-likelihood of logits / T (Guo et al., section 4.2).

    Convex in 1/T, so its slope E_p[z] - z_y, averaged, rises with 1/T and is bisected. Answers do not change.

    Raises:
        ValueError: labels that do not fit, or no minimum within low .. high: all (or too few) images are right, so
            that the likelihood only grows towards an end.
    """
    _check_shapes(logits, labels)
    z = logits.astype(np.float64)
    own = z[np.arange(len(labels)), labels]

    def slope(inverse: float) -> float:
        return float(((softmax(z, 1 / inverse) * z).sum(axis=1) - own).mean())

    start, end = 1 / high, 1 / low
    if slope(start) >= 0 or slope(end) <= 0:
        raise ValueError(
            f"no temperature in {low:g} .. {high:g} fits these {len(labels)} images: their likelihood has its maximum "
            "at an end (all answers right, or no better than chance)"
        )
    for _ in range(200):
        middle = float(np.sqrt(start * end))
        start, end = (middle, end) if slope(middle) < 0 else (start, middle)
    return 1 / float(np.sqrt(start * end))


@dataclass(frozen=True, kw_only=True)
class ConformalSets:
    """Sets of classes that hold the true one with probability at least 1 - alpha, for exchangeable images.

    The guarantee is over draws of calibration and test images alike, for all images together: not for each class or
    subgroup, not under a shift, and not with patients of several images who are split between both.
    """

    alpha: float
    threshold: float

    @classmethod
    def fit(cls, probabilities: Floats, labels: Ints, *, alpha: float = 0.1) -> ConformalSets:
        """Split conformal with score 1 - p_y (Sadinle et al., arXiv 1609.00451; Angelopoulos and Bates, 2107.07511).

        The threshold is the ceil((n + 1)(1 - alpha))-th smallest score; beyond the n-th it is infinite and every set
        holds all classes.

        Raises:
            ValueError: alpha outside (0, 1), or labels that do not fit.
        """
        _check(probabilities, labels)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {alpha}")
        scores = np.sort(1 - probabilities[np.arange(len(labels)), labels].astype(np.float64))
        rank = ceil(round((len(scores) + 1) * (1 - alpha), 9))
        return cls(alpha=alpha, threshold=float(scores[rank - 1]) if rank <= len(scores) else float("inf"))

    def sets(self, probabilities: Floats) -> NDArray[np.bool_]:
        """[N, C], True for classes in the set; a set can be empty."""
        return 1 - probabilities.astype(np.float64) <= self.threshold


def coverage(sets: NDArray[np.bool_], labels: Ints) -> tuple[float, float]:
    """Share of images whose set holds the true class, and the mean size of the sets."""
    _check_shapes(sets.astype(np.float64), labels)
    return float(sets[np.arange(len(labels)), labels].mean()), float(sets.sum(axis=1).mean())


def _check(probabilities: Floats, labels: Ints) -> None:
    _check_shapes(probabilities, labels)
    if probabilities.min() < 0 or np.abs(probabilities.sum(axis=1) - 1).max() > 1e-4:
        raise ValueError("probabilities must be at least 0 and sum to 1 over classes")


def _check_shapes(scores: Floats, labels: Ints) -> None:
    if scores.ndim != 2 or labels.shape != (len(scores),) or not len(labels):
        raise ValueError(f"[N, C] and labels [N] of at least one image are needed, got {scores.shape}, {labels.shape}")
    if labels.min() < 0 or labels.max() >= scores.shape[1]:
        raise ValueError(f"labels must lie in 0 .. {scores.shape[1] - 1}, got {labels.min()} .. {labels.max()}")


__all__ = [
    "Bin",
    "ConformalSets",
    "brier_score",
    "coverage",
    "expected_calibration_error",
    "fit_temperature",
    "negative_log_likelihood",
    "reliability_curve",
    "softmax",
]
