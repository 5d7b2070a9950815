"""How fast a run is: pairs, and the operations that its model needs for them, per second."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from clip_med.data.batch import Batch
from clip_med.distributed import world_size
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.flops import FlopCount, peak_flops
from clip_med.training.config import TrainConfig


@dataclass(frozen=True, kw_only=True)
class Rates:
    """Means since the last report, over all ranks; `mfu` is the part of the devices' peak, where that is known."""

    samples_per_second: float
    flops_per_second: float
    mfu: float | None


class Throughput:
    """Counts what this rank's batches cost, and divides by the time; the other ranks are taken to do as much.

    Built after towers have been locked and before they are spread over ranks. The time between two reports holds all
    that a run does: waiting for data, evaluations and checkpoints too.
    """

    def __init__(self, encoder: DualEncoder, config: TrainConfig, *, cached_text: bool = False) -> None:
        self._count = FlopCount(encoder, config.compute)
        self._text, self._cached = encoder.text_tower, cached_text
        device = encoder.logit_scale.device
        if config.compute.peak_tflops is not None:
            self._peak: float | None = config.compute.peak_tflops * 1e12
        elif device.type == "cuda":
            self._peak = peak_flops(torch.cuda.get_device_name(device), config.precision)
        else:
            self._peak = None
        self.begin()

    def begin(self) -> None:
        """Forget what came before; the time runs from here."""
        self._pairs, self._flops, self._began = 0, 0.0, time.monotonic()

    def add(self, batch: Batch) -> None:
        """Count a batch that has been trained on."""
        self._pairs += len(batch)
        lengths = batch.indices if batch.tokens is None else self._text.lengths(batch.tokens)
        self._flops += self._count.step(lengths, cached=self._cached)

    def rates(self) -> Rates:
        """Since the last call, or since the beginning."""
        seconds = max(time.monotonic() - self._began, 1e-9)
        flops = self._flops / seconds
        rates = Rates(
            samples_per_second=self._pairs * world_size() / seconds,
            flops_per_second=flops * world_size(),
            mfu=None if self._peak is None else flops / self._peak,
        )
        self.begin()
        return rates


__all__ = ["Rates", "Throughput"]
