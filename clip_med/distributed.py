"""Collectives with exact gradients; with one process, or no process group, each is the identity.

Convention: every rank's loss is the mean over its own rows, and DistributedDataParallel averages gradients over the
ranks. The mean of the ranks' losses is then the loss of the global batch, and because `gather_with_gradient` sends each
rank the gradient that every other rank's loss has for its rows, the gradients of encoders and scale are those of one
process that holds the whole batch. (open_clip's default, a gather without gradient, scales the encoders' gradient by
1 / ranks and leaves the scale's as it is; its `local_loss` without `gather_with_grad` changes the direction.)
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

T = TypeVar("T")

# Slurm's numbers for what is no step of srun: interactive 0xfffffffa, batch script 0xfffffffb, extern 0xfffffffc.
_NO_STEP: Final = 0xFFFFFFF0


def world_size() -> int:
    """Number of processes in the default group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 without a group."""
    return dist.get_rank() if world_size() > 1 else 0


@dataclass(frozen=True, kw_only=True)
class Place:
    """This process among those of its run, and where rank 0 is met. `address` None: as torchrun's variables say."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    address: str | None = None


def place(environment: Mapping[str, str]) -> Place:
    """From the variables of torchrun (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT), else from those of srun.

    Under srun with several tasks, rank 0 is met on the first node of the step at MASTER_PORT or, without it, at a port
    in 20000 .. 29999 that follows from job and step, below the range from which Linux takes ports for outgoing
    connections. The script of a batch job and a shell in an allocation are one process, whatever SLURM_NTASKS says.

    Raises:
        ValueError: several processes, and a variable that is missing or no number.

    Example:
        >>> srun = {"SLURM_PROCID": "3", "SLURM_NTASKS": "4", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "71"}
        >>> place(srun | {"SLURM_STEP_ID": "0", "SLURM_STEP_NODELIST": "gpu[07-08]"}).address
        'tcp://gpu07:20710'
    """
    if "WORLD_SIZE" in environment:
        ranks = _number(environment, "WORLD_SIZE")
        if ranks == 1:
            return Place(local_rank=_number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0)
        missing = [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in environment]
        if missing:
            raise ValueError(f"WORLD_SIZE is {ranks} and {', '.join(missing)} missing; torchrun sets all of them")
        own = _number(environment, "RANK")
        return Place(rank=own, world_size=ranks, local_rank=_number(environment, "LOCAL_RANK"))
    # Slurm gives the batch script and the shell of an allocation step numbers from 0xfffffff0 on, or none.
    if "SLURM_PROCID" not in environment or int(environment.get("SLURM_STEP_ID", _NO_STEP)) >= _NO_STEP:
        return Place()
    tasks = _number(environment, "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in environment else "SLURM_NTASKS")
    if tasks == 1:
        return Place()
    nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST")
    if not nodes:
        raise ValueError(f"{tasks} Slurm tasks, and neither SLURM_STEP_NODELIST nor SLURM_JOB_NODELIST is set")
    if "MASTER_PORT" in environment:
        port = _number(environment, "MASTER_PORT")
    else:
        # Ten ports for each job, so that steps side by side do not meet.
        port = 20000 + (10 * _number(environment, "SLURM_JOB_ID") + _number(environment, "SLURM_STEP_ID") % 10) % 10000
    return Place(
        rank=_number(environment, "SLURM_PROCID"),
        world_size=tasks,
        local_rank=_number(environment, "SLURM_LOCALID"),
        address=f"tcp://{environment.get('MASTER_ADDR') or first_host(nodes)}:{port}",
    )


def first_host(nodes: str) -> str:
    """The first name of a Slurm host list, which compresses runs of numbers in brackets.

    Raises:
        ValueError: no such list.

    Example:
        >>> first_host("node[003-005,9],login1"), first_host("rack[1-2]-gpu[8,9]")
        ('node003', 'rack1-gpu8')
    """
    first = re.match(r"(?:[^\[\],\s]|\[\d[\d,-]*\])+", nodes)
    if first is None:
        raise ValueError(f"{nodes!r} is no Slurm host list; expected names like node1 or node[1-3,7]")
    return re.sub(r"\[(\d+)[\d,-]*\]", r"\1", first[0])


@contextlib.contextmanager
def process_group(
    device: Literal["auto", "cpu", "cuda"] = "auto", *, timeout_seconds: float = 1800.0
) -> Iterator[torch.device]:
    """Join the group that torchrun or srun describes in the environment, if any, and leave it at the end.

    Yields the device: `auto` takes the GPU of this process's local rank where there is one. Collectives of tensors on
    GPUs go through nccl, those of tensors in host memory through gloo.

    Args:
        timeout_seconds: a collective that waits longer fails; must exceed the time of an evaluation.

    Raises:
        ValueError: `cuda` without a GPU for this process, or an environment that does not fit, see `place`.
    """
    own = place(os.environ)
    gpus = torch.cuda.device_count()
    # srun can show each task its own GPU only.
    local = 0 if gpus == 1 and own.address is not None else own.local_rank
    if device == "cuda" and gpus <= local:
        raise ValueError(f"device cuda: local rank {local} has no GPU; {gpus} visible")
    chosen = torch.device("cpu") if device == "cpu" or gpus == 0 else torch.device("cuda", local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if own.world_size > 1:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo",
            init_method=own.address or "env://",
            rank=own.rank,
            world_size=own.world_size,
            timeout=timedelta(seconds=timeout_seconds),
        )
    try:
        yield chosen
    finally:
        if own.world_size > 1:
            dist.destroy_process_group()


def _number(environment: Mapping[str, str], name: str) -> int:
    try:
        return int(environment[name])
    except KeyError:
        raise ValueError(f"environment variable {name} is missing; torchrun or srun sets it") from None
    except ValueError:
        raise ValueError(f"environment variable {name} must be a whole number, got {environment[name]!r}") from None


def gather(rows: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "G *rest"]:
    """The rows of all ranks in rank order, without gradient. Every rank must give the same shape."""
    if world_size() == 1:
        return rows
    gathered = rows.new_empty((world_size() * rows.shape[0], *rows.shape[1:]))
    dist.all_gather(list(gathered.chunk(world_size())), rows.detach().contiguous())
    return gathered


def gather_with_gradient(rows: Shaped[Tensor, "b *rest"]) -> Shaped[Tensor, "G *rest"]:
    """The rows of all ranks in rank order; the gradient of this rank's rows is the sum over all ranks' losses."""
    if world_size() == 1:
        return rows
    return _Gather.apply(rows)  # pyright: ignore[reportReturnType]


def gather_objects(value: T, group: dist.ProcessGroup | None = None) -> list[T]:
    """What each rank gives, in rank order; for small plain values. `group`: another one of all ranks."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value, group=group)
    return gathered


def whole(tensor: Tensor) -> Tensor:
    """The tensor itself or, where it is cut over the ranks, all of it; then all ranks together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def placed_like(tensor: Tensor, target: Tensor) -> Tensor:
    """A whole tensor, or this rank's slice of it where `target` is cut; every rank has all of it, none is sent."""
    if not isinstance(target, DTensor):
        return tensor
    return distribute_tensor(tensor.to(target.device), target.device_mesh, target.placements, src_data_rank=None)


class _Gather(torch.autograd.Function):
    """All-gather forward; all-reduce (sum) and own slice backward."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        ctx.rows = rows.shape[0]
        return gather(rows)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total, op=dist.ReduceOp.SUM)
        return total.narrow(0, rank() * ctx.rows, ctx.rows)


__all__ = [
    "Place",
    "first_host",
    "gather",
    "gather_objects",
    "gather_with_gradient",
    "place",
    "placed_like",
    "process_group",
    "rank",
    "whole",
    "world_size",
]
