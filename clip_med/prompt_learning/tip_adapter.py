"""Tip-Adapter and Tip-Adapter-F (Zhang et al., ECCV 2022, arXiv 2207.09519): a cache of labelled features."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clip_med.config import NonNegativeFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts, Method, Support

# The authors' grid: 200 values of beta, 20 of alpha.
_BETAS: Final = torch.linspace(0.1, 7.0, 200).tolist()
_ALPHAS: Final = torch.linspace(0.1, 3.0, 20).tolist()


@config
class TipAdapterConfig:
    """Published settings of the trained form go with AdamW at 1e-3, batches of 256 and 20 epochs."""

    kind: Literal["tip_adapter"] = "tip_adapter"
    train_keys: bool = False
    """Tip-Adapter-F: the keys are learned, from the cache on."""
    alpha: NonNegativeFloat = 1.17
    """Weight of the cache; 0 is zero-shot. With validation images the best of 0.1 .. 3 there is taken."""
    beta: NonNegativeFloat = 1.0
    """Sharpness; with validation images the best of 0.1 .. 7."""


class TipAdapter(Method):
    """Zero-shot logits + alpha exp(-beta (1 - f F^T)) Y: F [N, D] features of labelled images, Y [N, C] their classes.

    F holds the renormalised mean over the views of each image. alpha and beta are chosen on validation images alone,
    after the keys have been trained; of settings that are right equally often, the one with the lowest cross-entropy.
    The authors' main loop of Tip-Adapter-F keeps the epoch that is best on the test images: here the last one counts.
    Before the cache is filled the logits are those of zero-shot.
    """

    def __init__(self, config: TipAdapterConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.texts = texts
        self.alpha, self.beta = config.alpha, config.beta
        self.train_keys = config.train_keys
        self.keys = nn.Parameter(texts.templates[:0].clone(), requires_grad=False)
        self.values: Tensor
        self.register_buffer("values", texts.templates.new_zeros(0, len(texts.names)), persistent=False)

    def prepare(self, support: Support) -> None:
        """Fill the cache."""
        keys = F.normalize(support.features.mean(dim=0), dim=-1)
        self.keys = nn.Parameter(keys.clone(), requires_grad=self.train_keys)
        self.values = F.one_hot(support.labels, len(self.texts.names)).to(keys)

    @torch.no_grad()
    def select(self, validation: Support) -> None:
        """Take the best alpha and beta of the grid."""
        features, labels = validation.features[0], validation.labels
        plain = self.texts.zero_shot(features)
        alphas = torch.tensor(_ALPHAS, device=features.device)
        best = (-1.0, 0.0)
        for beta in _BETAS:
            logits = plain + alphas[:, None, None] * self._cache(features, beta)
            scores = _scores(logits, labels)
            top = max(range(len(scores)), key=scores.__getitem__)
            if scores[top] > best:
                best, self.alpha, self.beta = scores[top], _ALPHAS[top], beta

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Zero-shot logits and those of the cache."""
        return self.texts.zero_shot(inputs) + self.alpha * self._cache(inputs, self.beta)

    def _cache(self, inputs: Float[Tensor, "B D"], beta: float) -> Float[Tensor, "B C"]:
        return (-beta * (1 - inputs @ self.keys.T)).exp() @ self.values


def _scores(logits: Float[Tensor, "A V C"], labels: Int64[Tensor, " V"]) -> list[tuple[float, float]]:
    """Of each setting, images answered rightly and the negative cross-entropy."""
    right = (logits.argmax(dim=2) == labels).sum(dim=1).double()
    loss = (
        F.cross_entropy(logits.transpose(1, 2), labels.expand(len(logits), -1), reduction="none").double().mean(dim=1)
    )
    return list(zip(right.tolist(), (-loss).tolist(), strict=True))


__all__ = ["TipAdapter", "TipAdapterConfig"]
