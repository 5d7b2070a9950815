"""Gradients by micro-batches: those of the large batch, with dropout, for the memory of one micro-batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from clip_med.losses.config import GroupPositivesConfig, InfoNCEConfig, LossConfig, SoftTargetsConfig
from clip_med.losses.contrastive import build_loss
from clip_med.models.config import ResNetModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.training.config import TrainConfig
from clip_med.training.grad_cache import CachedFeatures
from clip_med.training.parallel import Towers
from tests.training.steps import LOSSES as PAIRWISE
from tests.training.steps import batch, gradients, tiny_encoder, tiny_step

LOSSES: dict[str, tuple[LossConfig, bool]] = PAIRWISE | {
    "groups": (GroupPositivesConfig(), True),
    "soft targets": (SoftTargetsConfig(), True),
}
CONFIG = TrainConfig(samples=8, batch_size=8)


def towers_of(encoder: DualEncoder) -> Towers:
    return Towers(encoder, CONFIG)


def objective(encoder: DualEncoder, name: str, image: Tensor, text: Tensor) -> Tensor:
    ids = batch(multi_positive=LOSSES[name][1]).group_ids
    return build_loss(LOSSES[name][0])(image, text, encoder.logit_scale, encoder.logit_bias, ids)


@pytest.mark.parametrize("name", list(LOSSES))
@pytest.mark.parametrize("micro_batch", [1, 3, 4])
def test_chunks_give_the_gradients_of_one_graph_over_all_of_them(name: str, micro_batch: int) -> None:
    """The reference encodes the same chunks with the same random numbers, and keeps every graph."""
    data = batch()
    inputs = (data.images, data.tokens, None)
    encoder = tiny_encoder(dropout=True)
    towers = towers_of(encoder)
    parts: list[tuple[Tensor, Tensor]] = []
    for number, rows in enumerate(torch.arange(8).split(micro_batch)):
        torch.manual_seed(40 + number)
        assert data.tokens is not None
        parts.append(towers(data.images[rows], data.tokens[rows], None))
    image, text = (torch.cat(features) for features in zip(*parts, strict=True))
    objective(encoder, name, image, text).backward()
    expected = gradients(encoder)

    encoder = tiny_encoder(dropout=True)
    cached = CachedFeatures(towers_of(encoder), inputs, micro_batch, lambda number: 40 + number)
    torch.testing.assert_close(cached.image, image.detach(), rtol=0, atol=1e-14)
    # Random numbers drawn in between must not matter.
    torch.manual_seed(7)
    torch.rand(100)
    objective(encoder, name, cached.image, cached.text).backward()
    cached.backward()
    got = gradients(encoder)
    assert set(got) == set(expected)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(got[parameter], gradient, rtol=0, atol=1e-13, msg=parameter)
    # Dropout did take part: without it the gradients are others.
    plain = tiny_encoder()
    objective(plain, name, *towers_of(plain)(*inputs)).backward()
    assert max(float((gradients(plain)[k] - v).abs().max()) for k, v in expected.items() if k == "visual.proj") > 1e-4


def test_a_step_by_chunks_is_the_step_of_the_batch_and_repeats_itself() -> None:
    def first(micro_batch: int | None, dropout: bool) -> tuple[float, dict[str, Tensor]]:
        encoder = tiny_encoder(dropout=dropout)
        result = tiny_step(encoder, InfoNCEConfig(), micro_batch=micro_batch).gradients(batch(), 3, lambda: None)
        return result.loss, gradients(encoder)

    whole, chunks = first(None, False), first(3, False)
    assert chunks[0] == pytest.approx(whole[0], abs=1e-12)
    for parameter, gradient in whole[1].items():
        torch.testing.assert_close(chunks[1][parameter], gradient, rtol=0, atol=1e-13, msg=parameter)
    again = first(3, True), first(3, True)
    assert again[0][0] == again[1][0] != first(8, True)[0]
    assert all(torch.equal(again[0][1][name], again[1][1][name]) for name in again[0][1])
    # One chunk is no chunk: not even the random numbers differ.
    assert first(8, True)[0] == first(None, True)[0]


def activation_bytes(encoder: DualEncoder, call: Callable[[], Any]) -> int:
    """The most that graphs held at a time, of distinct storages that autograd saves; weights do not count."""
    weights = {p.untyped_storage().data_ptr() for p in encoder.parameters()}
    held: dict[int, int] = {}
    now = most = 0

    class Saved:
        def __init__(self, tensor: Tensor) -> None:
            nonlocal now, most
            self.tensor, self.key = tensor, tensor.untyped_storage().data_ptr()
            self.size = 0 if self.key in weights else tensor.untyped_storage().nbytes()
            held[self.key] = held.get(self.key, 0) + 1
            now += self.size if held[self.key] == 1 else 0
            most = max(most, now)

        def __del__(self) -> None:
            nonlocal now
            held[self.key] -= 1
            now -= self.size if held[self.key] == 0 else 0

    with torch.autograd.graph.saved_tensors_hooks(Saved, lambda saved: saved.tensor):
        call()
    return most


def test_graphs_hold_one_micro_batch_at_a_time() -> None:
    def peak(micro_batch: int | None) -> int:
        encoder = tiny_encoder()
        step = tiny_step(encoder, InfoNCEConfig(), micro_batch=micro_batch)
        return activation_bytes(encoder, lambda: step.gradients(batch(), 0, lambda: None))

    whole, quarter, eighth = peak(None), peak(2), peak(1)
    assert whole > 1_000_000
    # Masks of attention and the like do not shrink with the batch.
    assert quarter < whole / 3.5
    assert eighth < whole / 6


def test_layers_that_see_other_rows_are_refused_by_name_unless_they_are_locked() -> None:
    model = build_model(ResNetModel(image_size=32, image_width=4, embed_dim=16, text_width=32, text_layers=1))
    model.train()
    with pytest.raises(ValueError, match=r"micro_batch: visual\.bn1 \(BatchNorm2d\) normalises by statistics"):
        tiny_step(model, InfoNCEConfig(), micro_batch=2)
    model.lock(image="all")
    tiny_step(model, InfoNCEConfig(), micro_batch=2).gradients(batch(), 0, lambda: None)
    assert model.clip.visual.conv1.weight.grad is None
    assert model.clip.text_projection.grad is not None
