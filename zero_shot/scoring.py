"""Scores of a model on every item of an evaluation, with prompts of its own where validation images are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_cache import cached_image_features, image_tower_digest
from clip_med.models.features import text_features
from zero_shot.conditions import Labelled, labelled, selected
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask, RetrievalTask
from zero_shot.findings import finding_scores, finding_targets
from zero_shot.prompt_choice import (
    PromptChoice,
    as_configured,
    check_apart,
    choose_prompts,
    prompted_scores,
    validation_images,
)
from zero_shot.ranks import retrieval_ranks
from zero_shot.retrieve import caption_rows, query_scores
from zero_shot.scores import ClassScores, ItemScores, LabelScores, Scores

Progress = Callable[[str, int, int], None]
Encode = Callable[..., NDArray[np.float32]]


@dataclass(frozen=True, kw_only=True)
class TaskSamples:
    """The images of a task of retrieval or of findings: where they are, and their metadata."""

    task: RetrievalTask | MultiLabelTask
    shards: ShardSet
    indices: tuple[int, ...]
    samples: tuple[Sample, ...]


TaskImages = Labelled | TaskSamples


def validation_sets(config: EvalConfig, splits: Sequence[str]) -> dict[str, Labelled]:
    """The images that prompts are chosen on, by classification task; nothing of the test is opened.

    Args:
        splits: locations, or names of splits beside each task's own; the first that has images of the task.

    Raises:
        ValueError: a split that is the data of the test, cannot be opened, or none with images of a task.
    """
    return {task.name: validation_images(task, splits) for task in config.tasks if isinstance(task, ClassificationTask)}


def evaluated_sets(config: EvalConfig, validation: Mapping[str, Labelled]) -> dict[str, TaskImages]:
    """The images of every task.

    Raises:
        ValueError: a task without images, a label that is none of its classes, findings that all images have or none
            has, or images that are in `validation` too.
    """
    found: dict[str, TaskImages] = {}
    for task in config.tasks:
        match task:
            case ClassificationTask():
                images = labelled(task)
                if task.name in validation:
                    check_apart(validation[task.name], [sample.key for sample in images.samples])
                found[task.name] = images
            case RetrievalTask() | MultiLabelTask():
                shards = ShardSet.open(task.shards)
                chosen = selected(shards, task)
                if not chosen:
                    raise ValueError(f"task {task.name}: no sample of {task.shards} is of its data sets and modalities")
                indices, samples = zip(*chosen, strict=True)
                if isinstance(task, MultiLabelTask):
                    finding_targets(task, samples)
                found[task.name] = TaskSamples(task=task, shards=shards, indices=indices, samples=samples)
    return found


def choose_for_tasks(
    encoder: DualEncoder,
    validation: Mapping[str, Labelled],
    config: EvalConfig,
    *,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> dict[str, PromptChoice]:
    """The prompts that suit this model best, by task; `cache`: folder of image features."""
    chosen: dict[str, PromptChoice] = {}
    encode = task_encoder(encoder, config, cache)
    for name, images in validation.items():
        features = _features(encode, images, f"{name} (validation)", on_progress)
        chosen[name] = choose_prompts(encoder, images, features, precision=config.precision)
    return chosen


def score_tasks(
    encoder: DualEncoder,
    images: Mapping[str, TaskImages],
    config: EvalConfig,
    *,
    chosen: Mapping[str, PromptChoice] | None = None,
    cache: Path | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores by task: for each class or finding, and of a retrieval the average precision of each query.

    Args:
        chosen: prompts by task; tasks without, such as those of findings, take those of the configuration.
        cache: folder of image features; None keeps none.
    """
    found: dict[str, Scores] = {}
    encode = task_encoder(encoder, config, cache)
    for name, own in images.items():
        features = _features(encode, own, name, on_progress)
        match own:
            case Labelled():
                choice = (chosen or {}).get(name)
                prompting = as_configured(own.task) if choice is None else choice.taken
                found[name] = ClassScores(
                    keys=tuple(sample.key for sample in own.samples),
                    groups=tuple(own.groups),
                    classes=tuple(own.task.prompts.classes),
                    truth=own.truth,
                    scores=prompted_scores(encoder, prompting, features, precision=config.precision),
                )
            case TaskSamples(task=MultiLabelTask() as task):
                found[name] = LabelScores(
                    keys=tuple(sample.key for sample in own.samples),
                    groups=tuple(sample.group for sample in own.samples),
                    classes=tuple(task.prompts.classes),
                    truth=finding_targets(task, own.samples),
                    scores=finding_scores(encoder, task, features, precision=config.precision)[0],
                )
            case TaskSamples(task=RetrievalTask() as task):
                found |= _retrieve(encoder, task, own.samples, features, config)
    return found


def _retrieve(
    encoder: DualEncoder,
    task: RetrievalTask,
    samples: Sequence[Sample],
    features: NDArray[np.float32],
    config: EvalConfig,
) -> dict[str, ItemScores]:
    """Average precisions of images and of captions, each direction a task of its own."""
    rows = caption_rows(samples, task.duplicates)
    texts = text_features(encoder, rows.wording, precision=config.precision)[rows.words]
    ranks = retrieval_ranks(features, texts, rows.texts_of)
    return query_scores(
        task.name,
        ranks,
        rows.texts_of,
        ks=task.ks,
        keys=[sample.key for sample in samples],
        groups=[sample.group for sample in samples],
    )


def task_encoder(encoder: DualEncoder, config: EvalConfig, cache: Path | None) -> Encode:
    """`cached_image_features` of a model as an evaluation wants it: called with shards, indices and `on_progress`."""
    return partial(
        cached_image_features,
        encoder,
        cache=cache,
        model_digest=None if cache is None else image_tower_digest(encoder),
        batch_size=config.batch_size,
        workers=config.workers,
        precision=config.precision,
    )


def _features(encode: Encode, images: TaskImages, name: str, on_progress: Progress | None) -> NDArray[np.float32]:
    def step(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(name, done, total)

    return encode(images.shards, images.indices, on_progress=step)


__all__ = [
    "Encode",
    "TaskImages",
    "TaskSamples",
    "choose_for_tasks",
    "evaluated_sets",
    "score_tasks",
    "task_encoder",
    "validation_sets",
]
