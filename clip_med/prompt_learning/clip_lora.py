"""CLIP-LoRA (Zanella and Ben Ayed, CVPR workshops 2024, arXiv 2405.18541): low-rank adapters as a few-shot method."""

from __future__ import annotations

import math
from typing import Literal

from jaxtyping import Float, Num
from torch import Tensor

from clip_med.config import Fraction, PositiveFloat, PositiveInt, config
from clip_med.models.config import LoRAConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.lora import add_lora
from clip_med.models.unlock import freeze
from clip_med.prompt_learning.frozen import frozen_copy
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prompt_tokens import prompt_tokens


@config
class CLIPLoRAConfig:
    """Published settings, the same for all data sets.

    They go with AdamW at 2e-4 (weight decay 1e-2), batches of 32 and 500 K steps for K shots, without warm-up epoch.
    """

    kind: Literal["clip_lora"] = "clip_lora"
    template: str = "a photo of a {}."
    """The one prompt of a class."""
    rank: PositiveInt = 2
    alpha: PositiveFloat = 1.0
    """The adapter's product is scaled by alpha / sqrt(rank) here."""
    dropout: Fraction = 0.25
    image: bool = True
    text: bool = True
    """Which towers get adapters."""


class CLIPLoRA(Method):
    """Learns W + (alpha / sqrt(r)) B A for query, key and value of every layer; everything else is frozen.

    The adapters are those of pretraining (`clip_med.models.lora`), on a copy that shares the encoder's weights: the
    encoder itself gets none. B starts at 0, so before the first step the logits are those of zero-shot with the same
    template. Dropout leaves out input features of an adapter for a whole step, in the paper for each token on its own.

    Each step runs the image tower forwards and backwards, and the text tower. With `image=False` the image tower is
    what it was, so the method takes features and a step runs the text tower alone.

    Raises:
        ValueError: a chosen tower has no attention that is known.
    """

    def __init__(self, config: CLIPLoRAConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        self.takes = "images" if config.image else "features"
        self.encoder = frozen_copy(encoder)
        self.texts = texts
        self.tokens: Tensor
        self.register_buffer("tokens", prompt_tokens(encoder, texts.names, config.template), persistent=False)
        adapters = LoRAConfig(
            rank=config.rank,
            alpha=config.alpha * math.sqrt(config.rank),  # which LoRAConfig divides by the rank
            dropout=config.dropout,
            parts=("q", "k", "v"),
            image=config.image,
            text=config.text,
        )
        add_lora(self.encoder, adapters)
        freeze(self.encoder, image="all", text="all")

    def logits(self, inputs: Num[Tensor, "B ..."]) -> Float[Tensor, "B C"]:
        """Scaled cosines of the adapted towers' features."""
        image_features = self.encoder.encode_image(inputs) if self.takes == "images" else inputs
        return self.texts.scale * image_features @ self.encoder.encode_text(self.tokens).T


__all__ = ["CLIPLoRA", "CLIPLoRAConfig"]
