"""CoOp (Zhou et al., IJCV 2022, arXiv 2109.01134): the words before the class names are learned vectors."""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor, nn

from clip_med.config import config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.deep_prompts import encode_text, first_prompts, text_size
from clip_med.prompt_learning.frozen import frozen_copy
from clip_med.prompt_learning.method import ClassTexts, Method
from clip_med.prompt_learning.prompt_tokens import prompt_tokens


@config
class CoOpConfig:
    """Published settings go with SGD at 2e-3, batches of 32, and 50 epochs for 1 shot, 100 for 2 and 4, else 200."""

    kind: Literal["coop"] = "coop"
    context: str = "a photo of a"
    """Where the context starts; it has as many vectors as this has tokens. The class name and a full stop follow."""


class CoOp(Method):
    """Learns one context [M, W] for all classes, at the place of the words before their names; loss: cross-entropy.

    Before the first step the class texts are those of the prompt "CONTEXT NAME.". Each step runs the text tower over
    one prompt per class, trimmed to the longest, and no image.

    Raises:
        ValueError: see `prompt_tokens`.
    """

    def __init__(self, config: CoOpConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        text_size(encoder)
        self.encoder = frozen_copy(encoder)
        self.texts = texts
        n_ctx = int(encoder.text_tower.lengths(encoder.tokenize([config.context]))[0]) - 2
        self.tokens: Tensor
        tokens = prompt_tokens(encoder, texts, f"{config.context} {{}}.", replaced=n_ctx)
        self.register_buffer("tokens", tokens, persistent=False)
        self.context = nn.Parameter(first_prompts(encoder, tokens, n_ctx, 1)[0])

    def text_features(self) -> Float[Tensor, "C D"]:
        """Unit rows of the class texts."""
        return encode_text(self.encoder, self.tokens, self.context[None])

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines with the class texts."""
        return self.texts.scale * inputs @ self.text_features().T


__all__ = ["CoOp", "CoOpConfig"]
