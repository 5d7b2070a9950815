"""Zero-shot classification on features: class scores from prompt ensembles, and metrics with intervals."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from zero_shot.config import Ensemble
from zero_shot.intervals import bootstrap_mean, bootstrap_metrics
from zero_shot.metrics import (
    auroc,
    balanced_accuracy,
    confusion_matrix,
    macro_auroc,
    macro_f1,
    quadratic_kappa,
    sensitivity_at_specificity,
    top_k_accuracy,
)
from zero_shot.result import Result

Floats = NDArray[np.floating]


def class_scores(
    image_features: Floats,
    prompt_features: Sequence[Floats],
    *,
    scale: float = 100.0,
    ensemble: Ensemble = "embedding",
    weights: Sequence[Sequence[float]] | None = None,
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
        weights: of each class's prompts, above 0, in the means of embeddings and logits; None: all alike.

    Raises:
        ValueError: a class without prompts, unequal numbers of prompts for `probability`, or weights for it or `max`.
    """
    if not prompt_features or any(len(rows) == 0 for rows in prompt_features):
        raise ValueError("every class needs at least one prompt")
    images = image_features.astype(np.float64)
    prompts = [rows.astype(np.float64) for rows in prompt_features]
    if weights is not None and ensemble in ("max", "probability"):
        raise ValueError(f"ensemble {ensemble} has no weights of prompts; take embedding, or leave the weights out")
    match ensemble:
        case "embedding":
            return scale * images @ class_prototypes(prompts, weights).T
        case "embedding_no_renorm" | "logit":
            return scale * images @ _means(prompts, weights).T
        case "max":
            return np.stack([scale * (images @ rows.T).max(axis=1) for rows in prompts], axis=1)
        case "probability":
            if len({len(rows) for rows in prompts}) != 1:
                raise ValueError(f"probability needs equally many prompts per class, got {[len(r) for r in prompts]}")
            logits = scale * np.einsum("nd,cpd->npc", images, np.stack(prompts))
            exponentials = np.exp(logits - logits.max(axis=2, keepdims=True))
            return (exponentials / exponentials.sum(axis=2, keepdims=True)).mean(axis=1)


def class_prototypes(
    prompt_features: Sequence[Floats], weights: Sequence[Sequence[float]] | None = None
) -> NDArray[np.float64]:
    """Unit rows [C, D]: the direction of each class's (weighted) mean prompt, which `embedding` compares with."""
    means = _means([rows.astype(np.float64) for rows in prompt_features], weights)
    return means / np.linalg.norm(means, axis=1, keepdims=True)


def _means(prompts: Sequence[NDArray[np.float64]], weights: Sequence[Sequence[float]] | None) -> NDArray[np.float64]:
    if weights is None:
        return np.stack([rows.mean(axis=0) for rows in prompts])
    return np.stack([np.average(rows, axis=0, weights=own) for rows, own in zip(prompts, weights, strict=True)])


def classification_results(
    scores: Floats,
    labels: NDArray[np.integer],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    ordinal: bool = False,
    positive: int | None = None,
    specificity: float = 0.9,
) -> list[Result]:
    """Top-1 accuracy, balanced accuracy, macro F1 and macro AUROC with 95 % bootstrap intervals, and what was asked.

    With more than five classes also top-5.

    Args:
        scores: [N, C]; labels: [N] class numbers; groups: [N] patients, drawn whole.
        ordinal: the classes are grades in their order: also quadratic kappa.
        positive: of two classes the one that is looked for: also its AUROC and its sensitivity at `specificity`, by the
            difference of the two scores, as by their softmax; the threshold is chosen anew on each drawn set.

    Raises:
        ValueError: labels outside 0 .. C - 1, no images, or `positive` with other than two classes.
    """
    if len(labels) == 0:
        raise ValueError("no images to evaluate")
    classes = scores.shape[1]
    if positive is not None and (classes != 2 or positive not in (0, 1)):
        raise ValueError(f"positive must be 0 or 1, of two classes; got {positive} of {classes}")
    predicted = scores.argmax(axis=1)
    of_confusion: dict[str, Callable[[NDArray[np.int64]], float]] = {
        "balanced accuracy": balanced_accuracy,
        "macro F1": macro_f1,
    }
    if ordinal:
        of_confusion["quadratic kappa"] = quadratic_kappa
    names = [*of_confusion, "macro AUROC"]
    if positive is not None:
        names += ["AUROC", sensitivity_name(specificity)]

    def of_set(rows: NDArray[np.int64]) -> list[float]:
        confusion = confusion_matrix(predicted[rows], labels[rows], classes)
        values = [metric(confusion) for metric in of_confusion.values()]
        values.append(macro_auroc(scores[rows], labels[rows]))
        if positive is not None:
            margin = scores[rows, positive] - scores[rows, 1 - positive]
            found = labels[rows] == positive
            values += [auroc(margin, found), sensitivity_at_specificity(margin, found, specificity)]
        return values

    return [
        *(
            bootstrap_mean(top_k_accuracy(scores, labels, k), name=f"top-{k}", groups=groups, seed=seed)
            for k in (1, 5)
            if k == 1 or classes > k
        ),
        *bootstrap_metrics(of_set, names=names, n=len(labels), groups=groups, seed=seed),
    ]


def sensitivity_name(specificity: float) -> str:
    """`sensitivity at specificity 0.9`."""
    return f"sensitivity at specificity {specificity:g}"


__all__ = ["class_prototypes", "class_scores", "classification_results", "sensitivity_name"]
