"""KEEP's loss between images and texts: one positive for each group, soft at its hardest pairs."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from clip_med.losses.group_terms import group_loss, least_alike, over_rows, owners, shares, with_negatives
from clip_med.losses.positives import positive_pairs
from clip_med.losses.row_parts import by_rows


@dataclass(frozen=True, eq=False)
class Relatives:
    """Which groups are ancestors or descendants of each other.

    Attributes:
        ids: of the groups, ascending, on the CPU.
        related: symmetric.
    """

    ids: Int64[Tensor, " K"]
    related: Bool[Tensor, "K K"]

    def pairs(self, rows: Int64[Tensor, " R"], columns: Int64[Tensor, " N"]) -> Bool[Tensor, "R N"]:
        """Which rows and columns belong to related groups; ids that are not known have no relatives.

        Example:
            >>> known = Relatives(torch.tensor([3, 8]), torch.tensor([[False, True], [True, False]]))
            >>> known.pairs(torch.tensor([8, 5]), torch.tensor([8, 5, 3])).int().tolist()
            [[0, 0, 1], [0, 0, 0]]
        """
        row, row_known = self._place(rows)
        column, column_known = self._place(columns)
        return self.related.to(rows.device)[row][:, column] & row_known[:, None] & column_known[None, :]

    def _place(self, groups: Int64[Tensor, " N"]) -> tuple[Int64[Tensor, " N"], Bool[Tensor, " N"]]:
        ids = self.ids.to(groups.device)
        place = torch.searchsorted(ids, groups).clamp(max=len(ids) - 1)
        return place, ids[place] == groups


def group_positives(
    image_features: Float[Tensor, "G D"],
    text_features: Float[Tensor, "G D"],
    logit_scale: Float[Tensor, ""],
    group_ids: Int64[Tensor, "G L"],
    relatives: Relatives | None = None,
    *,
    tile: int | None = None,
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
        tile: rows of logits at a time, computed again in the backward pass; None: all.

    Example:
        >>> rows, ids = torch.eye(2).repeat_interleave(2, 0), torch.tensor([[0], [0], [1], [1]])
        >>> round(group_positives(rows, rows, torch.tensor(4.0), ids).item(), 4)
        0.0707
    """
    groups = _groups(group_ids)
    owner = owners(groups)

    def same(rows: slice) -> Bool[Tensor, "R G"]:
        return groups[rows, None] == groups[None, :]

    def no_negative(rows: slice) -> Bool[Tensor, "R G"]:
        pairs = same(rows) | positive_pairs(group_ids[rows], group_ids, rows.start)
        return pairs if relatives is None else pairs | relatives.pairs(groups[rows], groups)

    def one_way(own: Float[Tensor, "G D"], other: Float[Tensor, "G D"]) -> Float[Tensor, ""]:
        away = by_rows(lambda rows: least_alike(own[rows] @ other.T, same(rows)), len(own), tile)
        positive = over_rows(-away, owner)
        share = shares(positive, owner)
        every = by_rows(
            lambda rows: with_negatives(share[rows], own[rows] @ other.T, no_negative(rows)), len(own), tile
        )
        return group_loss(positive, every, owner)

    dtype = torch.promote_types(image_features.dtype, torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        image, text = logit_scale.to(dtype) * image_features.to(dtype), text_features.to(dtype)
        return (one_way(image, text) + one_way(text, image)) / 2


def _groups(group_ids: Int64[Tensor, "G L"]) -> Int64[Tensor, " G"]:
    """The first label of each row, or its caption where it has none."""
    first = group_ids[:, min(1, group_ids.shape[1] - 1)]
    return first.where(first >= 0, group_ids[:, 0])


__all__ = ["Relatives", "group_positives"]
