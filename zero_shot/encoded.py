"""Image features of one model for several tasks: an image is encoded for the first of them that asks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_cache import cached_image_features, image_tower_digest
from zero_shot.config import EvalConfig
from zero_shot.task_images import TaskImages

Progress = Callable[[str, int, int], None]


class Encoded:
    """The image features asked for so far, in memory and, with `cache`, on disk.

    Attributes:
        encoded, read: images that were encoded, and that a file of the cache had.
    """

    def __init__(self, encoder: DualEncoder, *, cache: Path | None = None, on_progress: Progress | None = None) -> None:
        """`on_progress`: called with a name, images done and images in all, of images that are encoded."""
        self.encoder = encoder
        self.encoded = self.read = 0
        self._cache, self._on_progress = cache, on_progress
        self._digest = None if cache is None else image_tower_digest(encoder)
        self._kept: dict[tuple[str, str], _Kept] = {}

    def features(self, images: TaskImages, config: EvalConfig, *, name: str = "") -> Float32[np.ndarray, "N D"]:
        """Unit rows of the images of a task, as `cached_image_features` gives them.

        Args:
            name: of what is done, for `on_progress`; the task's own if empty.
        """
        kept = self._kept.setdefault((images.shards.digest, config.precision), _Kept())
        new = [index for index in images.indices if index not in kept.row]
        if new:
            step = self.step(name or images.task.name)
            before = self.encoded
            rows = cached_image_features(
                self.encoder,
                images.shards,
                new,
                cache=self._cache,
                model_digest=self._digest,
                batch_size=config.batch_size,
                workers=config.workers,
                precision=config.precision,
                on_progress=step,
            )
            self.read += len(new) - (self.encoded - before)
            kept.features = np.concatenate((kept.features, rows)) if kept.row else rows
            kept.row |= {index: row for row, index in enumerate(new, start=len(kept.row))}
        return kept.features[[kept.row[index] for index in images.indices]]

    def step(self, name: str) -> Callable[[int, int], None]:
        """Counts images as they are encoded, and tells of them."""
        told = 0

        def step(done: int, total: int) -> None:
            nonlocal told
            self.encoded += done - told
            told = done
            if self._on_progress is not None:
                self._on_progress(name, done, total)

        return step


@dataclass
class _Kept:
    """Features of one shard set, and the row of each sample in them."""

    row: dict[int, int] = field(default_factory=dict)
    features: Float32[np.ndarray, "N D"] = field(default_factory=lambda: np.empty((0, 0), np.float32))


__all__ = ["Encoded", "Progress"]
