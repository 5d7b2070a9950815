"""The training loop: what it writes, how it stops, and that a continued run is the uninterrupted one."""

from __future__ import annotations

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from clip_med.config import ConfigError
from clip_med.models.config import ResNetModel
from clip_med.models.folder import load_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.checkpoint import CheckpointError, sorted_checkpoints
from clip_med.training.config import ScheduleConfig
from clip_med.training.metrics_log import read_metrics
from clip_med.training.run_folder import RunFolder
from clip_med.training.trainer import NonFiniteError, StepReport
from tests.tiny_run import final_tensors, signal_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]


def test_a_run_leaves_what_its_contract_says(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    reports: list[StepReport] = []
    summary = pretrain(tiny_config(shards), run, on_step=reports.append)
    assert (summary.step, summary.samples, summary.finished, summary.started_at_step) == (12, 96, True, 0)
    assert [report.step for report in reports] == list(range(1, 13))
    assert json.loads((run / "latest.json").read_text()) == {
        "checkpoint": "checkpoints/step_00000012",
        "step": 12,
        "samples": 96,
        "finished": True,
    }
    assert [path.name for path in sorted_checkpoints(run / "checkpoints")] == ["step_00000010", "step_00000012"]
    assert sorted(path.name for path in run.iterdir()) == [
        ".lock",
        "checkpoints",
        "config.yaml",
        "environment.json",
        "latest.json",
        "metrics.jsonl",
    ]
    every = read_metrics(run / "metrics.jsonl")
    lines = [line for line in every if "loss" in line]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert [line["step"] for line in every if "mix" in line] == [2, 4, 6, 8, 10, 12]
    assert lines[0]["learning_rate"] == 0.0
    assert lines[1]["learning_rate"] == pytest.approx(5e-4)
    start = json.loads((run / "environment.json").read_text())[0]
    assert start["versions"]["torch"] == torch.__version__
    assert load_folder(summary.checkpoint / "model").preprocess.size == 32


def test_stopping_at_any_step_and_going_on_changes_no_bit(shards: Path, tmp_path: Path) -> None:
    """A signal after step k, for several k: weights, optimiser state and the log are those of the unbroken run."""
    pretrain(tiny_config(shards), tmp_path / "whole")
    for stop_at in (1, 5, 8, 11):
        run = tmp_path / f"stopped-{stop_at}"
        first = pretrain(tiny_config(shards), run, on_step=signal_at(stop_at))
        # The signal comes while step k is reported, so the run ends after the next step.
        assert (first.stopped_by, first.finished) == (("SIGTERM", False) if stop_at < 11 else (None, True))
        assert first.step == stop_at + 1
        second = pretrain(tiny_config(shards), run)
        assert (second.started_at_step, second.step, second.finished) == (stop_at + 1, 12, True)
        assert final_tensors(run) == final_tensors(tmp_path / "whole")
        assert losses(run) == losses(tmp_path / "whole")


def test_batch_statistics_memory_layout_and_bf16_are_continued_too(shards: Path, tmp_path: Path) -> None:
    """A convolutional tower as the shipped configurations train it: running means, channels-last states, autocast."""
    tower = ResNetModel(image_size=32, image_width=4, embed_dim=16, text_width=32, text_layers=1, text_heads=2)
    config = dataclasses.replace(tiny_config(shards, precision="bf16", channels_last=True), model=tower)
    pretrain(config, tmp_path / "whole")

    assert pretrain(config, tmp_path / "stopped", on_step=signal_at(6)).step == 7
    assert pretrain(config, tmp_path / "stopped").finished
    assert final_tensors(tmp_path / "stopped") == final_tensors(tmp_path / "whole")
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")


def test_workers_and_saving_interval_change_no_bit(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "a")
    other = tiny_config(shards, save_every_samples=96, log_every_steps=5)
    other = dataclasses.replace(other, loader=dataclasses.replace(other.loader, workers=1))
    pretrain(other, tmp_path / "b")
    assert final_tensors(tmp_path / "a") == final_tensors(tmp_path / "b")


def test_another_seed_gives_another_model(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "a")
    pretrain(tiny_config(shards, seed=1), tmp_path / "b")
    assert final_tensors(tmp_path / "a") != final_tensors(tmp_path / "b")


def test_a_finished_run_is_not_trained_again(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path)
    before = final_tensors(tmp_path)
    summary = pretrain(tiny_config(shards), tmp_path)
    assert (summary.started_at_step, summary.step, summary.finished) == (12, 12, True)
    assert final_tensors(tmp_path) == before
    assert len(losses(tmp_path)) == 12


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "extra"])
def test_damage_to_the_newest_checkpoint_costs_one_interval(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    pretrain(tiny_config(shards), tmp_path / "run")
    before = final_tensors(tmp_path / "run")
    file = tmp_path / "run/checkpoints/step_00000012/state/shard-00001-model-00001-of-00001.safetensors"
    data = bytearray(file.read_bytes())
    match damage:
        case "flip":
            data[len(data) // 2] ^= 1
            file.write_bytes(data)
        case "truncate":
            file.write_bytes(data[:-1])
        case "delete":
            file.unlink()
        case _:
            (file.parent / "more.bin").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        summary = pretrain(tiny_config(shards), tmp_path / "run")
    assert "passing over a damaged checkpoint" in caplog.text
    assert "step_00000012" in caplog.text
    assert summary.started_at_step == 10
    assert final_tensors(tmp_path / "run") == before
    lines = read_metrics(tmp_path / "run/metrics.jsonl")
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 13))


