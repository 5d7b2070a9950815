"""MedCLIP's loss: targets as soft as the labels of an image and a text are alike, whether or not they are one pair."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.losses.row_parts import by_rows


def soft_target_loss(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    group_ids: Int64[Tensor, "b L"],
    *,
    all_image_features: Float[Tensor, "G D"] | None = None,
    all_text_features: Float[Tensor, "G D"] | None = None,
    all_group_ids: Int64[Tensor, "G L"] | None = None,
    row_offset: int = 0,
    similarity: Literal["dot", "cosine"] = "dot",
    sharpness: float = 1.0,
    tile: int | None = None,
) -> Float[Tensor, ""]:
    """L = 1/2 [H(Q, softmax(s v t')) + H(Q, softmax(s t v'))], Q = softmax(sharpness Y), the mean over the local rows.

    Y_ij is the product of the label vectors of i and j (RyanWangZf/MedCLIP, `losses.py`), or their cosine, as the paper
    has it (Wang et al., arXiv 2210.10163). Q is normalised over the columns of either direction, so that its rows sum
    to 1. Label vectors are 0 or 1: a sample lists what is present, so that MedCLIP's -1 (uncertain) is 0 here, as what
    is absent. A sample without labels is like itself alone (Y_ii = 1), where MedCLIP calls it "No Finding". Sharpness
    is 1 in MedCLIP; without limit, and with one label each, the targets become those of equal labels.

    Arguments as in `info_nce`; column 0 of `group_ids`, the caption, is not looked at. `tile`: rows of logits at a
    time, computed again in the backward pass; None: all.

    Example:
        >>> rows, ids = torch.eye(2), torch.tensor([[0, 7], [1, 8]])
        >>> round(soft_target_loss(rows, rows, torch.tensor(0.0), ids).item(), 4)
        0.6931
    """
    all_image = image_features if all_image_features is None else all_image_features
    all_text = text_features if all_text_features is None else all_text_features
    all_ids = group_ids if all_group_ids is None else all_group_ids
    dtype = torch.promote_types(image_features.dtype, torch.float32)
    with torch.autocast(image_features.device.type, enabled=False):
        scale, all_image, all_text = logit_scale.to(dtype), all_image.to(dtype), all_text.to(dtype)
        image, text = scale * image_features.to(dtype), scale * text_features.to(dtype)

        def of_rows(rows: slice) -> Float[Tensor, " r"]:
            offset = row_offset + rows.start
            alike = label_products(group_ids[rows, 1:], all_ids[:, 1:], offset, similarity).to(dtype)
            target = F.softmax(sharpness * alike, dim=1)
            # Y is symmetric over all samples: the local rows of Y' are those of Y.
            one = F.cross_entropy(image[rows] @ all_text.T, target, reduction="none")
            return (one + F.cross_entropy(text[rows] @ all_image.T, target, reduction="none")) / 2

        return by_rows(of_rows, len(image), tile).mean()


def label_products(
    row_ids: Int64[Tensor, "b M"],
    column_ids: Int64[Tensor, "G M"],
    row_offset: int = 0,
    similarity: Literal["dot", "cosine"] = "dot",
) -> Float[Tensor, "b G"]:
    """How many labels row and column share, or that over the root of the product of how many they have.

    Ids are stable hashes, different within a row; -1 marks an unused slot. 1 on the diagonal where a row has none.

    Example:
        >>> label_products(torch.tensor([[5, 6], [-1, -1]]), torch.tensor([[6, 5], [-1, -1], [5, -1]])).tolist()
        [[2.0, 0.0, 1.0], [0.0, 1.0, 0.0]]
    """
    shared = torch.zeros(len(row_ids), len(column_ids), dtype=torch.float64, device=row_ids.device)
    columns = column_ids.where(column_ids >= 0, -2)
    for own in row_ids.unbind(1):
        for other in columns.unbind(1):
            shared += own[:, None] == other[None, :]
    own_count, other_count = ((ids >= 0).sum(1).to(shared.dtype) for ids in (row_ids, column_ids))
    if similarity == "cosine":
        shared = shared / (own_count.clamp(min=1)[:, None] * other_count.clamp(min=1)[None, :]).sqrt()
    diagonal = shared.diagonal(row_offset)
    diagonal[own_count == 0] = 1.0
    return shared


__all__ = ["label_products", "soft_target_loss"]
