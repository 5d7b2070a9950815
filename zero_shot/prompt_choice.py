"""The prompts that suit a model best, chosen on validation images: one wording for all models favours some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray

from clip_med.knowledge.prompts import prompt_weights
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision
from zero_shot.config import ClassificationTask, Ensemble, MultiLabelTask
from zero_shot.findings import finding_scores
from zero_shot.metrics import balanced_accuracy, confusion_matrix
from zero_shot.multi_label import mean_auroc, one_sided
from zero_shot.prompt_features import Known, prompted_scores
from zero_shot.prompt_sensitivity import TEMPLATES
from zero_shot.task_images import Labelled, TaskImages, finding_targets

Floats = NDArray[np.floating]
Prompted = ClassificationTask | MultiLabelTask

# What denies a finding in each general wording; a name may begin with an article.
DENIALS: Final = (
    "no {}",
    "An image without {}.",
    "A medical image not showing {}.",
    "This image does not show {}.",
    "Findings not consistent with {}.",
    "Diagnosis: no {}.",
)


@dataclass(frozen=True, kw_only=True)
class Prompting:
    """A way to describe the classes or findings of a task: the task with these prompts and this ensemble."""

    name: str
    task: Prompted


@dataclass(frozen=True, kw_only=True)
class PromptChoice:
    """The prompting taken, and the `measure` [0, 1] of every candidate on `n` validation images of `shards`.

    `left_out`: findings that all validation images have or none has, with their images; no candidate was judged by
    these.
    """

    taken: Prompting
    measure: str
    values: dict[str, float]
    n: int
    shards: str
    left_out: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        task = self.taken.task
        own: dict[str, Any] = {"taken": self.taken.name, "templates": list(task.prompts.templates)}
        if isinstance(task, MultiLabelTask):
            own["absent_templates"] = None if task.absent is None else list(task.absent.templates)
            own["left_out"] = dict(self.left_out)
        chosen = {"chosen_on": self.shards, "images": self.n, "measure": self.measure, "values": self.values}
        return {**own, "ensemble": task.ensemble, **chosen}


def candidates(task: Prompted) -> tuple[Prompting, ...]:
    """What is tried: the task's own prompts, each general template, and all of these together in two ways.

    Of findings each template goes with what denies it. The names of classes are the task's; nothing in the list depends
    on a model or on data.
    """
    every = _together(task)
    single = [
        Prompting(name=told, task=_worded(task, (told,), (denied,), "embedding"))
        for told, denied in zip(TEMPLATES, DENIALS, strict=True)
    ]
    # The best prompt alone has no weight.
    weights = prompt_weights(task.prompts) if isinstance(task, ClassificationTask) else task.weights()
    ensembles: tuple[Ensemble, ...] = ("embedding", "max") if weights is None else ("embedding",)
    together = [Prompting(name=f"all templates, {one}", task=replace(every, ensemble=one)) for one in ensembles]
    return (Prompting(name="as configured", task=task), *single, *together)


def choose_prompts(
    encoder: DualEncoder,
    validation: TaskImages,
    features: Floats,
    *,
    precision: Precision = "fp32",
    known: Known | None = None,
) -> PromptChoice:
    """The candidate best on validation images by balanced accuracy (findings: macro AUROC); of equal ones the first.

    Args:
        validation: images that are not those to be tested on, with their task; features: [N, D] unit rows of them.
        known: features of texts, see `grouped_text_features`.
    """
    task = validation.task
    tried = candidates(cast(Prompted, task))
    known = {} if known is None else known
    values: dict[str, float] = {}
    left_out: dict[str, int] = {}
    if isinstance(task, MultiLabelTask):
        measure, targets = "macro AUROC", finding_targets(task, validation.samples)
        left_out = one_sided(targets, list(task.prompts.classes))
        for one in tried:
            assert isinstance(one.task, MultiLabelTask)
            scores = finding_scores(encoder, one.task, features, precision=precision, known=known)[0]
            values[one.name] = mean_auroc(scores, targets)
    else:
        assert isinstance(validation, Labelled), "of retrieval there is nothing to choose"
        measure = "balanced accuracy"
        for one in tried:
            assert isinstance(one.task, ClassificationTask)
            scores = prompted_scores(encoder, one.task, features, precision=precision, known=known)
            counts = confusion_matrix(scores.argmax(axis=1), validation.truth, scores.shape[1])
            values[one.name] = balanced_accuracy(counts)
    taken = max(tried, key=lambda one: values[one.name])
    return PromptChoice(
        taken=taken, measure=measure, values=values, n=len(features), shards=task.shards, left_out=left_out
    )


def _together(task: Prompted) -> Prompted:
    """The task with its own and all general templates."""
    told = tuple(dict.fromkeys((*task.prompts.templates, *TEMPLATES)))
    own = task.absent.templates if isinstance(task, MultiLabelTask) and task.absent is not None else ()
    return _worded(task, told, tuple(dict.fromkeys((*own, *DENIALS))), "embedding")


def _worded(task: Prompted, told: tuple[str, ...], denied: tuple[str, ...], ensemble: Ensemble) -> Prompted:
    """The task in other templates; where the knowledge base denies findings, or nothing does, `denied` goes unused."""
    prompts = replace(task.prompts, templates=told)
    if isinstance(task, MultiLabelTask) and task.absent is not None:
        absent = replace(task.absent, templates=denied)
        return replace(task, prompts=prompts, absent=absent, ensemble=ensemble)
    return replace(task, prompts=prompts, ensemble=ensemble)


__all__ = ["DENIALS", "PromptChoice", "Prompting", "candidates", "choose_prompts"]
