"""InfoNCE over image-text pairs with multi-positive targets, for one process or local rows of a gathered batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.losses.positives import positive_pairs


def info_nce(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    group_ids: Int64[Tensor, "b L"] | None = None,
    *,
    all_image_features: Float[Tensor, "G D"] | None = None,
    all_text_features: Float[Tensor, "G D"] | None = None,
    all_group_ids: Int64[Tensor, "G L"] | None = None,
    row_offset: int = 0,
) -> Float[Tensor, ""]:
    """L = 1/2 [H(Q, softmax(s v t')) + H(Q, softmax(s t v'))], the mean over the local rows.

    Q is uniform over the positives of a row (see `positive_pairs`); without group ids, or with distinct ones, Q is the
    identity and the loss is CLIP's (Radford et al., arXiv 2103.00020, figure 3). The multi-positive form is FLAIR's
    (Silva-Rodriguez et al., arXiv 2308.07898; jusiro/FLAIR). Logits are fp32, or fp64 for fp64 features, also under
    autocast: exp(100 x 1) overflows in lower precision and its logarithm loses the loss.

    Args:
        image_features, text_features: unit rows of this rank.
        logit_scale: s, already exponentiated; > 0.
        group_ids: hashes of caption or labels, -1 = none.
        all_image_features, all_text_features, all_group_ids: the rows of all ranks, gathered with gradient
            (`clip_med.distributed`); the local ones when omitted.
        row_offset: the position of this rank's first row among all rows.

    Example:
        >>> features = torch.eye(4)
        >>> round(info_nce(features, features, torch.tensor(0.0)).item(), 4)
        1.3863
    """
    all_image = image_features if all_image_features is None else all_image_features
    all_text = text_features if all_text_features is None else all_text_features
    all_ids = group_ids if all_group_ids is None else all_group_ids
    with torch.autocast(image_features.device.type, enabled=False):
        image_logits = _logits(image_features, all_text, logit_scale)
        if group_ids is None or all_ids is None:
            positive = None
        else:
            positive = positive_pairs(group_ids, all_ids, row_offset).to(image_logits.dtype)
        image_loss = _cross_entropy(image_logits, positive, row_offset, 1)
        if all_text is text_features and all_image is image_features:
            # All logits at hand: a third fewer products, and a softmax over columns reads them where they lie.
            return (image_loss + _cross_entropy(image_logits, positive, row_offset, 0)) / 2
        text_logits = _logits(text_features, all_image, logit_scale)
        return (image_loss + _cross_entropy(text_logits, positive, row_offset, 1)) / 2


def _cross_entropy(logits: Tensor, positive: Tensor | None, row_offset: int, dim: int) -> Float[Tensor, ""]:
    """Along `dim`, with the uniform distribution over positives; 0 or 1 may be chosen where positives are symmetric."""
    log_probability = F.log_softmax(logits, dim)
    if positive is None:
        return -log_probability.diagonal(row_offset).mean()
    return -((log_probability * positive).sum(dim) / positive.sum(dim)).mean()


def _logits(
    rows: Float[Tensor, "b D"], columns: Float[Tensor, "G D"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, "b G"]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    # The scale multiplies b x D numbers, not b x G ones, which autograd would keep.
    return (logit_scale.to(dtype) * rows.to(dtype)) @ columns.to(dtype).T


__all__ = ["info_nce"]
