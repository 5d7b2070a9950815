"""What the training loop looks out for: values that are no numbers, and a loss that stays at chance."""

from __future__ import annotations

import logging
from collections import deque
from typing import Final

from torch import Tensor

from clip_med.data.batch import Batch
from clip_med.models.dual_encoder import DualEncoder

log = logging.getLogger(__name__)

# Steps over which the mean loss is compared with that of a model that has learnt nothing.
_CHANCE_WINDOW: Final = 200


class NonFiniteError(ValueError):
    """Loss or gradients are no longer numbers; the message names the step, the samples and what to try."""


def describe_loss(value: float, step: int, batch: Batch, images: Tensor, texts: Tensor) -> str:
    """Which samples have features that are no numbers, or all of the batch."""
    bad = ~(images.isfinite().all(dim=1) & texts.isfinite().all(dim=1))
    keys = [key for key, wrong in zip(batch.keys, bad.tolist(), strict=True) if wrong] or list(batch.keys)
    what = f"features of {len(keys)} of {len(batch)} samples are not finite" if bad.any() else "all features are finite"
    return (
        f"step {step + 1}: the loss is {value}; {what}; keys {', '.join(keys[:8])}{' ...' if len(keys) > 8 else ''}. "
        "Try a lower learning rate, a longer warm-up, precision fp32, or look at these samples"
    )


def describe_gradients(step: int, batch: Batch, encoder: DualEncoder) -> str:
    """Which parameters have gradients that are no numbers."""
    bad = [n for n, p in encoder.named_parameters() if p.grad is not None and not p.grad.isfinite().all()]
    return (
        f"step {step + 1}: gradients are not finite in {len(bad)} parameter(s) ({', '.join(bad[:3])}); "
        f"keys {', '.join(batch.keys[:8])}{' ...' if len(batch) > 8 else ''}. "
        "Try a lower learning rate, a longer warm-up or precision fp32"
    )


class ChanceAlarm:
    """Warns when the mean loss of 200 steps is within 1 % of that of a model that has learnt nothing."""

    def __init__(self, chance_loss: float | None) -> None:
        self._chance = chance_loss
        self._recent: deque[float] = deque(maxlen=_CHANCE_WINDOW)

    def add(self, value: float, step: int) -> None:
        """Take the loss of a step; warns at every 200th."""
        self._recent.append(value)
        if self._chance is None or step % _CHANCE_WINDOW or len(self._recent) < _CHANCE_WINDOW:
            return
        mean = sum(self._recent) / len(self._recent)
        if mean > 0.99 * self._chance:
            log.warning(
                "step %d: the mean loss of the last %d steps is %.4f; a model that tells nothing apart has %.4f (the "
                "logarithm of the batch size). Check learning rate, captions that all say the same, and frozen towers",
                step,
                _CHANCE_WINDOW,
                mean,
                self._chance,
            )


__all__ = ["ChanceAlarm", "NonFiniteError", "describe_gradients", "describe_loss"]
