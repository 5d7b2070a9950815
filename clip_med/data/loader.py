"""Batches from shards: any number of ranks and workers yields the same global batches, bit for bit.

The loader is map-style: a batch is a pure function of its global position, so a run resumes anywhere within
milliseconds and its whole state is (seed, position) and two digests that say of which data. Nothing is drawn from the
state of a worker or of torch.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, Literal

import numpy as np
from jaxtyping import Int64
from torch.utils.data import Dataset

from clip_med.config import Fraction, NonNegativeInt, PositiveInt, config
from clip_med.data.albumentations_backend import require_albumentations
from clip_med.data.augment import AugmentConfig, eval_image
from clip_med.data.batch import MAX_LABELS, Batch, Row, Tokenize, collate, text_id
from clip_med.data.captions import CaptionPolicy, Rewrite, draw_caption
from clip_med.data.images import ImageError, Preprocess, decode_image
from clip_med.data.mix import RealisedMix
from clip_med.data.order import Order, philox
from clip_med.data.sample import Sample, SampleError
from clip_med.data.shards import ShardError, ShardSet
from clip_med.data.stream import Stream
from clip_med.data.train_view import train_view
from clip_med.data.training_data import SourcePart

log = logging.getLogger(__name__)

# Damage in the data, as opposed to a failing disk (OSError) or a mistake in code: only this may be replaced.
_BAD: Final = (ShardError, SampleError, ImageError)

# Draws for one replacement: with 10 % of all samples bad, 8 bad ones in a row come once in 10**8 replacements.
_REPLACEMENT_DRAWS: Final = 8

# Fractions are taken of at least this many samples: one bad sample in a first batch of 32 is not yet 3 %.
_FRACTION_FLOOR: Final = 1000


@config
class LoaderConfig:
    """How batches are read and made.

    Example:
        >>> LoaderConfig(workers=0).positives
        'caption'
    """

    workers: NonNegativeInt = 2
    """Processes per rank; 0 reads in the training process. The batches are the same."""
    prefetch: PositiveInt = 2
    """Batches that each worker prepares ahead."""
    augment: AugmentConfig = AugmentConfig()
    max_pixels: PositiveInt = 64_000_000
    """Larger images are refused before they are decoded."""
    scaled_decode: bool = True
    """Decode a large JPEG at 1/2, 1/4 or 1/8 where its crop stays larger than the model's size by a margin that keeps
    the mean error under 1.5 grey levels (`train_view.MARGIN`)."""
    captions: CaptionPolicy = CaptionPolicy()
    """Which caption of a sample is shown, by kind."""
    positives: Literal["none", "caption", "label"] = "caption"
    """Which pairs count as matching besides a sample's own: equal caption, or also a shared label."""
    on_bad_sample: Literal["raise", "replace"] = "raise"
    """replace: take another sample in place of a damaged one, drawn from (seed, epoch, index); logged and counted."""
    max_bad_fraction: Fraction = 0.01
    """Stop when more of this rank's samples were damaged (of at least 1000)."""


