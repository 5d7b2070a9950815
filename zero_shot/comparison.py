"""Which of several models is better, task by task and over all tasks, and which differences are more than chance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean, mean_of_means
from zero_shot.metrics import top_k_accuracy
from zero_shot.model_ranks import critical_difference, friedman_p, task_ranks
from zero_shot.result import Result, without_nan
from zero_shot.scores import ClassScores, ItemScores, LabelScores, Scores
from zero_shot.significance import (
    Difference,
    auroc_difference,
    holm,
    mcnemar,
    paired_difference,
    sign_flips,
    unit_sums,
)

Metric = Literal["top-1", "balanced accuracy", "macro AUROC"]
Doubles = NDArray[np.float64]

OVERALL = "mean over tasks"


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models on one task, or over all of them: the first's metric less the second's.

    `adjusted`: p by Holm over all pairs and tasks (over all pairs, for the mean). `better`: the model that is better at
    the level asked for, or None. `mcnemar`: exact p of right and wrong answers, images taken as independent; None where
    there are none, and for AUROC.
    """

    task: str
    first: str
    second: str
    difference: Difference
    adjusted: float
    better: str | None
    mcnemar: float | None


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Models by one metric: `values[task][model]`, every pair, and mean ranks (1 is best).

    Two models whose mean ranks differ by less than `critical` cannot be told apart by their ranks alone (Nemenyi);
    `friedman` is the p that all are alike. Both need two tasks and are None otherwise. `left_out`: tasks that not every
    model was scored on, with those that were not.
    """

    metric: Metric
    level: float
    models: tuple[str, ...]
    values: dict[str, dict[str, Result]]
    pairs: tuple[Pair, ...]
    overall: tuple[Pair, ...]
    ranks: dict[str, float]
    critical: float | None
    friedman: float | None
    left_out: dict[str, tuple[str, ...]]

    def wins(self, first: str, second: str) -> tuple[int, int, int]:
        """On how many tasks the first is better, neither is, and the second is, after Holm's correction."""
        own = [pair for pair in self.pairs if {pair.first, pair.second} == {first, second}]
        won, lost = (sum(pair.better == name for pair in own) for name in (first, second))
        return won, len(own) - won - lost, lost

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, which has no NaN: undefined values are None."""
        pairs = [(self.pairs, "pairs"), (self.overall, "overall")]
        return {
            "metric": self.metric,
            "level": self.level,
            "models": list(self.models),
            "values": {
                task: {model: result.to_dict() for model, result in own.items()} for task, own in self.values.items()
            },
            **{name: [without_nan(asdict(pair)) for pair in some] for some, name in pairs},
            "wins_ties_losses": [
                {"first": a, "second": b, **dict(zip(("wins", "ties", "losses"), self.wins(a, b), strict=True))}
                for a, b in combinations(self.models, 2)
            ],
            "mean_ranks": self.ranks,
            "critical_difference": self.critical,
            "friedman_p": self.friedman,
            "left_out": {task: list(models) for task, models in self.left_out.items()},
        }


def compare_scores(
    models: Mapping[str, Mapping[str, Scores]],
    *,
    metric: Metric = "top-1",
    level: float = 0.05,
    seed: int = 0,
) -> Comparison:
    """Compare models on the tasks that all of them were scored on.

    Intervals and tests draw whole patients, the same for both models. top-1 and other means over images: paired
    bootstrap, McNemar's test or sign flips of patients (`paired_difference`); macro AUROC: DeLong with patients. Tasks
    of values (retrieval, questions) have one metric, whatever `metric` says; with macro AUROC they are left out. Tasks
    of findings have macro AUROC alone, and are left out with the others.

    Args:
        models: name of each to its scores by task.

    Raises:
        ValueError: fewer than two models, no task in common, other images, patients, classes or truth of a task.
    """
    if len(models) < 2:
        raise ValueError(f"at least two models are needed, got {', '.join(models) or 'none'}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    tasks, left_out = _common(models, metric)
    aligned = {task: {name: own[task] for name, own in models.items()} for task in tasks}
    for task, own in aligned.items():
        _check_same(task, own)
    values = {
        task: {name: _value(scores, metric, seed) for name, scores in own.items()} for task, own in aligned.items()
    }
    matrix = np.array([[result.value for result in own.values()] for own in values.values()])
    # Where a metric is undefined for one model it is so for all, since that depends on the truth alone.
    defined = ~np.isnan(matrix).any(axis=1)
    if not defined.any():
        raise ValueError(f"{metric} is undefined on every task: {', '.join(tasks)}")
    ranks = task_ranks(matrix[defined])
    return Comparison(
        metric=metric,
        level=level,
        models=tuple(models),
        values=values,
        pairs=_by_task(aligned, metric, level, seed),
        overall=_over_all(aligned, metric, level, seed),
        ranks=dict(zip(models, ranks.mean(axis=0).tolist(), strict=True)),
        critical=critical_difference(len(models), len(ranks), level=level) if len(ranks) > 1 else None,
        friedman=friedman_p(ranks, seed=seed) if len(ranks) > 1 else None,
        left_out=left_out,
    )


def _by_task(aligned: Mapping[str, Mapping[str, Scores]], metric: Metric, level: float, seed: int) -> tuple[Pair, ...]:
    """Every pair of models on every task, p adjusted over all of them."""
    found = [
        (task, a, b, _difference(own[a], own[b], metric, seed), _mcnemar(own[a], own[b], metric))
        for task, own in aligned.items()
        for a, b in combinations(own, 2)
    ]
    adjusted = holm([difference.p for *_, difference, _ in found])
    return tuple(
        _pair(task, a, b, difference, p, level, test)
        for (task, a, b, difference, test), p in zip(found, adjusted, strict=True)
    )


def _over_all(aligned: Mapping[str, Mapping[str, Scores]], metric: Metric, level: float, seed: int) -> tuple[Pair, ...]:
    """Every pair of models on the mean over tasks, p adjusted over the pairs."""
    models = next(iter(aligned.values()))
    means = [
        (a, b, _mean_difference([(own[a], own[b]) for own in aligned.values()], metric, seed))
        for a, b in combinations(models, 2)
    ]
    adjusted = holm([difference.p for *_, difference in means])
    return tuple(
        _pair(OVERALL, a, b, difference, p, level, None) for (a, b, difference), p in zip(means, adjusted, strict=True)
    )


def measurable(models: Mapping[str, Mapping[str, Scores]], metric: Metric) -> bool:
    """Whether some task of all models has this metric."""
    return not all(_without(models, metric).values())


def _without(models: Mapping[str, Mapping[str, Scores]], metric: Metric) -> dict[str, tuple[str, ...]]:
    """Every task, with the models of which it has no scores or none of this metric."""
    # Values without classes have no AUROC, and findings have no single answer that is right.
    other = ItemScores if metric == "macro AUROC" else LabelScores
    every = dict.fromkeys(task for own in models.values() for task in own)
    return {
        task: tuple(name for name, own in models.items() if task not in own)
        or tuple(name for name, own in models.items() if isinstance(own[task], other))
        for task in every
    }


def _common(models: Mapping[str, Mapping[str, Scores]], metric: Metric) -> tuple[list[str], dict[str, tuple[str, ...]]]:
    without = _without(models, metric)
    tasks = [task for task, names in without.items() if not names]
    if not tasks:
        there = ", ".join(without) or "none"
        raise ValueError(f"no task has {metric} for all of {', '.join(models)}; there are {there}")
    return tasks, {task: names for task, names in without.items() if names}


def _check_same(task: str, own: Mapping[str, Scores]) -> None:
    (first, known), *others = own.items()
    for name, scores in others:
        for what in ("keys", "groups", "classes", "metric"):
            one, other = (getattr(s, what, None) for s in (known, scores))
            if one != other:
                raise ValueError(
                    f"task {task}: {first} and {name} have other {what}: {str(one)[:60]}, {str(other)[:60]}"
                )
        one, other = (np.asarray(getattr(s, "truth", 0)) for s in (known, scores))
        if not np.array_equal(one, other):
            raise ValueError(f"task {task}: {first} and {name} have other truth")


def _of_items(scores: Scores, metric: Metric) -> Doubles:
    """Values [N] whose mean is the metric."""
    if isinstance(scores, ItemScores):
        return scores.values
    assert isinstance(scores, ClassScores), "tasks of findings are left out of this metric"
    hits = top_k_accuracy(scores.scores, scores.truth)
    if metric == "top-1":
        return hits
    # Every class weighs the same: the mean of these is the mean recall over the classes that occur.
    counts = np.bincount(scores.truth)
    return hits * len(hits) / (counts > 0).sum() / counts[scores.truth]


def _positive(scores: ClassScores | LabelScores) -> NDArray[np.bool_]:
    return scores.truth if isinstance(scores, LabelScores) else scores.truth[:, None] == np.arange(len(scores.classes))


def _value(scores: Scores, metric: Metric, seed: int) -> Result:
    if metric == "macro AUROC" and not isinstance(scores, ItemScores):
        # Against a model that says nothing, whose AUROC is 0.5 without any error.
        nothing = np.zeros_like(scores.scores)
        found = auroc_difference(scores.scores, nothing, _positive(scores), groups=scores.groups)
        low, high = (float(np.minimum(1.0, end + 0.5)) for end in (found.low, found.high))
        return Result(name=metric, value=found.value + 0.5, low=low, high=high, n=found.n, unit="fraction")
    name = scores.metric if isinstance(scores, ItemScores) else metric
    return bootstrap_mean(_of_items(scores, metric), name=name, groups=scores.groups, seed=seed)


def _difference(first: Scores, second: Scores, metric: Metric, seed: int) -> Difference:
    if metric == "macro AUROC" and not isinstance(first, ItemScores) and not isinstance(second, ItemScores):
        return auroc_difference(first.scores, second.scores, _positive(first), groups=first.groups)
    one, other = (_of_items(scores, metric) for scores in (first, second))
    return paired_difference(one, other, groups=first.groups, seed=seed)


def _mean_difference(pairs: Sequence[tuple[Scores, Scores]], metric: Metric, seed: int) -> Difference:
    """Over tasks, every task weighing the same; each is drawn by its own patients, and the tasks are fixed."""
    if metric == "macro AUROC":
        found = [_difference(first, second, metric, seed) for first, second in pairs]
        # Of independent tasks variances add up; an interval of DeLong is 2 x 1.96 standard errors wide unless cut at 1.
        error = math.sqrt(sum(one.error**2 for one in found)) / len(found)
        value = sum(one.value for one in found) / len(found)
        p = math.erfc(abs(value) / error / math.sqrt(2)) if error > 0 else (1.0 if value == 0 else math.nan)
        low, high = value - 1.959964 * error, value + 1.959964 * error
        test, n, units = "normal", sum(one.n for one in found), sum(one.units for one in found)
        return Difference(value=value, low=low, high=high, p=p, n=n, units=units, test=test, error=error)
    parts = [(_of_items(first, metric) - _of_items(second, metric), first.groups) for first, second in pairs]
    mean = mean_of_means(parts, name=OVERALL, seed=seed)
    sums = np.concatenate([unit_sums(values, groups) / len(values) for values, groups in parts])
    return Difference(
        value=mean.value,
        low=mean.low,
        high=mean.high,
        p=sign_flips(sums),
        n=mean.n,
        units=len(sums),
        test="sign flips of patients",
    )


def _mcnemar(first: Scores, second: Scores, metric: Metric) -> float | None:
    if metric == "macro AUROC" or not (isinstance(first, ClassScores) and isinstance(second, ClassScores)):
        return None
    right = [scores.scores.argmax(axis=1) == scores.truth for scores in (first, second)]
    return mcnemar(right[0], right[1])


def _pair(
    task: str, first: str, second: str, difference: Difference, adjusted: float, level: float, test: float | None
) -> Pair:
    better = None
    if adjusted <= level:
        better = first if difference.value > 0 else second
    return Pair(
        task=task,
        first=first,
        second=second,
        difference=difference,
        adjusted=adjusted,
        better=better,
        mcnemar=test,
    )


__all__ = ["OVERALL", "Comparison", "Metric", "Pair", "compare_scores", "measurable"]
