"""How a few-shot method is trained: epochs over the labelled images, one augmented view of each."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import nn

from clip_med.config import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, config
from clip_med.prompt_learning.method import Method, Support


@config
class FitConfig:
    """Optimiser and schedule. The rate is constant at `warmup_lr` for `warmup_epochs`, then a cosine per epoch to 0."""

    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: PositiveFloat = 0.002
    momentum: NonNegativeFloat = 0.9
    """Of SGD."""
    weight_decay: NonNegativeFloat = 5e-4
    epochs: NonNegativeInt = 50
    batch_size: PositiveInt = 32
    warmup_epochs: NonNegativeInt = 1
    warmup_lr: PositiveFloat = 1e-5


def fit(method: Method, support: Support, config: FitConfig, *, seed: int) -> list[float]:
    """Train in place and return the mean loss of each epoch; views and order are drawn from `seed` alone.

    Raises:
        ValueError: images are needed and absent, or the loss is no longer finite.
    """
    method.prepare(support)
    learned = [parameter for parameter in method.parameters() if parameter.requires_grad]
    if not learned or config.epochs == 0:
        return []
    inputs = support.features if method.takes == "features" else support.images
    if inputs is None:
        raise ValueError(f"{type(method).__name__} changes the image tower and needs images, not features alone")
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)
    optimizer = _optimizer(learned, config)
    views, count = inputs.shape[:2]
    losses: list[float] = []
    method.train()
    for epoch in range(config.epochs):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(epoch, config)
        total = 0.0
        order = torch.randperm(count, generator=generator)
        view = torch.randint(views, (count,), generator=generator)
        for rows in order.split(config.batch_size):
            optimizer.zero_grad(set_to_none=True)
            total += method.backward(inputs[view[rows], rows], support.labels[rows]) * len(rows)
            optimizer.step()
        if not math.isfinite(total):
            raise ValueError(f"{type(method).__name__}: the loss of epoch {epoch} is {total}; lower fit.lr {config.lr}")
        losses.append(total / count)
        method.end_epoch(epoch, config.epochs)
    method.eval()
    return losses


def learning_rate(epoch: int, config: FitConfig) -> float:
    """Of an epoch, counted from 0.

    Example:
        >>> [round(learning_rate(e, FitConfig(epochs=3, lr=1.0)), 5) for e in range(3)]
        [1e-05, 0.75, 0.25]
    """
    if epoch < config.warmup_epochs:
        return config.warmup_lr
    return config.lr * 0.5 * (1 + math.cos(math.pi * epoch / config.epochs))


def _optimizer(learned: list[nn.Parameter], config: FitConfig) -> torch.optim.Optimizer:
    match config.optimizer:
        case "sgd":
            return torch.optim.SGD(learned, config.lr, momentum=config.momentum, weight_decay=config.weight_decay)
        case "adam":
            return torch.optim.Adam(learned, config.lr, weight_decay=config.weight_decay)
        case "adamw":
            return torch.optim.AdamW(learned, config.lr, weight_decay=config.weight_decay)


__all__ = ["FitConfig", "fit", "learning_rate"]
