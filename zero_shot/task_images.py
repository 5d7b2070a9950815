"""The images of a task, without their pixels: where they are, and what their metadata says is right."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from zero_shot.config import ClassificationTask, EvalTask, MultiLabelTask, RetrievalTask
from zero_shot.multi_label import Targets, label_targets, one_sided


@dataclass(frozen=True, kw_only=True)
class TaskImages:
    """The images of a task: where they are, and their metadata."""

    task: EvalTask
    shards: ShardSet
    indices: tuple[int, ...]
    samples: tuple[Sample, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The key of each image."""
        return tuple(sample.key for sample in self.samples)

    @property
    def groups(self) -> list[str]:
        """The patient of each image."""
        return [sample.group for sample in self.samples]


@dataclass(frozen=True, kw_only=True)
class Labelled(TaskImages):
    """The images of a classification task, with class numbers [N]."""

    task: ClassificationTask
    truth: NDArray[np.int64]


class ShardSets:
    """Shard sets by location: each is opened, and its metadata read, for the first task that asks."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[ShardSet, list[Sample]]] = {}

    def open(self, location: str) -> tuple[ShardSet, list[Sample]]:
        """The set, and all of its samples without their images."""
        if location not in self._known:
            shards = ShardSet.open(location)
            self._known[location] = shards, [shards.metadata(index) for index in range(len(shards))]
        return self._known[location]


def task_images(task: EvalTask, sets: ShardSets | None = None, *, limit: int | None = None) -> TaskImages:
    """The images of a task; with `limit` so many of them at most, spread evenly over the set.

    Raises:
        ValueError: shards that cannot be opened, no image, one with none or several of the classes, findings that all
            images have or none has, or a limit below 1; names task and key.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"limit must be at least 1, got {limit}")
    shards, every = (sets or ShardSets()).open(task.shards)
    indices = [index for index, sample in enumerate(every) if _is_of(task, sample)]
    if not indices:
        raise ValueError(
            f"task {task.name}: no sample of {task.shards} has dataset in {list(task.datasets) or 'any'} and "
            f"modality in {list(task.modalities) or 'any'}"
        )
    if limit is not None and limit < len(indices):
        indices = [indices[number * len(indices) // limit] for number in range(limit)]
    samples = tuple(every[index] for index in indices)
    if isinstance(task, ClassificationTask):
        truth = _true_classes(task, samples)
        return Labelled(task=task, shards=shards, indices=tuple(indices), samples=samples, truth=truth)
    if isinstance(task, MultiLabelTask):
        finding_targets(task, samples)
    return TaskImages(task=task, shards=shards, indices=tuple(indices), samples=samples)


def labelled(task: ClassificationTask, sets: ShardSets | None = None, *, limit: int | None = None) -> Labelled:
    """The images of a classification task that compares images with texts.

    Raises:
        ValueError: as `task_images` and `compares_texts`.
    """
    compares_texts(task)
    images = task_images(task, sets, limit=limit)
    assert isinstance(images, Labelled)
    return images


def compares_texts(task: EvalTask) -> None:
    """Refuse a task that asks the decoder, of which only a whole evaluation knows.

    Raises:
        ValueError: score queries.
    """
    if not isinstance(task, RetrievalTask) and task.score == "queries":
        raise ValueError(f"task {task.name}: score queries is known to clip-med eval only")


def finding_targets(task: MultiLabelTask, samples: Sequence[Sample]) -> Targets:
    """[N, K] which findings each sample of a task has.

    Raises:
        ValueError: no finding that some images have and some have not.
    """
    labels = list(task.prompts.classes)
    targets = label_targets(samples, labels)
    if len(one_sided(targets, labels)) == len(labels):
        raise ValueError(
            f"task {task.name}: of {len(samples)} samples all or none have each of the labels {labels}: nothing to "
            f"tell apart; labels of the first: {list(samples[0].labels)}"
        )
    return targets


def validation_images(
    task: ClassificationTask | MultiLabelTask, splits: Sequence[str], sets: ShardSets | None = None
) -> TaskImages:
    """The images of a task in the first of several splits that has any.

    Args:
        splits: locations, or names of splits that lie beside the task's own.

    Raises:
        ValueError: a split that is the task's own data, no split with an image of the task, or as `task_images`.
    """
    compares_texts(task)
    sets = sets or ShardSets()
    for split in splits:
        own = replace(task, shards=_beside(task, split))
        if any(_is_of(own, sample) for sample in sets.open(own.shards)[1]):
            return task_images(own, sets)
    raise ValueError(f"task {task.name}: no image of its data sets and modalities in {', '.join(splits)}")


def check_apart(validation: TaskImages, tested: Sequence[str]) -> None:
    """Refuse validation images that are tested on too; `tested`: keys of the test.

    Raises:
        ValueError: a key is in both.
    """
    both = sorted(set(tested) & set(validation.keys))
    if both:
        raise ValueError(
            f"task {validation.task.name}: {len(both)} images are in validation and test data, the first: {both[0]}"
        )


def _beside(task: EvalTask, split: str) -> str:
    """shards/corpus/val for val and a task on shards/corpus/test."""
    shards = task.shards.rstrip("/")
    location = split if "/" in split else "/".join([*shards.split("/")[:-1], split])
    if location.rstrip("/") == shards:
        raise ValueError(f"task {task.name}: prompts cannot be chosen on {location}, the data of the test")
    return location


def _true_classes(task: ClassificationTask, samples: Sequence[Sample]) -> NDArray[np.int64]:
    """[N] number of the class that each sample has among its labels."""
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


def _is_of(task: EvalTask, sample: Sample) -> bool:
    """Whether a sample is of the data sets and modalities of a task."""
    return (not task.datasets or sample.dataset in task.datasets) and (
        not task.modalities or sample.modality in task.modalities
    )


__all__ = [
    "Labelled",
    "ShardSets",
    "TaskImages",
    "check_apart",
    "compares_texts",
    "finding_targets",
    "labelled",
    "task_images",
    "validation_images",
]
