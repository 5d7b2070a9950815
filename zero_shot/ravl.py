"""Regions that a model leans on although they have nothing to do with the class: RaVL's discovery.

Varma et al., arXiv 2411.04097; where paper and released code differ we follow the code. In NumPy, in double precision.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Float, Float64, Int
from numpy.typing import NDArray

# Distances between all pairs of regions stand in memory: 0.8 GB for so many.
MAX_REGIONS: Final = 10_000

Doubles = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class ClassGap:
    """Accuracy on images of a class with and without a region of the cluster, and the balanced gap between them.

    `gap` = 2 min(n_in, n_out) / (n_in + n_out) (accuracy in - accuracy out), in [-1, 1]; 0 where a side is empty.
    """

    label: int
    n_in: int
    n_out: int
    accuracy_in: float
    accuracy_out: float
    gap: float


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """A cluster of regions that helps some classes and harms others.

    `influence`: among misclassified images with a region in the cluster, the share whose best region for the wrong
    answer is one of them; the highest over the classes that the cluster harms. `score` = sum of |gap| over classes.
    """

    number: int
    medoid: int
    regions: tuple[int, ...]
    gaps: tuple[ClassGap, ...]
    influence: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Discovery:
    """All clusters of a set of regions: which one each region is in, the silhouette, and those that were flagged."""

    assignment: NDArray[np.int64]
    clusters: int
    silhouette: float
    flagged: tuple[Cluster, ...]


def discover(
    regions: Float[np.ndarray, "R D"],
    image_of: Int[np.ndarray, " R"],
    labels: Int[np.ndarray, " N"],
    predicted: Int[np.ndarray, " N"],
    class_features: Float[np.ndarray, "C D"],
    *,
    least_influence: float = 0.25,
    counts: Sequence[int] | None = None,
    seed: int = 0,
) -> Discovery:
    """Cluster regions by k-medoids, k by silhouette, and flag clusters that help some classes and harm others.

    Flagged are clusters with gaps of both signs and an influence of at least `least_influence`, by falling score. No
    flagged cluster is an answer too.

    Args:
        regions: unit rows; image_of: the image 0 .. N - 1 of each.
        labels, predicted: true and predicted class of each image; class_features: unit rows of the class prompts.
        counts: numbers of clusters to try; the code's 2C .. 5C - 1 by default, below the number of regions.

    Raises:
        ValueError: too few or too many regions, or numbers of images or classes that do not fit.
    """
    classes = len(class_features)
    if not 3 <= len(regions) <= MAX_REGIONS:
        raise ValueError(
            f"3 .. {MAX_REGIONS} regions can be clustered, got {len(regions)}: take a sample of the images"
        )
    if len(labels) != len(predicted) or (len(image_of) and not 0 <= image_of.min() <= image_of.max() < len(labels)):
        raise ValueError(f"image_of must lie in 0 .. {len(labels) - 1}, with a label and an answer for each image")
    if max(labels.max(), predicted.max()) >= classes or min(labels.min(), predicted.min()) < 0:
        raise ValueError(f"labels and answers must lie in 0 .. {classes - 1}")
    tried = [k for k in (counts or range(2 * classes, 5 * classes)) if 2 <= k < len(regions)]
    if not tried:
        raise ValueError(f"{len(regions)} regions are too few for {counts or f'{2 * classes} or more'} clusters")
    rows = regions.astype(np.float64)
    distances = cosine_distances(rows)
    found = [(silhouette(distances, a), a, m) for a, m in (k_medoids(distances, k, seed=seed) for k in tried)]
    best, assignment, medoids = max(found, key=lambda one: one[0])
    inside = np.zeros((len(labels), len(medoids)), dtype=bool)
    inside[image_of, assignment] = True
    answers = rows @ class_features.astype(np.float64).T
    flagged: list[Cluster] = []
    for number, medoid in enumerate(medoids.tolist()):
        gaps = tuple(_gap(label, inside[:, number], labels, predicted) for label in range(classes))
        if not (any(g.gap > 0 for g in gaps) and any(g.gap < 0 for g in gaps)):
            continue
        harmed = [g.label for g in gaps if g.gap < 0]
        influence = max(
            _influence(label, number, inside[:, number], labels, predicted, image_of, assignment, answers)
            for label in harmed
        )
        if influence >= least_influence:
            flagged.append(
                Cluster(
                    number=number,
                    medoid=medoid,
                    regions=tuple(np.flatnonzero(assignment == number).tolist()),
                    gaps=gaps,
                    influence=influence,
                    score=sum(abs(g.gap) for g in gaps),
                )
            )
    flagged.sort(key=lambda cluster: -cluster.score)
    return Discovery(assignment=assignment, clusters=len(medoids), silhouette=best, flagged=tuple(flagged))


def cosine_distances(rows: Float[np.ndarray, "R D"]) -> Float64[np.ndarray, "R R"]:
    """1 - cosine of all pairs of unit rows, cut to [0, 1]: what points apart is at most as far as what is unrelated."""
    distances = np.clip(1 - rows.astype(np.float64) @ rows.astype(np.float64).T, 0, 1)
    np.fill_diagonal(distances, 0)
    return distances


def k_medoids(distances: Float[np.ndarray, "R R"], k: int, *, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Cluster of every item [R] and the item in each cluster's middle [k], by alternating until nothing changes.

    The first medoids are drawn as in k-means++ (Arthur and Vassilvitskii 2007). Items that coincide can leave fewer
    than k clusters. The sum of distances to the medoids never rises.

    Raises:
        ValueError: k outside 1 .. R.
    """
    if not 1 <= k <= len(distances):
        raise ValueError(f"k must lie in 1 .. {len(distances)}, got {k}")
    rng = np.random.default_rng((seed, k))
    chosen = [int(rng.integers(len(distances)))]
    while len(chosen) < k:
        squared = distances[:, chosen].min(axis=1) ** 2
        if not squared.sum() > 0:
            break
        chosen.append(int(rng.choice(len(distances), p=squared / squared.sum())))
    medoids = np.array(chosen, dtype=np.int64)
    while True:
        assignment = distances[:, medoids].argmin(axis=1)
        assignment[medoids] = np.arange(len(medoids))
        moved = medoids.copy()
        for number in range(len(medoids)):
            own = np.flatnonzero(assignment == number)
            sums = distances[np.ix_(own, own)].sum(axis=0)
            current = sums[own == medoids[number]][0]
            # Only a real gain moves it: two items that are equally good would change places for ever.
            if sums.min() < current - 1e-12:
                moved[number] = own[sums.argmin()]
        if np.array_equal(moved, medoids):
            return assignment.astype(np.int64), medoids
        medoids = moved


