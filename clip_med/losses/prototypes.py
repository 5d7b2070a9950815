"""Classes as weighted means of what is said of them, or facet by facet, and images against these."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def class_prototypes(
    features: Float[Tensor, "N D"], owner: Int64[Tensor, " N"], weights: Float[Tensor, " N"], classes: int
) -> Float[Tensor, "C D"]:
    """E_c = n(sum_a w_a f_{c,a}), the unit rows of the classes; with equal weights the prompt ensemble of CLIP.

    K2Sight (LijunRio/AG-KD) describes a finding by its attributes and puts all of them into one prompt; a mean with a
    weight for each attribute is our form of it for embeddings.

    Args:
        features: unit rows of the sentences.
        owner: the class of each, 0 .. classes - 1; every class has one at least.
        weights: above 0.
    """
    share = features.new_zeros(classes, len(owner))
    share[owner, torch.arange(len(owner), device=owner.device)] = weights.to(features.dtype)
    return F.normalize(share @ features, dim=1)


def prototype_loss(
    image_features: Float[Tensor, "b D"],
    prototypes: Float[Tensor, "C D"],
    logit_scale: Float[Tensor, ""],
    present: Bool[Tensor, "b C"],
    rows: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """`facet_loss` with one text for each class: its prototype.

    Args:
        image_features, prototypes: unit rows.

    Example:
        >>> rows = torch.eye(3)
        >>> round(prototype_loss(rows, rows, torch.tensor(0.0), torch.eye(3, dtype=torch.bool)).item(), 4)
        1.0986
    """
    with torch.autocast(image_features.device.type, enabled=False):
        dtype = torch.promote_types(image_features.dtype, torch.float32)
        return facet_loss(image_features.to(dtype) @ prototypes.to(dtype).T, logit_scale, present, rows)


def facet_loss(
    cosines: Float[Tensor, "b N"],
    logit_scale: Float[Tensor, ""],
    positive: Bool[Tensor, "b N"],
    rows: Float[Tensor, ""] | None = None,
) -> Float[Tensor, ""]:
    """L = -1/rows sum_i 1/|P_i| sum_{j in P_i} log softmax_j(s v_i . e_j), over images with any positive.

    The j are the facets of all classes (what defines it, how it looks, how reports word it), P_i those of image i's
    classes: several texts of several classes are right for an image at once. After DeViDe (arXiv 2404.03618), whose own
    terms are not published in full. One text in each P_i, of which no other image has it, makes it the direction from
    images to texts of InfoNCE. fp32, or fp64 for fp64 cosines, also under autocast.

    Args:
        cosines: of images and texts.
        logit_scale: s, already exponentiated.
        positive: the texts of each image; images without any take no part.
        rows: what the sum is divided by; None: how many images take part, at least 1.

    Example:
        >>> round(facet_loss(torch.zeros(2, 4), torch.tensor(9.0), torch.eye(2, 4, dtype=torch.bool)).item(), 4)
        1.3863
    """
    with torch.autocast(cosines.device.type, enabled=False):
        dtype = torch.promote_types(cosines.dtype, torch.float32)
        counts = positive.sum(1)
        share = positive.to(dtype) / counts.clamp(min=1)[:, None]
        divisor = (counts > 0).sum().clamp(min=1) if rows is None else rows
        return -(F.log_softmax(logit_scale.to(dtype) * cosines.to(dtype), dim=1) * share).sum() / divisor


__all__ = ["class_prototypes", "facet_loss", "prototype_loss"]
