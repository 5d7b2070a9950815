"""Where the right answers of image-text retrieval stand among all: counted exactly, in blocks, for both directions.

Cosines are compared as whole multiples of 2^-52. Rows are first rounded to multiples of 2^-26 (an error of 7e-9 per
number, about that of float32 itself); the products are then multiples of 2^-52, and since no part of the sum that makes
a cosine exceeds 1, double precision holds every one of them without rounding. So equal rows tie exactly, and no choice
of block, thread or rank changes a comparison. In float32 the same cosine comes out differently in different blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from clip_med.distributed import gather_objects, rank, world_size
from zero_shot.metrics import recall_at_k

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Ints = NDArray[np.int64]

_GRID: Final = 2.0**26
# Up to so many right answers of a query are compared one by one with its row; beyond, the row is sorted.
_COMPARED: Final = 8
# Rows that are held in double precision at a time, beside blocks.
_ROWS: Final = 2048


@dataclass(frozen=True, kw_only=True)
class QueryRanks:
    """Of each query [Q]: how the best of its right answers stands among all items.

    `higher` items score above it; `tied` score the same (itself included), of which `good` are right. `precision` is
    the average precision over all right answers.
    """

    higher: Ints
    tied: Ints
    good: Ints
    precision: Doubles

    def __len__(self) -> int:
        """Number of queries."""
        return len(self.higher)

    def found(self, k: int) -> Doubles:
        """The probability that a right answer is among the k best when ties are broken at random."""
        return recall_at_k(self.higher, self.tied, self.good, k)

    def first(self) -> Doubles:
        """The expected rank, from 1, of the first right answer when ties are broken at random."""
        return self.higher + (self.tied + 1) / (self.good + 1)


def retrieval_ranks(
    image_features: Floats,
    text_features: Floats,
    texts_of: Sequence[Sequence[int]],
    *,
    chunk: int = 2048,
    sharded: bool = False,
) -> tuple[QueryRanks, QueryRanks]:
    """Ranks from images to texts and from texts to images, from one pass over the cosines.

    `chunk` x `chunk` cosines exist at a time, 32 MB by default, and beside the features a few numbers for each image,
    text and caption. The features may be memory-mapped. An average precision is the mean over right answers of the
    share of right ones among all items that score at least as much, as scikit-learn has it.

    Args:
        image_features: [N, D] unit rows; text_features: [M, D] unit rows.
        texts_of: per image the rows of `text_features` that belong to it; several images may share a text.
        sharded: every rank of the process group calls this with the same input, and each does its part of the images.

    Raises:
        ValueError: lengths differ, rows that are not of unit length, numbers of texts that do not exist or come twice,
            or an image or a text has nothing that belongs to it.
    """
    if len(image_features) != len(texts_of):
        raise ValueError(f"{len(image_features)} images, but texts_of has {len(texts_of)} entries")
    for name, rows in (("image", image_features), ("text", text_features)):
        _check_unit(name, rows)
    images, texts = _pairs(texts_of, len(text_features))
    scores = np.empty(len(images))
    for start in range(0, len(images), _ROWS):
        part = slice(start, start + _ROWS)
        left, right = _on_grid(image_features[images[part]]), _on_grid(text_features[texts[part]])
        scores[part] = np.einsum("pd,pd->p", left, right)
    by_image = _Side("image to text", images, scores, len(image_features))
    by_text = _Side("text to image", texts, scores, len(text_features))
    bounds = [len(image_features) * i // world_size() for i in range(world_size() + 1)]
    first, last = (bounds[rank()], bounds[rank() + 1]) if sharded else (0, len(image_features))
    for row in range(first, last, chunk):
        rows = _on_grid(image_features[row : min(row + chunk, last)])
        for column in range(0, len(text_features), chunk):
            block = rows @ _on_grid(text_features[column : column + chunk]).T
            by_image.count(block, row)
            by_text.count(block.T, column)
    if sharded:
        by_image.add_up()
        by_text.add_up()
    return by_image.ranks(), by_text.ranks()


class _Side:
    """One direction: the right answers of every query, best first, and how many items score as much as each."""

    def __init__(self, name: str, queries: Ints, scores: Doubles, count: int) -> None:
        self.sizes = np.bincount(queries, minlength=count)
        if lonely := int((self.sizes == 0).sum()):
            raise ValueError(f"{name}: {lonely} of {count} queries have nothing that belongs to them")
        order = np.lexsort((-scores, queries))
        self.owner, self.scores = queries[order], scores[order]
        self.starts = np.concatenate([[0], np.cumsum(self.sizes)])
        self.higher = np.zeros(count, dtype=np.int64)
        self.at_least = np.zeros(len(scores), dtype=np.int64)

    def count(self, block: Doubles, first: int) -> None:
        """Add a block [q, m] of cosines of the queries from `first` on with some of the items."""
        rows = np.arange(first, first + len(block))
        starts, sizes = self.starts[rows], self.sizes[rows]
        self.higher[rows] += _count(block > self.scores[starts][:, None])
        few = sizes <= _COMPARED
        for number in range(int(sizes[few].max(initial=0))):
            # Queries with fewer right answers compare with infinity: nothing is counted for them.
            present = few & (sizes > number)
            place = np.where(present, starts + number, 0)
            counted = _count(block >= np.where(present, self.scores[place], np.inf)[:, None])
            self.at_least[place[present]] += counted[present]
        for row in np.flatnonzero(~few).tolist():
            own = slice(starts[row], starts[row] + sizes[row])
            self.at_least[own] += block.shape[1] - np.searchsorted(np.sort(block[row]), self.scores[own], side="left")

    def add_up(self) -> None:
        """Sum over ranks what each has counted."""
        counted = gather_objects((self.higher, self.at_least))
        self.higher = np.sum([higher for higher, _ in counted], axis=0)
        self.at_least = np.sum([at_least for _, at_least in counted], axis=0)

    def ranks(self) -> QueryRanks:
        """After every block has been counted once."""
        # Runs of equal scores of one query: at the end of its run a right answer has all right ones that score as much.
        changes = (np.diff(self.owner) != 0) | (np.diff(self.scores) != 0)
        ends = np.concatenate([np.flatnonzero(changes), [len(self.scores) - 1]])
        right = ends[np.searchsorted(ends, np.arange(len(self.scores)))] + 1 - self.starts[self.owner]
        first = self.starts[:-1]
        return QueryRanks(
            higher=self.higher,
            tied=self.at_least[first] - self.higher,
            good=right[first],
            precision=np.add.reduceat(right / self.at_least, first) / self.sizes,
        )


def _pairs(texts_of: Sequence[Sequence[int]], count: int) -> tuple[Ints, Ints]:
    """Image and text of every pair that belongs together."""
    images = np.repeat(np.arange(len(texts_of)), [len(texts) for texts in texts_of])
    texts = np.array([text for own in texts_of for text in own], dtype=np.int64)
    for image, own in enumerate(texts_of):
        if len(set(own)) != len(own) or any(not 0 <= text < count for text in own):
            raise ValueError(f"texts_of of image {image} must hold different numbers below {count}, got {list(own)}")
    return images, texts


def _check_unit(name: str, rows: Floats) -> None:
    """Unit length is what makes the cosines exact; NaN fails as well."""
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS].astype(np.float64)
        squares = np.einsum("nd,nd->n", part, part)
        wrong = np.flatnonzero(~(np.abs(squares - 1) < 1e-3))
        if len(wrong):
            raise ValueError(f"{name} feature {start + wrong[0]} must have length 1, got {squares[wrong[0]] ** 0.5}")


def _on_grid(rows: Floats) -> Doubles:
    return np.rint(rows.astype(np.float64) * _GRID) / _GRID


def _count(mask: NDArray[np.bool_]) -> Ints:
    return np.count_nonzero(mask, axis=1)  # pyright: ignore[reportReturnType]


__all__ = ["QueryRanks", "retrieval_ranks"]