def silhouette(distances: Float[np.ndarray, "R R"], assignment: Int[np.ndarray, " R"]) -> float:
    """Mean of (b - a) / max(a, b): a to the own cluster, b to the nearest other (Rousseeuw 1987); 0 for single items.

    -1 where there is one cluster only.
    """
    clusters = int(assignment.max()) + 1
    member = np.eye(clusters)[assignment]
    sizes = member.sum(axis=0)
    if (sizes > 0).sum() < 2:
        return -1.0
    sums = distances @ member
    rows = np.arange(len(distances))
    own_size = sizes[assignment]
    a = sums[rows, assignment] / np.maximum(own_size - 1, 1)
    others = np.where(sizes > 0, sums / np.maximum(sizes, 1), np.inf)
    others[rows, assignment] = np.inf
    b = others.min(axis=1)
    larger = np.maximum(a, b)
    values = np.divide(b - a, larger, out=np.zeros(len(a)), where=larger > 0)
    return float(np.where(own_size > 1, values, 0.0).mean())


def _gap(
    label: int, inside: NDArray[np.bool_], labels: NDArray[np.integer], predicted: NDArray[np.integer]
) -> ClassGap:
    own, right = labels == label, labels == predicted
    n_in, n_out = int((own & inside).sum()), int((own & ~inside).sum())
    accuracy_in, accuracy_out = (
        float(right[own & side].mean()) if n else float("nan") for side, n in ((inside, n_in), (~inside, n_out))
    )
    gap = 2 * min(n_in, n_out) / (n_in + n_out) * (accuracy_in - accuracy_out) if n_in and n_out else 0.0
    return ClassGap(label=label, n_in=n_in, n_out=n_out, accuracy_in=accuracy_in, accuracy_out=accuracy_out, gap=gap)


def _influence(
    label: int,
    number: int,
    inside: NDArray[np.bool_],
    labels: NDArray[np.integer],
    predicted: NDArray[np.integer],
    image_of: NDArray[np.integer],
    assignment: NDArray[np.int64],
    answers: Doubles,
) -> float:
    """Share of wrong images of a class, with a region in the cluster and others, that are led by the cluster."""
    led: list[bool] = []
    for image in np.flatnonzero((labels == label) & (predicted != labels) & inside):
        own = np.flatnonzero(image_of == image)
        if len(own) > 1:
            led.append(bool(assignment[own[answers[own, predicted[image]].argmax()]] == number))
    return float(np.mean(led)) if led else 0.0


__all__ = ["MAX_REGIONS", "ClassGap", "Cluster", "Discovery", "cosine_distances", "discover", "k_medoids", "silhouette"]
