"""Scores of one class or finding, sorted once: of a set that is drawn from them only counts are needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Doubles = NDArray[np.float64]


class SortedScores:
    """Scores [N], higher is likelier, and which of the images are positive [N].

    Weights [N] say how often each image is in a drawn set; all ones are the set itself.
    """

    def __init__(self, scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> None:
        _, self._place = np.unique(scores, return_inverse=True)
        self._positive = positive

    def areas(self, weights: NDArray[np.integer]) -> tuple[float, float]:
        """Area under the ROC curve, and average precision.

        P(score of a positive > of a negative) + half the probability of a tie, and sum_n (R_n - R_n-1) P_n in which
        equal scores enter together (scikit-learn's definitions). Both are NaN where the set has no positive or no
        negative: nothing is told apart.
        """
        positives, negatives = self._counts(weights)
        pairs = positives.sum() * negatives.sum()
        if pairs == 0:
            return float("nan"), float("nan")
        area = (positives * (negatives.cumsum() - negatives / 2)).sum() / pairs
        found, false = positives[::-1].cumsum(), negatives[::-1].cumsum()
        # Before the first drawn image nothing is found, and nothing is added.
        precision = found / np.maximum(found + false, 1.0)
        return float(area), float((positives[::-1] * precision).sum() / found[-1])

    def roc(self) -> tuple[Doubles, Doubles]:
        """False and true positive rates at every distinct score, from (0, 0) to (1, 1); equal scores are one step.

        NaN where there is no positive or no negative.
        """
        positives, negatives = self._counts(np.ones(len(self._place), dtype=np.int64))
        rates: list[Doubles] = []
        for found in (negatives, positives):
            total = found.sum()
            rates.append(np.concatenate([[0.0], found[::-1].cumsum()]) / (total or np.nan))
        return rates[0], rates[1]

    def precision_recall(self) -> tuple[Doubles, Doubles]:
        """Recalls and precisions as steps, whose area is the average precision; NaN without a positive."""
        positives, negatives = self._counts(np.ones(len(self._place), dtype=np.int64))
        found, false = positives[::-1].cumsum(), negatives[::-1].cumsum()
        recalls = np.concatenate([[0.0], found]) / (found[-1] or np.nan)
        return np.repeat(recalls, 2)[1:-1], np.repeat(found / (found + false), 2)

    def _counts(self, weights: NDArray[np.integer]) -> tuple[Doubles, Doubles]:
        """Positives and negatives of each distinct score, lowest score first."""
        weighted = weights.astype(np.float64)
        positives = np.bincount(self._place, weights=weighted * self._positive).astype(np.float64)
        return positives, np.bincount(self._place, weights=weighted) - positives


__all__ = ["SortedScores"]
