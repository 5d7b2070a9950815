"""Training against cached text features: the same as computing them in every step, and continued bit for bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from clip_med.pretrain import pretrain
from tests.tiny_run import signal_at, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = run / json.loads((run / "latest.json").read_text())["checkpoint"]
    return load_file(folder / "model/open_clip_model.safetensors")


def test_cached_and_computed_text_train_the_same_model(shards: Path, tmp_path: Path) -> None:
    cached = tiny_config(shards, lock_text="trunk", cache_text=True)
    computed = tiny_config(shards, lock_text="trunk")
    pretrain(cached, tmp_path / "cached")
    pretrain(computed, tmp_path / "computed")
    ours, theirs = weights(tmp_path / "cached"), weights(tmp_path / "computed")
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=0, atol=1e-4, msg=name)

    # Stopped and continued, with other texts in every batch of the cache than in those of the loader.
    workers = dataclasses.replace(cached, loader=dataclasses.replace(cached.loader, workers=1))
    assert pretrain(cached, tmp_path / "again", on_step=signal_at(6)).step == 7
    assert pretrain(workers, tmp_path / "again").finished
    again = weights(tmp_path / "again")
    assert all(torch.equal(again[name], value) for name, value in ours.items())
