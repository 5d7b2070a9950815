"""All pairs of this rank's images with the texts of all ranks, one tile of logits at a time, forward and backward.

Logits are never kept: the backward pass computes each tile again, which makes four products of features out of three.
A loss says what to do with a tile (`Pairs.visit`) and what its derivative by the tile's logits is (`Pairs.gradients`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.distributed import gather, rank, world_size
from clip_med.losses.exchange import Exchange, columns_of, each_block, each_block_with_gradient
from clip_med.losses.positives import positive_pairs

Visit = Callable[[slice, slice, Tensor, Tensor | None], None]
"""Called with rows, columns (among all ranks'), logits s v t' of the tile, and 1 for positives, else 0, with ids. May
write over the logits, whose memory the next tile uses."""
Slope = Callable[[slice, slice, Tensor, Tensor | None], Tensor]
"""Called likewise; returns dL/dlogits of the tile, L the sum of all ranks' losses, and may write over the logits."""


@dataclass(frozen=True)
class Pairs:
    """The features of one call. Computed in fp64 for fp64 features and fp32 for all others.

    columns: the texts held for the backward pass: those of all ranks, or this rank's (ring).
    """

    image: Float[Tensor, "b D"]
    text: Float[Tensor, "b D"]
    scale: Float[Tensor, ""]
    group_ids: Int64[Tensor, "b L"] | None
    columns: Float[Tensor, "C D"]
    all_ids: Int64[Tensor, "G L"] | None
    tile: int
    exchange: Exchange

    @classmethod
    def collect(
        cls, image: Tensor, text: Tensor, scale: Tensor, group_ids: Tensor | None, tile: int, exchange: Exchange
    ) -> Pairs:
        """Fetch what is held of the other ranks."""
        all_ids = None if group_ids is None else gather(group_ids)
        return cls(image, text, scale, group_ids, columns_of(text, exchange), all_ids, tile, exchange)

    @classmethod
    def restore(cls, tensors: Sequence[Tensor | None], tile: int, exchange: Exchange) -> Pairs:
        """What `tensors` gave, on its way through autograd."""
        image, text, scale, group_ids, columns, all_ids = tensors
        assert image is not None
        assert text is not None
        assert scale is not None
        assert columns is not None
        return cls(image, text, scale, group_ids, columns, all_ids, tile, exchange)

    @property
    def tensors(self) -> tuple[Tensor | None, ...]:
        """The first fields, in order: what autograd saves."""
        return self.image, self.text, self.scale, self.group_ids, self.columns, self.all_ids

    @property
    def own(self) -> slice:
        """Place of this rank's rows among all."""
        return slice(rank() * len(self.image), (rank() + 1) * len(self.image))

    @property
    def all_rows(self) -> int:
        return len(self.image) * world_size()

    @property
    def dtype(self) -> torch.dtype:
        return torch.promote_types(self.image.dtype, torch.float32)

    def scaled_image(self) -> Float[Tensor, "b D"]:
        return self.image.to(self.dtype) * self.scale.to(self.dtype)

    def partner_logits(self) -> Float[Tensor, "b"]:
        """s v_i . t_i."""
        return (self.scaled_image() * self.text).sum(1)

    def by_row(self, upstream: Float[Tensor, ""]) -> Float[Tensor, "G"]:
        """Derivative by each row's term in its rank's mean; ranks differ only if the caller weighs them."""
        return gather(upstream.reshape(1).to(self.dtype)).repeat_interleave(len(self.image)) / len(self.image)

    def tile_memory(self) -> Tensor:
        """Room for the numbers of one tile: fresh memory for each would have its pages mapped again and again."""
        side = min(self.tile, self.all_rows)
        return self.image.new_empty(min(side, len(self.image)) * side, dtype=self.dtype)

    def visit(self, see: Visit) -> None:
        """Every tile once."""
        rows = self.scaled_image()
        memory = self.tile_memory()

        def see_block(first: int, block: Tensor) -> None:
            block = block.to(self.dtype)
            for r, c in tiles(len(rows), len(block), self.tile):
                place = slice(first + c.start, first + c.stop)
                see(r, place, product(rows[r], block[c], memory), self._positive(r, place))

        each_block(self.columns, self.exchange, see_block)

    def gradients(
        self, slope: Slope, partner: Float[Tensor, "b"], needed: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Of images, texts and scale, where needed. The scale's is that of this rank's part: ranks are averaged later.

        partner: without ids, minus the part of dL/dlogits that each row's own pair has beside `slope`.

        Raises:
            RuntimeError: the caller wants to differentiate again.
        """
        if torch.is_grad_enabled():
            raise RuntimeError("tiled losses have no second derivatives (create_graph=True); use the plain loss")
        # The scale's comes from either tower's: s dL/ds = sum of z dL/dz = sum over i of v_i . dL/dv_i.
        need_image, need_text = needed[0] or not needed[1], needed[1]
        rows, scaled = self.image.to(self.dtype), self.scaled_image()
        to_image = torch.zeros_like(rows)
        memory = self.tile_memory()

        def add_block(first: int, block: Tensor, to_block: Tensor) -> None:
            block = block.to(self.dtype)
            for r, c in tiles(len(rows), len(block), self.tile):
                place = slice(first + c.start, first + c.stop)
                by_logit = slope(r, place, product(scaled[r], block[c], memory), self._positive(r, place))
                if need_image:
                    to_image[r].addmm_(by_logit, block[c])
                if need_text:
                    to_block[c].addmm_(by_logit.T, rows[r])

        to_text = each_block_with_gradient(self.columns, self.exchange, self.dtype, add_block)
        if self.group_ids is None:
            to_image.addcmul_(partner[:, None], self.text.to(self.dtype), value=-1)
            to_text.addcmul_(partner[:, None], rows, value=-1)
        by_scale = (to_image * self.image).sum() if need_image else (to_text * self.text).sum()
        return (
            to_image.mul_(self.scale).to(self.image.dtype) if needed[0] else None,
            to_text.mul_(self.scale).to(self.text.dtype) if needed[1] else None,
            by_scale.to(self.scale.dtype) if needed[2] else None,
        )

    def _positive(self, rows: slice, place: slice) -> Tensor | None:
        if self.group_ids is None or self.all_ids is None:
            return None
        diagonal = self.own.start + rows.start - place.start
        return positive_pairs(self.group_ids[rows], self.all_ids[place], diagonal).to(self.dtype)


def product(rows: Float[Tensor, "r D"], columns: Float[Tensor, "c D"], memory: Tensor) -> Float[Tensor, "r c"]:
    """rows columns', in `memory`."""
    return torch.mm(rows, columns.T, out=shaped(memory, len(rows), len(columns)))


def shaped(memory: Tensor, rows: int, columns: int) -> Float[Tensor, "r c"]:
    """The beginning of `memory` as a tile."""
    return memory[: rows * columns].view(rows, columns)


def tiles(rows: int, columns: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Slices of rows and columns that cover each pair once; the last ones may be smaller.

    Example:
        >>> [(r.stop - r.start, c.stop - c.start) for r, c in tiles(3, 2, 2)]
        [(2, 2), (1, 2)]
    """
    for row in range(0, rows, side):
        for column in range(0, columns, side):
            yield slice(row, min(row + side, rows)), slice(column, min(column + side, columns))


__all__ = ["Pairs", "product", "shaped", "tiles"]
