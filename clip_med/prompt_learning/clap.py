"""CLAP (Silva-Rodriguez et al., CVPR 2024, arXiv 2312.12730): a linear probe held near the class texts."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clip_med.config import NonNegativeFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts, Method, Support


@config
class CLAPConfig:
    """The authors' SGD at 0.1 (batches of 256, 300 epochs) moves class vectors of length about 10; 1e-3 fits unit ones.

    Needs no validation images.
    """

    kind: Literal["clap"] = "clap"
    penalty: NonNegativeFloat = 1.0
    """Factor of all lambda."""
    adaptive: bool = False
    """Raise each lambda after every epoch by its violation squared (augmented Lagrangian of Powell, Hestenes and
    Rockafellar, the last violation as its penalty)."""


class CLAP(Method):
    """Loss: cross-entropy + sum_c lambda_c ||w_c - t_c||^2, w = t at first; logits are scaled cosines with w.

    lambda_c is the mean zero-shot probability of class c over its support images: what the texts know already is kept.
    A sum as in the paper; the authors' code has a mean over classes, and text features that are not normalised.
    """

    def __init__(self, config: CLAPConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.texts = texts
        self.penalty = config.penalty
        self.adaptive = config.adaptive
        self.weight = nn.Parameter(texts.templates.clone())
        self.multipliers = torch.ones_like(texts.templates[:, 0])
        self.rho = torch.zeros_like(self.multipliers)

    @torch.no_grad()
    def prepare(self, support: Support) -> None:
        """Set the multipliers from view 0; a class without images keeps 1."""
        shares = self.texts.zero_shot(support.features[0]).softmax(dim=1)
        counts = torch.bincount(support.labels, minlength=len(self.multipliers))
        own = shares.gather(1, support.labels[:, None])[:, 0]
        sums = torch.zeros_like(self.multipliers).index_add_(0, support.labels, own)
        self.multipliers = torch.where(counts > 0, sums / counts.clamp(min=1), 1.0)
        self.rho = torch.zeros_like(self.multipliers)

    def loss(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy and the weighed distances."""
        return F.cross_entropy(self.logits(inputs), labels) + self.penalty * (self.multipliers * self._distance()).sum()

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Raise the multipliers, if they are adaptive."""
        if self.adaptive:
            distance = self._distance()
            self.multipliers = (self.multipliers + self.rho * distance).clamp(min=0)
            self.rho = distance

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the class vectors."""
        return self.texts.scale * inputs @ F.normalize(self.weight, dim=-1).T

    def _distance(self) -> Float[Tensor, " C"]:
        return (self.weight - self.texts.templates).square().sum(dim=1)


__all__ = ["CLAP", "CLAPConfig"]
