"""A tiny shard set and a tiny configuration that trains on it."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

from clip_med.data.loader import LoaderConfig
from clip_med.data.sample import Sample
from clip_med.data.shard_writer import ShardWriter
from clip_med.models.config import ViTModel
from clip_med.pretrain import PretrainConfig
from clip_med.training.config import OptimConfig, ScheduleConfig, TrainConfig
from clip_med.training.trainer import StepReport

TINY = ViTModel(
    embed_dim=16,
    image_size=32,
    image_width=32,
    image_layers=1,
    text_width=32,
    text_layers=1,
    text_heads=2,
    context_length=24,
)


def write_shards(directory: Path, samples: int = 40, *, seed: int = 0, keys: str = "k") -> Path:
    """Noise images, each with two captions of its own."""
    rng = np.random.default_rng(seed)
    with ShardWriter(directory, samples_per_shard=16) as writer:
        for i in range(samples):
            file = BytesIO()
            Image.fromarray(rng.integers(0, 255, (36, 36), dtype=np.uint8)).save(file, "PNG")
            writer.add(
                Sample(
                    key=f"{keys}{i:03d}",
                    image=file.getvalue(),
                    image_suffix="png",
                    captions=(f"Finding number {i}.", f"Number {i} again."),
                    modality="X-ray",
                    dataset="noise",
                    group=f"g{i}",
                    split="train",
                )
            )
    return directory


def tiny_config(shards: Path, **train: object) -> PretrainConfig:
    """Twelve steps of eight pairs, a checkpoint every two steps."""
    settings: dict[str, object] = {
        "samples": 96,
        "batch_size": 8,
        "log_every_steps": 1,
        "save_every_samples": 16,
        "optim": OptimConfig(lr=1e-3),
        "schedule": ScheduleConfig(warmup_samples=16),
    }
    return PretrainConfig(
        shards=(str(shards),),
        model=TINY,
        loader=LoaderConfig(workers=0),
        train=TrainConfig(**(settings | train)),  # type: ignore[arg-type]
    )


def signal_at(step: int) -> Callable[[StepReport], None]:
    """For `on_step`: TERM comes while this step is reported, so the run ends after the next one."""

    def stop(report: StepReport) -> None:
        if report.step == step:
            os.kill(os.getpid(), signal.SIGTERM)

    return stop


def final_tensors(run: Path) -> dict[str, bytes]:
    """Every tensor of the checkpoint that `latest.json` names: weights, optimiser and what else is in its state."""
    folder = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    assert any(folder.glob("state/*.safetensors"))
    return {
        f"{file.parent.name}/{name}": tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for file in folder.rglob("*.safetensors")
        for name, tensor in load_file(file).items()
    }
