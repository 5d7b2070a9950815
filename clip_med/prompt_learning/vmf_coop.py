"""vMFCoOp (arXiv 2511.09540): CoOp drawn to anchors where two von Mises-Fisher fields of the classes agree.

What is published, and what is ours: the paper's code could not be read, and its equations are known from notes on it.

Published: the vocabulary's field, from the mean w of the unit vocabulary embeddings, with direction mu = w / |w| and
concentration k of |w|; a field mu_c, k_c of the same kind for each class from its descriptions; the anchor
u_c = n(k mu + k_c mu_c); the loss anchor_weight L_anc + contrast_weight L_sc + L_SCE. L_anc = mean_c |P_c - a_c|^2,
where a_c has a learnable offset per class and a global factor. L_sc is the cross-entropy of the rows of tau P U^T
against the diagonal, with tau on a cosine from a first to a last value. L_SCE is the cross-entropy and the reverse
cross-entropy. SGD at 3e-3 on a cosine, batches of 4, "a photo of a".

Ours: all weights and the two values of tau, which are chosen; log 0 = -4 in the reverse cross-entropy; the form
a_c = alpha n(u_c + delta_c), held at alpha 1 and delta 0 unless asked for, and the weight that holds the offsets; exact
concentrations in place of R (d - R^2) / (1 - R^2), 3e-4 away, less what chance adds to them; the vocabulary pushed
through the frozen tower, one token at a time, since its input embeddings do not live in the space of the features.

Product of experts (ours): densities exp(k mu . x) and exp(k_c mu_c . x) multiply to a von Mises-Fisher density in
direction k mu + k_c mu_c, so that u_c is where the two fields together are densest. Where the vocabulary's field is by
far the narrower one, all anchors lie near mu, and L_sc needs a high tau to tell them apart.
"""

from __future__ import annotations

import math
from typing import Final, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clip_med.config import NonNegativeFloat, PositiveFloat, PositiveInt, config
from clip_med.models.dual_encoder import DualEncoder
from clip_med.prompt_learning.coop import ContextConfig, CoOp
from clip_med.prompt_learning.deep_prompts import vocabulary_size
from clip_med.prompt_learning.method import ClassTexts, Support
from clip_med.prompt_learning.prompt_tokens import end_of_words
from clip_med.prompt_learning.vmf import fit

# What log 0 is in the reverse cross-entropy (Wang et al., ICCV 2019, arXiv 1908.06112).
_LOG_ZERO: Final = -4.0
# Tokens of the vocabulary encoded at a time.
_TOGETHER: Final = 512
_SEED: Final = 0


@config
class VMFCoOpConfig(ContextConfig):
    """Published settings go with SGD at 3e-3 and batches of 4; the numbers here are ours, except `context`."""

    kind: Literal["vmf_coop"] = "vmf_coop"
    anchor_weight: NonNegativeFloat = 1.0
    """Of the squared distance between class texts and anchors."""
    contrast_weight: NonNegativeFloat = 1.0
    """Of the cross-entropy that tells each class's text by its anchor."""
    reverse_weight: NonNegativeFloat = 1.0
    """Of the reverse cross-entropy; published as 1."""
    tau: PositiveFloat = 1.0
    """Scale of the cosines between class texts and anchors in the first epoch."""
    tau_max: PositiveFloat = 50.0
    """The same after the last epoch."""
    vocabulary: PositiveInt = 1024
    """How many of the vocabulary's tokens make its field; drawn once, always the same."""
    debias: bool = True
    """Take off what chance alone adds to a concentration (50 descriptions in 512 dimensions: 74)."""
    offsets: bool = False
    """Learn alpha and the offsets of the anchors too. An offset can take over the whole loss of the anchors."""
    offset_weight: NonNegativeFloat = 1.0
    """Of the mean squared length of the learned offsets."""


