"""One sequence out of several, in given proportions: a pure function of position, with exact counts.

A mixture that draws its source at random for every row needs its whole history to know how far each source is. Here
the rows are cut into blocks of at least 1,024 units; how many units of a block belong to each part follows from the
proportions by exact integer arithmetic, and only their places in the block are random. So the state of every part at
any position is known at once, and the mix differs from the asked one by less than two units per part and block edge.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Int64

from clip_med.data.order import Draws, Order, Recent, description_digest, permutation, philox

_LEAST_BLOCK: Final = 1024
# Proportions are multiples of 2**-40.
_BITS: Final = 40
# A part that is drawn less than once in a million units could as well be left out.
LEAST_PROPORTION: Final = 1e-6


@dataclass(frozen=True)
class _Block:
    """The units of one block: whose each one is, and the how-manieth of that part it is."""

    owner: Int64[np.ndarray, " units"]
    ordinal: Int64[np.ndarray, " units"]


class MixedOrder:
    """Draws from several orders in fixed proportions, `unit` consecutive positions from the same one.

    Each part advances through its own epochs. With `unit` the size of a global batch, every batch comes from one part.

    Example:
        >>> from clip_med.data.order import SampleOrder
        >>> parts = [SampleOrder([4], seed=0), SampleOrder([4], seed=0, members=np.arange(4, 8), part=1)]
        >>> order = MixedOrder(parts, [3.0, 1.0], seed=0)
        >>> int((order.draw(0, 1024).indices < 4).sum())
        768
    """

    def __init__(
        self, parts: Sequence[Order], proportions: Sequence[float], *, seed: int, unit: int = 1, number: int = 0
    ) -> None:
        """Describe the mixture.

        Args:
            parts: what is mixed; each sample belongs to one of them.
            proportions: of units, relative to their sum.
            seed: as in the parts.
            unit: consecutive positions that come from one part.
            number: tells mixtures of one run from each other.

        Raises:
            ValueError: a proportion below a millionth of the sum, or none.
        """
        total = float(sum(proportions))
        if len(parts) != len(proportions) or not parts:
            raise ValueError(f"a mixture needs a proportion for each part, got {len(proportions)} for {len(parts)}")
        for position, proportion in enumerate(proportions):
            if not proportion >= LEAST_PROPORTION * total > 0:
                raise ValueError(
                    f"proportion {position} of the mixture is {proportion} of {total}; at least {LEAST_PROPORTION} of "
                    f"the sum is needed: leave the part out, or raise its weight"
                )
        self.seed = seed
        self.parts = tuple(parts)
        self.proportions = tuple(proportion / total for proportion in proportions)
        self.unit = unit
        self._number = number
        edges = [round(2**_BITS * sum(self.proportions[:end])) for end in range(len(parts))]
        self._edges = [*edges, 2**_BITS]
        # With at least two units per part and block no count of a block can be negative, see `_before`.
        block = _LEAST_BLOCK
        while block * min(self.proportions) < 2:
            block *= 2
        self._block = block
        self._blocks: Recent[_Block] = Recent(4)

    @property
    def batch_size(self) -> int | None:
        """The unit, if positions are drawn in units, else what the parts are built for."""
        return self.unit if self.unit > 1 else self.parts[0].batch_size

    @property
    def digest(self) -> str:
        """See `Order`."""
        return description_digest(
            {
                "order": "mixed",
                "unit": self.unit,
                "edges": self._edges,
                "sizes": [len(part) for part in self.parts],
                "parts": [part.digest for part in self.parts],
            }
        )

    def __len__(self) -> int:
        """Samples of all parts."""
        return sum(len(part) for part in self.parts)

    def draw(self, start: int, count: int) -> Draws:
        """See `Order`; costs O(block) at any position.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got start {start} and count {count}")
        indices = np.empty(count, dtype=np.int64)
        epochs = np.empty(count, dtype=np.int64)
        owner, position = self._places(start, count)
        for number, part in enumerate(self.parts):
            rows = np.flatnonzero(owner == number)
            if len(rows):
                # The units of a part are numbered in the order in which they come: one run of positions.
                drawn = part.draw(int(position[rows[0]]), len(rows))
                indices[rows], epochs[rows] = drawn.indices, drawn.epochs
        return Draws(indices, epochs)

    def alternatives(self, position: int, count: int) -> list[int]:
        """Of the same part."""
        owner, inner = self._places(position, 1)
        return self.parts[int(owner[0])].alternatives(int(inner[0]), count)

    def drawn(self, position: int) -> tuple[int, ...]:
        """How many of the first `position` positions belong to each part."""
        units, rest = divmod(position, self.unit)
        block, inside = divmod(units, self._block)
        owner = self._block_of(block).owner[:inside]
        counts = [self._before(part, block) + int((owner == part).sum()) for part in range(len(self.parts))]
        counts = [count * self.unit for count in counts]
        if rest:
            counts[int(self._places(position - 1, 1)[0][0])] += rest
        return tuple(counts)

    def _places(self, start: int, count: int) -> tuple[Int64[np.ndarray, " count"], Int64[np.ndarray, " count"]]:
        """For each position the part that owns it and the position within that part."""
        units, offsets = np.divmod(np.arange(start, start + count, dtype=np.int64), self.unit)
        owner = np.empty(count, dtype=np.int64)
        ordinal = np.empty(count, dtype=np.int64)
        blocks, inside = np.divmod(units, self._block)
        for number in np.unique(blocks).tolist():
            rows = blocks == number
            block = self._block_of(number)
            owner[rows] = block.owner[inside[rows]]
            ordinal[rows] = block.ordinal[inside[rows]]
        return owner, ordinal * self.unit + offsets

    def _block_of(self, number: int) -> _Block:
        return self._blocks.get(number, partial(self._make, number))

    def _make(self, number: int) -> _Block:
        before = [self._before(part, number) for part in range(len(self.parts))]
        counts = [self._before(part, number + 1) - begun for part, begun in enumerate(before)]
        sorted_owner = np.repeat(np.arange(len(self.parts)), counts)
        words = philox(self.seed, number, "mixture", 0, part=self._number)
        owner = sorted_owner[permutation(words, self._block)]
        ordinal = np.empty(self._block, dtype=np.int64)
        for part, begun in enumerate(before):
            rows = np.flatnonzero(owner == part)
            ordinal[rows] = begun + np.arange(len(rows))
        return _Block(owner, ordinal)

    def _before(self, part: int, block: int) -> int:
        """Units of a part before a block: the integers between two multiples of its cumulative proportions.

        Both ends grow by their share of a block rounded down or up, so their difference grows by more than the
        part's share minus 2: never by less than 0.
        """
        units = block * self._block
        return ((units * self._edges[part + 1]) >> _BITS) - ((units * self._edges[part]) >> _BITS)


__all__ = ["LEAST_PROPORTION", "MixedOrder"]
