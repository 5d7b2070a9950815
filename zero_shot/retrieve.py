"""Image-text retrieval on features: exact, in chunks, with several captions per image and ties by expectation."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from zero_shot.intervals import bootstrap_mean
from zero_shot.metrics import recall_at_k
from zero_shot.result import Result

Floats = NDArray[np.floating]


def retrieval_results(
    image_features: Floats,
    text_features: Floats,
    image_ids: NDArray[np.integer],
    text_ids: NDArray[np.integer],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 256,
    image_groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Result]:
    """R@k from images to texts and from texts to images, with 95 % bootstrap intervals over queries.

    Image i and text j belong together when `image_ids[i] == text_ids[j]`; give equal captions the same id to count
    them as correct. Only `chunk` rows of the similarity matrix exist at a time.

    Args:
        image_features: [N, D] unit rows; text_features: [M, D] unit rows.
        image_ids: [N]; text_ids: [M].
        image_groups: [N] patients; image queries are then drawn by whole patients.

    Raises:
        ValueError: lengths differ, or a query has nothing that belongs to it.
    """
    if len(image_features) != len(image_ids) or len(text_features) != len(text_ids):
        raise ValueError(
            f"{len(image_features)} images with {len(image_ids)} ids, {len(text_features)} texts with {len(text_ids)}"
        )
    results: list[Result] = []
    for direction, queries, items, query_ids, item_ids, groups in (
        ("image to text", image_features, text_features, image_ids, text_ids, image_groups),
        ("text to image", text_features, image_features, text_ids, image_ids, None),
    ):
        lonely = int((~np.isin(query_ids, item_ids)).sum())
        if lonely:
            raise ValueError(f"{direction}: {lonely} of {len(query_ids)} queries have nothing that belongs to them")
        found: dict[int, list[NDArray[np.float64]]] = {k: [] for k in ks}
        for start in range(0, len(queries), chunk):
            rows = slice(start, start + chunk)
            scores = queries[rows] @ items.T
            relevant = query_ids[rows, None] == item_ids[None, :]
            for k in ks:
                found[k].append(recall_at_k(scores, relevant, k))
        for k in ks:
            name = f"{direction} R@{k}"
            results.append(bootstrap_mean(np.concatenate(found[k]), name=name, groups=groups, seed=seed))
    return results


__all__ = ["retrieval_results"]
