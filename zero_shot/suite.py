"""A whole evaluation: every task of a configuration on one encoder, each image encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from clip_med.data.batch import text_id
from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import render_prompts
from clip_med.models.dual_encoder import DualEncoder
from zero_shot.classify import class_scores, classification_results
from zero_shot.config import ClassificationTask, EvalConfig, EvalTask, RetrievalTask
from zero_shot.features import image_features, text_features
from zero_shot.intervals import mean_of_means
from zero_shot.metrics import confusion_matrix, top_k_accuracy
from zero_shot.result import Result
from zero_shot.retrieve import retrieval_results

MEAN_TOP1: Final = "mean top-1"
_EXAMPLES: Final = 8


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image of a task for the report: what it is, what the model said, and whether that is right."""

    shards: str
    index: int
    key: str
    truth: str
    answer: str
    right: bool


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The outcome of one task.

    `chance` is the top-1 of guessing among the classes and `majority` that of always naming the commonest one; both are
    None for retrieval, as are `confusion` (row = truth, column = answer) and `classes`.
    """

    name: str
    kind: str
    n: int
    results: tuple[Result, ...]
    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    chance: float | None = None
    majority: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Reports per task, and the unweighted mean top-1 over the classification tasks (none: None)."""

    tasks: tuple[TaskReport, ...]
    mean_top1: Result | None

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        mean = None if self.mean_top1 is None else self.mean_top1.to_dict()
        return {"tasks": [task.to_dict() for task in self.tasks], "mean_top1": mean}


def evaluate(
    encoder: DualEncoder, config: EvalConfig, *, on_progress: Callable[[str, int, int], None] | None = None
) -> Evaluation:
    """Run every task; intervals are drawn over whole groups (patients).

    Args:
        on_progress: called with a task's name, images done and images in all.

    Raises:
        ValueError: shards that cannot be opened, a task without samples, a sample with none or several of the classes,
            or a damaged sample; each names task, shard or key.
    """
    opened: dict[Path, ShardSet] = {}
    known: dict[tuple[Path, tuple[int, ...]], NDArray[np.float32]] = {}
    reports: list[TaskReport] = []
    hits: list[tuple[NDArray[np.float64], list[str]]] = []
    for task in config.tasks:
        shards = opened.setdefault(task.shards, ShardSet.open(task.shards))
        indices, samples = _select(task, shards)
        encoded = (task.shards, tuple(indices))
        if encoded not in known:

            def step(done: int, total: int, name: str = task.name) -> None:
                if on_progress is not None:
                    on_progress(name, done, total)

            known[encoded] = image_features(
                encoder, shards, indices, batch_size=config.batch_size, workers=config.workers, on_progress=step
            )
        features = known[encoded]
        if isinstance(task, ClassificationTask):
            report, correct = _classify(encoder, task, features, indices, samples, config.seed)
            hits.append((correct, [sample.group for sample in samples]))
        else:
            report = _retrieve(encoder, task, features, indices, samples, config.seed)
        reports.append(report)
    mean = mean_of_means(hits, name=MEAN_TOP1, seed=config.seed) if hits else None
    return Evaluation(tuple(reports), mean)


def evaluator(config: EvalConfig) -> Callable[[DualEncoder], list[Result]]:
    """The evaluation as the trainer takes it: a flat list, names preceded by their task's."""

    def call(encoder: DualEncoder) -> list[Result]:
        done = evaluate(encoder, config)
        flat = [
            Result(**{**result.to_dict(), "name": f"{task.name}/{result.name}"})
            for task in done.tasks
            for result in task.results
        ]
        return flat if done.mean_top1 is None else [done.mean_top1, *flat]

    return call


def _select(task: EvalTask, shards: ShardSet) -> tuple[list[int], list[Sample]]:
    """The samples of a task, without their images."""
    indices: list[int] = []
    samples: list[Sample] = []
    for index in range(len(shards)):
        sample = shards.metadata(index)
        if task.datasets and sample.dataset not in task.datasets:
            continue
        if task.modalities and sample.modality not in task.modalities:
            continue
        indices.append(index)
        samples.append(sample)
    if not samples:
        raise ValueError(
            f"task {task.name}: no sample of {task.shards} has dataset in {list(task.datasets) or 'any'} and "
            f"modality in {list(task.modalities) or 'any'}"
        )
    return indices, samples


