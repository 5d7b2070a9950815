"""Whether an image belongs to what a classifier knows: scores that are high for known ones, and how well they tell.

In NumPy, in double precision. None of these scores needs images of the unknown kind.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from zero_shot.metrics import auroc

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.integer]


def max_concept_matching(cosines: Floats, *, temperature: float = 1.0) -> Doubles:
    """The highest softmax share over classes of cosine / T: MCM (Ming et al., arXiv 2211.13445, equation 2).

    T = 1 on plain cosines is the paper's; with the model's own scale most images come near 1 and little is told.

    Args:
        cosines: [N, C] of images with class prompts.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    logits = cosines.astype(np.float64) / temperature
    return 1 / np.exp(logits - logits.max(axis=1, keepdims=True)).sum(axis=1)


def energy(logits: Floats, *, temperature: float = 1.0) -> Doubles:
    """T log sum_c exp(logit_c / T), the negative free energy (Liu et al., arXiv 2010.03759, equation 4).

    Args:
        logits: [N, C], with the model's scale.

    Raises:
        ValueError: a temperature that is not positive.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    scaled = logits.astype(np.float64) / temperature
    highest = scaled.max(axis=1)
    return temperature * (highest + np.log(np.exp(scaled - highest[:, None]).sum(axis=1)))


@dataclass(frozen=True, kw_only=True)
class Mahalanobis:
    """Class means [C, D] of features and the inverse [D, D] of their common covariance (Lee et al., arXiv 1807.03888).

    `shrinkage`: the covariance is (1 - s) S + s tr(S)/D I; with fewer images than dimensions S alone has no inverse.
    """

    means: Doubles
    precision: Doubles

    @classmethod
    def fit(cls, features: Floats, labels: Ints, *, shrinkage: float = 0.1) -> Mahalanobis:
        """From features [N, D] of known images and their classes [N]; classes that do not occur have no mean.

        Raises:
            ValueError: fewer than two images, all images alike, or a shrinkage outside 0 .. 1.
        """
        if len(features) < 2 or len(labels) != len(features):
            raise ValueError(f"at least two images with a class each are needed, got {len(features)}, {len(labels)}")
        if not 0 <= shrinkage <= 1:
            raise ValueError(f"shrinkage must lie in 0 .. 1, got {shrinkage}")
        x = features.astype(np.float64)
        present, inverse = np.unique(labels, return_inverse=True)
        means = np.stack([x[inverse == number].mean(axis=0) for number in range(len(present))])
        away = x - means[inverse]
        covariance = away.T @ away / len(x)
        size = np.trace(covariance) / x.shape[1]
        if not size > 0:
            raise ValueError("the features of each class are all alike: there is no covariance")
        covariance = (1 - shrinkage) * covariance + shrinkage * size * np.eye(x.shape[1])
        return cls(means=means, precision=np.linalg.inv(covariance))

    def score(self, features: Floats) -> Doubles:
        """Minus the squared distance [N] to the nearest class mean."""
        away = features.astype(np.float64)[:, None] - self.means
        return -np.einsum("ncd,de,nce->nc", away, self.precision, away).min(axis=1)


@dataclass(frozen=True, kw_only=True)
class Separation:
    """How well a score tells known from unknown images.

    `fpr95`: the share of unknown images that are taken for known ones when 95 % of the known ones are.
    """

    auroc: float
    fpr95: float
    known: int
    unknown: int


def separation(known: Floats, unknown: Floats) -> Separation:
    """AUROC (ties count half) and FPR95 of scores that are high for known images; NaN without images on a side."""
    scores = np.concatenate([known, unknown]).astype(np.float64)
    positive = np.arange(len(scores)) < len(known)
    return Separation(
        auroc=auroc(scores, positive), fpr95=fpr_at(known, unknown, 0.95), known=len(known), unknown=len(unknown)
    )


def fpr_at(known: Floats, unknown: Floats, rate: float) -> float:
    """Share of unknown scores at or above the highest threshold that keeps at least `rate` of the known ones.

    Raises:
        ValueError: a rate outside (0, 1].
    """
    if not 0 < rate <= 1:
        raise ValueError(f"rate must lie in (0, 1], got {rate}")
    if not len(known) or not len(unknown):
        return float("nan")
    # Rounded: 0.95 of 20 is 19, which 0.95 * 20 in binary is only nearly.
    kept = int(np.ceil(round(rate * len(known), 9)))
    threshold = np.sort(known)[::-1][kept - 1]
    return float((unknown >= threshold).mean())


__all__ = ["Mahalanobis", "Separation", "energy", "fpr_at", "max_concept_matching", "separation"]
