"""How a rank sees the text rows of every rank, and how their gradients come home: gathered at once, or round a ring.

Rank r pairs its own images with the texts of all ranks, block by block, so that only texts travel. Blocks go to the
next rank; after k steps rank r holds the block of rank r - k. Forward costs W - 1 transfers of a block, backward W - 1
of the block and W of its gradient; a transfer runs while the tiles of another block are computed.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from clip_med.distributed import gather, rank, world_size

Exchange = Literal["gather", "ring"]


def columns_of(text_features: Float[Tensor, "b D"], exchange: Exchange) -> Float[Tensor, "C D"]:
    """The text rows that this rank holds between forward and backward: those of all ranks, or its own (ring)."""
    match exchange:
        case "gather":
            return gather(text_features)
        case "ring":
            return text_features


def each_block(
    columns: Float[Tensor, "C D"], exchange: Exchange, see: Callable[[int, Float[Tensor, "c D"]], None]
) -> None:
    """Call `see(first, block)` until every text of every rank was seen; `first` is the block's place among all."""
    if exchange == "gather" or world_size() == 1:
        see(0, columns)
        return
    block = own = columns.contiguous()
    spare = torch.empty_like(own)
    for step in range(world_size()):
        moving = _pass_on((block, spare)) if step < world_size() - 1 else []
        see(_first_row(step, len(own)), block)
        for transfer in moving:
            transfer.wait()
        # The own block must survive; the others take turns in two buffers.
        block, spare = spare, torch.empty_like(own) if block is own else block


def each_block_with_gradient(
    columns: Float[Tensor, "C D"],
    exchange: Exchange,
    dtype: torch.dtype,
    add: Callable[[int, Float[Tensor, "c D"], Float[Tensor, "c D"]], None],
) -> Float[Tensor, "b D"]:
    """Call `add(first, block, gradient)`, which adds in place what this rank's images give; returns the own rows' sum.

    dtype: of the gradients, in which they also travel.
    """
    own = columns.contiguous()
    gradient = torch.zeros_like(own, dtype=dtype)
    if exchange == "gather" or world_size() == 1:
        add(0, own, gradient)
        if world_size() > 1:
            dist.all_reduce(gradient, op=dist.ReduceOp.SUM)
        return gradient.chunk(world_size())[rank()]
    block, spare = own, torch.empty_like(own)
    done, arriving = torch.empty_like(gradient), torch.empty_like(gradient)
    for step in range(world_size()):
        # The gradient of the block at hand, as far as the ranks before got, arrives while this rank's part is computed.
        pairs = [(block, spare)] if step < world_size() - 1 else []
        moving = _pass_on(*pairs, (done, arriving)) if step else _pass_on(*pairs)
        add(_first_row(step, len(own)), block, gradient.zero_())
        for transfer in moving:
            transfer.wait()
        if step:
            gradient += arriving
        gradient, done = done, gradient
        block, spare = spare, torch.empty_like(own) if block is own else block
    for transfer in _pass_on((done, arriving)):
        transfer.wait()
    return arriving


def _first_row(step: int, rows: int) -> int:
    return (rank() - step) % world_size() * rows


def _pass_on(*pairs: tuple[Tensor, Tensor]) -> list[dist.Work]:
    """Start sending the first tensor of each pair to the next rank and receiving the second from the one before."""
    after, before = (rank() + 1) % world_size(), (rank() - 1) % world_size()
    operations: list[dist.P2POp] = []
    for tag, (outgoing, incoming) in enumerate(pairs):
        operations.append(dist.P2POp(dist.isend, outgoing, after, tag=tag))
        operations.append(dist.P2POp(dist.irecv, incoming, before, tag=tag))
    return dist.batch_isend_irecv(operations)


__all__ = ["Exchange", "columns_of", "each_block", "each_block_with_gradient"]
