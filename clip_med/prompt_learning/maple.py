"""MaPLe (Khattak et al., CVPR 2023, arXiv 2210.03117): prompts in J text layers, and visual ones made from them."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float, Num
from torch import Tensor, nn

from clip_med.config import PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.deep_prompts import (
    encode_image,
    encode_text,
    first_prompts,
    tower_widths,
)
from clip_med.prompt_learning.frozen import frozen_copy
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prompt_tokens import prompt_tokens


@config
class MaPLeConfig:
    """Published settings; they go with 5 epochs of SGD at 3.5e-3 and batches of 4."""

    kind: Literal["maple"] = "maple"
    template: str = "a photo of a {}."
    """The prompt of a class; its first `n_ctx` tokens are where the learned ones start, and are the same for all."""
    n_ctx: PositiveInt = 2
    depth: PositiveInt = 9
    """Layers with prompts of their own, from the first one."""


class MaPLe(Method):
    """Learns P_j [N, W] for the first J text layers, and a linear map F_j for each that makes the visual prompts of it.

    Text: the tokens 1 .. N entering layer j are P_j; image: the last N are F_j(P_j). P_0 starts as the word embeddings
    of the template's first tokens, the others at random (standard deviation 0.02). J N W + J (W V + V) parameters for
    towers of widths W and V. Each step runs both towers forwards and backwards.

    Raises:
        ValueError: see `tower_widths` and `prompt_tokens`.
    """

    takes = "images"

    def __init__(self, config: MaPLeConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        image_width, text_width = tower_widths(encoder, config.depth)
        self.encoder = frozen_copy(encoder)
        self.texts = texts
        self.tokens: Tensor
        self.register_buffer(
            "tokens", prompt_tokens(encoder, texts.names, config.template, replaced=config.n_ctx), persistent=False
        )
        self.prompts = nn.Parameter(first_prompts(encoder, self.tokens, config.n_ctx, config.depth))
        self.maps = nn.ModuleList(nn.Linear(text_width, image_width) for _ in range(config.depth))
        self.maps.to(self.prompts.device)

    def logits(self, inputs: Num[Tensor, "B 3 S S"]) -> Float[Tensor, "B C"]:
        """Scaled cosines of prompted images and prompted class texts."""
        visual = torch.stack([into(prompt) for into, prompt in zip(self.maps, self.prompts, strict=True)])
        image_features = encode_image(self.encoder, inputs, visual)
        return self.texts.scale * image_features @ encode_text(self.encoder, self.tokens, self.prompts).T


__all__ = ["MaPLe", "MaPLeConfig"]
