"""The running average of the weights, and the encoder as evaluations see it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from clip_med.distributed import rank, whole
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.knowledge_heads import head_parameters
from clip_med.training.config import EmaConfig

_PREFIX = "ema/"


class Ema:
    """Exponential average of trained weights, heads and running statistics, in fp32, sharded where they are.

    After a step that ends at n samples: average = d * average + (1 - d) * weight with d = 0.5^(batch / h) and h = the
    smaller of `half_life_samples` and `ramp_up * n`, as Karras et al. count it (arXiv 2206.00364; NVlabs/edm): the
    first average holds no random weights for long, and a change of the batch size changes nothing else.
    """

    def __init__(self, encoder: DualEncoder, config: EmaConfig) -> None:
        self._config = config
        trained = {name: p for name, p in encoder.clip.named_parameters() if p.requires_grad}
        statistics = {name: b for name, b in encoder.clip.named_buffers() if b.is_floating_point()}
        self._live: dict[str, Tensor] = {
            name: tensor for name, tensor in (trained | statistics).items() if name in encoder.clip.state_dict()
        }
        self._live.update(head_parameters(encoder))
        self.tensors: dict[str, Tensor] = {_PREFIX + n: tensor.detach().clone() for n, tensor in self._live.items()}
        """What a checkpoint keeps, by names of its own."""

    @property
    def for_eval(self) -> bool:
        """Whether evaluations see the averages."""
        return self._config.use_for_eval

    @property
    def weights(self) -> dict[str, Tensor]:
        """The averages by the names of the weights."""
        return {name.removeprefix(_PREFIX): tensor for name, tensor in self.tensors.items()}

    @torch.no_grad()
    def update(self, samples: int, batch_size: int) -> None:
        """Take in the weights after the step that ends at `samples`."""
        half_life = min(self._config.half_life_samples, self._config.ramp_up * samples)
        new = 1 - (0.5 ** (batch_size / half_life) if half_life > 0 else 0.0)
        for name, tensor in self._live.items():
            self.tensors[_PREFIX + name].lerp_(tensor, new)


def replica_of(encoder: DualEncoder) -> DualEncoder | None:
    """On rank 0 a copy in host memory of a model that is about to be sharded, for evaluations; None elsewhere."""
    return copy.deepcopy(encoder).cpu() if rank() == 0 else None


@contextlib.contextmanager
def for_evaluation(
    encoder: DualEncoder, weights: Mapping[str, Tensor], replica: DualEncoder | None
) -> Iterator[DualEncoder]:
    """The encoder with `weights` in place of its own of these names; afterwards everything is as before, bit for bit.

    A sharded model is put together in rank 0's `replica`, which all ranks must enter for; other models are changed in
    place, on the ranks that ask for it.
    """
    own: dict[str, Tensor] = encoder.clip.state_dict() | head_parameters(encoder)
    if any(isinstance(tensor, DTensor) for tensor in own.values()):
        device = encoder.logit_scale.device
        target = {} if replica is None else replica.clip.state_dict()
        with torch.no_grad():
            for name, tensor in own.items():
                chosen = whole(weights.get(name, tensor))
                if target:
                    target[name].copy_(chosen)
        if replica is None:
            yield encoder
        else:
            try:
                yield replica.to(device)
            finally:
                replica.cpu()
        return
    kept = {name: own[name].detach().clone() for name in weights}
    with torch.no_grad():
        for name, tensor in weights.items():
            own[name].copy_(tensor)
    try:
        yield encoder
    finally:
        with torch.no_grad():
            for name, tensor in kept.items():
                own[name].copy_(tensor)


__all__ = ["Ema", "for_evaluation", "replica_of"]
