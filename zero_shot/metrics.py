"""Classification and retrieval metrics in NumPy: ties by expectation, undefined values as NaN, nothing dropped."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Ints = NDArray[np.integer]


def top_k_accuracy(scores: Floats, labels: Ints, k: int = 1) -> NDArray[np.float64]:
    """Per sample, the probability that the label is among the k highest scores when ties are broken at random.

    Args:
        scores: [N, C], any real values.
        labels: [N], 0 .. C - 1.
        k: 1 .. C.

    Raises:
        ValueError: shapes or values out of range.

    Example:
        >>> top_k_accuracy(np.array([[1.0, 1.0, 0.0]]), np.array([0])).tolist()
        [0.5]
    """
    _check(scores, labels)
    if not 1 <= k <= scores.shape[1]:
        raise ValueError(f"k must lie in 1 .. {scores.shape[1]} (the number of classes), got {k}")
    own = scores[np.arange(len(labels)), labels][:, None]
    higher = (scores > own).sum(axis=1)
    tied = (scores == own).sum(axis=1)
    return np.clip((k - higher) / tied, 0.0, 1.0)


def confusion_matrix(predicted: Ints, labels: Ints, classes: int) -> NDArray[np.int64]:
    """[classes, classes] counts; row = label, column = prediction."""
    for name, values in (("predicted", predicted), ("labels", labels)):
        if len(values) and not (values.min() >= 0 and values.max() < classes):
            raise ValueError(f"{name} must lie in 0 .. {classes - 1}, got {values.min()} .. {values.max()}")
    flat = np.bincount(labels.astype(np.int64) * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def balanced_accuracy(confusion: Ints) -> float:
    """Mean recall over the classes that occur; NaN when none does (scikit-learn's definition)."""
    counts = confusion.astype(np.float64)
    support = counts.sum(axis=1)
    present = support > 0
    recalls: NDArray[np.float64] = np.diag(counts)[present] / support[present]
    return float(recalls.mean()) if present.any() else float("nan")


def macro_f1(confusion: Ints) -> float:
    """Mean F1 over the classes that occur or are predicted, 2 TP / (2 TP + FP + FN); NaN when there are none."""
    counts = confusion.astype(np.float64)
    true = np.diag(counts)
    either = counts.sum(axis=0) + counts.sum(axis=1)
    used = either > 0
    scores: NDArray[np.float64] = 2 * true[used] / either[used]
    return float(scores.mean()) if used.any() else float("nan")


def quadratic_kappa(confusion: Ints) -> float:
    """Cohen's kappa with weights (i - j)^2, for classes that are grades in their order (Cohen 1968).

    1 - sum w_ij O_ij / sum w_ij E_ij, E from the margins; NaN where truth and answers are one and the same class
    throughout (no disagreement can be expected), or there are none.

    Example:
        >>> quadratic_kappa(np.array([[2, 0, 0], [0, 2, 0], [0, 1, 1]])).__round__(4)
        0.8571
    """
    counts = confusion.astype(np.float64)
    grades = np.arange(len(counts))
    weights = (grades[:, None] - grades[None, :]) ** 2
    expected = float((weights * np.outer(counts.sum(axis=1), counts.sum(axis=0))).sum())
    if expected == 0:
        return float("nan")
    return 1.0 - float((weights * counts).sum()) * float(counts.sum()) / expected


def sensitivity_at_specificity(scores: Floats, positive: NDArray[np.bool_], specificity: float) -> float:
    """The best sensitivity of a rule "score at least t" whose specificity is at least this, on these very images.

    No rule can tell equal scores apart: they are all called positive or all negative, and nothing is interpolated. The
    rule that calls everything negative always qualifies. NaN where one of the two groups is empty.

    Args:
        scores: [N]; positive: [N].
        specificity: 0 .. 1.

    Raises:
        ValueError: specificity out of range.

    Example:
        >>> sensitivity_at_specificity(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]), 0.9)
        0.5
    """
    if not 0.0 <= specificity <= 1.0:
        raise ValueError(f"specificity must lie in 0 .. 1, got {specificity}")
    positives, negatives = int(positive.sum()), int((~positive).sum())
    if positives == 0 or negatives == 0:
        return float("nan")
    thresholds = np.append(np.unique(scores), np.inf)
    false_alarms = negatives - np.searchsorted(np.sort(scores[~positive]), thresholds)
    found = positives - np.searchsorted(np.sort(scores[positive]), thresholds)
    # In whole images: 1 - 1 / 10 >= 0.9 must hold.
    allowed = np.floor((1.0 - specificity) * negatives + 1e-9)
    return float(found[false_alarms <= allowed].max() / positives)


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative) + half the probability of a tie.

    By midranks (Mann-Whitney U); NaN where one of the two groups is empty, since there is no pair to compare.

    Example:
        >>> auroc(np.array([0.1, 0.4, 0.4, 0.8]), np.array([False, False, True, True]))
        0.875
    """
    positives = int(positive.sum())
    negatives = len(positive) - positives
    if positives == 0 or negatives == 0:
        return float("nan")
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    midranks = np.cumsum(counts) - (counts - 1) / 2
    rank_sum = float(midranks[inverse][positive].sum())
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def macro_auroc(scores: Floats, labels: Ints) -> float:
    """Mean one-vs-rest AUROC over the classes that have both positives and negatives; NaN when none has."""
    _check(scores, labels)
    values = [auroc(scores[:, c], labels == c) for c in range(scores.shape[1])]
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


def recall_at_k(higher: Ints, tied: Ints, good: Ints, k: int) -> NDArray[np.float64]:
    """Per query, the probability that a relevant item is among the k best when ties are broken at random.

    "Any relevant item found", as in image-text retrieval with several captions per image. The k - h places that h
    higher items leave go to t tied ones, r of them relevant; all r are missed with probability
    C(t - r, k - h) / C(t, k - h). Negative scores are scores like any others (torchmetrics' retrieval metrics drop
    them).

    Args:
        higher: [Q] items that score above the best relevant one.
        tied: [Q] items that score the same, itself included; good: [Q] how many of those are relevant, at least 1.
        k: at least 1.

    Raises:
        ValueError: k or counts out of range.

    Example:
        >>> recall_at_k(np.array([0]), np.array([2]), np.array([1]), 1).tolist()
        [0.5]
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if len(higher) and (higher.min() < 0 or good.min() < 1 or (tied < good).any()):
        raise ValueError("higher must be at least 0, good at least 1 and tied at least good for every query")
    missed = np.ones(len(higher))
    for drawn in range(min(k, int(tied.max(initial=0)))):
        chance = np.clip(tied - good - drawn, 0, None) / np.maximum(tied - drawn, 1)
        missed *= np.where(drawn < k - higher, chance, 1.0)
    return 1.0 - missed


def _check(scores: Floats, labels: Ints) -> None:
    if scores.ndim != 2 or labels.shape != (scores.shape[0],):
        raise ValueError(f"scores must be [N, C] and labels [N], got {scores.shape} and {labels.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("scores must be finite")
    if len(labels) and not (labels.min() >= 0 and labels.max() < scores.shape[1]):
        raise ValueError(f"labels must lie in 0 .. {scores.shape[1] - 1}, got {labels.min()} .. {labels.max()}")


__all__ = [
    "auroc",
    "balanced_accuracy",
    "confusion_matrix",
    "macro_auroc",
    "macro_f1",
    "quadratic_kappa",
    "recall_at_k",
    "sensitivity_at_specificity",
    "top_k_accuracy",
]
