"""The outcome of an evaluation: reports of its tasks, and what the model says of every image."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.result import Result, without_nan
from zero_shot.scores import ClassScores, ItemScores, LabelScores, Scores
from zero_shot.shown import Scored, ScoredFindings, Search

MEAN_TOP1: Final = "mean top-1"


@dataclass(frozen=True)
class Answer:
    """A class or a caption that the model gives for an image.

    `score` is, of a class, its share of the softmax over classes (with ensemble `probability` the mean share), of a
    caption the cosine. Shares are not calibrated.
    """

    text: str
    score: float
    right: bool


@dataclass(frozen=True, kw_only=True)
class Example:
    """One image of a task for the report: what it is, the model's best answers, and whether the first is right."""

    shards: str
    index: int
    key: str
    truth: str
    answers: tuple[Answer, ...]
    right: bool


@dataclass(frozen=True, kw_only=True)
class TaskReport:
    """The outcome of one task.

    `chance` is the top-1 of guessing among the classes and `majority` that of always naming the commonest one; both are
    None for other tasks. Retrieval has no `classes` either, no `confusion` (row = truth, column = answer) and no
    `recalls`, one per class over its own images; their mean is the balanced accuracy. `kinds`:
    the results of retrieval for each modality or data set that its task tells apart. `prompts`: what each class was
    told by, in order; `ensemble`: how they became one score. `searches`: some texts of retrieval with what they find.
    Of findings `classes` are the labels, `positives` the images with each, `left_out` those that no mean counts since
    all images have them or none, with their images; `absent`: what denies each finding, where the `score` uses it.
    `prompts_sha256` and `split_sha256` are digests of those texts (of retrieval, the captions) and of what was asked of
    which samples: results of one digest each were measured on the same.
    """

    name: str
    kind: str
    n: int
    results: tuple[Result, ...]
    examples: tuple[Example, ...]
    classes: tuple[str, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()
    recalls: tuple[Result, ...] = ()
    chance: float | None = None
    majority: float | None = None
    kinds: Mapping[str, tuple[Result, ...]] = field(default_factory=dict)
    prompts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    ensemble: str | None = None
    searches: tuple[Search, ...] = ()
    positives: tuple[int, ...] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    absent: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    score: str | None = None
    prompts_sha256: str = ""
    split_sha256: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; undefined ones are None, since JSON has no NaN."""
        return without_nan(asdict(self))


@dataclass(frozen=True)
class Evaluation:
    """Reports per task, and the unweighted mean top-1 over the classification tasks (none: None).

    `scored` and `findings`: what the model says of every image of a classification task and of one of findings;
    `queries`: how every query fared, by retrieval task and direction; `encoded` and `read`: images that were encoded,
    and that the cache had. None of them is part of the JSON.
    """

    tasks: tuple[TaskReport, ...]
    mean_top1: Result | None
    scored: Mapping[str, Scored] = field(default_factory=dict)
    queries: Mapping[str, ItemScores] = field(default_factory=dict)
    findings: Mapping[str, ScoredFindings] = field(default_factory=dict)
    encoded: int = 0
    read: int = 0

    @property
    def hits(self) -> dict[str, tuple[NDArray[np.float64], list[str]]]:
        """Per classification task the top-1 of every image, 0 to 1, and the image's group."""
        return {name: own.hits() for name, own in self.scored.items()}

    def scores(self) -> dict[str, Scores]:
        """All that the results are computed from, for `zero_shot.scores.write_scores`."""
        classes = {task.name: task.classes for task in self.tasks}
        found: dict[str, Scores] = {**self.queries}
        for name, own in self.scored.items():
            found[name] = ClassScores(
                keys=own.keys, groups=own.groups, classes=classes[name], truth=own.truth, scores=own.scores
            )
        for name, own in self.findings.items():
            found[name] = LabelScores(
                keys=own.keys, groups=own.groups, classes=classes[name], truth=own.targets, scores=own.scores
            )
        return found

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; undefined ones are None, since JSON has no NaN."""
        mean = None if self.mean_top1 is None else self.mean_top1.to_dict()
        return {"tasks": [task.to_dict() for task in self.tasks], "mean_top1": mean}


def digest(value: object) -> str:
    """SHA-256 of plain values as JSON; the order of classes and samples counts."""
    return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()


__all__ = ["MEAN_TOP1", "Answer", "Evaluation", "Example", "TaskReport", "digest"]
