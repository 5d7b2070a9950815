"""What a model says of the images of a task: features, scores by prompts, or the answers of its decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Float32
from numpy.typing import NDArray

from clip_med.knowledge.prompts import render_prompts
from clip_med.models.features import text_features
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask
from zero_shot.encoded import Encoded
from zero_shot.findings import finding_scores, sigmoid
from zero_shot.prompt_choice import PromptChoice, choose_prompts
from zero_shot.prompt_features import Known, prompted_scores
from zero_shot.query_answers import Queries, query_answers
from zero_shot.task_images import TaskImages

Texts = Mapping[str, tuple[str, ...]]
Doubles = NDArray[np.float64]


class Said:
    """What the model says of the images of the tasks of an evaluation; each text of a task is encoded once."""

    def __init__(self, images: Encoded, config: EvalConfig) -> None:
        self.encoder = images.encoder
        self._images, self._config = images, config
        self._texts: dict[str, Known] = {}

    def features(self, images: TaskImages, *, name: str = "") -> Float32[np.ndarray, "N D"]:
        """Unit rows; `name`: see `Encoded.features`."""
        return self._images.features(images, self._config, name=name)

    def text_features(self, texts: Sequence[str]) -> Float32[np.ndarray, "M D"]:
        """Unit rows of texts, in their order."""
        return text_features(self.encoder, texts, precision=self._config.precision)

    def choice(self, validation: TaskImages) -> PromptChoice:
        """The prompts that suit the model best on validation images of a task."""
        task = validation.task
        features = self.features(validation, name=f"{task.name} (validation)")
        return choose_prompts(
            self.encoder, validation, features, precision=self._config.precision, known=self._known(task.name)
        )

    def class_scores(self, task: ClassificationTask, images: TaskImages) -> tuple[Doubles, Texts]:
        """Scores [N, C], and the texts that told the model of each class."""
        if task.score == "queries":
            return self._answers(task, images)
        features, known = self.features(images), self._known(task.name)
        scores = prompted_scores(self.encoder, task, features, precision=self._config.precision, known=known)
        return scores, render_prompts(task.prompts)

    def finding_scores(self, task: MultiLabelTask, images: TaskImages) -> tuple[Doubles, Doubles, Texts]:
        """Scores and probabilities [N, K], and the texts that told the model of each finding."""
        if task.score == "queries":
            answers, texts = self._answers(task, images)
            return answers, sigmoid(answers), texts
        features, known = self.features(images), self._known(task.name)
        found = finding_scores(self.encoder, task, features, precision=self._config.precision, known=known)
        return *found, task.present_texts()

    def _answers(self, task: ClassificationTask | MultiLabelTask, images: TaskImages) -> tuple[Doubles, Texts]:
        try:
            queries = Queries.of(self.encoder, task.prompts, task.knowledge_encoder)
        except ValueError as error:
            raise ValueError(f"task {task.name}: {error}") from error
        answers = query_answers(
            self.encoder,
            images.shards,
            images.indices,
            queries,
            batch_size=self._config.batch_size,
            workers=self._config.workers,
            precision=self._config.precision,
            on_progress=self._images.step(task.name),
        )
        return answers, queries.texts

    def _known(self, task: str) -> Known:
        """Of each task by itself: what is encoded together would else depend on the order of tasks, and last bits."""
        return self._texts.setdefault(task, {})


__all__ = ["Said", "Texts"]
