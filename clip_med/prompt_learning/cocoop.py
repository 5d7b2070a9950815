"""CoCoOp (Zhou et al., CVPR 2022, arXiv 2203.05557): CoOp's context, moved by a small network for each image."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clip_med.config import PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import ContextConfig, CoOp
from clip_med.prompt_learning.deep_prompts import encode_words
from clip_med.prompt_learning.method import ClassTexts


@config
class CoCoOpConfig(ContextConfig):
    """Published settings go with 10 epochs of SGD at 2e-3 and batches of 1."""

    kind: Literal["cocoop"] = "cocoop"
    reduction: PositiveInt = 16
    """The network's hidden layer has D / reduction units, one at least."""
    chunk: PositiveInt = 8
    """Images whose texts are computed together, C of each; the memory of a step grows with it, the result does not
    change."""


class CoCoOp(CoOp):
    """Learns CoOp's context and pi(v) = W2 relu(W1 v + b1) + b2, added to each of the image's context vectors.

    W1 is [D / 16, D] and W2 [W, D / 16]; v is the unit image feature. Each image has C class texts of its own: a step
    over B images runs the text tower over B C prompts, which is what the method costs. With W2 and b2 at 0 it is CoOp;
    it starts, as published, from torch's own random W2.
    """

    def __init__(self, config: CoCoOpConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__(config, encoder, texts)
        dim, width = texts.templates.shape[1], self.embedded.shape[-1]
        hidden = max(1, dim // config.reduction)
        self.shift = nn.Sequential(nn.Linear(dim, hidden), nn.ReLU(), nn.Linear(hidden, width)).to(self.context.device)
        self._chunk = config.chunk

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Scaled cosines of each image with the class texts made for it."""
        return torch.cat([self._few(part) for part in inputs.split(self._chunk)])

    def backward(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> float:
        """As always, but the graph of one chunk of images at a time."""
        total = 0.0
        for part, own in zip(inputs.split(self._chunk), labels.split(self._chunk), strict=True):
            loss = F.cross_entropy(self._few(part), own, reduction="sum") / len(inputs)
            loss.backward()
            total += float(loss.detach())
        return total

    def _few(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        shifts = self.shift(inputs.to(self.context.dtype))
        words = torch.cat([self.prompts(self.context + shift) for shift in shifts])
        features = encode_words(self.encoder, self.tokens.repeat(len(inputs), 1), words)
        features = features.view(len(inputs), len(self.tokens), -1)
        return self.texts.scale * torch.einsum("bd,bcd->bc", inputs, features)


__all__ = ["CoCoOp", "CoCoOpConfig"]
