"""Program for test_ranks.py: one rank of a tiny run; its place comes from the environment, as under torchrun.

python -m tests.training.rank_run SHARDS RUN [SETTINGS]
"""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clip_med.models.config import LoRAConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import EmaConfig, FSDPConfig
from tests.tiny_run import tiny_config
from zero_shot.result import Result

EMA = EmaConfig(half_life_samples=16, ramp_up=1.0)
SETTINGS: dict[str, dict[str, Any]] = {
    "ddp": {"ema": EMA, "micro_batch": 2},
    "fsdp": {"ema": EMA, "micro_batch": 2, "parallel": FSDPConfig()},
    "fsdp lora": {"ema": EMA, "parallel": FSDPConfig(), "lock_image": "trunk", "lock_text": "trunk"},
}


def run_config(shards: Path, settings: str) -> PretrainConfig:
    """The configuration of this name."""
    config = tiny_config(shards, **SETTINGS[settings])
    return replace(config, lora=LoRAConfig(rank=2)) if "lora" in settings else config


def first_feature(encoder: DualEncoder) -> list[Result]:
    """An evaluator: one number that depends on most weights of the image tower."""
    encoder.eval()
    with torch.no_grad():
        value = float(encoder.encode_image(torch.full((1, 3, 32, 32), 0.5))[0, 0])
    return [Result(name="feature", value=value, low=-1.0, high=1.0, n=1, unit="cosine")]


if __name__ == "__main__":
    torch.set_num_threads(1)
    stop_at = int(os.environ.get("STOP_AT", "0"))

    def on_step(report: object) -> None:
        # Only rank 0 reports, and only it is told to stop: the others must stop at the same step.
        if stop_at and getattr(report, "step", 0) == stop_at:
            os.kill(os.getpid(), 15)

    summary = pretrain(
        run_config(Path(sys.argv[1]), sys.argv[3]),
        Path(sys.argv[2]),
        device="cpu",
        on_step=on_step,
        evaluators=[first_feature],
    )
    print(summary.step, summary.finished, summary.stopped_by)
    assert not dist.is_initialized()
    sys.stdout.flush()
    # gloo's threads can outlive the interpreter's teardown.
    os._exit(0)
