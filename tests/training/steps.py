"""A tiny dual encoder in double precision, batches for it, and steps whose gradients can be looked at."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from clip_med.data.batch import Batch
from clip_med.data.images import Preprocess
from clip_med.losses.config import InfoNCEConfig, LossConfig, SigmoidConfig
from clip_med.losses.contrastive import build_loss
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.config import OptimConfig, TrainConfig
from clip_med.training.optim import build_optimizer
from clip_med.training.parallel import Towers
from clip_med.training.step import TrainStep
from tests.tiny_run import TINY

BATCH = 8
# The last of 512 words: CLIP's 49408 would be nearly all of the model, and of the time of a step.
END_OF_TEXT = 511
TEXT_WIDTH = 32
LOSSES: dict[str, tuple[LossConfig, bool]] = {
    "info_nce": (InfoNCEConfig(), False),
    "multi_positive": (InfoNCEConfig(), True),
    "sigmoid": (SigmoidConfig(), False),
}


def tiny_encoder(*, bias: bool = True, dropout: bool = False, dtype: torch.dtype = torch.float64) -> DualEncoder:
    """Two blocks in each tower, so that something lies between the first and the last."""
    torch.manual_seed(0)
    cfg: dict[str, Any] = copy.deepcopy(TINY.model_cfg())
    cfg["vision_cfg"]["layers"] = cfg["text_cfg"]["layers"] = 2
    cfg["text_cfg"] |= {"width": TEXT_WIDTH, "vocab_size": END_OF_TEXT + 1}
    if dropout:
        cfg["vision_cfg"]["patch_dropout"] = 0.5
    if bias:
        cfg["init_logit_bias"] = -2.0
    clip: Any = construct(cfg)
    if dropout:
        for tower in (clip.visual.transformer, clip.transformer):
            for block in tower.resblocks:
                block.ln_2 = nn.Sequential(block.ln_2, nn.Dropout(0.2))
    encoder = DualEncoder(clip, cfg, Preprocess(size=32), lambda texts: torch.zeros(len(texts), 24, dtype=torch.long))
    return encoder.to(dtype).train()


def batch(*, multi_positive: bool = False, own: slice = slice(None), step: int = 0) -> Batch:
    """Noise; equal ids lie far apart, so on different ranks."""
    generator = torch.Generator().manual_seed(100 + step)
    images = torch.randint(0, 255, (BATCH, 3, 32, 32), generator=generator, dtype=torch.uint8)
    tokens = torch.randint(1, 400, (BATCH, 24), generator=generator)
    tokens[:, 9] = END_OF_TEXT
    ids = torch.tensor([[0], [1], [2], [3], [0], [5], [2], [0]]) if multi_positive else torch.arange(BATCH)[:, None]
    names = tuple(f"k{i}" for i in range(BATCH))
    return Batch(
        images=images[own],
        tokens=tokens[own],
        captions=names[own],
        keys=names[own],
        modalities=names[own],
        indices=torch.arange(BATCH)[own],
        group_ids=ids[own],
        position=0,
    )


def tiny_step(encoder: DualEncoder, loss: LossConfig, **train: Any) -> TrainStep:
    """A step as the trainer builds it."""
    settings: dict[str, Any] = {"samples": 80, "batch_size": BATCH, "max_grad_norm": 0.5, "optim": OptimConfig(lr=1e-3)}
    config = TrainConfig(**(settings | train))
    towers = Towers(encoder, config)
    return TrainStep(encoder, towers, build_optimizer(encoder, config.optim), build_loss(loss), config)


def whole(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies, put together from the ranks' shards."""
    return {k: (v.full_tensor() if isinstance(v, DTensor) else v).detach().clone() for k, v in tensors.items()}


def gradients(encoder: DualEncoder) -> dict[str, Tensor]:
    """By parameter; the bias takes no part in InfoNCE."""
    return whole({name: p.grad for name, p in encoder.clip.named_parameters() if p.grad is not None})
