"""AdaSP, the metric loss of KEP on texts: one positive and one negative for each group, soft at its hardest pairs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.losses.group_terms import group_loss, least_alike, over_rows, owners, shares, with_negatives


def adasp(
    features: Float[Tensor, "N D"],
    groups: Int64[Tensor, " N"],
    scale: float,
    ignored: Bool[Tensor, "N N"] | None = None,
) -> Float[Tensor, ""]:
    """L = -mean_g log pos_g / (pos_g + sum_{a in g, b not in g, not ignored} e^{s a.b}), pos_g = HH_g^w HE_g^(1-w).

    HH_g = 1 / sum_{a,p in g} e^{-s a.p} is soft at the least similar pair of the group, HE_g = sum_{a in g} 1 / sum_{p
    in g} e^{-s a.p} at the row whose least similar partner is nearest. With h = log(HH_g) / s and e = log(HE_g) / s the
    weight is w = 2 h e / (h + e), without gradient, and 0 where h is not above 0: a group whose
    texts are far apart is not pulled by its worst pair. Zhou et al. (arXiv 2303.18247) as KEP uses it
    (MAGIC-AI4Med/KEP). A text pairs with itself too, there as here. Deviations: sums are log-sum-exp, where KEP takes
    exponentials that underflow; groups may differ in size; relatives can be ignored.

    Args:
        features: unit rows.
        scale: s, above 0; 1 / 0.04 in KEP.
        ignored: pairs of different groups that are no negatives, in one direction or both; no matter within a group.

    Raises:
        ValueError: fewer than two groups.

    Example:
        >>> round(adasp(torch.eye(2).repeat_interleave(2, 0), torch.tensor([0, 0, 1, 1]), 4.0).item(), 4)
        0.1982
    """
    same, owner = groups[:, None] == groups[None, :], owners(groups)
    if bool((owner == 0).all()):
        raise ValueError("the batch holds one group of texts; two or more are needed")
    logits = scale * features @ features.T
    away = least_alike(logits, same)
    hardest = -over_rows(away, owner)
    easiest = over_rows(-away, owner)
    with torch.no_grad():
        h, e = hardest / scale, easiest / scale
        weight = torch.where(h > 0, 2 * h * e / (h + e), 0.0)
    positive = weight * hardest + (1 - weight) * easiest
    no_negative = same if ignored is None else same | ignored
    return group_loss(positive, with_negatives(shares(positive, owner), logits, no_negative), owner)


__all__ = ["adasp"]
