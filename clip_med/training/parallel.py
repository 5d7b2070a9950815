"""How the towers compute during training: on one process or several, whole or in shards, in fp32, autocast or bf16."""

from __future__ import annotations

import contextlib
import copy
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from clip_med.distributed import world_size
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.image_tokens import features_and_tokens
from clip_med.training.config import DDPConfig, FSDPConfig, TrainConfig
from clip_med.training.ema import for_evaluation, replica_of

# Blocks of open_clip's and timm's vision transformers, of Hugging Face's text towers, and stages of convolutional nets.
_BLOCK: Final = re.compile(r"(?:^|\.)(?:resblocks|blocks?|layers?|stages|layer\d)\.\d+$")


class Towers:
    """Both encoders as training runs them. `encoder` keeps the fp32 weights that the optimiser updates and runs save.

    DDP and FSDP2 average the gradients of the towers over the ranks, which with local rows and a gather that has a
    gradient gives those of the global batch (`clip_med.distributed`). Scale and bias belong to the loss, not to the
    towers: every rank holds them whole, and `finish` averages their gradients.

    Precision `pure_bf16` computes with bf16 weights: FSDP2 casts its fp32 shards as it gathers them; otherwise a bf16
    copy of the model is refreshed from the fp32 weights before each step, and its gradients are handed back to them.
    Layers that keep statistics of batches stay fp32 in the copy, for their running averages would lose small changes.

    Of an encoder with knowledge heads, features are followed in each row by what the heads say: cosines with facets,
    then answers to queries, also of texts where the decoder reads these. Heads train as the towers do; `check_heads`
    refuses them with FSDP2 and `pure_bf16`.
    """

    def __init__(self, encoder: DualEncoder, config: TrainConfig) -> None:
        self._encoder = encoder
        self._autocast = config.precision == "bf16"
        pure, ranks = config.precision == "pure_bf16", world_size()
        sharded = ranks > 1 and isinstance(config.parallel, FSDPConfig)
        self._bf16_copy = _bf16_copy(encoder) if pure and not sharded else None
        self.module = _Forward(self._bf16_copy or encoder)
        self._runs: Any = self.module
        self._replica: DualEncoder | None = None
        match config.parallel:
            case _ if ranks == 1:
                pass
            case DDPConfig():
                self._runs = _distributed(self.module)
            case FSDPConfig():
                self._replica = replica_of(encoder)
                _shard(self.module, config.parallel, pure=pure)

    def __call__(self, images: Tensor, tokens: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        """Unit rows for images and for texts, given as token ids or as pooled features."""
        # Without gradient, DistributedDataParallel would only send its buffers around.
        module = self._runs if torch.is_grad_enabled() else self.module
        with torch.autocast(images.device.type, dtype=torch.bfloat16, enabled=self._autocast):
            return module(images, tokens, pooled)

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        if self._bf16_copy is not None:
            with torch.no_grad():
                for copied, own in zip(self._bf16_copy.parameters(), self._encoder.parameters(), strict=True):
                    copied.copy_(own)

    def unsynchronised(self) -> AbstractContextManager[None]:
        """Forward and backward passes inside only add to this rank's gradients; the next outside sends the sum."""
        if isinstance(self._runs, DistributedDataParallel):
            return self._runs.no_sync()
        return _without_reduction(self.module)

    def for_evaluation(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[DualEncoder]:
        """The whole encoder with `weights` in place of its own of these names; every rank must enter."""
        return for_evaluation(self._encoder, weights, self._replica)

    def finish(self) -> None:
        """After the backward passes of a step: all gradients are in the parameters of `encoder`, equal on all ranks."""
        if self._bf16_copy is not None:
            for copied, own in zip(self._bf16_copy.parameters(), self._encoder.parameters(), strict=True):
                if copied.grad is not None:
                    own.grad, copied.grad = copied.grad.to(own.dtype), None
        for parameter in (self._encoder.logit_scale, self._encoder.logit_bias):
            if world_size() > 1 and parameter is not None and parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size()


def clip_gradients(parameters: Iterable[Tensor], max_norm: float) -> float:
    """Scale the gradients down to `max_norm` together; returns their norm before, over all ranks' shards."""
    whole: list[Tensor] = []
    sharded: list[Tensor] = []
    for parameter in parameters:
        if parameter.grad is not None:
            (sharded if isinstance(parameter.grad, DTensor) else whole).append(parameter)
    norms: list[Tensor] = []
    for part in (whole, sharded):
        norm = get_total_norm([p.grad for p in part if p.grad is not None])
        norms.append(norm.full_tensor() if isinstance(norm, DTensor) else norm)
    total = norms[0] if not sharded else torch.linalg.vector_norm(torch.stack([norm.to(norms[1]) for norm in norms]))
    for part in (whole, sharded):
        clip_grads_with_norm_(part, max_norm, total)
    return float(total)


class _Forward(nn.Module):
    """Both encoders as one module, so that DistributedDataParallel and FSDP2 see one forward pass."""

    def __init__(self, encoder: DualEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, images: Tensor, tokens: Tensor | None, pooled: Tensor | None) -> tuple[Tensor, Tensor]:
        if pooled is None:
            assert tokens is not None, "the loader has no tokenizer and there is no text cache"
            pooled = self.encoder.pool_text(tokens)
        else:
            pooled = pooled.to(self.encoder.dtype)
        text = self.encoder.project_text(pooled)
        facets, queries = self.encoder.facets, self.encoder.queries
        if queries is None:
            image = self.encoder.encode_image(images)
            return (image if facets is None else torch.cat([image, facets(image)], dim=1)), text
        image, places = features_and_tokens(self.encoder, images)
        cosines = [] if facets is None else [facets(image)]
        if queries.from_text is not None:
            text = torch.cat([text, queries.of_text(text).to(text.dtype)], dim=1)
        return torch.cat([image, *cosines, queries(places).to(image.dtype)], dim=1), text


def _distributed(module: _Forward) -> nn.Module:
    """Replicas with averaged gradients; the module itself where nothing in the towers trains."""
    outside = ("encoder.clip.logit_scale", "encoder.clip.logit_bias")
    if not any(p.requires_grad for name, p in module.named_parameters() if name not in outside):
        return module
    DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, list(outside))
    device = next(module.parameters()).device
    # Frozen parameters take no part; statistics of normalisation layers are those of each rank's own rows, and rank
    # 0's are kept. Gradients live in the buckets that are sent: no second copy of them.
    return DistributedDataParallel(
        module, device_ids=[device.index] if device.type == "cuda" else None, gradient_as_bucket_view=True
    )


def _shard(module: _Forward, config: FSDPConfig, *, pure: bool) -> None:
    """FSDP2 in place: each block of either tower is one unit, and what lies outside the blocks another."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    encoder = module.encoder
    mesh = init_device_mesh(encoder.logit_scale.device.type, (world_size(),))
    # Gradients are summed over the ranks in fp32 also where they were computed in bf16.
    policy = (
        MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if pure else MixedPrecisionPolicy()
    )
    options: dict[str, Any] = {"mesh": mesh, "mp_policy": policy}
    for block in blocks(encoder.clip):
        fully_shard(block, reshard_after_forward=config.reshard_after_forward, **options)
    scalars = {parameter for parameter in (encoder.logit_scale, encoder.logit_bias) if parameter is not None}
    fully_shard(module, ignored_params=scalars, **options)


def blocks(module: nn.Module) -> list[nn.Module]:
    """The outermost numbered blocks of both towers: of transformers, or stages of convolutional networks."""
    found: dict[str, nn.Module] = {}
    for name, child in module.named_modules():
        if _BLOCK.search(name) and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = child
    return list(found.values())


def _bf16_copy(encoder: DualEncoder) -> DualEncoder:
    """A copy with bf16 weights that shares the buffers, running statistics among them."""
    copied = copy.deepcopy(encoder)
    for module, own in zip(copied.modules(), encoder.modules(), strict=True):
        module._buffers.update(own._buffers)
        if not isinstance(module, nn.modules.batchnorm._BatchNorm):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.to(torch.bfloat16)
    return copied


@contextlib.contextmanager
def _without_reduction(module: Any) -> Iterator[None]:
    sharded = hasattr(module, "set_requires_gradient_sync")
    if sharded:
        module.set_requires_gradient_sync(False)
    try:
        yield
    finally:
        if sharded:
            module.set_requires_gradient_sync(True)


__all__ = ["Towers", "blocks", "clip_gradients"]
