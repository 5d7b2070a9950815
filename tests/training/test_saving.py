"""Saves that fail cost a warning and a line, never the checkpoints before them."""

from __future__ import annotations

import os
import pickle
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from clip_med.models.folder import build_model
from clip_med.pretrain import pretrain
from clip_med.training import checkpoint
from clip_med.training.checkpoint import CheckpointError, SaveError, newest_intact, sorted_checkpoints
from clip_med.training.metrics_log import read_metrics
from clip_med.training.trainer import StepReport
from tests.tiny_run import TINY, final_tensors, tiny_config

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk with room for four checkpoints of 19 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", str(disk)], check=False)
    if mounted.returncode:
        pytest.skip("mounting a tmpfs needs root: the disk that fills up is not tested here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["at once", "in a thread"])
def test_a_disk_that_fills_up_and_empties_costs_nothing(
    shards: Path, small_disk: Path, tmp_path: Path, asynchronous: bool
) -> None:
    """Full from step 3 to step 7 of 12: the checkpoint of step 2 stands, and the run ends as if nothing had been."""
    run, ballast = small_disk / "run", small_disk / "ballast"
    seen: list[list[str]] = []

    def fill(report: StepReport) -> None:
        if report.step == 3:
            while not (run / "latest.json").exists():
                time.sleep(0.01)  # the save of step 2 may still be under way in its thread
            with ballast.open("wb", buffering=0) as file:
                try:
                    while file.write(bytes(1 << 16)):
                        pass
                except OSError:
                    seen.append(["full"])
        elif report.step == 7:
            newest = newest_intact(run / "checkpoints")
            assert newest is not None
            seen.append([newest.name])
            ballast.unlink()

    config = tiny_config(shards, max_failed_saves=9, async_checkpoint=asynchronous)
    assert pretrain(config, run, on_step=fill).finished
    assert seen == [["full"], ["step_00000002"]]
    failed = [line for line in read_metrics(run / "metrics.jsonl") if "failed_saves" in line]
    counted = [(line["step"], line["failed_saves"]) for line in failed]
    # In a thread, the save of step 6 may come to its end after there is room again.
    assert counted == [(4, 1), (6, 2)] or (asynchronous and counted == [(4, 1)])
    assert all("No space left on device" in line["error"] for line in failed)
    steps = [line["step"] for line in read_metrics(run / "metrics.jsonl") if "loss" in line]
    assert steps == list(range(1, 13))
    pretrain(tiny_config(shards), tmp_path / "whole")
    assert final_tensors(run) == final_tensors(tmp_path / "whole")


def test_a_read_only_folder_is_refused_by_name_and_keeps_its_checkpoints(shards: Path, small_disk: Path) -> None:
    run = small_disk / "run"
    pretrain(tiny_config(shards), run)
    before = newest_intact(run / "checkpoints")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    for folder in (run, small_disk / "another"):
        with pytest.raises(ValueError, match=f"{folder}: cannot be written: .*Read-only file system"):
            pretrain(tiny_config(shards), folder)
    assert before is not None
    assert newest_intact(run / "checkpoints") == before


def test_too_many_failed_saves_stop_the_run(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, renames = os.rename, [0]

    def rename(source: Path, target: Path) -> None:
        if Path(target).name == "step_00000002" or not Path(target).name.startswith("step_"):
            return original(source, target)
        renames[0] += 1
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(SaveError, match=r"step 6: checkpoint not written, 2 in a row: .* older ones stand"):
        pretrain(tiny_config(shards, max_failed_saves=2), tmp_path / "run")
    assert [path.name for path in sorted_checkpoints(tmp_path / "run/checkpoints")] == ["step_00000002"]
    assert not list((tmp_path / "run").rglob("*.tmp-*"))


def test_a_checkpoint_with_a_pickle_is_refused_by_name(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "run")
    for folder in sorted_checkpoints(tmp_path / "run/checkpoints"):
        (folder / "state/.metadata").write_bytes(pickle.dumps(Path("x")))
    with pytest.raises(CheckpointError, match=r"none of 2 .*\.metadata: a pickle"):
        pretrain(tiny_config(shards), tmp_path / "run")


def test_files_of_two_checkpoints_and_a_renamed_one_are_found(shards: Path, tmp_path: Path) -> None:
    pretrain(tiny_config(shards), tmp_path / "run")
    older, newer = sorted_checkpoints(tmp_path / "run/checkpoints")
    name = "model/open_clip_model.safetensors"
    whole = (newer / name).read_bytes()
    (newer / name).write_bytes((older / name).read_bytes())
    assert newest_intact(tmp_path / "run/checkpoints") == older
    (newer / name).write_bytes(whole)
    assert newest_intact(tmp_path / "run/checkpoints") == newer
    newer.rename(newer.with_name("step_00000099"))
    assert newest_intact(tmp_path / "run/checkpoints") == older


def test_other_ranks_do_not_list_the_folders_that_the_first_renames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 renames the model's folder when it is whole; a rank that was listing it then lost its save."""
    encoder = build_model(TINY)
    snapshot = checkpoint.take_snapshot(encoder, torch.optim.AdamW(encoder.parameters()), {"step": 1})
    original, listed = Path.rglob, list[str]()

    def rglob(self: Path, pattern: str) -> Iterator[Path]:
        listed.append(self.name)
        return original(self, pattern)

    (tmp_path / "state").mkdir()
    monkeypatch.setattr(checkpoint, "rank", lambda: 1)
    monkeypatch.setattr(Path, "rglob", rglob)
    checkpoint._write_files(tmp_path, tmp_path, encoder, snapshot)
    assert listed == ["state"]