class TrainLoader(Iterator[Batch]):
    """This rank's part of the endless sequence of global batches.

    Global batch t holds the positions start + t * G, ..., start + (t + 1) * G - 1 of `order`; rank r takes the r-th of
    `world_size` equal runs of them. Batches arrive in order. `position` and `state_dict` count batches handed out, not
    those being prepared. Worker processes start with the first batch and end with `close()`, with the loader itself
    or with the program; they ignore the signals that ask a job to stop, so the trainer can still save.

    Example:
        >>> loader = TrainLoader(shards, order, Preprocess(), LoaderConfig(), global_batch=256)  # doctest: +SKIP
        >>> next(loader).images.shape  # doctest: +SKIP
        torch.Size([256, 3, 224, 224])
    """

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        preprocess: Preprocess,
        config: LoaderConfig,
        *,
        global_batch: int,
        rank: int = 0,
        world_size: int = 1,
        tokenize: Tokenize | None = None,
        start: int = 0,
        sources: Sequence[SourcePart] = (),
        rewrite: Rewrite | None = None,
    ) -> None:
        """Describe the batches; nothing is read and no process is started yet.

        Args:
            shards: where the samples lie.
            order: their sequence; its seed also drives captions and augmentation.
            preprocess: what the model wants.
            config: everything else.
            global_batch: G, pairs per step over all ranks.
            rank: this rank, 0 .. world_size - 1.
            world_size: ranks that share a global batch.
            tokenize: called in the worker with the list of captions; returns int64 [B, T].
            start: global position of the first batch, for resuming.
            sources: where each source lies in `shards`, for the count of what was drawn (`mix`).
            rewrite: changes the caption that was drawn, from a stream of its own at (seed, epoch, index).

        Raises:
            ValueError: G is not a multiple of `world_size`, another argument is out of range, or the augmentation's
                backend is not installed.
        """
        if world_size < 1 or not 0 <= rank < world_size:
            raise ValueError(f"rank must lie in 0 .. world_size - 1, got rank {rank} of world_size {world_size}")
        if global_batch < 1 or global_batch % world_size:
            raise ValueError(f"global_batch must be a positive multiple of world_size {world_size}, got {global_batch}")
        if len(order) > len(shards):
            raise ValueError(f"order describes {len(order)} samples, but the shards hold {len(shards)}")
        if order.batch_size not in (None, global_batch):
            raise ValueError(f"order is made for global batches of {order.batch_size}, got {global_batch}")
        if start < 0 or (order.batch_size is not None and start % order.batch_size):
            raise ValueError(f"start must be at least 0 and whole batches of {order.batch_size or 1}, got {start}")
        if config.augment.enabled and config.augment.backend == "albumentations":
            require_albumentations()
        self.global_batch = global_batch
        self.position = start
        self.bad_samples = 0
        self.mix = RealisedMix(sources)
        self._seen = 0
        self._config = config
        self._digests = {"shards": shards.digest, "mixture": order.digest}
        self._order = order
        per_rank = global_batch // world_size
        self._batches = _TrainBatches(shards, order, preprocess, config, tokenize, per_rank, rank, rewrite)
        self._stream: Stream[Batch] | None = None

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            ValueError: a damaged sample (policy "raise"), or too many of them (policy "replace").
        """
        if self._stream is None:
            positions = count(self.position, self.global_batch)
            self._stream = Stream(self._batches, positions, self._config.workers, self._config.prefetch)
        batch = next(self._stream)
        self.position = batch.position + self.global_batch
        self._count(batch)
        return batch

    def state_dict(self) -> dict[str, Any]:
        """What a resume needs: `seed`, `position`, and the digests of `shards` and `mixture`; the same on all ranks.

        `drawn`, rows by source, only serves the log.
        """
        return {
            "seed": self._order.seed,
            "position": self.position,
            **self._digests,
            "drawn": self.mix.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, allow_data_change: bool = False) -> None:
        """Go to a saved position, also with another number of ranks or workers or, where the order allows, batch size.

        Args:
            allow_data_change: go to the same position of the new order where shards or mixture have changed (up to
                the next whole batch, where the order is made of batches); samples may then come again too early or
                too late.

        Raises:
            ValueError: the state belongs to another seed, or to other data without `allow_data_change`.
        """
        missing = {"seed", "position", *self._digests} - set(state)
        if missing:
            raise ValueError(f"loader state: {sorted(missing)[0]} is missing; it holds {', '.join(sorted(state))}")
        if state["seed"] != self._order.seed:
            raise ValueError(f"loader state: seed is {state['seed']}, this run has {self._order.seed}")
        changed = [
            f"{name} were {state[name]}, are {ours}" for name, ours in self._digests.items() if state[name] != ours
        ]
        position, size = int(state["position"]), self._order.batch_size or 1
        if changed:
            text = f"the data have changed since the checkpoint (SHA-256 of {'; of '.join(changed)})"
            if not allow_data_change:
                raise ValueError(
                    f"{text}: the order of the samples is another one; restore them, or go on at position {position} "
                    f"of the new order with --allow-data-change"
                )
            position = -(-position // size) * size
            log.warning("%s; going on at position %d of the new order", text, position)
        self.close()
        self.position = position
        self.mix.load_state_dict(state.get("drawn", {}))

    def close(self) -> None:
        """End the worker processes; the next batch would start new ones."""
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _count(self, batch: Batch) -> None:
        self._seen += len(batch)
        self.mix.add(batch)
        self.bad_samples += len(batch.bad)
        for line in batch.bad:
            log.warning("replaced a damaged sample: %s", line)
        limit = self._config.max_bad_fraction
        if batch.bad and self.bad_samples > limit * max(self._seen, _FRACTION_FLOOR):
            raise ValueError(
                f"{self.bad_samples} of {self._seen} samples were damaged, more than max_bad_fraction = {limit} "
                f"(of at least {_FRACTION_FLOOR}); the last: {batch.bad[-1]}"
            )


def eval_batches(
    shards: ShardSet,
    indices: Sequence[int] | Int64[np.ndarray, " N"],
    preprocess: Preprocess,
    *,
    batch_size: int = 128,
    workers: int = 0,
    max_pixels: int = 64_000_000,
    tokenize: Tokenize | None = None,
) -> Generator[Batch, None, None]:
    """Yield every index once, in the given order, each with its first caption; the last batch may be shorter.

    `position` counts through `indices`; `group_ids` are those of captions. Closing the generator ends its workers.

    Raises:
        ValueError: an index outside the shard set or a batch size below 1 (at the call); a damaged sample (later).

    Example:
        >>> for batch in eval_batches(shards, range(len(shards)), Preprocess()):  # doctest: +SKIP
        ...     features = encoder.encode_image(batch.images)
    """
    wanted = [int(index) for index in indices]
    if outside := [index for index in wanted if not 0 <= index < len(shards)]:
        raise ValueError(f"indices must lie in 0 .. {len(shards) - 1}, got {outside[0]}")
    if batch_size < 1 or workers < 0:
        raise ValueError(f"batch_size must be at least 1 and workers at least 0, got {batch_size} and {workers}")
    batches = _EvalBatches(shards, wanted, preprocess, batch_size, max_pixels, tokenize)
    return _yield_all(batches, range(0, len(wanted), batch_size), workers)


def _yield_all(batches: _EvalBatches, positions: range, workers: int) -> Generator[Batch, None, None]:
    stream = Stream(batches, positions, workers, prefetch=2)
    try:
        yield from stream
    finally:
        stream.close()


class _TrainBatches(Dataset[Batch]):
    """This rank's part of the global batch that begins at a position; the same wherever and whenever it is made."""

    def __init__(
        self,
        shards: ShardSet,
        order: Order,
        preprocess: Preprocess,
        config: LoaderConfig,
        tokenize: Tokenize | None,
        per_rank: int,
        rank: int,
        rewrite: Rewrite | None,
    ) -> None:
        self.shards = shards
        self.order = order
        self.preprocess = preprocess
        self.config = config
        self.tokenize = tokenize
        self.per_rank = per_rank
        self.rank = rank
        self.rewrite = rewrite

    def __getitem__(self, position: int) -> Batch:
        first = position + self.rank * self.per_rank
        drawn = self.order.draw(first, self.per_rank)
        if ahead := self.shards.prefetched:
            self.shards.prefetch(np.concatenate([drawn.indices, self.order.draw(first + ahead, self.per_rank).indices]))
        rows = [
            self._row(first + i, int(index), int(epoch))
            for i, (index, epoch) in enumerate(zip(drawn.indices, drawn.epochs, strict=True))
        ]
        return collate(rows, position, self.config.positives, self.tokenize)

    def _row(self, position: int, index: int, epoch: int) -> Row:
        """The sample at a position, or the first readable one of those that may stand in for it."""
        bad: list[str] = []
        for candidate in self._candidates(position, index):
            try:
                return self._made(candidate, epoch, tuple(bad))
            except _BAD as error:
                if self.config.on_bad_sample == "raise":
                    raise
                bad.append(str(error))
        raise ShardError(f"no readable sample stands in for {index}: {len(bad)} tried; the last: {bad[-1]}")

    def _candidates(self, position: int, index: int) -> Iterator[int]:
        yield index
        yield from self.order.alternatives(position, _REPLACEMENT_DRAWS)

    def _made(self, index: int, epoch: int, bad: tuple[str, ...]) -> Row:
        sample = self.shards.read(index)
        seed = self.order.seed
        if sample.more_images:
            # One image of a study, another in another epoch.
            chosen = np.random.Generator(philox(seed, epoch, "image", index)).integers(len(sample.images))
            sample = sample.one(int(chosen))
        # Streams of their own: the augmentation is the same whichever captions are drawn.
        words = np.random.Generator(philox(seed, epoch, "caption", index))
        caption = draw_caption(sample, self.config.captions, words)
        if self.rewrite is not None:
            caption = self.rewrite(caption, sample, np.random.Generator(philox(seed, epoch, "describe", index)))
        rng = np.random.Generator(philox(seed, epoch, "sample", index))
        image = train_view(
            sample.image,
            self.preprocess,
            self.config.augment,
            rng,
            sample.modality,
            caption=caption,
            max_pixels=self.config.max_pixels,
            scaled_decode=self.config.scaled_decode,
            source=_source(self.shards, index, sample),
        )
        return Row(image, caption, sample.key, sample.modality, sample.labels, index, bad)


