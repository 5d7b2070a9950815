"""KEEP's loss between images and texts: one positive for each group, soft at its hardest pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.losses.group_terms import against_negatives, least_alike, members, over_rows
from clip_med.losses.positives import positive_pairs


@dataclass(frozen=True, eq=False)
class Relatives:
    """Which groups are ancestors or descendants of each other.

    Attributes:
        ids: of the groups, ascending, on the CPU.
        related: symmetric.
    """

    ids: Int64[Tensor, " K"]
    related: Bool[Tensor, "K K"]

    def pairs(self, groups: Int64[Tensor, " N"]) -> Bool[Tensor, "N N"]:
        """Which rows belong to related groups; ids that are not known have no relatives.

        Example:
            >>> known = Relatives(torch.tensor([3, 8]), torch.tensor([[False, True], [True, False]]))
            >>> known.pairs(torch.tensor([8, 5, 3])).int().tolist()
            [[0, 0, 1], [0, 0, 0], [1, 0, 0]]
        """
        ids, related = self.ids.to(groups.device), self.related.to(groups.device)
        place = torch.searchsorted(ids, groups).clamp(max=len(ids) - 1)
        known = ids[place] == groups
        return related[place][:, place] & known[:, None] & known[None, :]


def group_positives(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    logit_scale: Float[Tensor, ""],
    group_ids: Int64[Tensor, "G L"],
    relatives: Relatives | None = None,
) -> Float[Tensor, ""]:
    """L = 1/2 (i2t + t2i), i2t = -mean_g log pos_g / (pos_g + sum_{a in g, b not in g} e^{s v_a . t_b}).

    pos_g = sum_{a in g} 1 / sum_{p in g} e^{-s v_a . t_p}: for each image soft at the least similar text of its group.
    From the code of KEEP (MAGIC-AI4Med/KEEP, `training/path_open_clip/loss.py`). One pair in each group makes it
    `info_nce`. Deviations: sums are log-sum-exp, where KEEP takes exponentials that underflow; pairs of relatives are
    left out of the negatives, where KEEP sets their similarity to -1; so are pairs of different groups that share a
    caption or another label; groups may differ in size.

    fp32, or fp64 for fp64 features, also under autocast. Needs all pairs of all ranks: a group may lie on several.

    Args:
        image_features, text_features: unit rows.
        logit_scale: s, already exponentiated.
        group_ids: as in `Batch`; a row's group is its first label, without one its caption.
        relatives: of groups; None: none are known.

    Example:
        >>> rows, ids = torch.eye(2).repeat_interleave(2, 0), torch.tensor([[0], [0], [1], [1]])
        >>> round(group_positives(rows, rows, torch.tensor(4.0), ids).item(), 4)
        0.0707
    """
    groups = _groups(group_ids)
    same = groups[:, None] == groups[None, :]
    no_negative = same | positive_pairs(group_ids, group_ids)
    if relatives is not None:
        no_negative |= relatives.pairs(groups)
    member = members(same)
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        logits = (logit_scale.to(dtype) * image_features.to(dtype)) @ text_features.to(dtype).T
        return (_one_way(logits, same, no_negative, member) + _one_way(logits.T, same, no_negative, member)) / 2


def _groups(group_ids: Int64[Tensor, "G L"]) -> Int64[Tensor, " G"]:
    """The first label of each row, or its caption where it has none."""
    first = group_ids[:, min(1, group_ids.shape[1] - 1)]
    return first.where(first >= 0, group_ids[:, 0])


def _one_way(
    logits: Float[Tensor, "G G"],
    same: Bool[Tensor, "G G"],
    no_negative: Bool[Tensor, "G G"],
    member: Bool[Tensor, "K G"],
) -> Float[Tensor, ""]:
    positive = over_rows(-least_alike(logits, same), member)
    return against_negatives(positive, logits, no_negative, member)


__all__ = ["Relatives", "group_positives"]
