"""CLIP-Adapter (Gao et al., IJCV 2024, arXiv 2110.04544): a small network beside the image features."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.config import Fraction, PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.method import ClassTexts, Method


@config
class CLIPAdapterConfig:
    """Settings in use for few images go with SGD at 1e-2, batches of 32 and 20 epochs."""

    kind: Literal["clip_adapter"] = "clip_adapter"
    reduction: PositiveInt = 4
    """The hidden layer has D / reduction units."""
    ratio: Fraction = 0.2
    """r, the share of the network's output; 0 is zero-shot."""


class CLIPAdapter(Method):
    """f' = n(r ReLU(W2 ReLU(W1 f)) + (1 - r) f), without biases; logits are scaled cosines of f' and the class texts.

    The authors mix before f is normalised. Without biases the network is positively homogeneous, so f' is the same for
    unit rows. W1 and W2 start at random: at 0 the outer ReLU would let no gradient through, so that unlike the other
    methods this one is near zero-shot before the first step, not equal to it.

    Raises:
        ValueError: a hidden layer without units.
    """

    def __init__(self, config: CLIPAdapterConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self.texts = texts
        self.ratio = config.ratio
        dim = texts.templates.shape[1]
        hidden = dim // config.reduction
        if hidden < 1:
            raise ValueError(f"reduction must be at most {dim} (the size of the embedding), got {config.reduction}")
        self.network = nn.Sequential(
            nn.Linear(dim, hidden, bias=False), nn.ReLU(), nn.Linear(hidden, dim, bias=False), nn.ReLU()
        ).to(texts.templates.device)

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the class texts."""
        return self.texts.zero_shot(F.normalize(self.ratio * self.network(inputs) + (1 - self.ratio) * inputs, dim=-1))


__all__ = ["CLIPAdapter", "CLIPAdapterConfig"]
