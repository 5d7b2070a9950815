"""From group ids to positive pairs."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Int64
from torch import Tensor


def positive_pairs(
    row_ids: Int64[Tensor, "b L"], column_ids: Int64[Tensor, "G L"], row_offset: int = 0
) -> Bool[Tensor, "b G"]:
    """True where row i and column j share any group id >= 0, and on the diagonal j = i + row_offset.

    Ids are stable hashes of a caption or a label; -1 marks an unused slot. Costs one b x G comparison per pair of
    slots and never holds more than two b x G masks. Rows and columns may be a tile of all pairs, which the diagonal
    crosses or not.

    Example:
        >>> ids = torch.tensor([[7], [8], [7]])
        >>> positive_pairs(ids, ids).int().tolist()
        [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    """
    rows, columns = row_ids.shape[0], column_ids.shape[0]
    positive = torch.zeros(rows, columns, dtype=torch.bool, device=row_ids.device)
    # Unused slots of columns become -2, which no row has: one comparison fewer per pair of slots.
    column_ids = column_ids.where(column_ids >= 0, -2)
    for own in row_ids.unbind(1):
        for other in column_ids.unbind(1):
            positive |= own[:, None] == other[None, :]
    positive.diagonal(row_offset).fill_(True)
    return positive


__all__ = ["positive_pairs"]
