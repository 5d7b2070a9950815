"""Answers of disease queries against the labels of the images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor


def query_loss(
    answers: Float[Tensor, "b C"], present: Bool[Tensor, "b C"], rows: Float[Tensor, ""] | None = None
) -> Float[Tensor, ""]:
    """L = 1/rows sum_i 1/C sum_c [softplus(z_ic) - y_ic z_ic], over images i with any of the classes.

    The binary cross-entropy of KAD's two-way softmax, with z the difference of its logits. fp32, or fp64 for fp64.

    Args:
        present: y, the classes of each image; images without any take no part.
        rows: what the sum is divided by; None: how many images take part, at least 1.

    Example:
        >>> round(query_loss(torch.zeros(2, 3), torch.eye(2, 3, dtype=torch.bool)).item(), 4)
        0.6931
    """
    with torch.autocast(answers.device.type, enabled=False):
        dtype = torch.promote_types(answers.dtype, torch.float32)
        each = F.binary_cross_entropy_with_logits(answers.to(dtype), present.to(dtype), reduction="none").mean(1)
        taking_part = present.any(1)
        divisor = taking_part.sum().clamp(min=1) if rows is None else rows
        return (each * taking_part).sum() / divisor


__all__ = ["query_loss"]