def test_a_run_without_an_intact_checkpoint_is_not_silently_started_anew(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "run")
    for path in (tmp_path / "run/checkpoints").iterdir():
        (path / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match="none of 2 checkpoint"):
        pretrain(tiny_config(shards), tmp_path / "run")


def test_a_run_with_other_settings_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "run")
    with pytest.raises(ConfigError, match=r"train\.seed: 0 there, 3 here"):
        pretrain(tiny_config(shards, seed=3), tmp_path / "run")


def test_two_processes_cannot_write_one_run(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards)
    with RunFolder(tmp_path / "run", config), pytest.raises(ValueError, match="another process is writing this run"):
        pretrain(config, tmp_path / "run")


def test_a_loss_that_is_no_number_stops_with_step_and_keys(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_med.models.dual_encoder import DualEncoder

    original = DualEncoder.encode_image
    calls: list[int] = []

    def poisoned(self: DualEncoder, images: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        features = original(self, images).clone()
        if len(calls) == 4:
            features[2] = torch.nan
        return features

    monkeypatch.setattr(DualEncoder, "encode_image", poisoned)
    with pytest.raises(NonFiniteError, match=r"step 4: the loss is nan; features of 1 of 8 samples .* keys k\d\d\d\."):
        pretrain(tiny_config(shards), tmp_path / "run")
    # What was saved before stands, and holds numbers.
    weights = load_file(sorted_checkpoints(tmp_path / "run/checkpoints")[-1] / "model/open_clip_model.safetensors")
    assert all(tensor.isfinite().all() for tensor in weights.values())


def test_the_logit_scale_is_kept_below_its_limit(shards: Path, tmp_path: Path) -> None:
    summary = pretrain(tiny_config(shards, max_logit_scale=5.0), tmp_path / "run")
    # Unhindered it starts at 1 / 0.07 = 14.3.
    assert load_folder(summary.checkpoint / "model").logit_scale.detach().exp().item() <= 5.00001


def test_a_locked_tower_does_not_move(shards: Path, tmp_path: Path) -> None:
    from clip_med.models.folder import build_model

    config = tiny_config(shards, lock_text="all")
    torch.manual_seed(0)
    start = build_model(config.model).clip.state_dict()
    summary = pretrain(config, tmp_path / "run")
    end = load_folder(summary.checkpoint / "model").clip.state_dict()
    moved = {name for name in start if not torch.equal(start[name], end[name])}
    assert moved
    assert all(name.startswith("visual.") or name == "logit_scale" for name in moved)


def test_a_loss_at_chance_is_reported(
    shards: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from clip_med.training import watch
    from clip_med.training.config import OptimConfig

    alarm = watch.ChanceAlarm(2.0)
    with caplog.at_level(logging.WARNING):
        for step in range(1, 400):
            alarm.add(2.0 if step <= 200 else 1.9, step)
    assert [record.getMessage()[:40] for record in caplog.records] == ["step 200: the mean loss of the last 200 "]
    monkeypatch.setattr(watch, "_CHANCE_WINDOW", 8)
    with caplog.at_level(logging.WARNING):
        pretrain(tiny_config(shards, save_every_samples=96, optim=OptimConfig(lr=1e-12)), tmp_path / "run")
    assert "step 8: the mean loss of the last 8 steps" in caplog.text
    assert "tells nothing apart has 2.0794" in caplog.text


def test_images_tokens_and_groups_travel_without_waiting(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Copies from pinned memory run beside the device's work only where nobody waits for them."""
    travelled: list[tuple[torch.dtype, int, bool]] = []
    plain = torch.Tensor.to

    def recorded(self: torch.Tensor, *arguments: Any, **named: Any) -> torch.Tensor:
        if arguments and isinstance(arguments[0], torch.device):
            travelled.append((self.dtype, self.ndim, named.get("non_blocking", False)))
        return plain(self, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "to", recorded)
    pretrain(tiny_config(shards, samples=8, schedule=ScheduleConfig(warmup_samples=0)), tmp_path / "run")
    assert (torch.uint8, 4, True) in travelled
    assert travelled.count((torch.int64, 2, True)) == 2
    assert not [one for one in travelled if one[0] in (torch.uint8, torch.int64) and not one[2]]


class Counting:
    """An evaluator that reports how often it was called."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, encoder: Any) -> list[Any]:
        from zero_shot.result import Result

        self.calls += 1
        encoder.eval()
        return [Result(name="calls", value=float(self.calls), low=0.0, high=1.0, n=1, unit="count")]


def test_evaluators_run_when_due_and_do_not_disturb_training(shards: Path, tmp_path: Path) -> None:
    config = tiny_config(shards, eval_every_samples=32)
    counting = Counting()
    summary = pretrain(config, tmp_path / "with", evaluators=[counting])
    pretrain(tiny_config(shards), tmp_path / "without")
    lines = [line for line in read_metrics(tmp_path / "with/metrics.jsonl") if "results" in line]
    assert [(line["step"], line["results"][0]["value"]) for line in lines] == [(4, 1.0), (8, 2.0), (12, 3.0)]
    assert summary.results[0].to_dict()["value"] == 3.0
    assert final_tensors(tmp_path / "with") == final_tensors(tmp_path / "without")


def test_a_failing_evaluator_does_not_cost_the_training(shards: Path, tmp_path: Path) -> None:
    def failing(_: Any) -> list[Any]:
        raise RuntimeError("no test data")

    with pytest.raises(RuntimeError, match="no test data"):
        pretrain(tiny_config(shards), tmp_path / "run", evaluators=[failing])
    assert json.loads((tmp_path / "run/latest.json").read_text())["step"] == 12


def test_bf16_trains_and_keeps_fp32_weights(shards: Path, tmp_path: Path) -> None:
    summary = pretrain(tiny_config(shards, precision="bf16"), tmp_path / "run")
    weights = load_file(summary.checkpoint / "model/open_clip_model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


def test_tensorboard_events_are_written_when_asked(shards: Path, tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    pretrain(tiny_config(shards, tensorboard=True), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run/tensorboard"))
    events.Reload()
    logged = [round(event.value, 5) for event in events.Scalars("loss")]
    assert logged == [round(value, 5) for value in losses(tmp_path / "run")]


@pytest.mark.parametrize(
    ("train", "said"),
    [
        ({"samples": 4}, "less than one batch of 8"),
        ({"samples": None}, "samples or epochs"),
        ({"epochs": 1.0}, "samples or epochs"),
        ({"cache_text": True}, "lock_text"),
        ({"lock_image": "all", "lock_text": "all"}, "leaves only the logit scale to train"),
    ],
)
def test_lengths_and_locks_that_make_no_sense_are_refused(
    shards: Path, tmp_path: Path, train: dict[str, Any], said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        pretrain(tiny_config(shards, **train), tmp_path / "run")


def test_epochs_are_whole_batches_of_the_data(shards: Path, tmp_path: Path) -> None:
    config: PretrainConfig = tiny_config(shards, samples=None, epochs=1.5)
    assert pretrain(config, tmp_path / "run").samples == 56  # 60 samples are seven whole batches of eight


def test_before_the_first_checkpoint_settings_may_change(shards: Path, tmp_path: Path) -> None:
    """A run that failed while its model was built is repeated with the mistake mended."""
    with RunFolder(tmp_path / "run", tiny_config(shards)):
        pass
    assert pretrain(tiny_config(shards, seed=3), tmp_path / "run").finished
    assert "seed: 3" in (tmp_path / "run/config.yaml").read_text()


def test_undefined_results_are_null_in_the_log(shards: Path, tmp_path: Path) -> None:
    from zero_shot.result import Result

    def undefined(_: Any) -> list[Result]:
        return [Result(name="AUROC", value=float("nan"), low=float("nan"), high=float("nan"), n=0, unit="fraction")]

    pretrain(tiny_config(shards, tensorboard=True), tmp_path / "run", evaluators=[undefined])
    assert '"value": null' in (tmp_path / "run/metrics.jsonl").read_text()