def _truth(task: ClassificationTask, samples: Sequence[Sample]) -> NDArray[np.int64]:
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


def _classify(
    encoder: DualEncoder,
    task: ClassificationTask,
    features: NDArray[np.float32],
    indices: Sequence[int],
    samples: Sequence[Sample],
    seed: int,
) -> tuple[TaskReport, NDArray[np.float64]]:
    prompts = render_prompts(task.prompts)
    truth = _truth(task, samples)
    flat = text_features(encoder, [prompt for texts in prompts.values() for prompt in texts])
    ends = np.cumsum([len(texts) for texts in prompts.values()])
    scale = float(encoder.logit_scale.detach().exp())
    scores = class_scores(features, np.split(flat, ends[:-1]), scale=scale, ensemble=task.ensemble)
    groups = [sample.group for sample in samples]
    classes = tuple(prompts)
    answer = scores.argmax(axis=1)
    confusion = confusion_matrix(answer, truth, len(classes))
    return (
        TaskReport(
            name=task.name,
            kind=task.kind,
            n=len(samples),
            results=tuple(classification_results(scores, truth, groups=groups, seed=seed)),
            examples=_examples(
                task,
                indices,
                samples,
                [classes[c] for c in truth],
                [classes[c] for c in answer],
                (answer == truth).tolist(),
            ),
            classes=classes,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            chance=1 / len(classes),
            majority=float(confusion.sum(axis=1).max() / len(samples)),
        ),
        top_k_accuracy(scores, truth),
    )


def _retrieve(
    encoder: DualEncoder,
    task: RetrievalTask,
    features: NDArray[np.float32],
    indices: Sequence[int],
    samples: Sequence[Sample],
    seed: int,
) -> TaskReport:
    """Images against distinct captions; an image's captions and those equal to them are all correct."""
    wording: dict[int, str] = {}
    for sample in samples:
        for caption in sample.captions:
            wording.setdefault(text_id(caption, "caption"), caption)
    ids = list(wording)
    texts = text_features(encoder, list(wording.values()))
    column = {identity: number for number, identity in enumerate(ids)}
    texts_of = [sorted({column[text_id(caption, "caption")] for caption in sample.captions}) for sample in samples]
    groups = [sample.group for sample in samples]
    best = (features @ texts.T).argmax(axis=1)
    return TaskReport(
        name=task.name,
        kind=task.kind,
        n=len(samples),
        results=tuple(retrieval_results(features, texts, texts_of, ks=task.ks, image_groups=groups, seed=seed)),
        examples=_examples(
            task,
            indices,
            samples,
            [sample.captions[0] for sample in samples],
            [wording[ids[number]] for number in best],
            [int(number) in texts_of[row] for row, number in enumerate(best)],
        ),
    )


def _examples(
    task: EvalTask,
    indices: Sequence[int],
    samples: Sequence[Sample],
    truth: Sequence[str],
    answer: Sequence[str],
    right: Sequence[bool],
) -> tuple[Example, ...]:
    """Some right and some wrong answers, spread evenly over the task: not picked by how they look."""
    chosen: list[int] = []
    for wanted in (True, False):
        rows = [row for row, value in enumerate(right) if value == wanted]
        chosen += [rows[i * len(rows) // (_EXAMPLES // 2)] for i in range(min(_EXAMPLES // 2, len(rows)))]
    return tuple(
        Example(
            shards=str(task.shards),
            index=indices[row],
            key=samples[row].key,
            truth=truth[row],
            answer=answer[row],
            right=right[row],
        )
        for row in chosen
    )


__all__ = ["MEAN_TOP1", "Evaluation", "Example", "TaskReport", "evaluate", "evaluator"]
