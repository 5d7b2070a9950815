"""Pretraining as a whole: from a configuration to shards, model, loss, loader and the training loop."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch

from clip_med.config import PositiveInt, config
from clip_med.data.loader import LoaderConfig, TrainLoader
from clip_med.data.order import SampleOrder
from clip_med.data.shards import ShardSet, open_shards
from clip_med.distributed import process_group, rank, world_size
from clip_med.losses.config import InfoNCEConfig, LossConfig
from clip_med.losses.contrastive import build_loss, chance_loss
from clip_med.models.config import ModelConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.training.config import TrainConfig
from clip_med.training.run_folder import RunFolder
from clip_med.training.trainer import Evaluator, PooledText, StepReport, TrainSummary, train

log = logging.getLogger(__name__)


@config
class PretrainConfig:
    """Everything that decides the weights at the end of a run."""

    shards: tuple[Path, ...]
    """Folders of shard sets, concatenated in this order."""
    model: ModelConfig
    train: TrainConfig
    loss: LossConfig = InfoNCEConfig()
    loader: LoaderConfig = LoaderConfig()
    window_shards: PositiveInt = 16
    """Shards whose samples are shuffled together; more mixes better and reads from more files at once."""


def pretrain(
    config: PretrainConfig,
    run: Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    device: Literal["auto", "cpu", "cuda"] = "auto",
    on_start: Callable[[str], None] = log.info,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainSummary:
    """Train a dual encoder into the run folder, or continue what is there; under torchrun, on all its processes.

    Args:
        run: created if needed; see `RunFolder`.
        evaluators: called on the encoder during training and at its end.
        on_start: receives lines that describe data, model and length before the first step.
        on_step: see `train`.

    Raises:
        ValueError: shards, model or run folder that do not fit; each names what and where.
    """
    with process_group(device) as chosen:
        shards = open_shards(config.shards)
        total_steps = config.train.total_steps(len(shards))
        samples = total_steps * config.train.batch_size
        # The run folder keeps samples, not epochs: more data under the same folders is another run.
        config = dataclasses.replace(config, train=dataclasses.replace(config.train, samples=samples, epochs=None))
        with RunFolder(run, config) as folder:
            torch.manual_seed(config.train.seed)
            encoder = build_model(config.model).to(chosen)
            if config.train.channels_last:
                # Only the weights: a convolution takes the layout of its weights whatever its input has.
                encoder.clip.visual.to(memory_format=torch.channels_last)
            on_start(_description(config, shards, encoder, total_steps, chosen))
            _report_truncation(encoder, shards, on_start)
            pooled_text = _text_cache(encoder, shards, config.train, run, on_start) if config.train.cache_text else None
            loader = TrainLoader(
                shards,
                SampleOrder(shards.sizes, seed=config.train.seed, window_shards=config.window_shards),
                encoder.preprocess,
                config.loader,
                global_batch=config.train.batch_size,
                rank=rank(),
                world_size=world_size(),
                tokenize=None if pooled_text else encoder.tokenize,
            )
            return train(
                encoder,
                loader,
                build_loss(config.loss),
                config.train,
                folder,
                total_steps=total_steps,
                evaluators=evaluators,
                pooled_text=pooled_text,
                chance_loss=chance_loss(config.loss, config.train.batch_size),
                on_step=on_step,
            )


def _description(
    config: PretrainConfig, shards: ShardSet, encoder: DualEncoder, total_steps: int, device: torch.device
) -> str:
    images = sum(parameter.numel() for parameter in encoder.clip.visual.parameters())
    everything = sum(parameter.numel() for parameter in encoder.clip.parameters())
    epochs = total_steps * config.train.batch_size / len(shards)
    return (
        f"{len(shards):,} samples in {len(shards.sizes)} shard(s); {images / 1e6:.1f} M parameters in the image tower, "
        f"{(everything - images) / 1e6:.1f} M in the text tower; {total_steps:,} steps of {config.train.batch_size} "
        f"pairs ({epochs:.2f} epochs) on {world_size()} x {device.type}, {config.train.precision}"
    )


# Captions read to estimate how many the context cuts: half a second of tokenizing.
_CHECKED_CAPTIONS = 2000


def _report_truncation(encoder: DualEncoder, shards: ShardSet, on_start: Callable[[str], None]) -> None:
    """Say how many captions are longer than the context, from samples spread evenly over the shards."""
    step = -(-len(shards) // _CHECKED_CAPTIONS)
    captions = [shards.metadata(index).captions[0] for index in range(0, len(shards), step)]
    cut = encoder.truncated(captions)
    if cut:
        on_start(f"{cut} of {len(captions)} captions checked are longer than the text context and are cut at its end")


def _text_cache(
    encoder: DualEncoder, shards: ShardSet, config: TrainConfig, run: Path, on_start: Callable[[str], None]
) -> PooledText:
    """Pooled features of every caption, computed by the frozen trunk before the first step and kept in the run."""
    from clip_med.models.text_cache import FrozenTextCache

    encoder.lock(image=config.lock_image, text=config.lock_text)
    captions = {caption for index in range(len(shards)) for caption in shards.metadata(index).captions}
    on_start(f"caching text features of {len(captions):,} distinct captions")
    return FrozenTextCache.build(encoder, sorted(captions), directory=run / "text_cache").pooled


__all__ = ["PretrainConfig", "pretrain"]
