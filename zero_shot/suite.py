"""A whole evaluation: every task of a configuration on one encoder, each image encoded once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from clip_med.models.dual_encoder import DualEncoder
from zero_shot.config import ClassificationTask, EvalConfig, MultiLabelTask, RetrievalTask
from zero_shot.encoded import Encoded, Progress
from zero_shot.evaluation import MEAN_TOP1, Evaluation, TaskReport
from zero_shot.findings import report_findings
from zero_shot.intervals import mean_of_means
from zero_shot.outcomes import report_classes, report_retrieval
from zero_shot.result import Result
from zero_shot.said import Said
from zero_shot.scores import ItemScores
from zero_shot.shown import Scored, ScoredFindings
from zero_shot.task_images import Labelled, ShardSets, task_images


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
                report, scored[task.name] = report_classes(task, scores, texts, part, seed=config.seed)
            case MultiLabelTask() as task:
                scores, probabilities, texts = said.finding_scores(task, part)
                report, findings[task.name] = report_findings(
                    task, scores, probabilities, texts, part, seed=config.seed
                )
            case RetrievalTask() as task:
                report, own = report_retrieval(said, task, part, seed=config.seed, sharded=sharded)
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


__all__ = ["evaluate", "evaluator", "flat_results"]
