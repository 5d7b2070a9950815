"""Choice of the contrastive loss. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from pathlib import Path
from typing import Literal

from clip_med.config import PositiveFloat, PositiveInt, config


@config
class InfoNCEConfig:
    """Symmetric softmax cross-entropy over the global batch (CLIP), with multi-positive targets by group id.

    tile: side of the square tiles in which logits are computed, and computed again in the backward pass; memory then
        does not grow with the square of the batch. Without it all logits of a rank are held at once.
    exchange: how ranks see each other's features. `gather` holds those of all ranks; `ring` passes blocks on, holds a
        few blocks of one rank's size, and never holds more than one block of logits, also without `tile`.
    """

    kind: Literal["info_nce"] = "info_nce"
    tile: PositiveInt | None = None
    exchange: Literal["gather", "ring"] = "gather"


@config
class SigmoidConfig:
    """Pairwise sigmoid loss (SigLIP); the model needs a logit bias, usually started at -10 with scale 10.

    `tile` and `exchange` as in `InfoNCEConfig`.
    """

    kind: Literal["sigmoid"] = "sigmoid"
    tile: PositiveInt | None = None
    exchange: Literal["gather", "ring"] = "gather"


@config
class GroupPositivesConfig:
    """KEEP's loss: one positive for each group of samples of one first label. Every rank computes the whole batch.

    tile: rows of logits held at a time, and computed again in the backward pass; None: all.
    relatives: labels that are ancestors or descendants of each other in the knowledge are no negatives.
    findings: label to the id of its finding, where the label alone does not say it.
    path: a file or folder of knowledge; None: the shipped base.
    """

    kind: Literal["group_positives"] = "group_positives"
    tile: PositiveInt | None = None
    relatives: bool = True
    findings: Mapping[str, str] = field(default_factory=dict[str, str])
    path: Path | None = None


@config
class SoftTargetsConfig:
    """MedCLIP's loss: soft targets from products of label vectors.

    tile: rows of logits held at a time, and computed again in the backward pass; None: all of a rank's.
    similarity: `dot` counts shared labels, as MedCLIP's code; `cosine` as its paper.
    sharpness: what similarities are multiplied with before their softmax is the target; 1 in MedCLIP.
    """

    kind: Literal["soft_targets"] = "soft_targets"
    tile: PositiveInt | None = None
    similarity: Literal["dot", "cosine"] = "dot"
    sharpness: PositiveFloat = 1.0


LossConfig = InfoNCEConfig | SigmoidConfig | GroupPositivesConfig | SoftTargetsConfig

__all__ = ["GroupPositivesConfig", "InfoNCEConfig", "LossConfig", "SigmoidConfig", "SoftTargetsConfig"]
