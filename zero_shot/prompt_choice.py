"""The prompts that suit a model best, chosen on validation images: one wording for all models favours some of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts, prompt_weights
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision
from zero_shot.classify import class_scores
from zero_shot.conditions import Labelled, labelled, selected
from zero_shot.config import ClassificationTask, Ensemble
from zero_shot.metrics import balanced_accuracy, confusion_matrix
from zero_shot.prompt_features import prompt_features
from zero_shot.prompt_sensitivity import TEMPLATES

Floats = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """A way to describe the classes of a task, and how its prompts become one score."""

    name: str
    prompts: ClassPrompts
    ensemble: Ensemble


@dataclass(frozen=True, kw_only=True)
class PromptChoice:
    """The prompting taken, and the balanced accuracy [0, 1] of every candidate on `n` validation images of `shards`."""

    taken: Prompting
    accuracies: dict[str, float]
    n: int
    shards: str

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        own = {"templates": list(self.taken.prompts.templates), "ensemble": self.taken.ensemble}
        chosen = {"chosen_on": self.shards, "images": self.n, "balanced_accuracy": self.accuracies}
        return {"taken": self.taken.name, **own, **chosen}


def as_configured(task: ClassificationTask) -> Prompting:
    """The task's own prompts and ensemble."""
    return Prompting(name="as configured", prompts=task.prompts, ensemble=task.ensemble)


def candidates(task: ClassificationTask) -> tuple[Prompting, ...]:
    """What is tried: the task's own prompts, each general template, and all of these together in two ways.

    The names of the classes are the task's; nothing in the list depends on a model or on data.
    """
    every = replace(task.prompts, templates=tuple(dict.fromkeys((*task.prompts.templates, *TEMPLATES))))
    single = [
        Prompting(name=template, prompts=replace(task.prompts, templates=(template,)), ensemble="embedding")
        for template in TEMPLATES
    ]
    # The best prompt alone has no weight.
    ensembles: tuple[Ensemble, ...] = ("embedding", "max") if prompt_weights(every) is None else ("embedding",)
    together = [
        Prompting(name=f"all templates, {ensemble}", prompts=every, ensemble=ensemble) for ensemble in ensembles
    ]
    return (as_configured(task), *single, *together)


def choose_prompts(
    encoder: DualEncoder, validation: Labelled, features: Floats, *, precision: Precision = "fp32"
) -> PromptChoice:
    """The candidate of highest balanced accuracy on validation images; of equal ones the first.

    Args:
        validation: images that are not those to be tested on, with their task; features: [N, D] unit rows of them.
    """
    tried = candidates(validation.task)
    accuracies: dict[str, float] = {}
    for one in tried:
        answers = prompted_scores(encoder, one, features, precision=precision).argmax(axis=1)
        counts = confusion_matrix(answers, validation.truth, len(one.prompts.classes))
        accuracies[one.name] = balanced_accuracy(counts)
    taken = max(tried, key=lambda one: accuracies[one.name])
    return PromptChoice(taken=taken, accuracies=accuracies, n=len(validation.truth), shards=validation.task.shards)


def prompted_scores(
    encoder: DualEncoder, prompting: Prompting, features: Floats, *, precision: Precision = "fp32"
) -> NDArray[np.float64]:
    """Scores [N, C] of images for the classes as `prompting` describes them; features: [N, D] unit rows."""
    parts = prompt_features(encoder, prompting.prompts, precision=precision)
    scale = float(encoder.logit_scale.detach().exp())
    weights = prompt_weights(prompting.prompts)
    return class_scores(features, parts, scale=scale, ensemble=prompting.ensemble, weights=weights)


def validation_images(task: ClassificationTask, splits: Sequence[str]) -> Labelled:
    """The images of a task in the first of several splits that has any.

    Args:
        splits: locations, or names of splits that lie beside the task's own.

    Raises:
        ValueError: a split that is the task's own data or cannot be opened, or no split with an image of the task.
    """
    for split in splits:
        own = replace(task, shards=_beside(task, split))
        if selected(ShardSet.open(own.shards), own):
            return labelled(own)
    raise ValueError(f"task {task.name}: no image of its data sets and modalities in {', '.join(splits)}")


def _beside(task: ClassificationTask, split: str) -> str:
    """shards/corpus/val for val and a task on shards/corpus/test."""
    shards = task.shards.rstrip("/")
    location = split if "/" in split else "/".join([*shards.split("/")[:-1], split])
    if location.rstrip("/") == shards:
        raise ValueError(f"task {task.name}: prompts cannot be chosen on {location}, the data of the test")
    return location


def check_apart(validation: Labelled, tested: Sequence[str]) -> None:
    """Refuse validation images that are tested on too; `tested`: keys of the test.

    Raises:
        ValueError: a key is in both.
    """
    both = sorted(set(tested) & {sample.key for sample in validation.samples})
    if both:
        raise ValueError(
            f"task {validation.task.name}: {len(both)} images are in validation and test data, the first: {both[0]}"
        )


__all__ = [
    "PromptChoice",
    "Prompting",
    "as_configured",
    "candidates",
    "check_apart",
    "choose_prompts",
    "prompted_scores",
    "validation_images",
]
