"""Labelled images of a classification task, and their features as they are and under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray

from clip_med.data.augment import eval_image
from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision, evaluating, image_rows
from zero_shot.config import ClassificationTask, EvalTask, RetrievalTask
from zero_shot.corruptions import Corruption, corrupt

Condition = tuple[Corruption, int] | None
"""A corruption and its level; None: the images as they are."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The images of a task: where they are, their metadata, and class numbers [N]."""

    task: ClassificationTask
    shards: ShardSet
    indices: tuple[int, ...]
    samples: tuple[Sample, ...]
    truth: NDArray[np.int64]

    @property
    def groups(self) -> list[str]:
        """The patient of each image."""
        return [sample.group for sample in self.samples]


def labelled(task: ClassificationTask, limit: int | None = None) -> Labelled:
    """The images of a task; with `limit` so many of them at most, spread evenly over the set.

    Raises:
        ValueError: no image, one with none or several of the classes, a limit below 1, or see `selected`; names task
            and key.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    shards = ShardSet.open(task.shards)
    chosen = selected(shards, task)
    if not chosen:
        raise ValueError(f"task {task.name}: no sample of {task.shards} is of its data sets and modalities")
    if limit is not None and limit < len(chosen):
        chosen = [chosen[number * len(chosen) // limit] for number in range(limit)]
    samples = tuple(sample for _, sample in chosen)
    return Labelled(
        task=task,
        shards=shards,
        indices=tuple(index for index, _ in chosen),
        samples=samples,
        truth=true_classes(task, samples),
    )


def true_classes(task: ClassificationTask, samples: Sequence[Sample]) -> NDArray[np.int64]:
    """[N] number of the class that each sample has among its labels.

    Raises:
        ValueError: a sample with none or several of the classes; names task and key.
    """
    numbers = {label: number for number, label in enumerate(task.prompts.classes)}
    truth = np.empty(len(samples), dtype=np.int64)
    for row, sample in enumerate(samples):
        found = [label for label in sample.labels if label in numbers]
        if len(found) != 1:
            raise ValueError(
                f"task {task.name}: sample {sample.key} has {len(found)} of the {len(numbers)} classes among its "
                f"labels {list(sample.labels)}; exactly one is needed"
            )
        truth[row] = numbers[found[0]]
    return truth


def selected(shards: ShardSet, task: EvalTask) -> list[tuple[int, Sample]]:
    """Number and metadata of every sample of a task that compares images with texts; there may be none.

    Raises:
        ValueError: a task that asks the decoder, of which only a whole evaluation knows.
    """
    if not isinstance(task, RetrievalTask) and task.score == "queries":
        raise ValueError(f"task {task.name}: score queries is known to clip-med eval only")
    every = ((index, shards.metadata(index)) for index in range(len(shards)))
    return [(index, sample) for index, sample in every if is_of(task, sample)]


def is_of(task: EvalTask, sample: Sample) -> bool:
    """Whether a sample is of the data sets and modalities of a task."""
    return (not task.datasets or sample.dataset in task.datasets) and (
        not task.modalities or sample.modality in task.modalities
    )


def condition_features(
    encoder: DualEncoder,
    images: Labelled,
    conditions: Sequence[Condition],
    *,
    seed: int = 0,
    batch_size: int = 128,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Condition, Float32[np.ndarray, "N D"]]:
    """Unit rows of all images under each condition; an image is read and decoded once for all of them.

    Raises:
        ValueError: a damaged image, or one whose feature is not finite; names its key.
    """
    found: dict[Condition, list[np.ndarray]] = {condition: [] for condition in conditions}
    total = len(images.indices)
    with evaluating(encoder, precision):
        for start in range(0, total, batch_size):
            part = images.indices[start : start + batch_size]
            samples = [images.shards.read(index) for index in part]
            decoded = [decode_image(sample.image, source=sample.key) for sample in samples]
            for condition in conditions:
                views = [
                    eval_image(
                        pixels
                        if condition is None
                        else corrupt(pixels, condition[0], condition[1], seed=seed, index=index),
                        encoder.preprocess,
                    )
                    for pixels, index in zip(decoded, part, strict=True)
                ]
                rows = image_rows(encoder, torch.stack(views)).numpy()
                if not np.isfinite(rows).all():
                    wrong = samples[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
                    raise ValueError(f"{wrong.key}: the image feature is not finite ({condition or 'as it is'})")
                found[condition].append(rows)
            if on_progress is not None:
                on_progress(min(start + batch_size, total), total)
    return {condition: np.concatenate(rows) for condition, rows in found.items()}


__all__ = ["Condition", "Labelled", "condition_features", "is_of", "labelled", "selected", "true_classes"]
