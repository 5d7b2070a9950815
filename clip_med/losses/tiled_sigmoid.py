"""The pairwise sigmoid loss in tiles, with recomputation in the backward pass: exact, in memory of the features.

Under plain autograd every block's logits stay until the backward pass, so that working block by block saves nothing
(open_clip's `SigLipLoss`, `chunk_size`); here only the features are kept.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn.functional import softplus

from clip_med.losses.exchange import Exchange
from clip_med.losses.tiles import Pairs


def tiled_sigmoid_loss(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    logit_bias: Float[Tensor, ""],
    group_ids: Int64[Tensor, "b L"] | None = None,
    *,
    tile: int,
    exchange: Exchange = "gather",
) -> Float[Tensor, ""]:
    """`sigmoid_loss` of this rank's images against the texts of all ranks, divided by this rank's rows.

    Only first derivatives exist. All ranks must give the same number of rows. Arguments as in `tiled_info_nce`, and
    logit_bias: starts at -10.

    Raises:
        RuntimeError: differentiated with `create_graph=True`.

    Example:
        >>> v, t = torch.eye(4)[:2], torch.eye(4)[2:]
        >>> round(tiled_sigmoid_loss(v, t, torch.tensor(10.0), torch.tensor(-10.0), tile=1).item(), 3)
        10.0
    """
    loss = _TiledSigmoid.apply(image_features, text_features, logit_scale, logit_bias, group_ids, tile, exchange)
    assert isinstance(loss, Tensor)
    return loss


class _TiledSigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        image: Tensor,
        text: Tensor,
        scale: Tensor,
        bias: Tensor,
        group_ids: Tensor | None,
        tile: int,
        exchange: Exchange,
    ) -> Tensor:
        pairs = Pairs.collect(image, text, scale, group_ids, tile, exchange)
        ctx.tile, ctx.exchange = tile, exchange
        ctx.save_for_backward(*pairs.tensors, bias)
        with torch.autocast(image.device.type, enabled=False):
            return _row_losses(pairs, bias).mean()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, bias = ctx.saved_tensors
        pairs = Pairs.restore(tensors, ctx.tile, ctx.exchange)
        weights = pairs.by_row(gradients[0])[pairs.own]
        by_bias = torch.zeros_like(weights)

        def slope(rows: slice, _place: slice, logits: Tensor, positive: Tensor | None) -> Tensor:
            by_logit = logits.add_(bias).sigmoid_()
            if positive is not None:
                by_logit.sub_(positive)
            by_bias[rows] += by_logit.mul_(weights[rows, None]).sum(1)
            return by_logit

        with torch.autocast(pairs.image.device.type, enabled=False):
            image, text, scale = pairs.gradients(slope, weights, ctx.needs_input_grad[:3])
        if pairs.group_ids is None:
            by_bias -= weights
        return image, text, scale, by_bias.sum().to(bias.dtype), None, None, None


def _row_losses(pairs: Pairs, bias: Tensor) -> Tensor:
    """Sum over j of softplus(z_ij), minus that of the positives' z_ij."""
    if pairs.group_ids is None:
        losses = -(pairs.partner_logits() + bias)
    else:
        losses = torch.zeros(len(pairs.image), dtype=pairs.dtype, device=pairs.image.device)

    def see(rows: slice, _place: slice, logits: Tensor, positive: Tensor | None) -> None:
        logits.add_(bias)
        # The threshold as in `sigmoid_loss`.
        losses[rows] += softplus(logits, threshold=40.0).sum(1)
        if positive is not None:
            losses[rows] -= logits.mul_(positive).sum(1)

    pairs.visit(see)
    return losses


__all__ = ["tiled_sigmoid_loss"]
