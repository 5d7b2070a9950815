"""What ranks do for tests: one call each in a forked process, see `tests/rank_server.py`. Returns the exit code."""

from __future__ import annotations

import json
import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from clip_med.distributed import process_group, rank, world_size
from clip_med.pretrain import pretrain
from clip_med.training.config import FSDPConfig
from clip_med.training.step import TrainStep
from clip_med.training.tensor_parts import Part, read_parts, stored_tensors, take_part
from clip_med.training.trainer import StepReport
from tests.tiny_run import tiny_config, write_shards

# Parts of steps and of saves.
MOMENTS: tuple[tuple[Any, str], ...] = (
    (os, "fsync"),
    (os, "rename"),
    (os, "replace"),
    (shutil, "rmtree"),
    (TrainStep, "gradients"),
    (TrainStep, "update"),
    (Part, "write"),
    (dist, "all_gather_object"),
)


def warm_up() -> None:
    """Train once, so that the children find everything imported; on one thread nothing is lost in a fork."""
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder) / "shards")
        pretrain(tiny_config(shards, samples=24), Path(folder) / "run", device="cpu")


def run(shards: str, run: str, train: dict[str, Any]) -> int:
    """Train; prints what the summary says."""
    if train.get("parallel") == "fsdp":
        train = train | {"parallel": FSDPConfig()}
    summary = pretrain(tiny_config(Path(shards), **train), Path(run), device="cpu")
    print(json.dumps([summary.step, summary.finished, summary.stopped_by]))
    return 0


def run_until(shards: str, run_folder: str, train: dict[str, Any], step: int) -> int:
    """Train until after this step, by a signal to rank 0 in the step before it ends; prints the step."""
    if train.get("parallel") == "fsdp":
        train = train | {"parallel": FSDPConfig()}

    def on_step(report: StepReport) -> None:
        if report.step == step - 1:
            os.kill(os.getpid(), signal.SIGTERM)

    summary = pretrain(tiny_config(Path(shards), **train), Path(run_folder), device="cpu", on_step=on_step)
    print(json.dumps(summary.step))
    return 0


def run_killed(shards: str, run_folder: str, train: dict[str, Any], victims: list[int], moment: int) -> int:
    """Train, and let each victim kill itself before its `moment`-th call of what a step or a save is made of."""
    if int(os.environ["RANK"]) in victims:
        calls = [0]

        def counted(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                calls[0] += 1
                if calls[0] == moment:
                    os.kill(os.getpid(), signal.SIGKILL)
                return original(*arguments, **named)

            return call

        for owner, name in MOMENTS:
            setattr(owner, name, counted(getattr(owner, name)))
    return run(shards, run_folder, train)


def run_stopped(shards: str, run_folder: str, train: dict[str, Any], victim: int, at_step: int) -> int:
    """Train, and let one rank stop (SIGSTOP) or, if it is -1, every rank sleep, in the midst of a step."""
    original = TrainStep.update

    def update(self: TrainStep) -> None:
        steps[0] += 1
        if steps[0] == at_step and victim == int(os.environ["RANK"]):
            os.kill(os.getpid(), signal.SIGSTOP)
        if steps[0] == at_step and victim == -1:
            time.sleep(600)
        original(self)

    steps = [0]
    TrainStep.update = update  # pyright: ignore[reportAttributeAccessIssue] - in this process only
    return run(shards, run_folder, train)


def run_broken(shards: str, run_folder: str, train: dict[str, Any]) -> int:
    """Train, and let rank 1 meet an error that is no fault of a disk in its first save."""
    if int(os.environ["RANK"]) == 1:

        def write(self: Part, directory: Path) -> None:
            raise RuntimeError(f"no such thing as {directory.name}")

        Part.write = write  # type: ignore[assignment] # in this process only
    return run(shards, run_folder, train)


def _tensors(sharded: bool) -> dict[str, torch.Tensor]:
    """Matrices that do and do not divide by the ranks, fewer rows than ranks, a replicated one, scalars, bfloat16."""
    generator = torch.Generator().manual_seed(0)
    whole = {
        "even/exp_avg": torch.randn(8, 3, generator=generator),
        "odd/exp_avg": torch.randn(7, 5, generator=generator),
        "few/exp_avg": torch.randn(3, generator=generator),
        "half": torch.randn(5, 2, generator=generator).bfloat16(),
        "step": torch.tensor(4.0),
    }
    if not sharded or world_size() == 1:
        return whole
    mesh = init_device_mesh("cpu", (world_size(),))
    placed: dict[str, torch.Tensor] = dict(whole)
    for name in ("even/exp_avg", "odd/exp_avg", "few/exp_avg"):
        placed[name] = distribute_tensor(whole[name], mesh, [Shard(0)])
    placed["half"] = distribute_tensor(whole["half"], mesh, [Replicate()])
    return placed


def write_part(folder: str, sharded: bool) -> int:
    """Write this rank's part."""
    with process_group("cpu"):
        if rank() == 0:
            Path(folder).mkdir()
        if world_size() > 1:
            dist.barrier()
        take_part(_tensors(sharded)).write(Path(folder))
        print(json.dumps(sorted(path.name for path in Path(folder).glob(f"shard-{rank() + 1:05d}-*"))))
    return 0


def read_part(folder: str, sharded: bool) -> int:
    """Read back into zeros what `write_part` wrote in whatever group, and compare."""
    with process_group("cpu"):
        expected = _tensors(sharded=False)
        into = _tensors(sharded)
        for tensor in into.values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
        assert {name: shape for name, (shape, _) in stored_tensors(Path(folder)).items()} == {
            name: tensor.shape for name, tensor in expected.items()
        }
        read_parts(Path(folder), into)
        for name, tensor in into.items():
            whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            assert torch.equal(whole, expected[name]), name
        print(json.dumps(len(into)))
    return 0


def knowledge_steps(bert: str, out: str) -> int:
    """The gradients of a step with each term of knowledge, written by rank 0."""
    from safetensors.torch import save_file

    from tests.training.knowledge_terms import CAPTIONS, KINDS, step_gradients

    with process_group("cpu"):
        each = len(CAPTIONS) // world_size()
        for kind in KINDS:
            _, found = step_gradients(Path(bert), slice(rank() * each, (rank() + 1) * each), kind=kind)
            if rank() == 0:
                save_file({name: value.contiguous() for name, value in found.items()}, Path(out) / kind)
        dist.barrier()
        print(json.dumps(len(KINDS)))
    return 0
