"""KgCoOp (Yao et al., CVPR 2023, arXiv 2303.13283): CoOp whose class texts are held near the hand-written ones."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.config import NonNegativeFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import ContextConfig, CoOp
from clip_med.prompt_learning.method import ClassTexts


@config
class KgCoOpConfig(ContextConfig):
    """Published settings go with 100 epochs of SGD at 2e-3 and batches of 128."""

    kind: Literal["kgcoop"] = "kgcoop"
    weight: NonNegativeFloat = 8.0
    """Of 1 minus the cosine between learned and hand-written class texts. On medical sets 1 to 10 have been used
    (Koleilat et al., arXiv 2411.15232)."""


class KgCoOp(CoOp):
    """Learns CoOp's context; loss: CE + weight (1 - mean_c t_c . t0_c), where t0 are the templates' class texts.

    1 - t . t0 is half the squared distance of the unit rows, which is how the paper writes it.
    """

    def __init__(self, config: KgCoOpConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__(config, encoder, texts)
        self.weight = config.weight

    def loss(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy, and what holds the class texts to the templates."""
        text_features = self.text_features()
        cosines = (text_features * self.texts.templates).sum(dim=1)
        loss = F.cross_entropy(self.texts.scale * inputs @ text_features.T, labels)
        return loss + self.weight * (1 - cosines.mean())


__all__ = ["KgCoOp", "KgCoOpConfig"]
