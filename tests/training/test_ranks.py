"""Two processes that share every batch train the model of one process, and stop and resume together."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file


def two_ranks(shards: Path, run: Path, settings: str, stop_at: int = 0) -> list[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    ranks = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.training.rank_run", str(shards), str(run), settings],
            env=os.environ
            | {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "STOP_AT": str(stop_at)}
            | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=200) for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert [process.returncode for process in ranks] == [0, 0], outputs
    return [out.strip().splitlines()[-1] for out, _ in outputs]


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    return load_file(folder / "model/open_clip_model.safetensors")


def evaluated(run: Path) -> list[float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [result["value"] for line in lines for result in line.get("results", [])]


@pytest.mark.slow
@pytest.mark.parametrize("settings", ["ddp", "fsdp", "fsdp lora"])
def test_two_ranks_train_the_model_of_one_and_stop_at_one_step(shards: Path, tmp_path: Path, settings: str) -> None:
    """The ranks encode two pairs at a time (without adapters) and keep an average, which is what the evaluator sees."""
    from clip_med.pretrain import pretrain
    from tests.training.rank_run import first_feature, run_config

    config = run_config(shards, settings)
    one_at_once = replace(config, train=replace(config.train, micro_batch=None))
    pretrain(one_at_once, tmp_path / "one", evaluators=[first_feature])
    assert two_ranks(shards, tmp_path / "two", settings, stop_at=5) == ["6 False SIGTERM"] * 2
    assert two_ranks(shards, tmp_path / "two", settings) == ["12 True None"] * 2
    assert evaluated(tmp_path / "two") == pytest.approx(evaluated(tmp_path / "one"), abs=1e-4)
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    # Sums over the batch come in another order; Adam divides by small numbers, so rounding grows over twelve steps.
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=2e-4, msg=name)
    moved = max(float((one[name] - value).abs().max()) for name, value in weights_at_start(shards, tmp_path).items())
    assert moved > 5e-3  # what twelve steps change: the tolerance above is small against it


def weights_at_start(shards: Path, tmp_path: Path) -> dict[str, torch.Tensor]:
    from clip_med.models.folder import build_model
    from tests.tiny_run import tiny_config

    torch.manual_seed(0)
    return build_model(tiny_config(shards).model).clip.state_dict()
