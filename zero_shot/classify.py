"""Zero-shot classification on features: class scores from prompt ensembles, and metrics with intervals."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import balanced_accuracy, confusion_matrix, macro_auroc, macro_f1, top_k_accuracy
from zero_shot.result import Result

Ensemble = Literal["embedding", "embedding_no_renorm", "logit", "probability", "max"]
Floats = NDArray[np.floating]


def class_scores(
    image_features: Floats, prompt_features: Sequence[Floats], *, scale: float = 100.0, ensemble: Ensemble = "embedding"
) -> NDArray[np.float64]:
    """Scores [N, C] of images for classes that are each described by several prompts.

    - embedding: cosine with the renormalised mean of the prompt embeddings (Radford et al., arXiv 2103.00020)
    - embedding_no_renorm: with the plain mean (FLAIR); its length, at most 1, acts as a hidden class prior
    - logit: mean over prompts of the cosines; equal to embedding_no_renorm
    - probability: mean over prompts of the softmax over classes, prompt i of each class against prompt i of the others;
      needs equally many prompts per class
    - max: the best prompt's cosine (MedCLIP)

    All but `probability` are cosines times `scale`. With one prompt per class all rank alike.

    Args:
        image_features: [N, D] unit rows.
        prompt_features: per class [P_c, D] unit rows, P_c at least 1.
        scale: the model's exponentiated logit scale.

    Raises:
        ValueError: a class without prompts, or unequal numbers of prompts for `probability`.
    """
    if not prompt_features or any(len(rows) == 0 for rows in prompt_features):
        raise ValueError("every class needs at least one prompt")
    images = image_features.astype(np.float64)
    prompts = [rows.astype(np.float64) for rows in prompt_features]
    match ensemble:
        case "embedding":
            means = np.stack([rows.mean(axis=0) for rows in prompts])
            return scale * images @ (means / np.linalg.norm(means, axis=1, keepdims=True)).T
        case "embedding_no_renorm" | "logit":
            return scale * images @ np.stack([rows.mean(axis=0) for rows in prompts]).T
        case "max":
            return np.stack([scale * (images @ rows.T).max(axis=1) for rows in prompts], axis=1)
        case "probability":
            if len({len(rows) for rows in prompts}) != 1:
                raise ValueError(f"probability needs equally many prompts per class, got {[len(r) for r in prompts]}")
            logits = scale * np.einsum("nd,cpd->npc", images, np.stack(prompts))
            exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
            return (exponentials / exponentials.sum(axis=2, keepdims=True)).mean(axis=1)


def classification_results(
    scores: Floats, labels: NDArray[np.integer], *, groups: Sequence[Hashable] | None = None, seed: int = 0
) -> list[Result]:
    """Top-1 accuracy, balanced accuracy, macro F1 and macro AUROC with 95 % bootstrap intervals.

    Args:
        scores: [N, C]; labels: [N] class numbers; groups: [N] patients, drawn whole.

    Raises:
        ValueError: labels outside 0 .. C - 1, or no images.
    """
    if len(labels) == 0:
        raise ValueError("no images to evaluate")
    classes = scores.shape[1]
    units = list(range(len(labels))) if groups is None else list(groups)
    members: dict[Hashable, list[int]] = {}
    for index, unit in enumerate(units):
        members.setdefault(unit, []).append(index)
    rows = [np.array(indices) for indices in members.values()]
    rng = np.random.default_rng(seed)
    predicted = scores.argmax(axis=1)
    drawn: list[tuple[float, float, float]] = []
    # 500 sets: an end of the interval then has a standard error of sqrt(.025 * .975 / 500) / .058 = 0.12 of the
    # metric's own (normal approximation), 3 % of the interval's width.
    for _ in range(500):
        chosen = np.concatenate([rows[i] for i in rng.integers(0, len(rows), len(rows))])
        drawn.append(_set_metrics(scores[chosen], predicted[chosen], labels[chosen], classes))
    whole = _set_metrics(scores, predicted, labels, classes)
    results = [bootstrap_mean(top_k_accuracy(scores, labels), name="top-1", groups=groups, seed=seed)]
    for position, name in enumerate(("balanced accuracy", "macro F1", "macro AUROC")):
        defined = np.array([values[position] for values in drawn])
        defined = defined[~np.isnan(defined)]
        low, high = np.quantile(defined, [0.025, 0.975]) if len(defined) else (np.nan, np.nan)
        results.append(
            Result(name=name, value=whole[position], low=float(low), high=float(high), n=len(labels), unit="fraction")
        )
    return results


def _set_metrics(
    scores: Floats, predicted: NDArray[np.integer], labels: NDArray[np.integer], classes: int
) -> tuple[float, float, float]:
    confusion = confusion_matrix(predicted, labels, classes)
    return balanced_accuracy(confusion), macro_f1(confusion), macro_auroc(scores, labels)


__all__ = ["Ensemble", "class_scores", "classification_results"]