class VMFCoOp(CoOp):
    """Learns CoOp's context with P_c, its class texts, drawn to the anchors u [C, D]; see the module for the equations.

    Loss: CE + reverse_weight RCE + anchor_weight L_anc + contrast_weight L_sc, all means over images or classes. For
    labels without doubt, RCE = 4 (1 - p_y). With these weights at 0 it is CoOp. The fields are fitted once, in float64.

    Raises:
        ValueError: no descriptions, or those of a class are no closer to each other than chance, so that its anchor
            would not tell it from others; or see `CoOp`.
    """

    def __init__(self, config: VMFCoOpConfig, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__(config, encoder, texts)
        if texts.descriptions is None:
            raise ValueError("vmf_coop needs descriptions of the classes: a JSON file of sentences, or `knowledge`")
        self.config = config
        mu, kappa = fit(vocabulary_features(self.encoder, config.vocabulary), debias=config.debias)
        class_mu, class_kappa = fit(texts.descriptions, debias=config.debias)
        without = [name for name, own in zip(texts.names, class_kappa.tolist(), strict=True) if own == 0.0]
        if without:
            raise ValueError(
                f"vmf_coop: the {texts.descriptions.shape[1]} descriptions of {without[0]!r} are no closer to each "
                f"other than chance ({len(without)} of {len(class_kappa)} classes); give more of them, or debias: false"
            )
        self.anchors: Tensor
        self.register_buffer("anchors", anchors(mu, kappa, class_mu, class_kappa).to(texts.templates), persistent=False)
        self.alpha = nn.Parameter(self.anchors.new_ones(()), requires_grad=config.offsets)
        self.delta = nn.Parameter(torch.zeros_like(self.anchors), requires_grad=config.offsets)
        self.tau = config.tau

    def prepare(self, support: Support) -> None:
        """Start tau at its first value."""
        del support
        self.tau = self.config.tau

    def loss(self, inputs: Float[Tensor, "B D"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Symmetric cross-entropy, and what draws the class texts to their anchors."""
        weights = self.config
        text_features = self.text_features()
        logits = self.texts.scale * inputs @ text_features.T
        log_p = logits.log_softmax(dim=1)
        loss = F.cross_entropy(logits, labels) + weights.reverse_weight * reverse_cross_entropy(log_p, labels)
        moved = self.alpha * F.normalize(self.anchors + self.delta, dim=-1)
        distance = (text_features - moved).square().sum(dim=1).mean()
        own = torch.arange(len(self.anchors), device=labels.device)
        contrast = F.cross_entropy(self.tau * text_features @ self.anchors.T, own)
        loss = loss + weights.anchor_weight * distance + weights.contrast_weight * contrast
        return loss + weights.offset_weight * self.delta.square().sum(dim=1).mean()

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Move tau along its cosine."""
        left = 0.5 * (1 + math.cos(math.pi * (epoch + 1) / epochs))
        self.tau = self.config.tau_max + (self.config.tau - self.config.tau_max) * left


def reverse_cross_entropy(log_p: Float[Tensor, "B C"], labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
    """-sum_c p_c log q_c of labels q without doubt, log 0 being -4: 4 (1 - p_y), the mean over the batch.

    Example:
        >>> reverse_cross_entropy(torch.tensor([[0.75, 0.25]]).log(), torch.tensor([0])).item()
        1.0
    """
    return -_LOG_ZERO * (1 - log_p.exp().gather(1, labels[:, None])).mean()


def anchors(
    mu: Float[Tensor, " D"], kappa: Float[Tensor, ""], class_mu: Float[Tensor, "C D"], class_kappa: Float[Tensor, " C"]
) -> Float[Tensor, "C D"]:
    """u_c = n(kappa mu + kappa_c mu_c): the modes of the products of the vocabulary's field and each class's."""
    return F.normalize(kappa * mu + class_kappa[:, None] * class_mu, dim=-1)


@torch.no_grad()
def vocabulary_features(encoder: DualEncoder, count: int) -> Float[Tensor, "V D"]:
    """Unit rows of texts of one token each, for `count` tokens of the vocabulary or all of them if it has fewer.

    The tokens that stand in an empty text (start, end, padding) are left out.
    """
    empty, one = encoder.tokenize(["", "a"], trim=False)
    place = end_of_words(encoder, "")
    words = torch.ones(vocabulary_size(encoder), dtype=torch.bool)
    words[empty.cpu()] = False
    ids = words.nonzero().flatten()
    drawn = ids[torch.randperm(len(ids), generator=torch.Generator().manual_seed(_SEED))[:count]]
    device = encoder.logit_scale.device
    row = encoder.text_tower.trim(one[None].to(device))
    parts: list[Tensor] = []
    for part in drawn.to(device).split(_TOGETHER):
        tokens = row.repeat(len(part), 1)
        tokens[:, place] = part
        parts.append(encoder.encode_text(tokens))
    return torch.cat(parts)


__all__ = ["VMFCoOp", "VMFCoOpConfig", "anchors", "reverse_cross_entropy", "vocabulary_features"]
