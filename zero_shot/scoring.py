"""Scores of a model on every item of an evaluation, with prompts of its own where validation images are given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask, RetrievalTask
from zero_shot.prompt_choice import PromptChoice
from zero_shot.ranks import retrieval_ranks
from zero_shot.retrieve import caption_rows, query_scores
from zero_shot.said import Said
from zero_shot.scores import ClassScores, ItemScores, LabelScores, Scores
from zero_shot.task_images import (
    Labelled,
    ShardSets,
    TaskImages,
    check_apart,
    compares_texts,
    finding_targets,
    task_images,
    validation_images,
)


def validation_sets(config: EvalConfig, splits: Sequence[str]) -> dict[str, TaskImages]:
    """The images that prompts are chosen on, by task of classes or findings; nothing of the test is opened.

    Args:
        splits: locations, or names of splits beside each task's own; the first that has images of the task.

    Raises:
        ValueError: a split that is the data of the test, cannot be opened, or none with images of a task.
    """
    sets = ShardSets()
    return {
        task.name: validation_images(task, splits, sets) for task in config.tasks if not isinstance(task, RetrievalTask)
    }


def evaluated_sets(config: EvalConfig, validation: Mapping[str, TaskImages]) -> dict[str, TaskImages]:
    """The images of every task.

    Raises:
        ValueError: a task without images, a label that is none of its classes, findings that all images have or none
            has, or images that are in `validation` too.
    """
    sets, found = ShardSets(), dict[str, TaskImages]()
    for task in config.tasks:
        compares_texts(task)
        found[task.name] = task_images(task, sets)
        if task.name in validation:
            check_apart(validation[task.name], found[task.name].keys)
    return found


def choose_for_tasks(said: Said, validation: Mapping[str, TaskImages]) -> dict[str, PromptChoice]:
    """The prompts that suit the model best, by task."""
    return {name: said.choice(images) for name, images in validation.items()}


def score_tasks(
    said: Said, images: Mapping[str, TaskImages], *, chosen: Mapping[str, PromptChoice] | None = None
) -> dict[str, Scores]:
    """Scores by task: for each class or finding, and of a retrieval the average precision of each query.

    Args:
        chosen: prompts by task; tasks without take those of the configuration.
    """
    found: dict[str, Scores] = {}
    for name, own in images.items():
        # The task that is tested on, in the words that were chosen elsewhere.
        match chosen[name].taken.task if chosen and name in chosen else own.task:
            case ClassificationTask() as task:
                assert isinstance(own, Labelled)
                found[name] = ClassScores(
                    keys=own.keys,
                    groups=tuple(own.groups),
                    classes=tuple(task.prompts.classes),
                    truth=own.truth,
                    scores=said.class_scores(task, own)[0],
                )
            case MultiLabelTask() as task:
                found[name] = LabelScores(
                    keys=own.keys,
                    groups=tuple(own.groups),
                    classes=tuple(task.prompts.classes),
                    truth=finding_targets(task, own.samples),
                    scores=said.finding_scores(task, own)[0],
                )
            case RetrievalTask() as task:
                found |= _retrieve(said, task, own)
    return found


def _retrieve(said: Said, task: RetrievalTask, images: TaskImages) -> dict[str, ItemScores]:
    """Average precisions of images and of captions, each direction a task of its own."""
    rows = caption_rows(images.samples, task.duplicates)
    texts = said.text_features(rows.wording)[rows.words]
    ranks = retrieval_ranks(said.features(images), texts, rows.texts_of)
    return query_scores(task.name, ranks, rows.texts_of, ks=task.ks, keys=images.keys, groups=images.groups)


__all__ = ["choose_for_tasks", "evaluated_sets", "score_tasks", "validation_sets"]
