"""TaskRes (Yu et al., CVPR 2023, arXiv 2211.10277): a learned residual for each class text."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.config import NonNegativeFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts, Method


@config
class TaskResConfig:
    """Published settings go with Adam at 2e-3, batches of 256, and 100 epochs up to 4 shots, else 200."""

    kind: Literal["task_res"] = "task_res"
    alpha: NonNegativeFloat = 0.5
    """Weight of the residual; 0 is zero-shot."""


class TaskRes(Method):
    """t' = t + alpha x with x = 0 at first; logits are scaled cosines of the features and t'.

    t is the renormalised mean of the template features, in the authors' code the mean itself, which has a length a
    little below 1 and the same direction.
    """

    def __init__(self, config: TaskResConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.texts = texts
        self.alpha = config.alpha
        self.residual = nn.Parameter(torch.zeros_like(texts.templates))

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the moved class texts."""
        moved = F.normalize(self.texts.templates + self.alpha * self.residual, dim=-1)
        return self.texts.scale * inputs @ moved.T


__all__ = ["TaskRes", "TaskResConfig"]
