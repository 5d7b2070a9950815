"""Features of the images of a task as they are and under corruptions."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float32

from clip_med.data.augment import eval_image
from clip_med.data.images import decode_image
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision, evaluating, image_rows
from zero_shot.corruptions import Corruption, corrupt
from zero_shot.task_images import TaskImages

Condition = tuple[Corruption, int] | None
"""A corruption and its level; None: the images as they are."""


def condition_features(
    encoder: DualEncoder,
    images: TaskImages,
    conditions: Sequence[Condition],
    *,
    seed: int = 0,
    batch_size: int = 128,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[Condition, Float32[np.ndarray, "N D"]]:
    """Unit rows of all images under each condition; an image is read and decoded once for all of them.

    Raises:
        ValueError: a damaged image, or one whose feature is not finite; names its key.
    """
    found: dict[Condition, list[np.ndarray]] = {condition: [] for condition in conditions}
    total = len(images.indices)
    with evaluating(encoder, precision):
        for start in range(0, total, batch_size):
            part = images.indices[start : start + batch_size]
            samples = [images.shards.read(index) for index in part]
            decoded = [decode_image(sample.image, source=sample.key) for sample in samples]
            for condition in conditions:
                views = [
                    eval_image(
                        pixels
                        if condition is None
                        else corrupt(pixels, condition[0], condition[1], seed=seed, index=index),
                        encoder.preprocess,
                    )
                    for pixels, index in zip(decoded, part, strict=True)
                ]
                rows = image_rows(encoder, torch.stack(views)).numpy()
                if not np.isfinite(rows).all():
                    wrong = samples[int(np.flatnonzero(~np.isfinite(rows).all(axis=1))[0])]
                    raise ValueError(f"{wrong.key}: the image feature is not finite ({condition or 'as it is'})")
                found[condition].append(rows)
            if on_progress is not None:
                on_progress(min(start + batch_size, total), total)
    return {condition: np.concatenate(rows) for condition, rows in found.items()}


__all__ = ["Condition", "condition_features"]
