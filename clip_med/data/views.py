"""Several views of each image: as evaluation shows it, and augmented as in training."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor
from torch.utils.data import Dataset

from clip_med.config import NonNegativeInt, PositiveInt, config
from clip_med.data.augment import AugmentConfig, eval_image, train_image
from clip_med.data.images import Preprocess, decode_image
from clip_med.data.order import philox
from clip_med.data.shards import ShardSet
from clip_med.data.stream import Stream


@config
class ViewConfig:
    """How many views of each image there are, and how those after the first are made."""

    count: PositiveInt = 1
    """View 0 is the image as evaluation shows it."""
    augment: AugmentConfig = AugmentConfig()
    seed: NonNegativeInt = 0


def view_batches(
    shards: ShardSet,
    indices: Sequence[int],
    preprocess: Preprocess,
    views: ViewConfig,
    *,
    batch_size: int = 32,
    workers: int = 0,
) -> Generator[UInt8[Tensor, "M B 3 S S"], None, None]:
    """Yield all views of the samples `indices`, in their order; each image is decoded once.

    View v of a sample depends on (seed, v, number of the sample in its set) alone: the same in whatever selection.
    All captions of a sample count as its caption, so that an image of which a side is named is not mirrored.

    Raises:
        ValueError: a damaged sample, naming shard and key.
    """
    stream = Stream(
        _Views(shards, indices, preprocess, views, batch_size), range(0, len(indices), batch_size), workers, 2
    )
    with closing(stream):
        yield from stream


class _Views(Dataset[Tensor]):
    def __init__(
        self, shards: ShardSet, indices: Sequence[int], preprocess: Preprocess, views: ViewConfig, batch_size: int
    ) -> None:
        self.shards = shards
        self.indices = list(indices)
        self.preprocess = preprocess
        self.views = views
        self.batch_size = batch_size

    def __getitem__(self, position: int) -> UInt8[Tensor, "M B 3 S S"]:
        chosen = self.indices[position : position + self.batch_size]
        return torch.stack([self._of(index) for index in chosen], dim=1)

    def _of(self, index: int) -> UInt8[Tensor, "M 3 S S"]:
        sample = self.shards.read(index)
        source = f"{self.shards.tar(index)}: {sample.key}.{sample.image_suffix}"
        image = decode_image(sample.image, source=source)
        made = [eval_image(image, self.preprocess)]
        for view in range(1, self.views.count):
            rng = np.random.Generator(philox(self.views.seed, view, "view", index))
            made.append(
                train_image(
                    image, self.preprocess, self.views.augment, rng, sample.modality, caption=" ".join(sample.captions)
                )
            )
        return torch.stack(made)


__all__ = ["ViewConfig", "view_batches"]
