"""CoOp (Zhou et al., IJCV 2022, arXiv 2109.01134): the words around the class names are learned vectors."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.config import NonNegativeInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.deep_prompts import INIT_STD, encode_words, text_size, word_embeddings
from clip_med.prompt_learning.frozen import frozen_copy
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prompt_tokens import Position, context_tokens


@config
class ContextConfig:
    """The learned context M x W of CoOp and of the methods that add terms to it."""

    context: str = "a photo of a"
    """Where the context starts; it has as many vectors as this has tokens. A full stop follows name and context."""
    n_ctx: NonNegativeInt = 0
    """Above 0: so many vectors, drawn from a normal distribution of deviation 0.02, and `context` is not read."""
    class_specific: bool = False
    """A context of its own for each class, all with the same start; False: one for all classes."""
    position: Position = "end"
    """Where the class name stands: at the end of the context, in its middle, or in front of it."""


@config
class CoOpConfig(ContextConfig):
    """Published settings go with SGD at 2e-3, batches of 32, and 50 epochs for 1 shot, 100 for 2 and 4, else 200."""

    kind: Literal["coop"] = "coop"


class CoOp(Method):
    """Learns a context [M, W], or [C, M, W] if class-specific, in the place of words; loss: cross-entropy.

    Before the first step the class texts are those of the prompt "CONTEXT NAME.", or of its words in another order.
    The embeddings of all other tokens are laid out once. Each step runs the text tower over one prompt per class,
    trimmed to the longest, and no image.

    Raises:
        ValueError: see `context_tokens` and `text_size`.
    """

    def __init__(self, config: ContextConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        text_size(encoder)
        self.encoder = frozen_copy(encoder)
        self.texts = texts
        # "x" is one token in every vocabulary, and no other vector than the drawn ones takes its place.
        words = " ".join(["x"] * config.n_ctx) if config.n_ctx else config.context
        tokens, places = context_tokens(encoder, texts.names, words, config.position)
        embedded = word_embeddings(self.encoder, tokens).detach()
        start = embedded[0, places[0]].float()
        if config.n_ctx:
            start = INIT_STD * torch.randn(config.n_ctx, start.shape[1]).to(start.device)
        if config.class_specific:
            start = start.repeat(len(tokens), 1, 1)
        self.context = nn.Parameter(start.clone())
        self.tokens: Tensor
        self.embedded: Tensor
        self.places: Tensor
        for name, value in {"tokens": tokens, "embedded": embedded, "places": places}.items():
            self.register_buffer(name, value, persistent=False)

    def text_features(self) -> Float[Tensor, "C D"]:
        """Unit rows of the class texts."""
        return encode_words(self.encoder, self.tokens, self.prompts(self.context))

    def prompts(self, context: Float[Tensor, "*C M W"]) -> Float[Tensor, "C T W"]:
        """Embeddings of the tokens of each class's prompt, with a context in its place."""
        index = self.places[:, :, None].expand(-1, -1, self.embedded.shape[-1])
        return self.embedded.scatter(1, index, context.to(self.embedded.dtype).expand(index.shape))

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the class texts."""
        return self.texts.scale * inputs @ self.text_features().T


__all__ = ["CoOp", "CoOpConfig", "ContextConfig"]
