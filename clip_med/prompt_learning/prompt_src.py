"""PromptSRC (Khattak et al., ICCV 2023, arXiv 2307.06948): prompts in both towers, held near the untouched model."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from clip_med.config import NonNegativeFloat, PositiveFloat, PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.deep_prompts import (
    INIT_STD,
    encode_image,
    encode_text,
    first_prompts,
    tower_widths,
)
from clip_med.prompt_learning.frozen import frozen_copy
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prompt_tokens import prompt_tokens


@config
class PromptSRCConfig:
    """Published settings; they go with 50 epochs of SGD at 2.5e-3 and batches of 4 for few shots."""

    kind: Literal["prompt_src"] = "prompt_src"
    template: str = "a photo of a {}."
    """The prompt of a class; its first `n_ctx` tokens are where the learned ones start, and are the same for all."""
    n_ctx: PositiveInt = 4
    """Tokens of a text prompt."""
    n_ctx_image: PositiveInt = 4
    """Tokens of a visual prompt."""
    depth: PositiveInt = 9
    """Layers with prompts of their own, in either tower, from the first one."""
    text_weight: NonNegativeFloat = 25.0
    image_weight: NonNegativeFloat = 10.0
    logit_weight: NonNegativeFloat = 1.0
    aggregate: bool = True
    """End with the weighted mean of the prompts after each epoch; False: with the last ones."""
    aggregate_mean: PositiveFloat = 0.9
    """Where in the course of the epochs (0 .. 1) the weights of that mean are highest."""
    aggregate_std: PositiveFloat = 0.1
    """Width of the weights. Published for few shots: 45 and 5 of 50 epochs, or 30 and 30; for base to novel classes 15
    and 1 of 20."""


class PromptSRC(Method):
    """Learns prompts [J, N, W] of the text tower and [J, M, V] of the image tower, independent of each other.

    Loss: CE + text_weight mean|t - t0| + image_weight mean|v - v0| + logit_weight KL(p0 || p), where t0 are the class
    templates, v0 the features of the same images without prompts and p0 their zero-shot probabilities; KL is summed
    and divided by B C, as the authors do. With all weights 0 and no aggregation this is IVLP, the paper's baseline.
    The aggregation weighs epoch e of E (from 1) with the normal density of e / E, normalised to sum to 1.

    Each step runs the image tower forwards twice (with prompts and without) and backwards once, and the text tower.

    Raises:
        ValueError: see `tower_widths` and `prompt_tokens`.
    """

    takes = "images"

    def __init__(self, config: PromptSRCConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        image_width, _ = tower_widths(encoder, config.depth)
        self.config = config
        self.encoder = frozen_copy(encoder)
        self.texts = texts
        self.tokens: Tensor
        self.register_buffer(
            "tokens", prompt_tokens(encoder, texts.names, config.template, replaced=config.n_ctx), persistent=False
        )
        self.text_prompts = nn.Parameter(first_prompts(encoder, self.tokens, config.n_ctx, config.depth))
        visual = INIT_STD * torch.randn(config.depth, config.n_ctx_image, image_width)
        self.image_prompts = nn.Parameter(visual.to(self.text_prompts.device))
        self._mean: list[Tensor] = []

    def logits(self, inputs: Num[Tensor, "B 3 S S"]) -> Float[Tensor, "B C"]:
        """Scaled cosines of prompted images and prompted class texts."""
        image_features, text_features = self._features(inputs)
        return self.texts.scale * image_features @ text_features.T

    def loss(self, inputs: Num[Tensor, "B 3 S S"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy and the three terms that hold the prompts near the untouched model."""
        weights = self.config
        image_features, text_features = self._features(inputs)
        logits = self.texts.scale * image_features @ text_features.T
        loss = F.cross_entropy(logits, labels) + weights.text_weight * F.l1_loss(text_features, self.texts.templates)
        if weights.image_weight == weights.logit_weight == 0:
            return loss
        with torch.no_grad():
            untouched = self.encoder.encode_image(inputs)
            zero_shot = self.texts.zero_shot(untouched).log_softmax(dim=1)
        kl = F.kl_div(logits.log_softmax(dim=1), zero_shot, reduction="sum", log_target=True) / logits.numel()
        return loss + weights.image_weight * F.l1_loss(image_features, untouched) + weights.logit_weight * kl

    @torch.no_grad()
    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Add the prompts of this epoch to their weighted mean, and after the last one take the mean."""
        if not self.config.aggregate:
            return
        weight = aggregation_weights(epochs, self.config.aggregate_mean, self.config.aggregate_std)[epoch]
        learned = (self.text_prompts, self.image_prompts)
        if epoch == 0:
            self._mean = [torch.zeros_like(prompts) for prompts in learned]
        for mean, prompts in zip(self._mean, learned, strict=True):
            mean.add_(prompts, alpha=weight)
            if epoch == epochs - 1:
                prompts.copy_(mean)

    def _features(self, inputs: Num[Tensor, "B 3 S S"]) -> tuple[Float[Tensor, "B D"], Float[Tensor, "C D"]]:
        return (
            encode_image(self.encoder, inputs, self.image_prompts),
            encode_text(self.encoder, self.tokens, self.text_prompts),
        )


def aggregation_weights(epochs: int, mean: float, std: float) -> list[float]:
    """Of the prompts after each epoch: normal densities at e / epochs for e = 1 .. epochs, summing to 1.

    Example:
        >>> [round(weight, 4) for weight in aggregation_weights(4, 0.75, 0.25)]
        [0.0614, 0.2753, 0.4539, 0.1094]
    """
    logs = [-0.5 * (((e + 1) / epochs - mean) / std) ** 2 for e in range(epochs)]
    # Relative to the highest: far from the mean all densities underflow.
    densities = [math.exp(log - max(logs)) for log in logs]
    return [density / sum(densities) for density in densities]


__all__ = ["PromptSRC", "PromptSRCConfig", "aggregation_weights"]
