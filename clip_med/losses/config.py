"""Choice of the contrastive loss. Imports no torch."""

from __future__ import annotations

from typing import Literal

from clip_med.config import config


@config
class InfoNCEConfig:
    """Symmetric softmax cross-entropy over the global batch (CLIP), with multi-positive targets by group id."""

    kind: Literal["info_nce"] = "info_nce"


@config
class SigmoidConfig:
    """Pairwise sigmoid loss (SigLIP); the model needs a logit bias, usually started at -10 with scale 10."""

    kind: Literal["sigmoid"] = "sigmoid"


LossConfig = InfoNCEConfig | SigmoidConfig
