"""Orders that keep a rule inside every global batch: no group twice, or k samples of each of several classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import numpy as np
from jaxtyping import Float64, Int64

from clip_med.data.order import Draws, Order, Recent, SampleOrder, description_digest, permutation, philox

# Batches that are dealt together, at least: fewer would repeat the same neighbours.
_LEAST_BATCHES: Final = 16
# A stand-in is looked for among this many candidates for each one asked for.
_CANDIDATES: Final = 8


@dataclass(frozen=True)
class _Dealt:
    """One chunk of an order in its new sequence, and at which position of the old one each draw stood."""

    indices: Int64[np.ndarray, " rows"]
    epochs: Int64[np.ndarray, " rows"]
    positions: Int64[np.ndarray, " rows"]


class DistinctGroups:
    """Another order, rearranged so that no group comes twice in a batch, for example no patient.

    A chunk of M batches is sorted by group and dealt out like cards: row i goes to batch i mod M, so the rows of a
    group of at most M rows all go to different batches, and every batch gets as many rows as it needs. Groups, the
    rows of a group, batches and the rows of a batch are shuffled. Nothing is left out and nothing drawn twice.
    """

    def __init__(
        self,
        order: Order,
        groups: Int64[np.ndarray, " N"],
        *,
        batch_size: int,
        batches: int,
        part: int = 0,
    ) -> None:
        """Describe the rearrangement.

        Args:
            order: what is rearranged.
            groups: of every sample index.
            batch_size: G, of the global batch.
            batches: M, from `batches_per_chunk`.
            part: tells the orders of one run from each other.

        Raises:
            ValueError: the order is built for another batch size.
        """
        if order.batch_size not in (None, batch_size):
            raise ValueError(f"the order is built for batches of {order.batch_size}, asked for {batch_size}")
        self.seed = order.seed
        self.batch_size: int | None = batch_size
        self._order = order
        self._groups = groups
        self._size = batch_size
        self._part = part
        self._batches = batches
        self._chunks: Recent[_Dealt] = Recent(2)

    @property
    def digest(self) -> str:
        """See `Order`."""
        rule = {"order": "distinct groups", "batch_size": self._size, "batches": self._batches}
        return description_digest({**rule, "of": self._order.digest})

    def __len__(self) -> int:
        """Samples of the order that is rearranged."""
        return len(self._order)

    def draw(self, start: int, count: int) -> Draws:
        """See `Order`; costs O(chunk).

        Raises:
            ValueError: a group has more rows in one chunk than it has batches.
        """
        rows = self._batches * self._size
        parts: list[_Dealt] = []
        position, stop = start, start + count
        while position < stop:
            chunk, begin = divmod(position, rows)
            dealt = self._chunk(chunk)
            end = min(rows, begin + stop - position)
            parts.append(_Dealt(dealt.indices[begin:end], dealt.epochs[begin:end], dealt.positions[begin:end]))
            position += end - begin
        if not parts:
            return self._order.draw(start, 0)
        return Draws(np.concatenate([p.indices for p in parts]), np.concatenate([p.epochs for p in parts]))

    def alternatives(self, position: int, count: int) -> list[int]:
        """Those of the rearranged order whose group is not in the batch; two stand-ins of one batch may share one."""
        chunk, inside = divmod(position, self._batches * self._size)
        dealt = self._chunk(chunk)
        first = inside - inside % self._size
        present = set(self._groups[dealt.indices[first : first + self._size]].tolist())
        candidates = self._order.alternatives(int(dealt.positions[inside]), _CANDIDATES * count)
        return [index for index in candidates if int(self._groups[index]) not in present][:count]

    def _chunk(self, number: int) -> _Dealt:
        return self._chunks.get(number, partial(self._deal, number))

    def _deal(self, number: int) -> _Dealt:
        batches, size = self._batches, self._size
        drawn = self._order.draw(number * batches * size, batches * size)
        _, group, counts = np.unique(self._groups[drawn.indices], return_inverse=True, return_counts=True)
        if int(counts.max()) > batches:
            raise ValueError(
                f"a group has {int(counts.max())} of {len(group)} rows from position {number * batches * size}, more "
                f"than the {batches} batches of {size} they are dealt to: lower the batch size, or the weight of its "
                f"source"
            )
        words = philox(self.seed, number, "deal", 0, part=self._part)
        group_place = permutation(words, len(counts))
        by_group = np.lexsort((words.random_raw(len(group)), group_place[group]))
        batch = permutation(words, batches)[np.arange(len(group)) % batches]
        in_batches = np.lexsort((words.random_raw(len(group)), batch))
        rows = by_group[in_batches]
        return _Dealt(drawn.indices[rows], drawn.epochs[rows], number * batches * size + rows)


def batches_per_chunk(
    groups: Int64[np.ndarray, " n"], batch_size: int, shares: Float64[np.ndarray, " n"] | None = None
) -> int:
    """Batches M that are to be dealt together so that no group of samples has more rows in a chunk than M.

    A sample with a share s of all rows comes at most s * rows + 1 times in a chunk; the third is reserve for mixtures,
    whose parts advance unevenly.

    Args:
        groups: of the samples of an order.
        batch_size: G, of the global batch.
        shares: of the samples among the rows, with sum 1; None: equal.

    Raises:
        ValueError: a group so large that some batch must hold it twice.
    """
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    share = counts / len(groups) if shares is None else np.bincount(inverse, weights=shares)
    load = share * batch_size
    worst = int(load.argmax())
    if load[worst] >= 1.0:
        raise ValueError(
            f"a group holds {int(counts[worst])} of {len(groups)} samples and {100 * float(share[worst]):.3g} % of the "
            f"rows: batches of {batch_size} would hold it twice; lower the batch size to at most "
            f"{max(1, math.ceil(1.0 / float(share[worst])) - 1)}, or allow groups to repeat"
        )
    return max(_LEAST_BATCHES, math.ceil(float((3 * counts / (1.0 - load)).max())))


class ClassBatches:
    """Batches of k samples from each of G / k different classes, all classes equally often.

    The sampling of metric learning (Hermans et al., "In Defense of the Triplet Loss", arXiv 1703.07737, section 2).
    Within a class its samples come in shuffled epochs, of which the last n mod k are passed over (others each time).
    A class that has fewer than k samples is refused: its batches would hold an image twice.
    """

    def __init__(
        self, members: Sequence[Int64[np.ndarray, " _"]], names: Sequence[str], *, seed: int, batch_size: int, k: int
    ) -> None:
        """Describe the batches.

        Args:
            members: sample indices of each class.
            names: of the classes, for messages.
            seed: as in `SampleOrder`.
            batch_size: G, a multiple of k.
            k: samples per class and batch.

        Raises:
            ValueError: G is no multiple of k, fewer classes than G / k, or a class with fewer than k samples.
        """
        if k < 1 or batch_size % k:
            raise ValueError(f"batch_size must be a multiple of per_class {k}, got {batch_size}")
        per_batch = batch_size // k
        if len(members) < per_batch:
            raise ValueError(
                f"{len(members)} classes are fewer than the {per_batch} that a batch of {batch_size} with {k} of each "
                f"needs: lower the batch size or raise per_class"
            )
        for name, samples in zip(names, members, strict=True):
            if len(samples) < k:
                raise ValueError(f"class {name!r} has {len(samples)} samples, fewer than per_class = {k}")
        self.seed = seed
        self.batch_size: int | None = batch_size
        self._k = k
        self._leaves: list[SampleOrder] = [
            SampleOrder([len(samples)], seed=seed, members=samples, part=1 + number)
            for number, samples in enumerate(members)
        ]
        classes = len(members)
        # A whole number of class epochs per chunk: every class comes equally often in it, so dealing never fails.
        period = classes // math.gcd(classes, per_batch)
        self._classes = DistinctGroups(
            SampleOrder([classes], seed=seed),
            np.arange(classes, dtype=np.int64),
            batch_size=per_batch,
            batches=period * math.ceil(_LEAST_BATCHES / period),
        )

    @property
    def digest(self) -> str:
        """See `Order`."""
        sizes = [len(leaf) for leaf in self._leaves]
        return description_digest({"order": "per class", "batch_size": self.batch_size, "k": self._k, "sizes": sizes})

    def __len__(self) -> int:
        """Samples that have a class."""
        return sum(len(leaf) for leaf in self._leaves)

    def draw(self, start: int, count: int) -> Draws:
        """See `Order`; costs O(count / k) draws from classes."""
        first, last = start // self._k, -(-(start + count) // self._k)
        classes = self._classes.draw(first, last - first)
        parts: list[Draws] = []
        for index, epoch in zip(classes.indices, classes.epochs, strict=True):
            number = int(index)
            parts.append(self._leaves[number].draw(self._begin(number, int(epoch)), self._k))
        if not parts:
            return classes
        cut = slice(start - first * self._k, start - first * self._k + count)
        indices = np.concatenate([part.indices for part in parts])[cut]
        return Draws(indices, np.concatenate([part.epochs for part in parts])[cut])

    def alternatives(self, position: int, count: int) -> list[int]:
        """Of the same class; not those that are in the batch with it."""
        place, offset = divmod(position, self._k)
        drawn = self._classes.draw(place, 1)
        number = int(drawn.indices[0])
        leaf, begin = self._leaves[number], self._begin(number, int(drawn.epochs[0]))
        present = set(leaf.indices(begin, self._k).tolist())
        candidates = leaf.alternatives(begin + offset, _CANDIDATES * count)
        return [index for index in candidates if index not in present][:count]

    def _begin(self, number: int, turn: int) -> int:
        """Position in its leaf of the class's turn: runs of k that never cross an epoch, so no image comes twice."""
        epoch, run = divmod(turn, len(self._leaves[number]) // self._k)
        return epoch * len(self._leaves[number]) + run * self._k


__all__ = ["ClassBatches", "DistinctGroups", "batches_per_chunk"]
