"""Results of image-text retrieval: recall, median rank and average precision, with intervals over patients."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean, bootstrap_median
from zero_shot.ranks import QueryRanks, retrieval_ranks
from zero_shot.result import Result

Floats = NDArray[np.floating]

DIRECTIONS: Final = ("image to text", "text to image")


def retrieval_results(
    image_features: Floats,
    text_features: Floats,
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 2048,
    sharded: bool = False,
    image_groups: Sequence[Hashable] | None = None,
    kinds: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Result]:
    """R@k, median rank and mAP in both directions with 95 % bootstrap intervals; first of all, then of each kind.

    See `retrieval_ranks` for what is computed and for `chunk` and `sharded`. Ranks are those of the first right answer.
    Ties count by expectation in R@k and rank, and in mAP as in scikit-learn; none is decided by the order of items.

    Args:
        image_features: [N, D] unit rows; text_features: [M, D] unit rows.
        texts_of: per image the rows of `text_features` that belong to it; several images may share a text.
        image_groups: [N] patients; queries are then drawn by whole patients, texts together with all patients that
            share a text, see `text_groups`.
        kinds: what to tell apart, such as modality, to the kind of each image [N]. Queries of one kind are ranked among
            all items; a text is of every kind that one of its images has. Their results are named
            "image to text R@1, modality CT".

    Raises:
        ValueError: as `retrieval_ranks`, or groups or kinds of another number than images.
    """
    ranks = retrieval_ranks(image_features, text_features, texts_of, chunk=chunk, sharded=sharded)
    return results_of_ranks(ranks, texts_of, ks=ks, image_groups=image_groups, kinds=kinds or {}, seed=seed)


def results_of_ranks(
    ranks: tuple[QueryRanks, QueryRanks],
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    image_groups: Sequence[Hashable] | None = None,
    kinds: Mapping[str, Sequence[str]] | None = None,
    seed: int = 0,
) -> list[Result]:
    """As `retrieval_results`, from ranks that are known."""
    count, texts = len(ranks[0]), len(ranks[1])
    for name, values in (("image_groups", image_groups), *(kinds or {}).items()):
        if values is not None and len(values) != count:
            raise ValueError(f"{name} must hold one value for each of {count} images, got {len(values)}")
    groups = (image_groups, None if image_groups is None else text_groups(texts_of, image_groups, texts))
    results: list[Result] = []
    for name, own, of in zip(DIRECTIONS, ranks, groups, strict=True):
        results += _results(name, own, np.arange(len(own)), of, ks, seed)
    for what, of_image in (kinds or {}).items():
        for kind in sorted(set(of_image)):
            images = [number for number, value in enumerate(of_image) if value == kind]
            queries = (images, sorted({text for image in images for text in texts_of[image]}))
            for name, own, rows, of in zip(DIRECTIONS, ranks, queries, groups, strict=True):
                found = _results(name, own, np.array(rows, dtype=np.int64), of, ks, seed)
                results += [replace(result, name=f"{result.name}, {what} {kind}") for result in found]
    return results


def text_groups(texts_of: Sequence[Sequence[int]], image_groups: Sequence[Hashable], count: int) -> list[int]:
    """The unit that each text is drawn with: patients linked by shared texts are one unit.

    Two texts that have a patient in common are not independent, and a text that several patients share binds these
    together. Where all patients hang together there is one unit, and no interval can be given.

    Example:
        >>> text_groups([[0], [0, 1], [2]], ["a", "b", "c"], 3)
        [0, 0, 2]
    """
    parent = list(range(count))

    def root(text: int) -> int:
        while parent[text] != text:
            parent[text] = parent[parent[text]]
            text = parent[text]
        return text

    first: dict[Hashable, int] = {}
    for group, texts in zip(image_groups, texts_of, strict=True):
        for text in texts:
            one, other = root(first.setdefault(group, text)), root(text)
            parent[max(one, other)] = min(one, other)
    return [root(text) for text in range(count)]


def _results(
    direction: str,
    ranks: QueryRanks,
    rows: NDArray[np.int64],
    groups: Sequence[Hashable] | None,
    ks: Sequence[int],
    seed: int,
) -> list[Result]:
    own = None if groups is None else [groups[row] for row in rows]
    results = [
        *(bootstrap_mean(ranks.found(k)[rows], name=f"{direction} R@{k}", groups=own, seed=seed) for k in ks),
        bootstrap_median(ranks.first()[rows], name=f"{direction} median rank", unit="rank", groups=own, seed=seed),
        bootstrap_mean(ranks.precision[rows], name=f"{direction} mAP", groups=own, seed=seed),
    ]
    if own is None or len(set(own)) > 1:
        return results
    # Every drawn set of one unit is the set itself, which says nothing about others.
    return [replace(result, low=float("nan"), high=float("nan")) for result in results]


__all__ = ["DIRECTIONS", "results_of_ranks", "retrieval_results", "text_groups"]
