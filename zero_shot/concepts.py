"""Classifiers whose every input is the score of a named concept, so that each answer can be read and corrected.

Concept bottleneck on a frozen encoder (Yan et al., arXiv 2310.03182; LaBo, arXiv 2211.11158): scores s = v A^T of
images v against concept texts A, standardised by the training set, and a sparse linear head on them. In doubles.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import top_k_accuracy
from zero_shot.result import Result

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.integer]


@dataclass(frozen=True, kw_only=True)
class Bottleneck:
    """y = W z + b on standardised concept scores z = (v A^T - mean) / std.

    Attributes:
        concepts: [M, D] unit rows; mean, std: [M] of the training scores; weight: [C, M]; bias: [C].
        violation: how far the head is from the optimum (the largest violation of the optimality conditions).
    """

    concepts: Doubles
    mean: Doubles
    std: Doubles
    weight: Doubles
    bias: Doubles
    violation: float = 0.0

    def scores(self, images: Floats) -> Doubles:
        """Standardised concept scores [N, M] of unit rows [N, D]."""
        return (images.astype(np.float64) @ self.concepts.T - self.mean) / self.std

    def logits(self, scores: Floats) -> Doubles:
        """Class scores [N, C] from standardised concept scores."""
        return scores @ self.weight.T + self.bias

    @property
    def used(self) -> int:
        """How many concepts have a weight other than zero for some class."""
        return int((self.weight != 0).any(axis=0).sum())


def concept_mean(concepts: Floats, owner: Sequence[int]) -> Bottleneck:
    """The head without training: a class scores the mean cosine of its own concepts.

    Equal to zero-shot classification with the ensemble "logit" (`zero_shot.classify.class_scores`) at scale 1.

    Args:
        concepts: [M, D] unit rows; owner: class 0 .. C - 1 of each, every class at least once.

    Raises:
        ValueError: unequal lengths, or a class without concepts.
    """
    numbers = np.asarray(owner, dtype=np.int64)
    counts = np.bincount(numbers) if len(numbers) else np.zeros(0, dtype=np.int64)
    if numbers.shape != (len(concepts),) or not len(counts) or not counts.all():
        raise ValueError(f"{len(concepts)} concepts need a class each, and every class one; got {counts.tolist()}")
    weight = (np.arange(len(counts))[:, None] == numbers) / counts[:, None]
    still = np.zeros(len(concepts))
    return Bottleneck(
        concepts=concepts.astype(np.float64), mean=still, std=still + 1, weight=weight, bias=np.zeros(len(counts))
    )


def fit(
    images: Floats,
    labels: Ints,
    concepts: Floats,
    *,
    classes: int,
    l1: float = 1e-3,
    l2: float = 1e-4,
    tolerance: float = 1e-6,
    max_iterations: int = 20_000,
) -> Bottleneck:
    """A sparse head by accelerated proximal gradient steps (FISTA, Beck and Teboulle 2009, with restarts).

    Minimises mean cross-entropy + l1 sum |W| + l2/2 sum W^2, an elastic net on the weights; the bias is free. The step
    is 1/L with L = |[z, 1]|^2 / (2 N) + l2, since the Hessian of the cross-entropy in the logits is at most 1/2. A
    concept with the same score on every training image gets std 1, and so weight 0. LaBo bounds the row-wise L1 norm
    instead; we take the plain sum, whose optimum can be checked.

    Args:
        images: [N, D] unit rows; labels: [N] 0 .. classes - 1; concepts: [M, D] unit rows.
        tolerance: the largest violation of the optimality conditions at which steps end.

    Raises:
        ValueError: no images, labels out of range, negative penalties, or no optimum within `max_iterations`.
    """
    if not len(images) or len(labels) != len(images) or classes < 2:
        raise ValueError(
            f"images [N, D] and labels [N] of at least two classes are needed, got {images.shape}, {labels.shape} and "
            f"{classes} classes"
        )
    if labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"labels must lie in 0 .. {classes - 1}, got {labels.min()} .. {labels.max()}")
    if l1 < 0 or l2 < 0:
        raise ValueError(f"l1 and l2 must be at least 0, got {l1} and {l2}")
    texts = concepts.astype(np.float64)
    raw = images.astype(np.float64) @ texts.T
    mean, spread = raw.mean(axis=0), raw.std(axis=0)
    std = np.where(spread > 1e-12, spread, 1.0)
    z = np.hstack([(raw - mean) / std, np.ones((len(raw), 1))])
    head, violation = _elastic_net(z, np.eye(classes)[labels], l1, l2, tolerance, max_iterations)
    return Bottleneck(
        concepts=texts, mean=mean, std=std, weight=head[:, :-1], bias=head[:, -1], violation=float(violation)
    )


def intervene(scores: Floats, concept: int, value: float) -> Doubles:
    """Standardised scores [N, M] with one concept set by hand; class c then changes by W_cm (value - old)."""
    changed = scores.astype(np.float64)
    changed[:, concept] = value
    return changed


def contributions(model: Bottleneck, scores: Floats, answer: int) -> Doubles:
    """What each concept adds to the score of a class, [N, M]; their sum and the bias are the class score."""
    return scores * model.weight[answer]


def permuted(model: Bottleneck, order: Sequence[int]) -> Bottleneck:
    """The same classifier with its concepts in another order."""
    rows = list(order)
    return replace(
        model,
        concepts=model.concepts[rows],
        mean=model.mean[rows],
        std=model.std[rows],
        weight=model.weight[:, rows],
    )


def random_concepts(count: int, dimension: int, seed: int) -> Doubles:
    """Unit rows [count, dimension] in uniform directions, the control for concepts that should mean something."""
    rows = np.random.default_rng(seed).standard_normal((count, dimension))
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def against_random(
    train: tuple[Floats, Ints],
    test: tuple[Floats, Ints],
    concepts: Floats,
    *,
    classes: int,
    groups: Sequence[Hashable] | None = None,
    draws: int = 3,
    seed: int = 0,
    l1: float = 1e-3,
    l2: float = 1e-4,
) -> tuple[Bottleneck, list[Result]]:
    """A fitted bottleneck, its top-1, that of as many random concepts, and the paired difference, with intervals.

    With M at least D, random directions span the whole feature space and do as well as any concepts: a high accuracy
    alone says nothing about the concepts.

    Args:
        train, test: unit rows and labels; draws: sets of random concepts, averaged image by image.

    Raises:
        ValueError: as `fit`; or no draw.
    """
    if draws < 1:
        raise ValueError(f"draws must be at least 1, got {draws}")

    def hits(model: Bottleneck) -> Doubles:
        return top_k_accuracy(model.logits(model.scores(test[0])), test[1])

    model = fit(*train, concepts, classes=classes, l1=l1, l2=l2)
    own = hits(model)
    others = [
        hits(fit(*train, random_concepts(*concepts.shape, seed=seed + draw), classes=classes, l1=l1, l2=l2))
        for draw in range(draws)
    ]
    random = np.mean(others, axis=0)
    named = [("concepts: top-1", own), ("random concepts: top-1", random), ("difference", own - random)]
    return model, [bootstrap_mean(values, name=name, groups=groups, seed=seed) for name, values in named]


def _elastic_net(
    z: Doubles, targets: Doubles, l1: float, l2: float, tolerance: float, max_iterations: int
) -> tuple[Doubles, float]:
    """[C, M + 1] with the bias in the last column, and the remaining violation."""
    count = len(z)
    penalised = np.ones(z.shape[1])
    penalised[-1] = 0.0
    step = 1 / (np.linalg.norm(z, 2) ** 2 / (2 * count) + l2)
    head = np.zeros((targets.shape[1], z.shape[1]))
    ahead, momentum = head, 1.0

    def gradient(at: Doubles) -> Doubles:
        logits = z @ at.T
        shares = np.exp(logits - logits.max(axis=1, keepdims=True))
        shares /= shares.sum(axis=1, keepdims=True)
        return (shares - targets).T @ z / count + l2 * penalised * at

    violation = np.inf
    for iteration in range(max_iterations):
        moved = ahead - step * gradient(ahead)
        new = np.sign(moved) * np.maximum(np.abs(moved) - step * l1 * penalised, 0.0)
        if ((ahead - new) * (new - head)).sum() > 0:
            # Momentum points uphill (O'Donoghue and Candes 2015).
            ahead, momentum = new, 1.0
        else:
            following = (1 + np.sqrt(1 + 4 * momentum**2)) / 2
            ahead, momentum = new + (momentum - 1) / following * (new - head), following
        head = new
        if iteration % 10 == 0:
            violation = _violation(head, gradient(head), l1 * penalised)
            if violation <= tolerance:
                return head, violation
    raise ValueError(
        f"the sparse head has not converged in {max_iterations} steps (violation {violation:.1e}, "
        f"asked {tolerance:g}); raise l2 or max_iterations"
    )


def _violation(head: Doubles, slope: Doubles, l1: Doubles) -> float:
    """0 at the optimum: the slope is -l1 sign(w) where w is not zero, and within l1 where it is."""
    away = np.where(head != 0, np.abs(slope + l1 * np.sign(head)), np.maximum(np.abs(slope) - l1, 0.0))
    return float(away.max())


__all__ = [
    "Bottleneck",
    "against_random",
    "concept_mean",
    "contributions",
    "fit",
    "intervene",
    "permuted",
    "random_concepts",
]
