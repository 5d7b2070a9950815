"""Ways of making one classifier of a pretrained and fine-tuned models, measured side by side on the same images."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8
from numpy.typing import NDArray
from torch import Tensor

from clip_med.config import Fraction, NonNegativeInt, PositiveInt, config
from clip_med.data.augment import eval_image
from clip_med.data.images import decode_image
from clip_med.knowledge.prompts import prompt_weights
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating, image_rows
from clip_med.models.interpolate import ModelFamily
from zero_shot.calibration import softmax
from zero_shot.classify import class_scores
from zero_shot.conditions import Condition
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.corruptions import Corruption, corrupt
from zero_shot.intervals import bootstrap_mean
from zero_shot.merging import T3Config, fine_tuned_weight, jensen_shannon
from zero_shot.metrics import top_k_accuracy
from zero_shot.prompt_features import prompt_features
from zero_shot.result import Result
from zero_shot.task_images import Labelled, ShardSets, labelled

Doubles = NDArray[np.float64]


@config
class MergeConfig:
    """Which ways of merging are compared, and on what."""

    alphas: tuple[Fraction, ...] = (0.5,)
    """WiSE-FT: weights of the fine-tuned model."""
    t3: tuple[T3Config, ...] = (
        T3Config(batch=32),
        T3Config(batch=32, weights="ft"),
        T3Config(batch=32, form="centred"),
        T3Config(batch=32, form="centred", weights="ft"),
        T3Config(),
        T3Config(weights="ft"),
        T3Config(form="centred"),
        T3Config(form="centred", weights="ft"),
    )
    corruptions: tuple[Corruption, ...] = ()
    level: PositiveInt = 3
    limit: PositiveInt | None = None
    """Images of each task; a sample-wise merge makes a model for every one of them."""
    seed: NonNegativeInt = 0

    def __post_init__(self) -> None:
        """Refuse what would be shown twice under one name."""
        names = [*map(str, self.alphas), *(one.name for one in self.t3), *self.corruptions]
        if len(set(names)) != len(names):
            raise ValueError(f"alphas, T3 settings and corruptions must be different, got {names}")


@dataclass(frozen=True, kw_only=True)
class MergeOutcome:
    """One way of merging on one task under one condition.

    `change` is the paired difference from the fine-tuned model alone; `merges` how many models were made for the task's
    images; `fine_tuned` the mean weight of the fine-tuned model.
    """

    task: str
    condition: str
    method: str
    top1: Result
    change: Result
    merges: int
    fine_tuned: float

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {**asdict(self), "top1": self.top1.to_dict(), "change": self.change.to_dict()}


class Classifiers:
    """Zero-shot classifiers of a family of models on one task, and of any model between them.

    Models 0 and 1 are the pretrained and the fine-tuned one; more take part in soups.
    """

    def __init__(self, family: ModelFamily, task: ClassificationTask, *, count: int, batch_size: int = 128) -> None:
        self.family = family
        self.task = task
        self.count = count
        self.batch_size = batch_size
        self.merges = 0

    def logits(self, weights: Sequence[float], images: UInt8[Tensor, "N 3 S S"]) -> Doubles:
        """Class scores [N, C] of the weighted sum of the models; of the ensemble "probability" logarithms of shares."""
        self.merges += 1
        encoder: DualEncoder = self.family.mix(weights)
        prompts = prompt_features(encoder, self.task.prompts)
        with evaluating(encoder):
            rows = [image_rows(encoder, part) for part in images.split(self.batch_size)]
        scale = float(encoder.logit_scale.detach().exp())
        features = torch.cat(rows).numpy()
        weighted = prompt_weights(self.task.prompts)
        scores = class_scores(features, prompts, scale=scale, ensemble=self.task.ensemble, weights=weighted)
        return np.log(scores) if self.task.ensemble == "probability" else scores

    def between(self, alpha: float, images: UInt8[Tensor, "N 3 S S"]) -> Doubles:
        """WiSE-FT: (1 - alpha) pretrained + alpha fine-tuned."""
        return self.logits((1 - alpha, alpha, *(0.0,) * (self.count - 2)), images)

    def merged(self, alphas: Doubles, images: UInt8[Tensor, "N 3 S S"]) -> Doubles:
        """Image i by the model with weight alphas[i] of the fine-tuned one; equal weights in a row share a model."""
        starts = [0, *(np.flatnonzero(np.diff(alphas)) + 1).tolist()]
        ends = [*starts[1:], len(alphas)]
        parts = [self.between(float(alphas[a]), images[a:b]) for a, b in zip(starts, ends, strict=True)]
        return np.concatenate(parts)


def compare_merges(
    family: ModelFamily,
    count: int,
    evaluation: EvalConfig,
    options: MergeConfig,
    *,
    greedy: Sequence[float] | None = None,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[MergeOutcome, ...]:
    """Every way of merging on every classification task, as it is and under every corruption.

    Methods: each of the two models; WiSE-FT; "logit ensemble", the mean of the two models' logits; "probability
    ensemble", of their shares; with more than two models the uniform soup of all but the pretrained one; T3. The
    ensembles run two models for each image and are what merging has to beat.

    Args:
        family: of `count` models: pretrained, fine-tuned, and further fine-tuned ones for the soup.
        greedy: weights of all models that `greedy_soup` chose on other images, shown as "greedy soup".

    Raises:
        ValueError: no classification task, fewer than two models, or as `labelled`.
    """
    tasks = [task for task in evaluation.tasks if isinstance(task, ClassificationTask)]
    if not tasks or count < 2:
        raise ValueError(f"a classification task and two models are needed, got {len(tasks)} and {count}")
    sets = ShardSets()
    parts = [labelled(task, sets, limit=options.limit) for task in tasks]
    conditions: list[Condition] = [None, *((kind, options.level) for kind in options.corruptions)]
    found: list[MergeOutcome] = []
    for number, part in enumerate(parts):
        classifiers = Classifiers(family, part.task, count=count, batch_size=evaluation.batch_size)
        for place, condition in enumerate(conditions):
            images = _views(family.encoder, part, condition, options.seed)
            name = "as it is" if condition is None else f"{condition[0]} {condition[1]}"
            found += _methods(classifiers, part, images, name, options, greedy)
            if on_progress is not None:
                on_progress("merging", number * len(conditions) + place + 1, len(parts) * len(conditions))
    return tuple(found)


def _methods(
    classifiers: Classifiers,
    part: Labelled,
    images: UInt8[Tensor, "N 3 S S"],
    condition: str,
    options: MergeConfig,
    greedy: Sequence[float] | None,
) -> list[MergeOutcome]:
    pretrained, tuned = (classifiers.between(alpha, images) for alpha in (0.0, 1.0))
    shares = [softmax(logits) for logits in (pretrained, tuned)]
    divergences = jensen_shannon(*shares)
    reference = top_k_accuracy(tuned, part.truth)
    groups: list[Hashable] = [*part.groups]
    found: list[MergeOutcome] = []

    def add(method: str, logits: Doubles, merges: int, fine_tuned: float) -> None:
        hits = top_k_accuracy(logits, part.truth)
        found.append(
            MergeOutcome(
                task=part.task.name,
                condition=condition,
                method=method,
                top1=bootstrap_mean(hits, name="top-1", groups=groups, seed=options.seed),
                change=bootstrap_mean(hits - reference, name="change", groups=groups, seed=options.seed),
                merges=merges,
                fine_tuned=fine_tuned,
            )
        )

    add("pretrained", pretrained, 0, 0.0)
    add("fine-tuned", tuned, 0, 1.0)
    add("logit ensemble", (pretrained + tuned) / 2, 0, 0.5)
    add("probability ensemble", (shares[0] + shares[1]) / 2, 0, 0.5)
    for alpha in options.alphas:
        add(f"WiSE-FT {alpha:g}", classifiers.between(alpha, images), 1, alpha)
    if classifiers.count > 2:
        others = classifiers.count - 1
        add("uniform soup", classifiers.logits((0.0, *(1 / others,) * others), images), 1, 1.0)
    if greedy is not None:
        add("greedy soup", classifiers.logits(greedy, images), 1, 1 - greedy[0])
    for settings in options.t3:
        alphas = fine_tuned_weight(divergences, settings)
        before = classifiers.merges
        logits = classifiers.merged(alphas, images)
        add(settings.name, logits, classifiers.merges - before, float(alphas.mean()))
    return found


def _views(encoder: DualEncoder, part: Labelled, condition: Condition, seed: int) -> UInt8[Tensor, "N 3 S S"]:
    """All images of a task as the models see them: 150 kB each at 224 pixels."""
    views: list[Tensor] = []
    for index in part.indices:
        sample = part.shards.read(index)
        pixels = decode_image(sample.image, source=sample.key)
        if condition is not None:
            pixels = corrupt(pixels, condition[0], condition[1], seed=seed, index=index)
        views.append(eval_image(pixels, encoder.preprocess))
    return torch.stack(views)


__all__ = ["Classifiers", "MergeConfig", "MergeOutcome", "compare_merges"]
