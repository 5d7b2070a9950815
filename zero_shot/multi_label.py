"""Images that have any number of labels: which they have, and how well scores tell each label's images from others."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from clip_med.data.sample import Sample
from zero_shot.intervals import bootstrap_metrics
from zero_shot.metrics import auroc
from zero_shot.result import Result
from zero_shot.sorted_scores import SortedScores

Targets = NDArray[np.bool_]


def label_targets(samples: Sequence[Sample], labels: Sequence[str]) -> Targets:
    """[N, K] which labels each sample has. A sample lists what is present: what it does not list counts as absent."""
    rows = [[label in sample.labels for label in labels] for sample in samples]
    return np.array(rows, dtype=bool).reshape(len(samples), len(labels))


def one_sided(targets: Targets, labels: Sequence[str]) -> dict[str, int]:
    """The labels that all images have or none has, with their number of images: no score tells those apart."""
    counts = targets.sum(axis=0).tolist()
    return {label: n for label, n in zip(labels, counts, strict=True) if n in (0, len(targets))}


def label_results(
    scores: NDArray[np.floating],
    targets: Targets,
    labels: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Result]:
    """Macro AUROC and AUPRC, then those of each label, with 95 % bootstrap intervals.

    AUPRC is average precision; by chance it is the share of images with the label. Labels that are `one_sided` have
    NaN and are left out of the means; so are, in a drawn set, labels of which that set has one side only.

    Args:
        scores: [N, K], of each label higher where it is likelier; labels are never compared with each other.
        targets: [N, K]; groups: [N] patients, drawn whole.
    """
    curves = [SortedScores(scores[:, k], targets[:, k]) for k in range(len(labels))]

    def of_set(rows: NDArray[np.int64]) -> list[float]:
        weights = np.bincount(rows, minlength=len(scores))
        areas, precisions = zip(*(curve.areas(weights) for curve in curves), strict=True)
        return [_mean(areas), _mean(precisions), *areas, *precisions]

    names = ["macro AUROC", "macro AUPRC", *(f"AUROC {c}" for c in labels), *(f"AUPRC {c}" for c in labels)]
    return bootstrap_metrics(of_set, names=names, n=len(scores), groups=groups, seed=seed)


def mean_auroc(scores: NDArray[np.floating], targets: Targets) -> float:
    """The macro AUROC alone, [0, 1]; arguments as in `label_results`."""
    return _mean([auroc(scores[:, k], targets[:, k]) for k in range(targets.shape[1])])


def _mean(values: Sequence[float]) -> float:
    defined = [value for value in values if not np.isnan(value)]
    return float(np.mean(defined)) if defined else float("nan")


__all__ = ["Targets", "label_results", "label_targets", "mean_auroc", "one_sided"]