class _EvalBatches(Dataset[Batch]):
    def __init__(
        self,
        shards: ShardSet,
        indices: list[int],
        preprocess: Preprocess,
        batch_size: int,
        max_pixels: int,
        tokenize: Tokenize | None,
    ) -> None:
        self.shards = shards
        self.max_pixels = max_pixels
        self.indices = indices
        self.preprocess = preprocess
        self.batch_size = batch_size
        self.tokenize = tokenize

    def __getitem__(self, position: int) -> Batch:
        rows: list[Row] = []
        for index in self.indices[position : position + self.batch_size]:
            sample = self.shards.read(index)
            if sample.more_images:
                sample = sample.one(0)
            source = _source(self.shards, index, sample)
            pixels = decode_image(sample.image, max_pixels=self.max_pixels, source=source)
            image = eval_image(pixels, self.preprocess)
            rows.append(Row(image, sample.captions[0], sample.key, sample.modality, sample.labels, index))
        return collate(rows, position, "caption", self.tokenize)


def _source(shards: ShardSet, index: int, sample: Sample) -> str:
    return f"{shards.tar(index)}: {sample.key}.{sample.image_suffix}"


__all__ = ["MAX_LABELS", "Batch", "LoaderConfig", "TrainLoader", "eval_batches", "text_id"]
