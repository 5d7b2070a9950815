"""The outcome of a task of classes or of retrieval (findings: `findings.py`): results, and examples for the report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.calibration import softmax
from zero_shot.classify import classification_results, sensitivity_name
from zero_shot.config import ClassificationTask, RetrievalTask
from zero_shot.evaluation import Answer, Example, TaskReport, digest
from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import confusion_matrix
from zero_shot.ranks import retrieval_ranks
from zero_shot.result import Result
from zero_shot.retrieve import CaptionRows, caption_rows, query_scores, results_of_ranks
from zero_shot.said import Said, Texts
from zero_shot.scores import ItemScores
from zero_shot.shown import Found, Scored, Search
from zero_shot.task_images import Labelled, TaskImages

_EXAMPLES: Final = 8
# Answers shown of each, best first.
_ANSWERS: Final = 3
# Texts shown of a retrieval task, and images found for each.
_SEARCHES: Final = 4
_FOUND: Final = 5
# Rows of the similarity matrix that exist at a time.
_CHUNK: Final = 256

Doubles = NDArray[np.float64]


def report_classes(
    task: ClassificationTask, scores: Doubles, prompts: Texts, part: Labelled, *, seed: int = 0
) -> tuple[TaskReport, Scored]:
    """The outcome of a classification from scores [N, C] of its images.

    Args:
        prompts: what told the model of each class; seed: of the bootstrap intervals.
    """
    samples, groups, truth = part.samples, part.groups, part.truth
    classes = tuple(prompts)
    answer = scores.argmax(axis=1)
    right = answer == truth
    confusion = confusion_matrix(answer, truth, len(classes))
    shares = scores if task.ensemble == "probability" else softmax(scores)
    recalls: list[Result] = []
    for number, label in enumerate(classes):
        own = np.flatnonzero(truth == number)
        hit = right[own].astype(np.float64)
        recalls.append(bootstrap_mean(hit, name=label, groups=[groups[i] for i in own], seed=seed))
    return (
        TaskReport(
            name=task.name,
            kind=task.kind,
            n=len(samples),
            results=_results(task, scores, truth, groups, seed),
            examples=_examples(
                part,
                [classes[c] for c in truth],
                right.tolist(),
                lambda row: [
                    Answer(classes[c], float(shares[row, c]), bool(c == truth[row])) for c in _best(scores[row])
                ],
            ),
            classes=classes,
            confusion=tuple(tuple(row) for row in confusion.tolist()),
            recalls=tuple(recalls),
            chance=1 / len(classes),
            majority=float(confusion.sum(axis=1).max() / len(samples)),
            prompts=prompts,
            ensemble=task.ensemble,
            score=task.score,
            prompts_sha256=digest(prompts),
            split_sha256=digest([[sample.key, classes[c]] for sample, c in zip(samples, truth, strict=True)]),
        ),
        Scored(
            shards=task.shards,
            indices=part.indices,
            keys=part.keys,
            groups=tuple(groups),
            truth=truth,
            scores=scores,
            shares=shares,
        ),
    )


def _results(
    task: ClassificationTask, scores: NDArray[np.float64], truth: NDArray[np.int64], groups: list[str], seed: int
) -> tuple[Result, ...]:
    """The metrics of a task, its declared one first."""
    found = classification_results(
        scores,
        truth,
        groups=groups,
        seed=seed,
        ordinal=task.ordinal,
        positive=None if task.positive is None else list(task.prompts.classes).index(task.positive),
        specificity=task.specificity,
    )
    declared = sensitivity_name(task.specificity) if task.metric == "sensitivity" else task.metric
    return tuple(sorted(found, key=lambda result: result.name != declared))


def report_retrieval(
    said: Said, task: RetrievalTask, part: TaskImages, *, seed: int = 0, sharded: bool = False
) -> tuple[TaskReport, dict[str, ItemScores]]:
    """The outcome of images against the captions of all of them, and how every query of each direction fared.

    Args:
        seed: of the bootstrap intervals; sharded: see `retrieval_ranks`.
    """
    samples, groups, features = part.samples, part.groups, said.features(part)
    rows = caption_rows(samples, task.duplicates)
    texts = said.text_features(rows.wording)[rows.words]
    ranks = retrieval_ranks(features, texts, rows.texts_of, sharded=sharded)
    by_kind = {
        f"{what} {kind}": [row for row, sample in enumerate(samples) if getattr(sample, what) == kind]
        for what in task.by
        for kind in sorted({getattr(sample, what) for sample in samples})
    }

    def results(images: Sequence[int] | None = None) -> tuple[Result, ...]:
        return tuple(results_of_ranks(ranks, rows.texts_of, ks=task.ks, image_groups=groups, images=images, seed=seed))

    first = [
        int(number)
        for start in range(0, len(features), _CHUNK)
        for number in (features[start : start + _CHUNK] @ texts.T).argmax(axis=1)
    ]

    def answers(row: int) -> list[Answer]:
        cosines = features[row] @ texts.T
        # A product of one row rounds otherwise than one of many: the first of near ties is the one that was judged.
        others = [number for number in _best(cosines, _ANSWERS + 1) if number != first[row]]
        best = [first[row], *others][:_ANSWERS]
        own = set(rows.texts_of[row])
        return [Answer(rows.wording[rows.words[text]], float(cosines[text]), text in own) for text in best]

    report = TaskReport(
        name=task.name,
        kind=task.kind,
        n=len(samples),
        results=results(),
        examples=_examples(
            part,
            [sample.captions[0] for sample in samples],
            [number in rows.texts_of[row] for row, number in enumerate(first)],
            answers,
        ),
        kinds={name: results(images) for name, images in by_kind.items()},
        searches=_searches(part, rows, features, texts, ranks[1].first()),
        prompts_sha256=digest(rows.wording),
        split_sha256=digest([[sample.key, list(sample.captions)] for sample in samples]),
    )
    return report, query_scores(task.name, ranks, rows.texts_of, ks=task.ks, keys=part.keys, groups=groups)


def _searches(
    part: TaskImages, rows: CaptionRows, features: NDArray[np.float32], texts: NDArray[np.float32], ranks: Doubles
) -> tuple[Search, ...]:
    """What some texts find among the images, spread evenly over the texts: not picked by how they look."""

    def search(text: int) -> Search:
        cosines = features @ texts[text]
        best = _best(cosines, _FOUND)
        found = [Found(part.indices[i], part.samples[i].key, float(cosines[i]), text in rows.texts_of[i]) for i in best]
        return Search(
            shards=part.task.shards,
            text=rows.wording[rows.words[text]],
            rank=float(ranks[text]),
            found=tuple(found),
        )

    return tuple(search(i * len(texts) // _SEARCHES) for i in range(min(_SEARCHES, len(texts))))


def _examples(
    part: TaskImages, truth: Sequence[str], right: Sequence[bool], answers: Callable[[int], Sequence[Answer]]
) -> tuple[Example, ...]:
    """Some right and some wrong answers, spread evenly over the task: not picked by how they look."""
    chosen: list[int] = []
    for wanted in (True, False):
        rows = [row for row, value in enumerate(right) if value == wanted]
        chosen += [rows[i * len(rows) // (_EXAMPLES // 2)] for i in range(min(_EXAMPLES // 2, len(rows)))]
    return tuple(
        Example(
            shards=part.task.shards,
            index=part.indices[row],
            key=part.samples[row].key,
            truth=truth[row],
            answers=tuple(answers(row)),
            right=right[row],
        )
        for row in chosen
    )


def _best(scores: NDArray[np.floating], count: int = _ANSWERS) -> list[int]:
    """The numbers of the highest scores, best first; of equal ones the first, as argmax has it."""
    return np.argsort(-scores, kind="stable")[:count].tolist()


__all__ = ["report_classes", "report_retrieval"]
