"""InfoNCE in tiles: memory of the features and one tile of logits, not of the batch squared; the gradients are exact.

Rank r computes s v_r t' for its own images and the texts of all ranks, once for both directions: a tile adds to the
log-sum-exp of its rows (whole on this rank) and of its columns (summed over the ranks at the end). The backward pass
computes the tiles again: four products of features instead of three. After Inf-CL (Cheng et al., arXiv 2410.17243),
with three deviations: sums start at minus infinity (its algorithm 2 starts at 0), both directions share a tile, and the
gradient of the scale is that of this rank's tiles, to be averaged over ranks like any other parameter's.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.distributed import world_size
from clip_med.losses.exchange import Exchange
from clip_med.losses.tiles import Pairs, shaped

# Of exponents of fp32: e^80 is finite, and e^-80 a normal number.
_ROOM = 80.0


def tiled_info_nce(
    image_features: Float[Tensor, "b D"],
    text_features: Float[Tensor, "b D"],
    logit_scale: Float[Tensor, ""],
    group_ids: Int64[Tensor, "b L"] | None = None,
    *,
    tile: int,
    exchange: Exchange = "gather",
) -> Float[Tensor, ""]:
    """`info_nce` of this rank's rows against those of all ranks, the mean over this rank's rows.

    The ranks' mean and the mean of their gradients are those of one process with all rows; a single rank's scale
    gradient is not the derivative of its own value, because it holds the tiles of its images in both directions. Only
    first derivatives exist. All ranks must give the same number of rows.

    Args:
        image_features, text_features: unit rows of this rank, fp32, fp64 or lower (then computed in fp32).
        logit_scale: s, already exponentiated; > 0.
        group_ids: hashes of caption or labels, -1 = none; see `positive_pairs`.
        tile: side of a tile of logits.
        exchange: `gather` or `ring`, see `clip_med.losses.exchange`.

    Raises:
        RuntimeError: differentiated with `create_graph=True`.

    Example:
        >>> features = torch.eye(4)
        >>> round(tiled_info_nce(features, features, torch.tensor(0.0), tile=3).item(), 4)
        1.3863
    """
    loss = _TiledInfoNCE.apply(image_features, text_features, logit_scale, group_ids, tile, exchange)
    assert isinstance(loss, Tensor)
    return loss


class _Sums:
    """Of each row (or column) of logits: log-sum-exp, sum over its positives, and their number."""

    def __init__(self, lines: int, dtype: torch.dtype, device: torch.device) -> None:
        # Minus infinity is the log of an empty sum.
        self.lse = torch.full((lines,), -math.inf, dtype=dtype, device=device)
        self.positive_logits: Tensor = torch.zeros_like(self.lse)
        self.positives: Tensor = torch.zeros_like(self.lse)

    def add(self, lines: slice, lse: Tensor) -> None:
        """Take in the log-sum-exp of a tile's lines."""
        torch.logaddexp(self.lse[lines], lse, out=self.lse[lines])

    def add_positives(self, lines: slice, logits: Tensor, positive: Tensor, dim: int) -> None:
        """Take in a tile; `dim` is summed over."""
        self.positive_logits[lines] += (logits * positive).sum(dim)
        self.positives[lines] += positive.sum(dim)

    def over_ranks(self) -> None:
        """From this rank's part of each column to the whole."""
        if world_size() > 1:
            highest = self.lse.clone()
            dist.all_reduce(highest, op=dist.ReduceOp.MAX)
            sums = torch.stack([(self.lse - highest).exp_(), self.positive_logits, self.positives])
            dist.all_reduce(sums, op=dist.ReduceOp.SUM)
            self.lse = highest + sums[0].log()
            _, self.positive_logits, self.positives = sums.unbind()

    def losses(self) -> Tensor:
        """Cross-entropy of each line with the uniform distribution over its positives."""
        return self.lse - self.positive_logits / self.positives


