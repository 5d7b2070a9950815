"""ProGrad (Zhu et al., ICCV 2023, arXiv 2205.14865): CoOp that takes no step against the zero-shot model."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.config import NonNegativeFloat, PositiveFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import ContextConfig, CoOp
from clip_med.prompt_learning.method import ClassTexts

# Below this length the second gradient is rounding error and has no direction.
_SMALLEST: Final = 1e-12


@config
class ProGradConfig(ContextConfig):
    """Published settings go with n_ctx 16 and SGD at 2e-3, batches of 32, CoOp's numbers of epochs."""

    kind: Literal["prograd"] = "prograd"
    weight: NonNegativeFloat = 1.0
    """Share of the conflicting component that is taken out; 1: all of it, 0: CoOp."""
    temperature: PositiveFloat = 1.0
    """Of the zero-shot probabilities and the learned ones in the second loss."""


class ProGrad(CoOp):
    """Learns CoOp's context by the gradient g of the cross-entropy, less what goes against the gradient k of L_kl.

    L_kl = -T^2 mean_b sum_c softmax(z0 / T)_c log softmax(z / T)_c, with z0 the zero-shot logits of the template texts.
    For each learned tensor: g - weight (g . k) k / |k|^2 if g . k < 0, else g. The teacher is the untouched model; one
    published port to BiomedCLIP takes the student itself, whose L_kl has no gradient.
    """

    def __init__(self, config: ProGradConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__(config, encoder, texts)
        self.weight = config.weight
        self.temperature = config.temperature

    def backward(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> float:
        """Two backward passes; the loss returned is the cross-entropy."""
        learned = [parameter for parameter in self.parameters() if parameter.requires_grad]
        logits = self.logits(inputs)
        loss = F.cross_entropy(logits, labels)
        wanted = torch.autograd.grad(loss, learned, retain_graph=True)
        known = torch.autograd.grad(self.distillation(logits, inputs), learned)
        for parameter, g, k in zip(learned, wanted, known, strict=True):
            parameter.grad = agreeing(g, k, self.weight)
        return float(loss.detach())

    def distillation(self, logits: Float[Tensor, "B C"], inputs: Float[Tensor, "B D"]) -> Float[Tensor, ""]:
        """L_kl, of the logits of image features."""
        teacher = (self.texts.zero_shot(inputs) / self.temperature).softmax(dim=1)
        return self.temperature**2 * F.cross_entropy(logits / self.temperature, teacher)


def agreeing(
    gradient: Float[Tensor, "*shape"], known: Float[Tensor, "*shape"], weight: float
) -> Float[Tensor, "*shape"]:
    """The gradient without `weight` times its component along `known`, if they point apart; else as it is.

    Example:
        >>> agreeing(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]), 1.0).tolist()
        [1.0, 0.0]
    """
    length = known.norm()
    if length < _SMALLEST:
        return gradient
    direction = known / length
    along = (gradient * direction).sum()
    return gradient - weight * along * direction if along < 0 else gradient


__all__ = ["ProGrad", "ProGradConfig", "agreeing"]
