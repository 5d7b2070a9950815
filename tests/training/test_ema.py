"""The running average: its recursion, what evaluations see, and that a continued run has the same one."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.pretrain import pretrain
from clip_med.training.config import EmaConfig
from clip_med.training.ema import Ema, for_evaluation
from tests.tiny_run import signal_at, tiny_config
from tests.training.steps import tiny_encoder
from zero_shot.result import Result


def test_the_average_is_the_weighted_sum_of_what_it_saw() -> None:
    encoder = tiny_encoder()
    ema = Ema(encoder, EmaConfig(half_life_samples=32, ramp_up=0.5))
    weight = encoder.clip.visual.proj
    expected = weight.detach().clone()
    for step in range(1, 20):
        with torch.no_grad():
            weight.add_(torch.randn_like(weight))
        ema.update(8 * step, 8)
        # Half-lives of 4, 8, ... samples, then 32.
        decay = 0.5 ** (8 / min(32.0, 4.0 * step))
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(ema.weights["visual.proj"], expected, rtol=0, atol=1e-12)


def test_frozen_weights_are_not_averaged_and_evaluations_leave_no_trace() -> None:
    encoder = tiny_encoder()
    encoder.lock(text="all")
    ema = Ema(encoder, EmaConfig(ramp_up=1.0))
    assert not [name for name in ema.weights if name.startswith(("transformer.", "token_embedding"))]
    before = {name: tensor.clone() for name, tensor in encoder.clip.state_dict().items()}
    for tensor in ema.tensors.values():
        tensor.mul_(0.5)
    images = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        plain = encoder.encode_image(images)
        with for_evaluation(encoder, ema.weights, None) as averaged:
            assert torch.equal(averaged.clip.visual.proj, before["visual.proj"] * 0.5)
            assert not torch.allclose(averaged.encode_image(images), plain)
    assert all(torch.equal(tensor, before[name]) for name, tensor in encoder.clip.state_dict().items())


def test_a_half_life_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="ramp_up must lie above 0"):
        EmaConfig(ramp_up=0.0)


@pytest.mark.usefixtures("one_thread")
def test_a_continued_run_has_the_same_average_and_the_weights_of_a_run_without(shards: Path, tmp_path: Path) -> None:
    ema = EmaConfig(half_life_samples=32, ramp_up=1.0)
    seen: list[dict[str, Tensor]] = []

    def keep(encoder: DualEncoder) -> list[Result]:
        seen.append({name: tensor.detach().clone() for name, tensor in encoder.clip.state_dict().items()})
        return []

    pretrain(tiny_config(shards, ema=ema), tmp_path / "whole", evaluators=[keep])
    assert pretrain(tiny_config(shards, ema=ema), tmp_path / "stopped", on_step=signal_at(5)).step == 6
    pretrain(tiny_config(shards, ema=ema), tmp_path / "stopped", evaluators=[keep])
    pretrain(tiny_config(shards), tmp_path / "without", evaluators=[keep])
    whole, stopped, without = seen
    assert all(torch.equal(whole[name], stopped[name]) for name in whole)
    assert not torch.equal(whole["visual.proj"], without["visual.proj"])
    last = "checkpoints/step_00000012/model/open_clip_model.safetensors"
    assert (tmp_path / "whole" / last).read_bytes() == (tmp_path / "without" / last).read_bytes()