class _TiledInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, image: Tensor, text: Tensor, scale: Tensor, group_ids: Tensor | None, tile: int, exchange: Exchange
    ) -> Tensor:
        pairs = Pairs.collect(image, text, scale, group_ids, tile, exchange)
        with torch.autocast(image.device.type, enabled=False):
            row, column = _sums(pairs)
            loss = (row.losses().mean() + column.losses()[pairs.own].mean()) / 2
        ctx.tile, ctx.exchange = tile, exchange
        ctx.save_for_backward(*pairs.tensors, row.lse, row.positives, column.lse, column.positives)
        return loss

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, row_lse, row_positives, column_lse, column_positives = ctx.saved_tensors
        pairs = Pairs.restore(tensors, ctx.tile, ctx.exchange)
        # The loss is half of each direction's.
        weights = pairs.by_row(gradients[0] / 2)

        memory = pairs.tile_memory()

        def slope(rows: slice, place: slice, logits: Tensor, positive: Tensor | None) -> Tensor:
            by_row, by_column = weights[pairs.own][rows], weights[place]
            sum_ = shaped(memory, *logits.shape)
            _softmaxes(logits, row_lse[rows], column_lse[place], by_row, by_column, sum_)
            if positive is not None:
                sum_.addcmul_(positive, (by_row / row_positives[rows])[:, None], value=-1)
                sum_.addcmul_(positive, by_column / column_positives[place], value=-1)
            return sum_

        with torch.autocast(pairs.image.device.type, enabled=False):
            return *pairs.gradients(slope, 2 * weights[pairs.own], ctx.needs_input_grad[:3]), None, None, None


def _sums(pairs: Pairs) -> tuple[_Sums, _Sums]:
    """Of the own rows, and of the columns of all ranks."""
    row, column = (_Sums(n, pairs.dtype, pairs.image.device) for n in (len(pairs.image), pairs.all_rows))

    def see(rows: slice, place: slice, logits: Tensor, positive: Tensor | None) -> None:
        if positive is not None:
            row.add_positives(rows, logits, positive, dim=1)
            column.add_positives(place, logits, positive, dim=0)
        of_rows, of_columns = _log_sums(logits)
        row.add(rows, of_rows)
        column.add(place, of_columns)

    pairs.visit(see)
    column.over_ranks()
    if pairs.group_ids is None:
        # Each row's positive is its partner, on the same rank: no tile needs to look for it.
        row.positives.fill_(1)
        column.positives.fill_(1)
        row.positive_logits.copy_(pairs.partner_logits())
        column.positive_logits[pairs.own] = row.positive_logits
    return row, column


def _log_sums(logits: Float[Tensor, "r c"]) -> tuple[Float[Tensor, "r"], Float[Tensor, "c"]]:
    """Log-sum-exp of rows and of columns from one exponential of each number; may write over the logits."""
    row_max, column_max = logits.amax(1), logits.amax(0)
    highest = row_max.amax()
    # A line far below the highest would be lost, and needs its own maximum.
    if float(highest - torch.minimum(row_max.amin(), column_max.amin())) > _ROOM:
        return logits.logsumexp(1), logits.logsumexp(0)
    powers = logits.sub_(highest).exp_()
    return powers.sum(1).log_().add_(highest), powers.sum(0).log_().add_(highest)


def _softmaxes(
    logits: Float[Tensor, "r c"],
    row_lse: Float[Tensor, "r"],
    column_lse: Float[Tensor, "c"],
    by_row: Float[Tensor, "r"],
    by_column: Float[Tensor, "c"],
    out: Float[Tensor, "r c"],
) -> None:
    """Into `out`: by_row exp(logits - row_lse) + by_column exp(logits - column_lse); writes over the logits."""
    lowest = torch.minimum(row_lse.amin(), column_lse.amin())
    if float(torch.maximum(row_lse.amax(), column_lse.amax()) - lowest) > _ROOM:
        torch.sub(logits, row_lse[:, None], out=out).exp_().mul_(by_row[:, None])
        out.addcmul_(logits.sub_(column_lse).exp_(), by_column)
        return
    # exp(z - lse) = exp(z - lowest) exp(lowest - lse): one exponential for both. No logit is above its row's lse.
    rows, columns = by_row * (lowest - row_lse).exp(), by_column * (lowest - column_lse).exp()
    torch.add(rows[:, None], columns, out=out).mul_(logits.sub_(lowest).exp_())


__all__ = ["tiled_info_nce"]
