"""How much of a zero-shot result is the wording of its prompts."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.classify import class_scores
from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import top_k_accuracy
from zero_shot.result import Result

# Wordings that fit any class of any modality.
TEMPLATES: Final = (
    "{}",
    "An image of {}.",
    "A medical image showing {}.",
    "This image shows {}.",
    "Findings consistent with {}.",
    "Diagnosis: {}.",
)


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Top-1 of each template, and of all together; `spread` is the best less the worst template.

    `changed` is the share of images whose answer differs between two templates, the mean over all pairs.
    """

    templates: tuple[Result, ...]
    together: Result
    spread: float
    changed: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {
            "templates": [result.to_dict() for result in self.templates],
            "together": self.together.to_dict(),
            "spread": self.spread,
            "changed": self.changed,
        }


def prompt_sensitivity(
    features: NDArray[np.floating],
    labels: NDArray[np.integer],
    prompts: Sequence[Sequence[NDArray[np.floating]]],
    *,
    names: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> Sensitivity:
    """Classify by each template alone, and by the ensemble of all.

    The best template of a test set is chosen by its labels: it is no result of the model.

    Args:
        features: [N, D] unit rows; labels: [N] classes; prompts: per template, per class, [P, D] unit rows.
        names: the templates.

    Raises:
        ValueError: fewer than two templates, or another number of names.
    """
    if len(prompts) < 2 or len(names) != len(prompts):
        raise ValueError(f"at least two templates with a name each are needed, got {len(prompts)} and {len(names)}")

    def scored(per_class: Sequence[NDArray[np.floating]], name: str) -> tuple[NDArray[np.int64], Result]:
        scores = class_scores(features, per_class)
        hits = top_k_accuracy(scores, labels)
        return scores.argmax(axis=1), bootstrap_mean(hits, name=name, groups=groups, seed=seed)

    outcomes = [scored(per_class, name) for per_class, name in zip(prompts, names, strict=True)]
    values = [result.value for _, result in outcomes]
    answers = [answer for answer, _ in outcomes]
    together = [np.concatenate([template[c] for template in prompts]) for c in range(len(prompts[0]))]
    return Sensitivity(
        templates=tuple(result for _, result in outcomes),
        together=scored(together, "all templates")[1],
        spread=max(values) - min(values),
        changed=float(np.mean([(a != b).mean() for a, b in combinations(answers, 2)])),
    )


__all__ = ["TEMPLATES", "Sensitivity", "prompt_sensitivity"]
