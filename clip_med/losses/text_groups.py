"""A metric loss on texts alone: texts of one group near each other, all others far, relatives neither."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def group_info_nce(
    features: Float[Tensor, "N D"],
    groups: Int64[Tensor, " N"],
    scale: float,
    ignored: Bool[Tensor, "N N"] | None = None,
) -> Float[Tensor, ""]:
    """L = -mean_i 1/|P_i| sum_{p in P_i} log softmax_{j != i, j not ignored}(s f_i . f_j)_p.

    P_i holds the other rows of i's group; rows without any are left out of the mean. This is the supervised contrastive
    loss (Khosla et al., arXiv 2004.11362, equation 2). `ignored` pairs are no terms of the denominator either: KEEP
    (MAGIC-AI4Med/KEEP) takes ancestors and descendants so, but sets their similarity to -1, where we leave them out.

    Args:
        features: unit rows.
        scale: s, above 0.
        ignored: pairs of different groups that count as neither near nor far; ignored on the diagonal and within a
            group.

    Raises:
        ValueError: no row has another of its group.

    Example:
        >>> rows = torch.eye(2).repeat_interleave(2, 0)
        >>> round(group_info_nce(rows, torch.tensor([0, 0, 1, 1]), 1.0).item(), 4)
        0.5514
    """
    same = groups[:, None] == groups[None, :]
    itself = torch.eye(len(groups), dtype=torch.bool, device=features.device)
    positive = same & ~itself
    counts = positive.sum(1)
    rows = counts > 0
    if not rows.any():
        raise ValueError("no text has another of its group in the batch; draw two or more of each group")
    logits = (scale * features @ features.T).masked_fill(itself, float("-inf"))
    if ignored is not None:
        logits = logits.masked_fill(ignored & ~same, float("-inf"))
    log_probability = F.log_softmax(logits, dim=1)
    # -inf times 0 is no number: what is no positive is taken out, not multiplied.
    summed = log_probability.masked_fill(~positive, 0.0).sum(1)
    return -(summed[rows] / counts[rows]).mean()


__all__ = ["group_info_nce"]
