"""BiomedCoOp (Koleilat et al., CVPR 2025, arXiv 2411.15232): CoOp held to many descriptions of each class."""

from __future__ import annotations

from typing import Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.config import NonNegativeFloat, PositiveFloat, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import ContextConfig, CoOp
from clip_med.prompt_learning.method import ClassTexts

# Standard deviations of a normal distribution in one median absolute deviation.
_MAD: Final = 1.4826


@config
class BiomedCoOpConfig(ContextConfig):
    """Defaults are the authors' for BUSI; they chose the three numbers per data set. SGD at 2.5e-3, batches of 4."""

    kind: Literal["biomedcoop"] = "biomedcoop"
    text_weight: NonNegativeFloat = 0.75
    """Of the squared distance between class texts and the mean descriptions."""
    distillation_weight: NonNegativeFloat = 0.75
    """Of the divergence from the teacher made of the descriptions that are kept."""
    threshold: PositiveFloat = 1.5
    """Descriptions whose score lies further from the middle are left out."""
    selection: Literal["zscore", "mad"] = "zscore"
    """zscore: from the mean in standard deviations; mad: from the median in median absolute deviations. The paper
    describes the second; the published code standardises once more after it, which amounts to the first."""


class BiomedCoOp(CoOp):
    """Learns CoOp's context with two more terms; `descriptions` are E [C, N, D], N of each class, encoded once.

    Loss: CE + text_weight L_S + distillation_weight L_K. L_S is the mean over all C D entries of (t - e)^2, where e_c
    is the renormalised mean of the descriptions of class c. L_K = KL(p_K || p), summed and divided by B C, where p_K
    are the probabilities from the mean descriptions over the kept indices i. The score of i is the mean over the batch
    of the highest scaled cosine with E_{c,i} over the classes, and the same i are kept for all classes.

    Raises:
        ValueError: no descriptions, or see `CoOp`.
    """

    def __init__(self, config: BiomedCoOpConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__(config, encoder, texts)
        if texts.descriptions is None:
            raise ValueError("biomedcoop needs descriptions of the classes: a JSON file of sentences, or `knowledge`")
        self.config = config
        self.descriptions = texts.descriptions

    def loss(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy, and what holds the class texts to the descriptions."""
        text_features = self.text_features()
        logits = self.texts.scale * inputs @ text_features.T
        loss = F.cross_entropy(logits, labels)
        mean = F.normalize(self.descriptions.mean(dim=1), dim=-1)
        loss = loss + self.config.text_weight * F.mse_loss(text_features, mean)
        with torch.no_grad():
            kept = self.descriptions[:, self.kept(inputs)]
            teacher = self.texts.scale * inputs @ F.normalize(kept.mean(dim=1), dim=-1).T
        kl = F.kl_div(logits.log_softmax(dim=1), teacher.log_softmax(dim=1), reduction="sum", log_target=True)
        return loss + self.config.distillation_weight * kl / logits.numel()

    def kept(self, inputs: Float[Tensor, "B D"]) -> Bool[Tensor, " N"]:
        """Which descriptions teach for this batch; all of them if their scores are equal."""
        cosines = torch.einsum("bd,cnd->bcn", inputs, self.descriptions)
        return keep(self.texts.scale * cosines.amax(dim=1).mean(dim=0), self.config.threshold, self.config.selection)


def keep(
    scores: Float[Tensor, " N"], threshold: float, selection: Literal["zscore", "mad"] = "zscore"
) -> Bool[Tensor, " N"]:
    """Which scores lie within `threshold` deviations of the middle; the nearest always, all where the deviation is 0.

    Example:
        >>> keep(torch.tensor([1.0, 2.0, 3.0, 50.0]), 1.4).tolist()
        [True, True, True, False]
    """
    if selection == "mad":
        distance = (scores - scores.median()).abs()
        deviation = _MAD * distance.median()
    else:
        distance = (scores - scores.mean()).abs()
        deviation = scores.std() if len(scores) > 1 else scores.new_zeros(())
    return (distance <= threshold * deviation) | (distance == distance.min()) | (deviation == 0)


__all__ = ["BiomedCoOp", "BiomedCoOpConfig", "keep"]
