"""What each rank of test_ranks.py does: a tiny run that keeps an average, and an evaluator that looks at it."""

from __future__ import annotations

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from clip_med.models.config import LoRAConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import EmaConfig, FSDPConfig
from clip_med.training.trainer import StepReport
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


def train(shards: str, run: str, settings: str, stop_at: int) -> None:
    """Train to the end, or until after step `stop_at` unless it is 0; prints what the summary says."""

    def on_step(report: StepReport) -> None:
        # Only rank 0 reports, and only it is told to stop: the others must stop at the same step.
        if report.step == stop_at:
            os.kill(os.getpid(), signal.SIGTERM)

    config = run_config(Path(shards), settings)
    summary = pretrain(config, Path(run), device="cpu", on_step=on_step, evaluators=[first_feature])
    assert not dist.is_initialized()
    print(json.dumps([summary.step, summary.finished, summary.stopped_by]))
