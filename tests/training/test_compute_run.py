"""Training runs with the settings of `train.compute`, and the speed that they log."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_med.data.loader import eval_batches
from clip_med.data.shards import ShardSet
from clip_med.models.compute_config import ComputeConfig
from clip_med.models.flops import FlopCount
from clip_med.models.folder import build_model, load_folder
from clip_med.pretrain import pretrain
from clip_med.training.config import TrainConfig
from clip_med.training.throughput import Throughput
from tests.tiny_run import TINY, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def run(shards: Path, folder: Path, compute: ComputeConfig) -> tuple[list[dict[str, float]], dict[str, torch.Tensor]]:
    pretrain(tiny_config(shards, samples=32, compute=compute), folder, device="cpu")
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    weights = load_file(next((folder / "checkpoints").glob("step_00000004")) / "model" / "open_clip_model.safetensors")
    return [line for line in lines if "loss" in line], weights


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
@pytest.mark.parametrize(
    "compute",
    [
        ComputeConfig(pack_text=True, pooled_last_block=True, activation_checkpointing="both"),
        ComputeConfig(compile=True, compile_backend="aot_eager", text_multiple=8),
    ],
    ids=["packed", "compiled"],
)
def test_a_run_computed_otherwise_trains_the_same_model(shards: Path, tmp_path: Path, compute: ComputeConfig) -> None:
    plain, plain_weights = run(shards, tmp_path / "plain", ComputeConfig())
    other, weights = run(shards, tmp_path / "other", compute)
    assert len(plain) == len(other) == 4
    for ours, theirs in zip(other, plain, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], abs=1e-5)
    assert weights.keys() == plain_weights.keys()
    torch.testing.assert_close(weights, plain_weights, rtol=0, atol=2e-3)  # two steps of Adam at its first rates
    folder = next((tmp_path / "other" / "checkpoints").glob("step_00000004")) / "model"
    assert load_folder(folder).clip.state_dict().keys() == weights.keys()


def test_patch_dropout_changes_training_and_not_its_repetition(shards: Path, tmp_path: Path) -> None:
    config = ComputeConfig(patch_dropout=0.5)
    first, _ = run(shards, tmp_path / "first", config)
    again, _ = run(shards, tmp_path / "again", config)
    plain, _ = run(shards, tmp_path / "plain", ComputeConfig())
    assert [line["loss"] for line in first] == [line["loss"] for line in again]
    assert [line["loss"] for line in first] != [line["loss"] for line in plain]


def test_operations_and_utilisation_are_logged(shards: Path, tmp_path: Path) -> None:
    lines, _ = run(shards, tmp_path / "run", ComputeConfig(peak_tflops=2.0))
    for line in lines:
        assert line["mfu"] == pytest.approx(line["flops_per_second"] / 2e12)
        # Captions have 5 or 6 tokens; the image costs as much in every step.
        count = FlopCount(build_model(TINY), ComputeConfig())
        low, high = (count.step(torch.tensor([length])) for length in (4, 9))
        assert low < line["flops_per_second"] / line["samples_per_second"] < high
    unknown, _ = run(shards, tmp_path / "unknown", ComputeConfig())
    assert all("mfu" not in line and line["flops_per_second"] > 0 for line in unknown)


def test_compiling_what_does_not_run_is_refused() -> None:
    with pytest.raises(ValueError, match="uses a copy of the model that is not compiled"):
        TrainConfig(samples=8, precision="pure_bf16", compute=ComputeConfig(compile=True))


def test_rates_are_those_since_the_last_report(monkeypatch: pytest.MonkeyPatch, shards: Path) -> None:
    now = [100.0]
    monkeypatch.setattr("clip_med.training.throughput.time.monotonic", lambda: now[0])
    encoder = build_model(TINY)
    throughput = Throughput(encoder, TrainConfig(samples=1000, compute=ComputeConfig(peak_tflops=1e-6)))
    tokens = encoder.tokenize(["left", "right lung"])

    batch = next(eval_batches(ShardSet.open(shards), range(2), encoder.preprocess, tokenize=lambda texts: tokens))
    for seconds, steps in ((4.0, 1), (0.5, 3)):
        for _ in range(steps):
            throughput.add(batch)
        now[0] += seconds
        rates = throughput.rates()
        flops = FlopCount(encoder, ComputeConfig()).step(encoder.text_tower.lengths(tokens))
        assert rates.samples_per_second == 2 * steps / seconds
        assert rates.flops_per_second == flops * steps / seconds
        assert rates.mfu == pytest.approx(rates.flops_per_second / 1e6)
