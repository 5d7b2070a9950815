"""Tasks with their samples, and what a model says of the images of each: features, or the answers of its decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import render_prompts
from clip_med.models.dual_encoder import DualEncoder
from zero_shot.conditions import is_of, true_classes
from zero_shot.config import ClassificationTask, EvalConfig, EvalTask, MultiLabelTask
from zero_shot.findings import finding_scores, finding_targets, sigmoid
from zero_shot.prompt_choice import as_configured, prompted_scores
from zero_shot.query_answers import Queries, query_answers
from zero_shot.scoring import Encode, task_encoder

Progress = Callable[[str, int, int], None]
Texts = Mapping[str, tuple[str, ...]]
Doubles = NDArray[np.float64]


class _ShardImages:
    """What is known of one shard set: all samples without their images, and the image features asked for so far."""

    def __init__(self, path: str) -> None:
        self.shards = ShardSet.open(path)
        self.samples = [self.shards.metadata(index) for index in range(len(self.shards))]
        self._row: dict[int, int] = {}
        self._features: list[NDArray[np.float32]] = []

    def features(
        self, encode: Encode, indices: Sequence[int], on_progress: Callable[[int, int], None]
    ) -> NDArray[np.float32]:
        """Unit rows for the samples `indices`; those that no task before has asked for are read or encoded."""
        new = [index for index in indices if index not in self._row]
        if new:
            self._row |= {index: row for row, index in enumerate(new, start=len(self._row))}
            self._features.append(encode(self.shards, new, on_progress=on_progress))
        return np.concatenate(self._features)[[self._row[index] for index in indices]]


@dataclass(frozen=True)
class Prepared:
    """A task with its samples; `truth` holds class numbers, of other tasks nothing."""

    task: EvalTask
    images: _ShardImages
    indices: list[int]
    samples: list[Sample]
    truth: NDArray[np.int64] | None


class Said:
    """What the model says of the images of a task: features, of each image once, or the answers of its decoder."""

    def __init__(
        self, encoder: DualEncoder, config: EvalConfig, cache: Path | None, on_progress: Progress | None
    ) -> None:
        self._encoder, self._config, self._on_progress = encoder, config, on_progress
        self._how: dict[str, Any] = {
            "batch_size": config.batch_size,
            "workers": config.workers,
            "precision": config.precision,
        }
        self._encode = task_encoder(encoder, config, cache)

    def features(self, part: Prepared) -> NDArray[np.float32]:
        return part.images.features(self._encode, part.indices, self._step(part.task))

    def class_scores(self, task: ClassificationTask, part: Prepared) -> tuple[Doubles, Texts]:
        """Scores [N, C], and the texts that told the model of each class."""
        if task.score == "queries":
            return self._answers(task, part)
        precision = self._config.precision
        scores = prompted_scores(self._encoder, as_configured(task), self.features(part), precision=precision)
        return scores, render_prompts(task.prompts)

    def finding_scores(self, task: MultiLabelTask, part: Prepared) -> tuple[Doubles, Doubles, Texts]:
        """Scores and probabilities [N, K], and the texts that told the model of each finding."""
        if task.score == "queries":
            answers, texts = self._answers(task, part)
            return answers, sigmoid(answers), texts
        found = finding_scores(self._encoder, task, self.features(part), precision=self._config.precision)
        return *found, task.present_texts()

    def _answers(self, task: ClassificationTask | MultiLabelTask, part: Prepared) -> tuple[Doubles, Texts]:
        try:
            queries = Queries.of(self._encoder, task.prompts, task.knowledge_encoder)
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from error
        step = self._step(task)
        answers = query_answers(self._encoder, part.images.shards, part.indices, queries, on_progress=step, **self._how)
        return answers, queries.texts

    def _step(self, task: EvalTask) -> Callable[[int, int], None]:
        def step(done: int, total: int) -> None:
            if self._on_progress is not None:
                self._on_progress(task.name, done, total)

        return step


def prepare(tasks: Sequence[EvalTask]) -> list[Prepared]:
    """The samples of every task, without their images, and their classes.

    Raises:
        ValueError: shards that cannot be opened, a task without samples, or a sample with none or several classes.
    """
    opened: dict[str, _ShardImages] = {}
    return [_prepared(task, opened) for task in tasks]


def _prepared(task: EvalTask, opened: dict[str, _ShardImages]) -> Prepared:
    if task.shards not in opened:
        opened[task.shards] = _ShardImages(task.shards)
    images = opened[task.shards]
    indices = [index for index, sample in enumerate(images.samples) if is_of(task, sample)]
    if not indices:
        raise ValueError(
            f"task {task.name}: no sample of {task.shards} has dataset in {list(task.datasets) or 'any'} and "
            f"modality in {list(task.modalities) or 'any'}"
        )
    samples = [images.samples[index] for index in indices]
    truth = true_classes(task, samples) if isinstance(task, ClassificationTask) else None
    if isinstance(task, MultiLabelTask):
        finding_targets(task, samples)
    return Prepared(task, images, indices, samples, truth)


__all__ = ["Prepared", "Progress", "Said", "Texts", "prepare"]
