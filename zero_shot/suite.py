"""A whole evaluation: every task of a configuration on one encoder, each image encoded once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clip_med.models.dual_encoder import DualEncoder
from zero_shot.calibration import softmax
from zero_shot.classify import classification_results, sensitivity_name
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask, RetrievalTask
from zero_shot.encoded import Encoded, Progress
from zero_shot.evaluation import MEAN_TOP1, Answer, Evaluation, Example, TaskReport, digest
from zero_shot.findings import report_findings
from zero_shot.intervals import bootstrap_mean, mean_of_means
from zero_shot.metrics import confusion_matrix
from zero_shot.ranks import retrieval_ranks
from zero_shot.result import Result
from zero_shot.retrieve import CaptionRows, caption_rows, query_scores, results_of_ranks
from zero_shot.said import Said, Texts
from zero_shot.scores import ItemScores
from zero_shot.shown import Found, Scored, ScoredFindings, Search
from zero_shot.task_images import Labelled, ShardSets, TaskImages, task_images

_EXAMPLES: Final = 8
# Answers shown of each, best first.
_ANSWERS: Final = 3
# Texts shown of a retrieval task, and images found for each.
_SEARCHES: Final = 4
_FOUND: Final = 5
# Rows of the similarity matrix that exist at a time.
_CHUNK: Final = 256

Doubles = NDArray[np.float64]


def evaluate(
    encoder: DualEncoder,
    config: EvalConfig,
    *,
    cache: Path | None = None,
    on_progress: Progress | None = None,
    sharded: bool = False,
) -> Evaluation:
    """Run every task; intervals are drawn over whole groups (patients).

    All samples are selected and their labels checked before the first image is encoded.

    Args:
        cache: folder of image features (`clip_med.models.feature_cache`): what is there is not encoded again, and what
            is encoded is left there. None keeps nothing.
        on_progress: called with a task's name, images done and images in all, of images that are encoded.
        sharded: every rank of the process group calls this, and retrieval is ranked in parts (see `retrieval_ranks`).

    Raises:
        ValueError: shards that cannot be opened, a task without samples, a sample with none or several of the classes,
            or a damaged sample; each names task, shard or key.
    """
    sets = ShardSets()
    prepared = [task_images(task, sets) for task in config.tasks]
    encoded = Encoded(encoder, cache=cache, on_progress=on_progress)
    said = Said(encoded, config)
    reports: list[TaskReport] = []
    scored: dict[str, Scored] = {}
    queries: dict[str, ItemScores] = {}
    findings: dict[str, ScoredFindings] = {}
    for part in prepared:
        match part.task:
            case ClassificationTask() as task:
                assert isinstance(part, Labelled)
                scores, texts = said.class_scores(task, part)
                report, scored[task.name] = _classify(task, scores, texts, part, config.seed)
            case MultiLabelTask() as task:
                scores, probabilities, texts = said.finding_scores(task, part)
                report, findings[task.name] = report_findings(
                    task, scores, probabilities, texts, part, seed=config.seed
                )
            case RetrievalTask() as task:
                report, own = _retrieve(said, task, part, config.seed, sharded)
                queries |= own
        reports.append(report)
    # By name: the draws, and so the interval, do not depend on the order of the tasks.
    ordered = [scored[name].hits() for name in sorted(scored)]
    mean = mean_of_means(ordered, name=MEAN_TOP1, seed=config.seed) if ordered else None
    return Evaluation(tuple(reports), mean, scored, queries, findings, encoded=encoded.encoded, read=encoded.read)


def evaluator(config: EvalConfig) -> Callable[[DualEncoder], list[Result]]:
    """The evaluation as the trainer takes it: a flat list, names preceded by their task's."""

    return lambda encoder: flat_results(evaluate(encoder, config))


def flat_results(done: Evaluation) -> list[Result]:
    """The results of all tasks, names preceded by their task's; the mean top-1 first."""
    flat = [replace(result, name=f"{task.name}/{result.name}") for task in done.tasks for result in task.results]
    return flat if done.mean_top1 is None else [done.mean_top1, *flat]


def _classify(
    task: ClassificationTask,
    scores: Doubles,
    prompts: Texts,
    part: Labelled,
    seed: int,
) -> tuple[TaskReport, Scored]:
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


def _retrieve(
    said: Said, task: RetrievalTask, part: TaskImages, seed: int, sharded: bool
) -> tuple[TaskReport, dict[str, ItemScores]]:
    """Images against the captions of all of them; how every query of each direction fared."""
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


__all__ = ["evaluate", "evaluator", "flat_results"]
