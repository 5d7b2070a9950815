"""What KEP's and KEEP's losses share: one positive for each group against the rows that are no relatives of it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def members(same: Bool[Tensor, "N N"]) -> Bool[Tensor, "G N"]:
    """Which rows each group has, from which rows are of one group; groups in the order of their first rows."""
    return same[same.to(torch.uint8).argmax(1) == torch.arange(len(same), device=same.device)]


def least_alike(logits: Float[Tensor, "N N"], same: Bool[Tensor, "N N"]) -> Float[Tensor, " N"]:
    """log sum_{p in g} e^{-l_ap} of each row a of group g: soft at its least similar partner."""
    return (-logits).masked_fill(~same, float("-inf")).logsumexp(1)


def over_rows(values: Float[Tensor, " N"], member: Bool[Tensor, "G N"]) -> Float[Tensor, " G"]:
    """log sum_{a in g} e^{v_a} of each group."""
    return values[None, :].masked_fill(~member, float("-inf")).logsumexp(1)


def against_negatives(
    positive: Float[Tensor, " G"],
    logits: Float[Tensor, "N N"],
    no_negative: Bool[Tensor, "N N"],
    member: Bool[Tensor, "G N"],
) -> Float[Tensor, ""]:
    """-mean_g log pos_g / (pos_g + sum_{a in g, b a negative of a} e^{l_ab}), from log pos_g.

    Args:
        no_negative: pairs that are left out of the sum; those of one group among them.
        member: which rows each group has; a row belongs to one group.
    """
    # Each row carries its share of the group's positive: a row that has no negative has a finite sum too.
    share = (positive - member.sum(1).to(positive.dtype).log())[member.to(torch.uint8).argmax(0)]
    every = torch.cat([share[:, None], logits.masked_fill(no_negative, float("-inf"))], dim=1).logsumexp(1)
    return (over_rows(every, member) - positive).mean()


__all__ = ["against_negatives", "least_alike", "members", "over_rows"]
