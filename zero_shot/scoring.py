"""Scores of a model on every item of an evaluation, with prompts of its own where validation images are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import image_features, text_features
from zero_shot.conditions import Labelled, labelled, selected
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.prompt_choice import (
    PromptChoice,
    Prompting,
    check_apart,
    choose_prompts,
    prompted_scores,
    validation_images,
)
from zero_shot.ranks import retrieval_ranks
from zero_shot.retrieve import DIRECTIONS, caption_rows, text_groups
from zero_shot.scores import ClassScores, ItemScores, Scores

Progress = Callable[[str, int, int], None]


def choose_for_tasks(
    encoder: DualEncoder, config: EvalConfig, validation: Sequence[str], *, on_progress: Progress | None = None
) -> dict[str, PromptChoice]:
    """Prompts for each classification task, chosen on validation data alone: nothing of the test is opened.

    Args:
        validation: locations, or names of splits beside each task's own; the first that has images of the task.

    Raises:
        ValueError: the validation data is that of the test, cannot be opened or has no image of a task.
    """
    chosen: dict[str, PromptChoice] = {}
    for task in config.tasks:
        if isinstance(task, ClassificationTask):
            images = validation_images(task, validation)
            features = _features(
                encoder, images.shards, images.indices, config, f"{task.name} (validation)", on_progress
            )
            chosen[task.name] = choose_prompts(encoder, images, features, precision=config.precision)
    return chosen


def score_tasks(
    encoder: DualEncoder,
    config: EvalConfig,
    *,
    chosen: Mapping[str, PromptChoice] | None = None,
    validation: Sequence[str] = (),
    on_progress: Progress | None = None,
) -> dict[str, Scores]:
    """Scores by task: of a classification for each class, of a retrieval the average precision of each query.

    Args:
        chosen: prompts by task; tasks without take those of the configuration.
        validation: where they were chosen, so that images of both can be refused.

    Raises:
        ValueError: as `labelled`; images that prompts were chosen on.
    """
    found: dict[str, Scores] = {}
    for task in config.tasks:
        match task:
            case ClassificationTask():
                images = labelled(task)
                if validation:
                    check_apart(validation_images(task, validation), [sample.key for sample in images.samples])
                own = Prompting(name="as configured", prompts=task.prompts, ensemble=task.ensemble)
                prompting = chosen[task.name].taken if chosen is not None and task.name in chosen else own
                found[task.name] = _classify(encoder, images, prompting, config, on_progress)
            case RetrievalTask():
                found |= _retrieve(encoder, task, config, on_progress)
    return found


def _classify(
    encoder: DualEncoder, images: Labelled, prompting: Prompting, config: EvalConfig, on_progress: Progress | None
) -> ClassScores:
    features = _features(encoder, images.shards, images.indices, config, images.task.name, on_progress)
    return ClassScores(
        keys=tuple(sample.key for sample in images.samples),
        groups=tuple(images.groups),
        classes=tuple(images.task.prompts.classes),
        truth=images.truth,
        scores=prompted_scores(encoder, prompting, features, precision=config.precision),
    )


def _retrieve(
    encoder: DualEncoder, task: RetrievalTask, config: EvalConfig, on_progress: Progress | None
) -> dict[str, ItemScores]:
    """Average precisions of images and of captions, each direction a task of its own."""
    shards = ShardSet.open(task.shards)
    chosen = selected(shards, task)
    if not chosen:
        raise ValueError(f"task {task.name}: no sample of {task.shards} is of its data sets and modalities")
    samples = [sample for _, sample in chosen]
    features = _features(encoder, shards, [index for index, _ in chosen], config, task.name, on_progress)
    rows = caption_rows(samples, task.duplicates)
    texts = text_features(encoder, rows.wording, precision=config.precision)[rows.words]
    ranks = retrieval_ranks(features, texts, rows.texts_of)
    groups = [sample.group for sample in samples]
    captions = [f"caption {row}" for row in range(len(texts))]
    shared = [f"captions {unit}" for unit in text_groups(rows.texts_of, groups, len(texts))]
    keys = ([sample.key for sample in samples], captions)
    return {
        f"{task.name}: {direction}": ItemScores(
            keys=tuple(names), groups=tuple(units), metric="mAP", values=own.precision
        )
        for direction, own, names, units in zip(DIRECTIONS, ranks, keys, (groups, shared), strict=True)
    }


def _features(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    config: EvalConfig,
    name: str,
    on_progress: Progress | None,
) -> NDArray[np.float32]:
    def step(done: int, total: int) -> None:
        if on_progress is not None:
            on_progress(name, done, total)

    return image_features(
        encoder,
        shards,
        indices,
        batch_size=config.batch_size,
        workers=config.workers,
        precision=config.precision,
        on_progress=step,
    )


__all__ = ["choose_for_tasks", "score_tasks"]
