"""What KEP's and KEEP's losses share: one positive for each group against the rows that are no relatives of it."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def owners(groups: Int64[Tensor, " N"]) -> Int64[Tensor, " N"]:
    """The number of each row's group, 0 .. G - 1.

    Example:
        >>> owners(torch.tensor([7, 3, 7])).tolist()
        [1, 0, 1]
    """
    return torch.unique(groups, return_inverse=True)[1]  # pyright: ignore


def least_alike(logits: Float[Tensor, "R N"], same: Bool[Tensor, "R N"]) -> Float[Tensor, " R"]:
    """log sum_{p in g} e^{-l_ap} of each row a of group g: soft at its least similar partner."""
    return (-logits).masked_fill(~same, float("-inf")).logsumexp(1)


def over_rows(values: Float[Tensor, " N"], owner: Int64[Tensor, " N"]) -> Float[Tensor, " G"]:
    """log sum_{a in g} e^{v_a} of each group, of finite values.

    Example:
        >>> over_rows(torch.zeros(3), torch.tensor([1, 0, 1])).exp().round().tolist()
        [1.0, 2.0]
    """
    lowest = values.new_full((int(owner.max()) + 1,), float("-inf"))
    highest = lowest.scatter_reduce(0, owner, values.detach(), "amax")
    sums = torch.zeros_like(highest).index_add(0, owner, (values - highest[owner]).exp())
    return highest + sums.log()


def shares(positive: Float[Tensor, " G"], owner: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """What each row carries of log pos_g: a row that has no negative then has a finite sum too."""
    return (positive - torch.bincount(owner).to(positive.dtype).log())[owner]


def with_negatives(
    share: Float[Tensor, " R"], logits: Float[Tensor, "R N"], no_negative: Bool[Tensor, "R N"]
) -> Float[Tensor, " R"]:
    """log (e^share + sum_{b a negative of a} e^{l_ab}) of each row a.

    Args:
        no_negative: pairs that are left out of the sum; those of one group among them.
    """
    return torch.cat([share[:, None], logits.masked_fill(no_negative, float("-inf"))], dim=1).logsumexp(1)


def group_loss(
    positive: Float[Tensor, " G"], every: Float[Tensor, " N"], owner: Int64[Tensor, " N"]
) -> Float[Tensor, ""]:
    """-mean_g log pos_g / (pos_g + sum_{a in g, b a negative of a} e^{l_ab}), from log pos_g and `with_negatives`."""
    return (over_rows(every, owner) - positive).mean()


__all__ = ["group_loss", "least_alike", "over_rows", "owners", "shares", "with_negatives"]
