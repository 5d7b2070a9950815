"""Two processes that share every batch train the model of one process, and stop and resume together."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_med.models.folder import build_model
from clip_med.pretrain import pretrain
from tests.rank_server import RankServer
from tests.tiny_run import tiny_config
from tests.training import rank_run


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    return load_file(folder / "model/open_clip_model.safetensors")


def evaluated(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [result["value"] for line in lines for result in line.get("results", [])]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["ddp", "fsdp", "fsdp lora"])
def test_two_ranks_train_the_model_of_one_and_stop_at_one_step(
    ranks: RankServer, shards: Path, tmp_path: Path, settings: str
) -> None:
    """The ranks encode two pairs at a time (without adapters) and keep an average, which is what the evaluator sees."""
    config = rank_run.run_config(shards, settings)
    one_at_once = replace(config, train=replace(config.train, micro_batch=None))
    pretrain(one_at_once, tmp_path / "one", evaluators=[rank_run.first_feature])
    for stop_at, ended in ((5, [6, False, "SIGTERM"]), (0, [12, True, None])):
        said = ranks.results(2, rank_run.train, str(shards), str(tmp_path / "two"), settings, stop_at)
        assert said == [ended] * 2
    assert evaluated(tmp_path / "two") == pytest.approx(evaluated(tmp_path / "one"), abs=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # Sums over the batch come in another order; Adam divides by small numbers, so rounding grows over twelve steps.
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)
    moved = max(float((one[name] - value).abs().max()) for name, value in weights_at_start(shards, tmp_path).items())
    assert moved > 5e-3  # what twelve steps change: the tolerance above is small against it


def weights_at_start(shards: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return build_model(tiny_config(shards).model).clip.state_dict()
