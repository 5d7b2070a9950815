"""What an evaluation keeps of single images and texts, from which the report draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero_shot.metrics import top_k_accuracy


@dataclass(frozen=True)
class Found:
    """An image that the model gives for a text: where it is, its cosine, and whether the text belongs to it."""

    index: int
    key: str
    score: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Search:
    """One text of a retrieval task and the images that the model finds for it, best first.

    `rank`: of the first right image among all, from 1; ties count by expectation.
    """

    shards: str
    text: str
    rank: float
    found: tuple[Found, ...]


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Every image of a classification task: where it is (`indices` of `shards`), its patient, and what the model says.

    `truth`: [N] class numbers; `scores`: [N, C], higher is likelier; `shares`: [N, C], rows sum to 1, the softmax of
    the scores or, with ensemble `probability`, the scores themselves.
    """

    shards: str
    indices: tuple[int, ...]
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]
    shares: NDArray[np.float64]

    def hits(self) -> tuple[NDArray[np.float64], list[str]]:
        """The top-1 of every image, 0 to 1 (ties by expectation), and its patient."""
        return top_k_accuracy(self.scores, self.truth), list(self.groups)


@dataclass(frozen=True, kw_only=True)
class ScoredFindings:
    """Every image of a task of findings: where it is, its patient, which findings it has, and what the model says.

    `targets`: [N, K]; `scores`: [N, K], of each finding higher is likelier; `probabilities`: [N, K], see
    `zero_shot.findings.finding_scores`.
    """

    shards: str
    indices: tuple[int, ...]
    keys: tuple[str, ...]
    groups: tuple[str, ...]
    targets: NDArray[np.bool_]
    scores: NDArray[np.float64]
    probabilities: NDArray[np.float64]


__all__ = ["Found", "Scored", "ScoredFindings", "Search"]
