"""The pairwise sigmoid loss (SigLIP), for one process or local rows of a gathered batch."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.losses.positives import positive_pairs


def sigmoid_loss(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    group_ids: Int64[Tensor, "b L"] | None = None,
    *,
    all_text_features: Float[Tensor, "G D"] | None = None,
    all_group_ids: Int64[Tensor, "G L"] | None = None,
    row_offset: int = 0,
) -> Float[Tensor, ""]:
    """L = -(1/b) sum over i, j of log sigmoid(y_ij z_ij), z_ij = s v_i . t_j + bias, y = +1 for positives, else -1.

    Computed as (sum softplus(z) - sum over positives z) / b, which is equal and overflows nowhere. Zhai et al.,
    arXiv 2303.15343, equation 1; marking equal captions positive is our addition. The mean of the ranks' losses is the
    loss of the global batch. Logits are fp32, or fp64 for fp64 features, also under autocast.

    Args:
        image_features, text_features: unit rows of this rank.
        logit_scale: s, already exponentiated (starts at 10); logit_bias: starts at -10.
        group_ids: hashes of caption or labels, -1 = none.
        all_text_features, all_group_ids: the rows of all ranks; the local ones when omitted.
        row_offset: the position of this rank's first row among all rows.

    Example:
        >>> v, t = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(sigmoid_loss(v, t, torch.tensor(10.0), torch.tensor(-10.0)).item(), 3)
        10.0
    """
    all_text = text_features if all_text_features is None else all_text_features
    all_ids = group_ids if all_group_ids is None else all_group_ids
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        # The scale multiplies b x D numbers, not b x G ones, which autograd would keep.
        logits = (logit_scale.to(dtype) * image_features.to(dtype)) @ all_text.to(dtype).T
        logits += logit_bias.to(dtype)
        if group_ids is None or all_ids is None:
            positives = logits.diagonal(offset=row_offset).sum()
        else:
            positives = logits[positive_pairs(group_ids, all_ids, row_offset)].sum()
        # Linear from 40, not 20: exp(-20) is 2e-9 of the loss, exp(-40) less than fp64 resolves.
        return (F.softplus(logits, threshold=40.0).sum() - positives) / len(logits)


__all__ = ["sigmoid_loss"]
