"""Zero-shot findings on features: presence against absence, a sigmoid or a softmax over findings; and their report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision, grouped_text_features
from zero_shot.calibration import softmax
from zero_shot.classify import class_scores
from zero_shot.config import MultiLabelTask
from zero_shot.evaluation import TaskReport, digest
from zero_shot.multi_label import label_results, one_sided
from zero_shot.prompt_features import Known, prompt_features
from zero_shot.shown import ScoredFindings
from zero_shot.task_images import TaskImages, finding_targets

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]


def finding_scores(
    encoder: DualEncoder,
    task: MultiLabelTask,
    features: Floats,
    *,
    precision: Precision = "fp32",
    known: Known | None = None,
) -> tuple[Doubles, Doubles]:
    """Scores and probabilities [N, K] of images for the findings of a task; features: [N, D] unit rows.

    With scale s, bias b (0 where the model has none) and cosines c+ and c- with presence and absence:

    - pair: s (c+ - c-), and its sigmoid, which is the softmax over s c+ and s c-
    - sigmoid: s c+ + b, and its sigmoid (SigLIP)
    - softmax: the softmax over the findings' s c+, and its logarithm as the score
    - queries: nothing here; see `zero_shot.query_answers`

    Scores rank as the probabilities do, but do not become equal where those are 0 or 1 in double precision. With
    ensemble `probability` the probability is a mean over prompts, and the score is the probability itself. No
    probability is calibrated.

    Args:
        known: features of texts, see `grouped_text_features`.
    """
    present = prompt_features(encoder, task.prompts, precision=precision, known=known)
    scale = float(encoder.logit_scale.detach().exp())
    weights = task.weights()

    def scores_of(prompts: Sequence[Floats], own: Sequence[Sequence[float]] | None) -> Doubles:
        return class_scores(features, prompts, scale=scale, ensemble=task.ensemble, weights=own)

    match task.score:
        case "pair":
            absent = grouped_text_features(encoder, task.absent_texts().values(), precision=precision, known=known)
            count = len(present)
            pairs = [
                scores_of((present[k], absent[k]), None if weights is None else (weights[k], weights[count + k]))
                for k in range(count)
            ]
            if task.ensemble == "probability":
                shares = np.stack([pair[:, 0] for pair in pairs], axis=1)
                return shares, shares
            margins = np.stack([pair[:, 0] - pair[:, 1] for pair in pairs], axis=1)
            return margins, sigmoid(margins)
        case "sigmoid":
            bias = 0.0 if encoder.logit_bias is None else float(encoder.logit_bias.detach())
            logits = scores_of(present, weights) + bias
            return logits, sigmoid(logits)
        case "softmax":
            scores = scores_of(present, weights)
            if task.ensemble == "probability":
                return scores, scores
            return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True), softmax(scores)
        case "queries":
            raise ValueError(f"task {task.name}: score queries is known to clip-med eval only")


def report_findings(
    task: MultiLabelTask,
    scores: Doubles,
    probabilities: Doubles,
    present: Mapping[str, Sequence[str]],
    images: TaskImages,
    *,
    seed: int = 0,
) -> tuple[TaskReport, ScoredFindings]:
    """The outcome of a task from scores and probabilities [N, K] of its images.

    Args:
        present: what told the model of each finding; seed: of the bootstrap intervals.
    """
    labels = tuple(task.prompts.classes)
    samples, groups = images.samples, images.groups
    targets = finding_targets(task, samples)
    results = label_results(scores, targets, labels, groups=groups, seed=seed)
    absent = task.absent_texts()
    report = TaskReport(
        name=task.name,
        kind=task.kind,
        n=len(samples),
        results=tuple(sorted(results, key=lambda result: result.name != task.metric)),
        examples=(),
        classes=labels,
        positives=tuple(targets.sum(axis=0).tolist()),
        left_out=one_sided(targets, labels),
        prompts={label: tuple(texts) for label, texts in present.items()},
        absent=absent,
        ensemble=task.ensemble,
        score=task.score,
        prompts_sha256=digest([present, absent]),
        split_sha256=digest(
            [[sample.key, [c for c in labels if c in sample.labels]] for sample in samples],
        ),
    )
    scored = ScoredFindings(
        shards=task.shards,
        indices=images.indices,
        keys=images.keys,
        groups=tuple(groups),
        targets=targets,
        scores=scores,
        probabilities=probabilities,
    )
    return report, scored


def sigmoid(logits: Doubles) -> Doubles:
    """1 / (1 + exp(-logits)), also where the exponential would overflow."""
    return np.exp(-np.logaddexp(0.0, -logits))


__all__ = ["finding_scores", "report_findings", "sigmoid"]
