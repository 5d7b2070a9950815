"""Settings of training. Imports no torch."""

from __future__ import annotations

from typing import Literal

from clip_med.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config
from clip_med.models.compute_config import ComputeConfig


@config
class OptimConfig:
    """AdamW; the defaults are those of CLIP's ViT models (Radford et al., arXiv 2103.00020, table 19)."""

    lr: PositiveFloat = 5e-4
    """Peak learning rate."""
    betas: tuple[Fraction, Fraction] = (0.9, 0.98)
    eps: PositiveFloat = 1e-6
    weight_decay: NonNegativeFloat = 0.2
    """Applied to matrices only: not to norms, biases, embeddings of positions and class token, scale and bias."""
    image_lr_scale: NonNegativeFloat = 1.0
    """Multiplies the learning rate of the image tower."""
    text_lr_scale: NonNegativeFloat = 1.0
    """Multiplies the learning rate of the text tower."""
    layer_decay: Fraction = 1.0
    """Layer-wise decay: each block learns at this times the rate of the block above it, the embeddings slowest, the
    projection head at the full rate. 1: all alike; 0.65 to 0.9 for pretrained transformers."""

    def __post_init__(self) -> None:
        """Refuse a decay that would leave all but the head without a learning rate."""
        if not 0.0 < self.layer_decay <= 1.0:
            raise ValueError(f"layer_decay must lie above 0 and at most at 1, got {self.layer_decay}")


@config
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to a floor; counted in samples, so that the batch size may change."""

    warmup_samples: NonNegativeInt = 0
    floor: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak."""


@config
class DDPConfig:
    """Every rank holds the whole model (DistributedDataParallel)."""

    kind: Literal["ddp"] = "ddp"
    timeout_seconds: PositiveFloat = 1800.0
    """A rank that waits longer for the others fails; must exceed the time of an evaluation, which rank 0 runs alone."""


@config
class FSDPConfig:
    """Weights, gradients and optimiser state are cut over the ranks, block by block (FSDP2)."""

    kind: Literal["fsdp"] = "fsdp"
    timeout_seconds: PositiveFloat = 1800.0
    """See `DDPConfig`."""
    reshard_after_forward: bool = True
    """Blocks are gathered again for the backward pass: less memory, half as much communication again."""


ParallelConfig = DDPConfig | FSDPConfig


@config
class EmaConfig:
    """Running average of the weights; counted in samples, so that the batch size may change."""

    half_life_samples: PositiveInt = 500_000
    """A weight of so many samples ago counts half as much as one of now."""
    ramp_up: Fraction = 0.05
    """At the beginning the half-life is this fraction of the samples seen."""
    use_for_eval: bool = True
    """Evaluations during and after training see the average instead of the weights themselves."""

    def __post_init__(self) -> None:
        """Refuse a half-life of nothing: the average would be the weights themselves."""
        if self.ramp_up == 0.0:
            raise ValueError("ramp_up must lie above 0; 1 lets the half-life grow with the samples seen")


