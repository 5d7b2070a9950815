"""The towers of an encoder as `ComputeConfig` wants them."""

from __future__ import annotations

from typing import Any

import torch

from clip_med.models.compute_config import ComputeConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.last_block import pool_in_last_block


def apply_compute(encoder: DualEncoder, config: ComputeConfig) -> None:
    """Change how the towers compute, in place; names and values of weights stay.

    After adapters have been added and before the model is wrapped for data parallelism.

    Raises:
        ValueError: a setting that these towers do not have, naming setting and tower.
    """
    text = encoder.text_tower
    if config.text_multiple > 1:
        text.multiple = config.text_multiple
    if config.pack_text:
        text.pack()
    if config.pooled_last_block:
        pool_in_last_block(encoder.clip.visual)
    if config.patch_dropout:
        _drop_patches(encoder.clip.visual, config.patch_dropout)
    if config.activation_checkpointing in ("image", "both"):
        _checkpoint_image(encoder.clip.visual)
    if config.activation_checkpointing in ("text", "both"):
        _checkpoint_text(encoder)
    if config.compile:
        _check_backend(config.compile_backend)
        # In place: wrapped modules would put `_orig_mod` into the names of weights. With few text lengths, a graph for
        # each; otherwise the second length brings one graph for all.
        encoder.clip.visual.compile(backend=config.compile_backend)
        dynamic = False if config.text_multiple > 1 else None
        text.module.transformer.compile(backend=config.compile_backend, dynamic=dynamic)


def _check_backend(name: str) -> None:
    # The empty tuple leaves none out: eager and aot_eager are tagged as for debugging.
    known = torch.compiler.list_backends(exclude_tags=())
    if name not in known:
        raise ValueError(f"compile_backend {name!r} is none of {', '.join(known)}")


def _drop_patches(visual: Any, part: float) -> None:
    """Random patches are left out in training mode; evaluation sees them all."""
    from open_clip.transformer import PatchDropout, VisionTransformer
    from timm.layers.patch_dropout import PatchDropout as TimmPatchDropout

    trunk: Any = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer):
        visual.patch_dropout = PatchDropout(part).train(visual.training)
    elif hasattr(trunk, "patch_drop"):
        trunk.patch_drop = TimmPatchDropout(part, num_prefix_tokens=trunk.num_prefix_tokens).train(trunk.training)
    else:
        raise ValueError(f"patch_dropout: image tower {type(trunk or visual).__name__} has no patches that it can drop")


def _checkpoint_image(visual: Any) -> None:
    from open_clip.transformer import VisionTransformer

    trunk: Any = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer):
        visual.set_grad_checkpointing()
        return
    # open_clip's own call would only log a warning, and its ResNet does nothing.
    try:
        getattr(trunk, "set_grad_checkpointing", _unsupported)(True)
    except (AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"activation_checkpointing: image tower {type(trunk or visual).__name__} does not support it"
        ) from error


def _unsupported(enable: bool) -> None:
    raise NotImplementedError


def _checkpoint_text(encoder: DualEncoder) -> None:
    text = encoder.text_tower
    transformer: Any = text.module.transformer
    if not text.is_hf:
        transformer.grad_checkpointing = True
        return
    if not getattr(transformer, "supports_gradient_checkpointing", False):
        raise ValueError(f"activation_checkpointing: text tower {type(transformer).__name__} does not support it")
    # The second name is that of transformers before 5.
    enable = getattr(transformer, "activation_checkpointing_enable", None) or transformer.gradient_checkpointing_enable
    enable({"use_reentrant": False})


__all__ = ["apply_compute"]
