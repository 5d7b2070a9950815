"""ConES (arXiv 2305.18993): class embeddings are learned directly, with no text encoder in the loop."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.config import config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.deep_prompts import INIT_STD
from clip_med.prompt_learning.method import ClassTexts, Method


@config
class ConESConfig:
    """AdamW at 1e-3 is an assumption: no settings for classification are published."""

    kind: Literal["cones"] = "cones"
    start: Literal["templates", "random"] = "templates"
    """templates: the zero-shot class texts; random: a normal distribution of deviation 0.02."""


class ConES(Method):
    """Learns E [C, D], in the space where the text encoder ends; logits: scale v . E_c / |E_c|; loss: cross-entropy.

    Published is the principle, for detection, segmentation and generation: optimise the embeddings that the text
    encoder would give, without it. This form for classification is derived from it, with one embedding per class. It
    starts as the zero-shot model; up to its parametrisation it is TaskRes with alpha = 1.
    """

    def __init__(self, config: ConESConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self._scale = texts.scale
        start = texts.templates.clone()
        if config.start == "random":
            start = INIT_STD * torch.randn(start.shape).to(start)
        self.embeddings = nn.Parameter(start)

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the embeddings."""
        return self._scale * inputs @ F.normalize(self.embeddings, dim=-1).T


__all__ = ["ConES", "ConESConfig"]
