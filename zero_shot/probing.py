"""Linear probes on frozen features: fitted to a training split, scored once on the test split, with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from clip_med.data.shards import ShardSet
from clip_med.prompt_learning.linear_probe import Held, LinearProbeConfig, Targets, fit_probe
from clip_med.prompt_learning.shots import Draw, draw_shots
from clip_med.prompt_learning.tune_data import TaskData
from zero_shot.classify import classification_results
from zero_shot.multi_label import label_results, label_targets
from zero_shot.result import Result
from zero_shot.scores import ClassScores, LabelScores


@dataclass(frozen=True, kw_only=True)
class ProbeOutcome:
    """What a probe was fitted to and what it scored."""

    classes: tuple[str, ...]
    C: float
    chosen_by: str
    converged: bool
    train: int
    validation: int
    results: tuple[Result, ...]
    scores: ClassScores | LabelScores


@dataclass(frozen=True, kw_only=True)
class MultiLabelled:
    """Samples with any number of the labels; `targets` [N, K] says which."""

    shards: ShardSet
    indices: tuple[int, ...]
    targets: NDArray[np.bool_]
    groups: tuple[str, ...]


def probe_classes(
    data: TaskData, config: LinearProbeConfig, *, shots: int | None = None, seed: int = 0
) -> ProbeOutcome:
    """Fit to all training images, or to `shots` of each class, and score the test split.

    C is chosen on the validation split where the task has one (few-shot: min(shots, 4) images of each class), else by
    cross-validation within the training images, patients whole. The test split is opened last.

    Raises:
        ValueError: see `draw_shots` and `fit_probe`.
    """
    draw = draw_shots(data.train, shots, seed=seed, validation=data.val if shots is not None else None)
    if shots is None and data.val is not None:
        draw = Draw(support=draw.support, validation=np.arange(len(data.val.labels)))
    train = data.support(data.train, draw.support, images=False)
    held: Held | None = None
    if data.val is not None:
        shown = data.shown(data.val, draw.validation, images=False)
        held = shown.features[0], shown.labels
    probe = fit_probe(
        train.features.flatten(0, 1),
        train.labels.repeat(len(train.features)),
        config,
        classes=len(data.names),
        groups=[data.train.groups[row] for row in draw.support] * len(train.features),
        validation=held,
        seed=seed,
    )
    test = data.test
    shown = data.shown(test, np.arange(len(test.labels)), images=False)
    logits = probe.logits(shown.features[0]).double().cpu().numpy()
    scores = ClassScores(
        keys=tuple(test.shards.key(index) for index in test.indices),
        groups=test.groups,
        classes=data.labels,
        truth=test.labels,
        scores=logits,
    )
    return ProbeOutcome(
        classes=data.labels,
        C=probe.C,
        chosen_by=probe.chosen_by,
        converged=probe.converged,
        train=len(draw.support),
        validation=len(draw.validation),
        results=tuple(classification_results(logits, test.labels, groups=test.groups, seed=seed)),
        scores=scores,
    )


def multi_labelled(shards: ShardSet, classes: Sequence[str], dataset: str | None = None) -> MultiLabelled:
    """All samples (of a data set); those with none of the labels are negatives of each.

    Raises:
        ValueError: no sample, or a label that no sample has.
    """
    every = ((index, shards.metadata(index)) for index in range(len(shards)))
    chosen = {index: sample for index, sample in every if dataset is None or sample.dataset == dataset}
    if not chosen:
        raise ValueError(f"no sample of data set {dataset!r}")
    targets = label_targets(list(chosen.values()), classes)
    if without := [label for label, count in zip(classes, targets.sum(axis=0).tolist(), strict=True) if not count]:
        raise ValueError(f"{shards.tar(0)}: no sample has the label {without[0]!r}")
    groups = tuple(sample.group for sample in chosen.values())
    return MultiLabelled(shards=shards, indices=tuple(chosen), targets=targets, groups=groups)


def probe_labels(
    splits: tuple[MultiLabelled, MultiLabelled | None, MultiLabelled],
    features: tuple[NDArray[np.float32], NDArray[np.float32] | None, NDArray[np.float32]],
    classes: Sequence[str],
    config: LinearProbeConfig,
    *,
    seed: int = 0,
) -> ProbeOutcome:
    """One binary probe for each label, C common to all; AUROC and AUPRC for each and as their mean.

    Args:
        splits: training, validation (or None) and test samples; features: unit rows [N, D] of each.
    """
    train, val, test = splits
    targets: Targets = torch.from_numpy(train.targets)
    held: Held | None = None
    if val is not None and features[1] is not None:
        held = torch.from_numpy(features[1]), torch.from_numpy(val.targets)
    probe = fit_probe(
        torch.from_numpy(features[0]),
        targets,
        config,
        classes=len(classes),
        groups=train.groups,
        validation=held,
        seed=seed,
    )
    logits = probe.logits(torch.from_numpy(features[2])).double().numpy()
    return ProbeOutcome(
        classes=tuple(classes),
        C=probe.C,
        chosen_by=probe.chosen_by,
        converged=probe.converged,
        train=len(train.indices),
        validation=0 if val is None else len(val.indices),
        results=tuple(label_results(logits, test.targets, classes, groups=test.groups, seed=seed)),
        scores=LabelScores(
            keys=tuple(test.shards.key(index) for index in test.indices),
            groups=test.groups,
            classes=tuple(classes),
            truth=test.targets,
            scores=logits,
        ),
    )


__all__ = ["MultiLabelled", "ProbeOutcome", "multi_labelled", "probe_classes", "probe_labels"]
