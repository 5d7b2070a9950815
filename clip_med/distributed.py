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
from collections.abc import Iterator
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from jaxtyping import Shaped
from torch import Tensor

T = TypeVar("T")


def world_size() -> int:
    """Number of processes in the default group; 1 without a group."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number in the default group; 0 without a group."""
    return dist.get_rank() if world_size() > 1 else 0


@contextlib.contextmanager
def process_group(device: Literal["auto", "cpu", "cuda"] = "auto") -> Iterator[torch.device]:
    """Join the group that torchrun describes in the environment, if any, and leave it at the end; yields the device.

    `auto` takes the GPU of this process's LOCAL_RANK where there is one. nccl on GPUs, gloo on CPUs.

    Raises:
        ValueError: `cuda` without a GPU for this process.
    """
    ranks, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
    gpus = torch.cuda.device_count()
    if device == "cuda" and gpus <= local:
        raise ValueError(f"device cuda: local rank {local} has no GPU; {gpus} visible")
    chosen = torch.device("cpu") if device == "cpu" or gpus == 0 else torch.device("cuda", local)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if ranks > 1:
        dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo")
    try:
        yield chosen
    finally:
        if ranks > 1:
            dist.destroy_process_group()


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


__all__ = ["gather", "gather_objects", "gather_with_gradient", "process_group", "rank", "world_size"]
