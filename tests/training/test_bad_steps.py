"""Bad steps: what counts as one, what follows, and that a continued run does what the unbroken one does."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_med.models.dual_encoder import DualEncoder
from clip_med.pretrain import pretrain
from clip_med.training.bad_steps import SpikeDetector, SpikeError
from clip_med.training.metrics_log import read_metrics
from clip_med.training.step import TrainStep
from clip_med.training.watch import NonFiniteError
from tests.tiny_run import final_tensors, signal_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_spike_is_what_numpy_says() -> None:
    losses = np.random.default_rng(0).normal(3.0, 0.1, 60).tolist()
    detector = SpikeDetector(window=20, deviations=4.0)
    for step, loss in enumerate(losses):
        if step < 20:
            assert detector.limit() is None
        else:
            window = losses[step - 20 : step]
            median = np.median(window)
            limit = float(median + 4.0 * np.median(np.abs(np.array(window) - median)))
            assert detector.limit() == pytest.approx(limit, rel=1e-12)
            detector.check(limit - 1e-6, step)
            with pytest.raises(SpikeError, match=f"step {step + 1}: the loss is .*median of the last 20"):
                detector.check(limit + 1e-6, step)
        detector.losses.append(float(loss))


def test_losses_that_do_not_move_make_no_spike_of_rounding() -> None:
    detector = SpikeDetector(window=3, deviations=10.0)
    detector.losses.extend([2.0, 2.0, 2.0])
    assert detector.limit() == pytest.approx(2.0 * 1.01)


def poison(monkeypatch: pytest.MonkeyPatch, steps: tuple[int, ...], kind: str) -> None:
    """Spoil these steps, whenever they are made: a batch that is bad stays bad when it comes again."""
    original, features = TrainStep.gradients, DualEncoder.encode_image
    now = [0]

    def gradients(self: TrainStep, batch: Any, step: int, received: Any) -> Any:
        now[0] = step + 1
        result = original(self, batch, step, received)
        if kind == "gradient" and now[0] in steps:
            raise NonFiniteError(f"step {now[0]}: gradients are not finite")
        return dataclasses.replace(result, loss=3 * result.loss) if kind == "spike" and now[0] in steps else result

    def encode_image(self: DualEncoder, images: torch.Tensor) -> torch.Tensor:
        found = features(self, images)
        return found * torch.nan if kind == "loss" and self.training and now[0] in steps else found

    monkeypatch.setattr(TrainStep, "gradients", gradients)
    monkeypatch.setattr(DualEncoder, "encode_image", encode_image)


def bad_lines(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run / "metrics.jsonl") if "bad_step" in line]


@pytest.mark.parametrize(("policy", "kind"), [("skip", "loss"), ("skip", "gradient"), ("rewind", "loss")])
def test_policies_are_logged_and_survive_a_stop(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, kind: str
) -> None:
    """Steps 6 and 7 of 12 are bad; checkpoints come every four steps, and one after a signal in between."""
    poison(monkeypatch, (6, 7), kind)
    config = tiny_config(shards, on_nonfinite=policy, save_every_samples=32)
    summary = pretrain(config, tmp_path / "whole")
    assert (summary.step, summary.finished) == (12, True)
    lines = bad_lines(tmp_path / "whole")
    assert [(line["step"], line["bad_step"], line["bad_steps"]) for line in lines] == [(6, policy, 1), (7, policy, 2)]
    if policy == "rewind":
        # The first goes back to step 4; the second to the same weights, saved at the place where the run then was.
        assert [line["back_to"] for line in lines] == [4, 6]
    for stop_at in (5, 8):
        run = tmp_path / f"stopped-{stop_at}"
        assert not pretrain(config, run, on_step=signal_at(stop_at)).finished
        assert pretrain(config, run).finished
        assert final_tensors(run) == final_tensors(tmp_path / "whole")
        assert bad_lines(run) == lines


def test_a_skipped_step_leaves_weights_and_optimiser_alone(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config(shards, on_nonfinite="skip", samples=48, save_every_samples=8, keep=9)
    poison(monkeypatch, (4,), "gradient")
    pretrain(config, tmp_path / "run")
    from safetensors.torch import load_file

    before, after, later = (
        load_file(next((tmp_path / f"run/checkpoints/step_0000000{step}/state").iterdir())) for step in (3, 4, 5)
    )
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert not all(torch.equal(after[name], later[name]) for name in before)


def test_too_many_bad_steps_in_a_row_stop_the_run(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison(monkeypatch, (3, 4, 6, 7, 8), "loss")
    with pytest.raises(NonFiniteError, match=r"step 8: the loss is nan; .* 3 bad steps in a row \(max_bad_steps\)"):
        pretrain(tiny_config(shards, on_nonfinite="skip", max_bad_steps=2), tmp_path / "run")


@pytest.mark.parametrize("policy", ["stop", "skip", "rewind", "off"])
def test_spikes_have_a_policy_of_their_own(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    poison(monkeypatch, (9,), "spike")
    # Twelve steps hardly learn: the loss of shuffled noise wanders about ln 8.
    config = tiny_config(shards, on_spike=policy, spike_window=5, spike_deviations=30.0)
    if policy == "stop":
        with pytest.raises(SpikeError, match="step 9: the loss is"):
            pretrain(config, tmp_path / "run")
        return
    assert pretrain(config, tmp_path / "run").finished
    assert [line["step"] for line in bad_lines(tmp_path / "run")] == ([] if policy == "off" else [9])
