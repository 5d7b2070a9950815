"""Everything about the robustness of a zero-shot classifier in one run over the images of an evaluation."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from clip_med.config import NonNegativeInt, PositiveInt, config
from clip_med.knowledge.prompts import ClassPrompts, prompt_weights, render_prompts
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import grouped_text_features
from zero_shot.calibration import (
    Bin,
    ConformalSets,
    brier_score,
    coverage,
    expected_calibration_error,
    fit_temperature,
    negative_log_likelihood,
    reliability_curve,
    softmax,
)
from zero_shot.classify import class_scores
from zero_shot.conditions import Condition, condition_features
from zero_shot.config import ClassificationTask, EvalConfig
from zero_shot.corruptions import CORRUPTIONS, LEVELS, Corruption
from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import top_k_accuracy
from zero_shot.ood import Mahalanobis, Separation, energy, max_concept_matching, separation
from zero_shot.prompt_features import prompt_features
from zero_shot.prompt_sensitivity import TEMPLATES, Sensitivity, prompt_sensitivity
from zero_shot.result import Result, without_nan
from zero_shot.subgroups import UNKNOWN, Subgroups, subgroup_table, subgroup_values
from zero_shot.task_images import Labelled, ShardSets, labelled

Doubles = NDArray[np.float64]


@config
class RobustnessConfig:
    """What is done to the images of an evaluation, and what is asked of the answers."""

    corruptions: tuple[Corruption, ...] = CORRUPTIONS
    levels: tuple[PositiveInt, ...] = LEVELS
    by: tuple[str, ...] = ()
    """Subgroups: modality, dataset, split, view, or provenance.NAME; the class is always one."""
    templates: tuple[str, ...] = TEMPLATES
    """Beside those of the task."""
    alpha: float = 0.1
    """Conformal sets may miss the true class this often."""
    limit: PositiveInt | None = None
    """Images of each task, spread evenly over it."""
    seed: NonNegativeInt = 0
    """Of corruptions, of the halves and of intervals."""

    def __post_init__(self) -> None:
        """Refuse levels that do not exist, and what would be done twice."""
        if not set(self.levels) <= set(LEVELS):
            raise ValueError(f"levels must lie in {LEVELS[0]} .. {LEVELS[-1]}, got {list(self.levels)}")
        for name in ("corruptions", "levels", "by", "templates"):
            values = getattr(self, name)
            if len(set(values)) != len(values):
                raise ValueError(f"{name} must be different, got {list(values)}")
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha must lie in (0, 1), got {self.alpha}")


@dataclass(frozen=True, kw_only=True)
class Corrupted:
    """Top-1 under one corruption, and the paired change from the images as they are."""

    corruption: Corruption
    level: int
    top1: Result
    change: Result


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """On half of the patients, with what was fitted on the other half.

    `temperature` multiplies that of the model; it is NaN, and `after` holds the same as `before`, where none could be
    fitted (`note` says why). Errors by name: ece, brier, nll. `coverage` and `size` are of the conformal sets.
    """

    n: int
    temperature: float
    before: dict[str, float]
    after: dict[str, float]
    curve: tuple[Bin, ...]
    alpha: float
    coverage: float
    size: float
    note: str


@dataclass(frozen=True, kw_only=True)
class TaskRobustness:
    """The outcome for one task. `unknown`: per score, the images of the other tasks against its own."""

    name: str
    n: int
    clean: Result
    corrupted: tuple[Corrupted, ...]
    mean_corrupted: Result | None
    prompts: Sensitivity
    subgroups: tuple[Subgroups, ...]
    calibration: Calibration
    unknown: dict[str, Separation]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; undefined ones are None, since JSON has no NaN."""
        return without_nan(asdict(self))


