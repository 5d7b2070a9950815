"""What stays of a collection that is gone through in order, found again by pixels, by hash or by features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from jaxtyping import Float32, Int64, UInt64

from data_prep.duplicates import near_pairs

# Rows that are compared together with those that stay, so many at a time: 32 MB.
_BLOCK: Final = 1024
_CHUNK: Final = 8192


class StayingPictures:
    """Pictures of samples that stay, by the digest of their pixels and by hashes that differ in few bits.

    Args:
        digests, hashes: of all pictures, also of those that will go.
        distance: see `near_pairs`.
    """

    def __init__(self, digests: Sequence[bytes], hashes: UInt64[np.ndarray, "N 4"], distance: int) -> None:
        self._digests = digests
        self._by_digest: dict[bytes, int] = {}
        self._by_hash: dict[int, int] = {}
        pairs = near_pairs(hashes, distance)
        equal = (hashes[pairs[:, 0]] == hashes[pairs[:, 1]]).all(1)
        # The first of equal hashes stands for all of them.
        self._leaders: Int64[np.ndarray, " N"] = np.arange(len(hashes))
        self._leaders[pairs[equal, 1]] = pairs[equal, 0]
        self._near: dict[int, list[int]] = {}
        for one, other in pairs[~equal].tolist():
            self._near.setdefault(one, []).append(other)
            self._near.setdefault(other, []).append(one)

    def repeated(self, picture: int) -> tuple[str, int] | None:
        """("exact" or "near", the earliest picture that stays and that this one repeats)."""
        if (same := self._by_digest.get(self._digests[picture])) is not None:
            return "exact", same
        leader = int(self._leaders[picture])
        places = [self._by_hash[one] for one in (leader, *self._near.get(leader, ())) if one in self._by_hash]
        return ("near", min(places)) if places else None

    def add(self, picture: int) -> None:
        """It stays."""
        self._by_digest.setdefault(self._digests[picture], picture)
        self._by_hash.setdefault(int(self._leaders[picture]), picture)


class StayingRows:
    """Rows of features of samples that stay, searched exactly: every row is compared with all of them.

    Args:
        rows: unit rows of all samples in their order; zero where a sample has none.
        staying: how many of the first stay whatever happens; the others are asked about and added in their order.
        threshold: the least cosine.
    """

    def __init__(self, rows: Float32[np.ndarray, "N D"], *, staying: int, threshold: float) -> None:
        self._rows, self._threshold = rows, threshold
        self._staying = list(range(staying))
        # Of the block that is gone through: its first row, the nearest of those that stayed before it with the cosine,
        # the cosines of its rows with each other, and which of them stay.
        self._begin = staying
        self._nearest, self._cosines = np.empty(0, np.int64), np.empty(0, np.float32)
        self._within, self._new = np.empty((0, 0), np.float32), list[int]()

    def repeated(self, row: int) -> tuple[int, float] | None:
        """The row that stays and is nearest to this one, and the cosine, if it reaches the threshold."""
        if row - self._begin >= len(self._nearest):
            self._begin_block(row)
        place = row - self._begin
        best, cosine = int(self._nearest[place]), float(self._cosines[place])
        if self._new:
            found = self._within[place, self._new]
            if float(found.max()) > cosine:
                best, cosine = self._begin + self._new[int(found.argmax())], float(found.max())
        return (best, cosine) if cosine >= self._threshold else None

    def add(self, row: int) -> None:
        """It stays; the row that was asked about last."""
        self._staying.append(row)
        self._new.append(row - self._begin)

    def _begin_block(self, row: int) -> None:
        block = self._rows[row : row + _BLOCK]
        self._begin, self._within, self._new = row, block @ block.T, []
        self._nearest = np.zeros(len(block), np.int64)
        self._cosines = np.full(len(block), -np.inf, np.float32)
        for start in range(0, len(self._staying), _CHUNK):
            places = np.array(self._staying[start : start + _CHUNK])
            found = block @ self._rows[places].T
            best = found.argmax(1)
            cosines = found[np.arange(len(block)), best]
            better = cosines > self._cosines
            self._nearest[better], self._cosines[better] = places[best[better]], cosines[better]


__all__ = ["StayingPictures", "StayingRows"]
