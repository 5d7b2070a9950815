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
        text_logits = _logits(text_features, all_image, logit_scale)
        if group_ids is None or all_ids is None:
            target = torch.arange(len(image_features), device=image_features.device) + row_offset
        else:
            positive = positive_pairs(group_ids, all_ids, row_offset).to(image_logits.dtype)
            target = positive / positive.sum(dim=1, keepdim=True)
        return (F.cross_entropy(image_logits, target) + F.cross_entropy(text_logits, target)) / 2


def _logits(
    rows: Float[Tensor, "b D"], columns: Float[Tensor, "G D"], logit_scale: Float[Tensor, ""]
) -> Float[Tensor, "b G"]:
    dtype = torch.promote_types(rows.dtype, torch.float32)
    return logit_scale.to(dtype) * (rows.to(dtype) @ columns.to(dtype).T)


__all__ = ["info_nce"]
