"""Explained zero-shot diagnosis: a finding is judged by its descriptors, each asked for as present and as absent.

Xplainer (Pellegrini et al., arXiv 2303.13391), on unit features, in double precision.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from zero_shot.descriptors import Described

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DescriptorScore:
    """A descriptor: the probability that it is present, and by how much it speaks for the finding.

    `weight` is (log p - log(1 - p)) / K of the finding's K descriptors; their sum is log S+ - log S-.
    """

    descriptor: str
    probability: float
    weight: float


@dataclass(frozen=True, kw_only=True)
class FindingScore:
    """A finding: S+ and S- in (0, 1), whether S+ > S-, and its descriptors, the heaviest first."""

    finding: str
    present: float
    absent: float
    decision: bool
    descriptors: tuple[DescriptorScore, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


def descriptor_probabilities(images: Floats, present: Floats, absent: Floats, *, temperature: float = 0.5) -> Doubles:
    """Probability [N, K] that each descriptor is present: the softmax of two cosines over a temperature.

    p+ = e^(c+ / T) / (e^(c+ / T) + e^(c- / T)) with T = 0.5 on raw cosines, without the model's logit scale (from the
    published code; the paper does not state T). So p+ lies in [sigmoid(-2 / T), sigmoid(2 / T)].

    Args:
        images: [N, D]; present, absent: [K, D] unit rows, row k of both for descriptor k.

    Raises:
        ValueError: unequal shapes, or a temperature that is not positive.
    """
    if present.shape != absent.shape or images.ndim != 2 or images.shape[1:] != present.shape[1:]:
        raise ValueError(
            f"images must be [N, D], present and absent [K, D], got {images.shape}, {present.shape} and {absent.shape}"
        )
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    difference = (present.astype(np.float64) - absent.astype(np.float64)) / temperature
    return 1 / (1 + np.exp(-images.astype(np.float64) @ difference.T))


def mean_over_views(probabilities: Floats, studies: Sequence[Hashable]) -> tuple[Doubles, list[Hashable]]:
    """Descriptor probabilities [S, K] of studies with several images each: the mean, before any logarithm.

    Returns:
        The probabilities and the studies, in the order in which they first appear.

    Raises:
        ValueError: another number of studies than rows.
    """
    if len(studies) != len(probabilities):
        raise ValueError(f"{len(probabilities)} images need as many studies, got {len(studies)}")
    number: dict[Hashable, int] = {}
    rows = np.array([number.setdefault(study, len(number)) for study in studies], dtype=np.int64)
    sums = np.zeros((len(number), probabilities.shape[1]))
    np.add.at(sums, rows, probabilities.astype(np.float64))
    return sums / np.bincount(rows, minlength=len(number))[:, None], list(number)


def finding_scores(probabilities: Floats, owner: Sequence[int]) -> tuple[Doubles, Doubles]:
    """S+ and S- [N, Y] of findings: the geometric means of p and of 1 - p over their descriptors.

    S+ = exp(mean_k log p_k). S+ + S- is at most 1, with equality when all descriptors agree, so 0.5 is no threshold:
    the decision is S+ > S-, and rankings use S+.

    Args:
        probabilities: [N, K] in (0, 1); owner: finding 0 .. Y - 1 of each descriptor, every one at least once.

    Raises:
        ValueError: probabilities out of range, or findings without descriptors.
    """
    numbers = np.asarray(owner, dtype=np.int64)
    if probabilities.ndim != 2 or numbers.shape != (probabilities.shape[1],):
        raise ValueError(f"probabilities must be [N, K] and owner [K], got {probabilities.shape} and {numbers.shape}")
    if not ((probabilities > 0) & (probabilities < 1)).all():
        raise ValueError("descriptor probabilities must lie strictly between 0 and 1")
    counts = np.bincount(numbers)
    if not len(counts) or not counts.all():
        raise ValueError(f"every finding needs a descriptor, got {counts.tolist()} descriptors per finding")
    belongs = (numbers[:, None] == np.arange(len(counts))) / counts
    p = probabilities.astype(np.float64)
    return np.exp(np.log(p) @ belongs), np.exp(np.log1p(-p) @ belongs)


def no_finding(present: Floats) -> Doubles:
    """Score [N] of "no finding": 1 - the highest S+ [N, Y] of all findings."""
    return 1 - present.astype(np.float64).max(axis=1)


def explain(probabilities: Floats, described: Sequence[Described]) -> tuple[FindingScore, ...]:
    """The descriptor-level report of one image or study: findings by falling S+, each with its descriptors.

    Args:
        probabilities: [K], in the order of `zero_shot.descriptors.prompt_pairs`.

    Raises:
        ValueError: another number of probabilities than descriptors, or probabilities out of range.
    """
    owner = [number for number, one in enumerate(described) for _ in one.descriptors]
    if probabilities.shape != (len(owner),):
        raise ValueError(f"{len(owner)} descriptors need as many probabilities, got {probabilities.shape}")
    present, absent = (scores[0] for scores in finding_scores(probabilities[None], owner))
    found: list[FindingScore] = []
    start = 0
    for number, one in enumerate(described):
        values = probabilities[start : start + len(one.descriptors)].astype(np.float64)
        start += len(values)
        weights = (np.log(values) - np.log1p(-values)) / len(values)
        order = np.argsort(-np.abs(weights), kind="stable")
        found.append(
            FindingScore(
                finding=one.finding,
                present=float(present[number]),
                absent=float(absent[number]),
                decision=bool(present[number] > absent[number]),
                descriptors=tuple(
                    DescriptorScore(
                        descriptor=one.descriptors[k], probability=float(values[k]), weight=float(weights[k])
                    )
                    for k in order
                ),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.present))


__all__ = [
    "DescriptorScore",
    "FindingScore",
    "descriptor_probabilities",
    "explain",
    "finding_scores",
    "mean_over_views",
    "no_finding",
]
