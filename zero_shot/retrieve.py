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
    texts_of: Sequence[Sequence[int]],
    *,
    ks: Sequence[int] = (1, 5, 10),
    chunk: int = 256,
    image_groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> list[Result]:
    """R@k from images to texts and from texts to images, with 95 % bootstrap intervals over queries.

    Only `chunk` rows of the similarity matrix exist at a time.

    Args:
        image_features: [N, D] unit rows; text_features: [M, D] unit rows.
        texts_of: per image the rows of `text_features` that belong to it; several images may share a text.
        image_groups: [N] patients; image queries are then drawn by whole patients.

    Raises:
        ValueError: lengths differ, or an image or a text has nothing that belongs to it.
    """
    if len(image_features) != len(texts_of):
        raise ValueError(f"{len(image_features)} images, but texts_of has {len(texts_of)} entries")
    images_of: list[list[int]] = [[] for _ in range(len(text_features))]
    for image, texts in enumerate(texts_of):
        for text in texts:
            images_of[text].append(image)
    results: list[Result] = []
    for direction, queries, items, items_of, groups in (
        ("image to text", image_features, text_features, texts_of, image_groups),
        ("text to image", text_features, image_features, images_of, None),
    ):
        lonely = sum(not found for found in items_of)
        if lonely:
            raise ValueError(f"{direction}: {lonely} of {len(items_of)} queries have nothing that belongs to them")
        hits: dict[int, list[NDArray[np.float64]]] = {k: [] for k in ks}
        for start in range(0, len(queries), chunk):
            scores = queries[start : start + chunk] @ items.T
            relevant = np.zeros(scores.shape, dtype=bool)
            for row, found in enumerate(items_of[start : start + chunk]):
                relevant[row, list(found)] = True
            for k in ks:
                hits[k].append(recall_at_k(scores, relevant, k))
        for k in ks:
            name = f"{direction} R@{k}"
            results.append(bootstrap_mean(np.concatenate(hits[k]), name=name, groups=groups, seed=seed))
    return results


__all__ = ["retrieval_results"]