@config
class TrainConfig:
    """One training run; lengths are counted in samples, so that they mean the same at any batch size."""

    samples: PositiveInt | None = None
    """Pairs to train on; rounded down to whole batches."""
    epochs: PositiveFloat | None = None
    """The same in passes over the data; give one of the two."""
    batch_size: PositiveInt = 256
    """Pairs per step over all ranks."""
    seed: NonNegativeInt = 0
    """Of initial weights, sample order, augmentation, dropout."""
    micro_batch: PositiveInt | None = None
    """Pairs of each rank that are encoded with a graph at a time (GradCache): the gradients of the whole batch for the
    memory of so many pairs and a second forward pass. None: all at once."""
    precision: Literal["fp32", "bf16", "pure_bf16"] = "fp32"
    """bf16: autocast. pure_bf16: bf16 weights and activations, and fp32 weights in the optimiser, which are the ones
    saved. Normalised features and loss are fp32 always."""
    parallel: ParallelConfig = DDPConfig()
    """How the model lies on several ranks; one process needs neither."""
    optim: OptimConfig = OptimConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EmaConfig | None = None
    """Also keep a running average of the weights, in checkpoints too; None: no."""
    max_grad_norm: PositiveFloat | None = 1.0
    """Gradients are scaled down to this norm; None: never."""
    max_logit_scale: PositiveFloat = 100.0
    """The exponentiated scale is kept at or below this (Radford et al., arXiv 2103.00020, section 2.5)."""
    compute: ComputeConfig = ComputeConfig()
    """How the towers are computed."""
    channels_last: bool = False
    """Memory layout of convolutions; for convolutional image towers on CPUs and on GPUs with bf16."""
    lock_image: Literal["none", "trunk", "all"] = "none"
    lock_text: Literal["none", "trunk", "all"] = "none"
    """trunk: the tower is frozen and its projection head trained; all: both frozen (LiT: lock_image: all)."""
    unlock_image: NonNegativeInt = 0
    unlock_text: NonNegativeInt = 0
    """Of a locked tower, so many layer groups from the top train all the same: 1 is the last block with what follows
    it, the number of blocks plus one the whole trunk."""
    cache_text: bool = False
    """Compute the pooled features of a frozen text trunk once per caption instead of in every step."""
    log_every_steps: PositiveInt = 10
    save_every_samples: PositiveInt = 100_000
    """A checkpoint each time that so many samples have been seen, besides those at the end and on a stop signal."""
    keep: PositiveInt = 2
    """Checkpoints that are kept; with 2, damage to the newest costs one interval and not the run."""
    async_checkpoint: bool = False
    """Write checkpoints while training goes on, from a copy in memory; the last one of a run is waited for."""
    max_failed_saves: PositiveInt = 3
    """Saves in a row that may fail (a full disk, say) before the run stops; the last of a run may not."""
    time_limit_minutes: PositiveFloat | None = None
    """Stop early enough for a checkpoint to be written before so many minutes have passed since the run was opened."""
    watchdog_seconds: PositiveFloat | None = 1800.0
    """A process that ends no step for so long dumps its stacks and exits with code 75 (evaluation and compiling: four
    times as long); None: never."""
    on_nonfinite: Literal["stop", "skip", "rewind"] = "stop"
    """After a loss or gradient that is no number: stop; skip: no update for this batch; rewind: back to the weights of
    the last checkpoint of the schedule, and on with the batch after this one."""
    on_spike: Literal["off", "stop", "skip", "rewind"] = "off"
    """The same for a loss above median + `spike_deviations` x (median absolute deviation) of `spike_window` steps."""
    spike_window: PositiveInt = 100
    spike_deviations: PositiveFloat = 20.0
    max_bad_steps: PositiveInt = 10
    """Skipped or rewound in a row; one more stops the run."""
    eval_every_samples: PositiveInt | None = None
    """Evaluate during training; None: at the end only."""
    tensorboard: bool = False
    """Also write TensorBoard events (extra `track`)."""

    def __post_init__(self) -> None:
        """Refuse a run of unknown length, and a cache of features that change."""
        if (self.samples is None) == (self.epochs is None):
            raise ValueError(
                f"give samples or epochs, one of the two; got samples={self.samples}, epochs={self.epochs}"
            )
        if self.cache_text and self.lock_text == "none":
            raise ValueError("cache_text needs lock_text: trunk or all; the features of a trained tower change")
        if self.compute.compile and self.precision == "pure_bf16":
            raise ValueError("compute.compile: pure_bf16 uses a copy of the model that is not compiled; use bf16")
        if self.channels_last and isinstance(self.parallel, FSDPConfig):
            raise ValueError("channels_last: fsdp cuts contiguous weights only; use parallel kind ddp, or leave it out")
        if self.compute.patch_dropout and self.lock_image != "none":
            raise ValueError(
                f"compute.patch_dropout needs lock_image: none, got {self.lock_image}; a locked tower sees all patches"
            )
        if self.cache_text and self.unlock_text:
            raise ValueError(f"cache_text needs unlock_text: 0, got {self.unlock_text}; trained layers change features")
        for tower, policy, groups in (
            ("image", self.lock_image, self.unlock_image),
            ("text", self.lock_text, self.unlock_text),
        ):
            if groups and policy == "none":
                raise ValueError(f"unlock_{tower}: {groups} needs lock_{tower}: trunk or all; the tower is not locked")

    def save_due(self, step: int) -> bool:
        """Whether `step` steps have reached or passed a multiple of `save_every_samples`."""
        return self._due(step, self.save_every_samples)

    def evaluation_due(self, step: int) -> bool:
        """Whether `step` steps have reached or passed a multiple of `eval_every_samples`."""
        return self.eval_every_samples is not None and self._due(step, self.eval_every_samples)

    def _due(self, step: int, every: int) -> bool:
        return step * self.batch_size // every > (step - 1) * self.batch_size // every

    def total_steps(self, samples_per_epoch: int) -> int:
        """Whole batches in the run.

        Raises:
            ValueError: the run is shorter than one batch, or no longer than its warm-up.

        Example:
            >>> TrainConfig(epochs=2.0, batch_size=128).total_steps(samples_per_epoch=1000)
            15
        """
        samples = self.samples if self.samples is not None else int((self.epochs or 0.0) * samples_per_epoch)
        if samples < self.batch_size:
            raise ValueError(f"{samples} samples are less than one batch of {self.batch_size}")
        steps, warmup = samples // self.batch_size, self.schedule.warmup_samples
        samples = steps * self.batch_size
        if warmup >= samples:
            raise ValueError(f"train.schedule.warmup_samples {warmup} must be below the {samples} samples of training")
        return steps


__all__ = ["DDPConfig", "EmaConfig", "FSDPConfig", "OptimConfig", "ParallelConfig", "ScheduleConfig", "TrainConfig"]
