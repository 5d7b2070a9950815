"""Losses of a batch squared, a few rows of it at a time."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint  # pyright: ignore[reportUnknownVariableType]


def by_rows(of_rows: Callable[[slice], Tensor], count: int, tile: int | None) -> Float[Tensor, " N"]:
    """A number for each of `count` rows, of `tile` rows at a time.

    With a tile nothing of `of_rows` is kept for the backward pass, which computes it again: gradients are exact, and
    memory is that of `tile` rows. Without, all rows are one part.

    Example:
        >>> by_rows(lambda rows: torch.arange(5.0)[rows] * 2, 5, tile=2).tolist()
        [0.0, 2.0, 4.0, 6.0, 8.0]
    """
    if tile is None:
        return of_rows(slice(0, count))
    parts = [slice(start, min(start + tile, count)) for start in range(0, count, tile)]
    # No random numbers are drawn in a loss.
    return torch.cat([checkpoint(of_rows, rows, use_reentrant=False, preserve_rng_state=False) for rows in parts])


__all__ = ["by_rows"]
