"""The global sequence of samples: a pure function of shard sizes, seed and position.

Nothing here knows of ranks, workers or batches, so none of them can change the sequence; a training run resumes
from (seed, position) alone. The sequence rests on raw 64-bit words of the counter-based generator Philox-4x64
(Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011) and a stable sort of them, not on NumPy's
`Generator.permutation`, whose stream may change between NumPy versions.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Final, Generic, Literal, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import Int64
from numpy.random import Philox

T = TypeVar("T")

StreamName = Literal[
    "shards", "window", "sample", "replacement", "mixture", "deal", "caption", "view", "describe", "image"
]

# Streams of one (seed, epoch): no two purposes ever share random words.
_STREAMS: Final[dict[StreamName, int]] = {
    "shards": 0,
    "window": 1,
    "sample": 2,
    "replacement": 3,
    "mixture": 4,
    "deal": 5,
    "caption": 6,
    "view": 7,
    "describe": 8,
    "image": 9,
}

MAX_SEED: Final = 2**64 - 1


def philox(seed: int, epoch: int, stream: StreamName, index: int, *, part: int = 0) -> Philox:
    """The bit generator of one (seed, epoch, stream, index): key (seed, epoch), counter (0, 0, index, stream, part).

    Philox counts in the first two 64-bit words, so two generators overlap only after 2**128 blocks of 256 bits.
    `part` (0 .. 2**56 - 1) tells the parts of a mixture from each other.

    Example:
        >>> a, b = (philox(7, 0, "sample", i).random_raw() for i in (0, 1))
        >>> a == b
        False
    """
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, index, _STREAMS[stream] + (part << 8)], dtype=np.uint64)
    return Philox(key=key, counter=counter)


@dataclass(frozen=True)
class Draws:
    """Consecutive positions of an order: which samples, and how often each was drawn before."""

    indices: Int64[np.ndarray, " count"]
    epochs: Int64[np.ndarray, " count"]


@runtime_checkable
class Order(Protocol):
    """The global sequence of samples: a pure function of the data, the description in `digest`, seed and position."""

    seed: int

    @property
    def digest(self) -> str:
        """SHA-256 of all that decides the sequence besides the seed and the content of the shards."""
        ...

    @property
    def batch_size(self) -> int | None:
        """The size of global batch that the sequence is built for; None: any."""
        ...

    def __len__(self) -> int:
        """Samples that can be drawn."""
        ...

    def draw(self, start: int, count: int) -> Draws:
        """The positions start, ..., start + count - 1. No (index, epoch) ever comes twice."""
        ...

    def alternatives(self, position: int, count: int) -> list[int]:
        """Samples that may stand in, in this order, for the one at `position` if it is damaged."""
        ...


def description_digest(description: dict[str, Any]) -> str:
    """SHA-256 of a description as JSON."""
    return hashlib.sha256(json.dumps(description, sort_keys=True).encode()).hexdigest()


class SampleOrder:
    """Maps every position >= 0 to a sample index; each epoch of `len(order)` positions is a permutation.

    An epoch permutes the shards, groups them into windows of `window_shards` and shuffles the samples inside each
    window: reads stay within a few shards at a time, and a window is computed without its neighbours. The first
    call in an epoch costs O(shards), a call in a new window O(samples in the window), at any position. A few
    windows are remembered (8 bytes per sample).

    Example:
        >>> order = SampleOrder([3, 2], seed=0)
        >>> sorted(order.indices(5, 5).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        seed: int,
        window_shards: int = 16,
        shuffle: bool = True,
        members: Int64[np.ndarray, " N"] | None = None,
        part: int = 0,
    ) -> None:
        """Describe the order of shards that hold `sizes` samples; indices count through the shards in their order.

        Args:
            sizes: samples per shard, each at least 1.
            seed: 0 to 2**64 - 1.
            window_shards: shards that are mixed with each other; more mix better and touch more files at a time.
            shuffle: False gives 0, 1, 2, ... in every epoch.
            members: the sample indices that are counted through, where they are not 0 .. N - 1: a part of a set.
            part: number of this part in its mixture; parts are shuffled independently of each other.

        Raises:
            ValueError: no shards, a shard without samples, a seed or a window out of range.
        """
        if len(sizes) == 0:
            raise ValueError("sizes must name at least one shard, got none: is the shard set empty?")
        for shard, size in enumerate(sizes):
            if size < 1:
                raise ValueError(f"sizes must be at least 1 sample per shard, got {size} for shard {shard}")
        if not 0 <= seed <= MAX_SEED:
            raise ValueError(f"seed must lie in 0 .. 2**64 - 1 (it is half of a Philox key), got {seed}")
        if window_shards < 1:
            raise ValueError(f"window_shards must be at least 1, got {window_shards}")
        self.seed = seed
        self.window_shards = window_shards
        self.shuffle = shuffle
        self._members = members
        self._part = part
        self._sizes = np.asarray(sizes, dtype=np.int64)
        self._first = [0, *accumulate(sizes)]
        if members is not None and len(members) != self._first[-1]:
            raise ValueError(f"members names {len(members)} samples, sizes add up to {self._first[-1]}")
        # Two epochs: a batch may lie across their edge. Four windows: prefetching workers are a few batches apart.
        self._epochs: Recent[_Epoch] = Recent(2)
        self._windows: Recent[Int64[np.ndarray, " samples"]] = Recent(4)

    @property
    def batch_size(self) -> int | None:
        """None: the sequence serves any."""
        return None

    def __len__(self) -> int:
        """Samples in an epoch."""
        return self._first[-1]

    @property
    def digest(self) -> str:
        """See `Order`; which samples are members follows from the content of the shards and the mixture."""
        return description_digest({"order": "shuffled", "window_shards": self.window_shards, "shuffle": self.shuffle})

    def draw(self, start: int, count: int) -> Draws:
        """Sample indices and epochs at the positions start, ..., start + count - 1; see `indices`."""
        indices = self.indices(start, count)
        return Draws(indices, np.arange(start, start + count, dtype=np.int64) // len(self))

    def alternatives(self, position: int, count: int) -> list[int]:
        """Samples of the same part, drawn from (seed, epoch, index); with replacement."""
        index = int(self.indices(position, 1)[0])
        words = philox(self.seed, position // len(self), "replacement", index).random_raw(count)
        # Drawn from the whole epoch: the next positions would often put a sample twice into one batch.
        return [self._global(int(word) % len(self)) for word in words]

    def indices(self, start: int, count: int) -> Int64[np.ndarray, " count"]:
        """Sample indices at the positions start, ..., start + count - 1; they may span any number of epochs.

        Raises:
            ValueError: `start` or `count` is negative.
        """
        local = self._local(start, count)
        return local if self._members is None else self._members[local]

    def _global(self, local: int) -> int:
        return local if self._members is None else int(self._members[local])

    def _local(self, start: int, count: int) -> Int64[np.ndarray, " count"]:
        if start < 0 or count < 0:
            raise ValueError(f"start and count must be at least 0, got start {start} and count {count}")
        if not self.shuffle:
            return np.arange(start, start + count, dtype=np.int64) % len(self)
        parts: list[Int64[np.ndarray, " part"]] = []
        position, stop = start, start + count
        while position < stop:
            epoch, offset = divmod(position, len(self))
            plan = self._epochs.get(epoch, partial(self._plan, epoch))
            window = int(np.searchsorted(plan.edges, offset, side="right")) - 1
            begin = offset - int(plan.edges[window])
            samples = self._windows.get((epoch, window), partial(self._window, epoch, plan, window))
            part = samples[begin : begin + stop - position]
            parts.append(part)
            position += len(part)
        return np.concatenate(parts) if parts else np.empty(0, dtype=np.int64)

    def _plan(self, epoch: int) -> _Epoch:
        shards = permutation(philox(self.seed, epoch, "shards", 0, part=self._part), len(self._sizes))
        ends = np.cumsum(self._sizes[shards])
        last = np.append(np.arange(self.window_shards, len(shards), self.window_shards), len(shards)) - 1
        return _Epoch(shards, np.concatenate([[0], ends[last]]).astype(np.int64))

    def _window(self, epoch: int, plan: _Epoch, window: int) -> Int64[np.ndarray, " samples"]:
        shards = plan.shards[window * self.window_shards : (window + 1) * self.window_shards]
        ranges = [np.arange(self._first[int(i)], self._first[int(i) + 1], dtype=np.int64) for i in shards]
        members = np.concatenate(ranges)
        return members[permutation(philox(self.seed, epoch, "window", window, part=self._part), len(members))]


class _Epoch:
    """One epoch: its permuted shards and the positions in it at which windows begin (and the last one ends)."""

    def __init__(self, shards: Int64[np.ndarray, " shards"], edges: Int64[np.ndarray, " edges"]) -> None:
        self.shards = shards
        self.edges = edges


class Recent(Generic[T]):
    """The most recently used values; unlike functools.lru_cache on a method it pickles and dies with its owner."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        if key not in self.values:
            self.values[key] = make()
            if len(self.values) > self.limit:
                self.values.popitem(last=False)
        self.values.move_to_end(key)
        return self.values[key]


def permutation(bits: Philox, count: int) -> Int64[np.ndarray, " count"]:
    """A permutation from random sort keys; ties (chance below n**2 / 2**65) fall in index order everywhere."""
    return np.argsort(bits.random_raw(count), kind="stable").astype(np.int64, copy=False)


__all__ = ["MAX_SEED", "Draws", "Order", "Recent", "SampleOrder", "description_digest", "permutation", "philox"]
