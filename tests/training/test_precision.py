"""bf16 weights over fp32 ones: what is computed in which precision, and that no small update is lost."""

from __future__ import annotations

import pytest
import torch

from clip_med.losses.config import InfoNCEConfig
from clip_med.models.config import ResNetModel
from clip_med.models.folder import build_model
from clip_med.training.config import OptimConfig, TrainConfig
from clip_med.training.parallel import Towers
from tests.training.steps import BATCH, TEXT_WIDTH, batch, tiny_encoder, tiny_step

PURE = TrainConfig(samples=8, batch_size=8, precision="pure_bf16")


def test_updates_below_the_resolution_of_bf16_add_up() -> None:
    """Adam moves a weight by about lr: 1e-5, where bf16 numbers near 1 lie 8e-3 apart."""
    encoder = tiny_encoder(dtype=torch.float32, bias=False)
    weight = encoder.clip.visual.ln_pre.weight
    step = tiny_step(encoder, InfoNCEConfig(), precision="pure_bf16", optim=OptimConfig(lr=1e-5, weight_decay=0.0))
    start = weight.detach().clone()
    for number in range(20):
        step.gradients(batch(), number, lambda: None)
        step.update()
    moved = (weight.detach() - start).abs()
    assert weight.dtype == torch.float32
    assert torch.equal(start, torch.ones_like(start))
    # Rounded to bf16 after each step nothing would have moved.
    assert torch.equal((start - 1e-5).bfloat16().float(), start)
    assert 5e-5 < float(moved.median()) < 3e-4


def test_towers_compute_in_bf16_with_the_weights_of_the_moment() -> None:
    encoder = tiny_encoder(dtype=torch.float32)
    towers = Towers(encoder, PURE)
    seen: list[torch.dtype] = []
    for block in (towers.module.encoder.clip.visual.transformer.resblocks[0], towers.module.encoder.clip.ln_final):
        block.register_forward_hook(lambda _module, _inputs, output: seen.append(output.dtype))
    data = batch()
    with torch.no_grad():
        encoder.clip.visual.proj.mul_(-1)
        towers.begin()
        image, text = towers(data.images, data.tokens, None)
        expected = encoder.encode_image(data.images)
    assert seen == [torch.bfloat16] * 2
    assert image.dtype == text.dtype == torch.float32
    assert float((image * expected).sum(dim=1).min()) > 0.99


def test_running_statistics_are_kept_in_fp32_and_are_those_that_are_saved() -> None:
    encoder = build_model(ResNetModel(image_size=32, image_width=4, embed_dim=16, text_width=32, text_layers=1)).train()
    before = encoder.clip.visual.bn1.running_mean.clone()
    step = tiny_step(encoder, InfoNCEConfig(), precision="pure_bf16")
    step.gradients(batch(), 0, lambda: None)
    step.update()
    assert encoder.clip.visual.bn1.running_mean.dtype == torch.float32
    assert not torch.equal(encoder.clip.visual.bn1.running_mean, before)
    assert {p.dtype for p in encoder.parameters()} == {torch.float32}
    assert encoder.clip.visual.bn1.weight.grad is not None


def test_cached_text_features_fit_bf16_heads() -> None:
    encoder = tiny_encoder(dtype=torch.float32)
    towers = Towers(encoder, PURE)
    towers.begin()
    _, text = towers(batch().images, None, torch.randn(BATCH, TEXT_WIDTH))
    assert text.norm(dim=1).tolist() == pytest.approx([1.0] * 8, abs=1e-5)
