"""Fine-tuning away from spurious regions: RaVL's idea as a loss of our own form."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor


def region_aware_loss(
    image_features: Float[Tensor, "B D"],
    region_features: Float[Tensor, "B R D"],
    class_features: Float[Tensor, "C D"],
    labels: Int64[Tensor, " B"],
    scale: Float[Tensor, ""] | float,
    spurious: Bool[Tensor, "B R"],
    padding: Bool[Tensor, "B R"] | None = None,
) -> Float[Tensor, ""]:
    """Cross-entropy of whole images, and of regions such that flagged ones must not resemble the true class.

    With R+ the regions of an image that are not flagged, R- the flagged ones, t the class features and s the scale:

        L = CE(s v t) - mean_i log [ sum_{R+} exp(s r t_y) / (sum_{R+} sum_c exp(s r t_c) + sum_{R-} exp(s r t_y)) ]

    The paper (Varma et al., arXiv 2411.04097) trains with regions too; its released code has no such loss, and this
    form is derived from its description. With R- empty and one region the second term is that region's cross-entropy.
    Images all of whose regions are flagged have no term of regions; the mean is over the others.

    Args:
        image_features, region_features, class_features: unit rows.
        scale: exponentiated logit scale.
        spurious: regions of flagged clusters; padding: places without a region.

    Raises:
        ValueError: an image without any region.

    Example:
        >>> v, t = torch.eye(2), torch.eye(2)
        >>> loss = region_aware_loss(v, v[:, None], t, torch.arange(2), 1.0, torch.zeros(2, 1, dtype=torch.bool))
        >>> round(loss.item(), 4)
        0.6265
    """
    there = torch.ones_like(spurious) if padding is None else ~padding
    if not bool(there.any(dim=1).all()):
        raise ValueError(f"image {int((~there.any(dim=1)).nonzero()[0])} of the batch has no region")
    whole = F.cross_entropy(scale * image_features @ class_features.T, labels)
    logits = scale * region_features @ class_features.T
    true = logits.gather(2, labels[:, None, None].expand(-1, logits.shape[1], 1)).squeeze(2)
    good, bad = there & ~spurious, there & spurious
    kept = good.any(dim=1)
    if not bool(kept.any()):
        return whole
    # Images without a good region are taken out before the logarithm: a masked infinity still gives NaN gradients.
    logits, true, good, bad = logits[kept], true[kept], good[kept], bad[kept]
    lowest = torch.finfo(logits.dtype).min
    numerator = true.masked_fill(~good, lowest).logsumexp(dim=1)
    every = logits.masked_fill(~good[:, :, None], lowest).flatten(1)
    denominator = torch.cat([every, true.masked_fill(~bad, lowest)], dim=1).logsumexp(dim=1)
    return whole + (denominator - numerator).mean()


__all__ = ["region_aware_loss"]
