"""Optimiser and schedule settings. Imports no torch."""

from __future__ import annotations

from clip_med.config import Fraction, NonNegativeFloat, NonNegativeInt, PositiveFloat, config


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


@config
class ScheduleConfig:
    """Linear warm-up, then half a cosine down to a floor; counted in samples, so that the batch size may change."""

    warmup_samples: NonNegativeInt = 0
    floor: Fraction = 0.0
    """Learning rate at the end, as a fraction of the peak."""


__all__ = ["OptimConfig", "ScheduleConfig"]