def robustness(
    encoder: DualEncoder,
    evaluation: EvalConfig,
    options: RobustnessConfig,
    *,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[TaskRobustness, ...]:
    """All classification tasks of an evaluation; other tasks are left out.

    Raises:
        ValueError: no classification task, a subgroup that no sample of any task states, or as `labelled`.
    """
    tasks = [task for task in evaluation.tasks if isinstance(task, ClassificationTask)]
    if not tasks:
        raise ValueError("the evaluation has no classification task")
    sets = ShardSets()
    parts = [labelled(task, sets, limit=options.limit) for task in tasks]
    for key in options.by:
        if all(value == UNKNOWN for part in parts for value in subgroup_values(part.samples, key)):
            raise ValueError(f"no sample of any task states {key}")
    conditions: list[Condition] = [None, *((kind, level) for kind in options.corruptions for level in options.levels)]
    features: list[dict[Condition, NDArray[np.float32]]] = []
    for part in parts:

        def step(done: int, total: int, name: str = part.task.name) -> None:
            if on_progress is not None:
                on_progress(name, done, total)

        features.append(
            condition_features(
                encoder,
                part,
                conditions,
                seed=options.seed,
                batch_size=evaluation.batch_size,
                precision=evaluation.precision,
                on_progress=step,
            )
        )
    clean = [found[None] for found in features]
    outcomes: list[TaskRobustness] = []
    for number, part in enumerate(parts):
        others = [rows for other, rows in enumerate(clean) if other != number]
        outcomes.append(_task(encoder, part, features[number], others, options))
    return tuple(outcomes)


def halves(groups: Sequence[Hashable], seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of two halves of the patients, drawn at random; all images of a patient are in one.

    Raises:
        ValueError: fewer than two patients.
    """
    names = list(dict.fromkeys(groups))
    if len(names) < 2:
        raise ValueError(f"two halves need at least two patients, got {len(names)}")
    first = {names[i] for i in np.random.default_rng(seed).permutation(len(names))[: len(names) // 2]}
    inside = np.array([group in first for group in groups])
    return np.flatnonzero(inside), np.flatnonzero(~inside)


def calibrate(
    logits: Doubles, truth: NDArray[np.int64], groups: Sequence[Hashable], *, alpha: float, seed: int
) -> Calibration:
    """Temperature and conformal threshold from one half of the patients, judged on the other.

    Raises:
        ValueError: fewer than two patients.
    """
    fitted, judged = halves(groups, seed)

    def errors(temperature: float) -> dict[str, float]:
        shares = softmax(logits[judged], temperature)
        return {
            "ece": expected_calibration_error(shares, truth[judged]),
            "brier": brier_score(shares, truth[judged]),
            "nll": negative_log_likelihood(logits[judged], truth[judged], temperature),
        }

    try:
        temperature, note = fit_temperature(logits[fitted], truth[fitted]), ""
    except ValueError as error:
        temperature, note = math.nan, str(error)
    used = 1.0 if math.isnan(temperature) else temperature
    sets = ConformalSets.fit(softmax(logits[fitted], used), truth[fitted], alpha=alpha)
    covered, size = coverage(sets.sets(softmax(logits[judged], used)), truth[judged])
    return Calibration(
        n=len(judged),
        temperature=temperature,
        before=errors(1.0),
        after=errors(used),
        curve=reliability_curve(softmax(logits[judged]), truth[judged]),
        alpha=alpha,
        coverage=covered,
        size=size,
        note=note,
    )


def _task(
    encoder: DualEncoder,
    part: Labelled,
    features: dict[Condition, NDArray[np.float32]],
    others: Sequence[NDArray[np.float32]],
    options: RobustnessConfig,
) -> TaskRobustness:
    prompts = prompt_features(encoder, part.task.prompts)
    weights = prompt_weights(part.task.prompts)
    scale, groups, truth = float(encoder.logit_scale.detach().exp()), part.groups, part.truth
    scores = {
        condition: class_scores(rows, prompts, scale=scale, ensemble=part.task.ensemble, weights=weights)
        for condition, rows in features.items()
    }
    hits = {condition: top_k_accuracy(values, truth) for condition, values in scores.items()}

    def mean(values: Doubles, name: str) -> Result:
        return bootstrap_mean(values, name=name, groups=groups, seed=options.seed)

    corrupted = tuple(
        Corrupted(
            corruption=condition[0],
            level=condition[1],
            top1=mean(values, "top-1"),
            change=mean(values - hits[None], "change"),
        )
        for condition, values in hits.items()
        if condition is not None
    )
    damaged = [values for condition, values in hits.items() if condition is not None]
    # Shares of the ensemble "probability" as logits.
    logits = np.log(scores[None]) if part.task.ensemble == "probability" else scores[None]
    return TaskRobustness(
        name=part.task.name,
        n=len(truth),
        clean=mean(hits[None], "top-1"),
        corrupted=corrupted,
        mean_corrupted=mean(np.mean(damaged, axis=0), "mean over corruptions") if damaged else None,
        prompts=_prompts(encoder, part, features[None], options),
        subgroups=_subgroups(part, hits[None], options),
        calibration=calibrate(logits, truth, groups, alpha=options.alpha, seed=options.seed),
        unknown=_unknown(part, features[None], others, prompts, scale, options) if others else {},
    )


def _prompts(
    encoder: DualEncoder, part: Labelled, features: NDArray[np.float32], options: RobustnessConfig
) -> Sensitivity:
    templates = list(dict.fromkeys([*part.task.prompts.templates, *options.templates]))
    rendered = [
        list(render_prompts(ClassPrompts(classes=part.task.prompts.classes, templates=(template,))).values())
        for template in templates
    ]
    per_template = [grouped_text_features(encoder, classes) for classes in rendered]
    return prompt_sensitivity(
        features, part.truth, per_template, names=templates, groups=part.groups, seed=options.seed
    )


def _subgroups(part: Labelled, hits: Doubles, options: RobustnessConfig) -> tuple[Subgroups, ...]:
    classes = list(part.task.prompts.classes)
    labels = [classes[number] for number in part.truth]
    keys = {"class": labels}
    for key in options.by:
        values = subgroup_values(part.samples, key)
        keys |= {key: values, f"class and {key}": [f"{a}, {b}" for a, b in zip(labels, values, strict=True)]}
    return tuple(
        subgroup_table(hits, values, key=key, groups=part.groups, seed=options.seed) for key, values in keys.items()
    )


def _unknown(
    part: Labelled,
    features: NDArray[np.float32],
    others: Sequence[NDArray[np.float32]],
    prompts: Sequence[NDArray[np.float32]],
    scale: float,
    options: RobustnessConfig,
) -> dict[str, Separation]:
    """All scores on the same half of the patients; the distance is fitted on the other."""
    fitted, judged = halves(part.groups, options.seed)
    known, unknown = features[judged], np.concatenate(others)
    weights = prompt_weights(part.task.prompts)
    cosines = [class_scores(rows, prompts, scale=1.0, weights=weights) for rows in (known, unknown)]
    matched = [max_concept_matching(rows) for rows in cosines]
    low = [energy(scale * rows) for rows in cosines]
    found = {
        "max concept matching": separation(matched[0], matched[1]),
        "energy": separation(low[0], low[1]),
    }
    if len(fitted) >= 2:
        distance = Mahalanobis.fit(features[fitted], part.truth[fitted])
        found["Mahalanobis"] = separation(distance.score(known), distance.score(unknown))
    return found


__all__ = ["Calibration", "Corrupted", "RobustnessConfig", "TaskRobustness", "calibrate", "halves", "robustness"]
