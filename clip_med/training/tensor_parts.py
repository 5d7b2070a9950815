"""Tensors of a run as sharded safetensors: each rank writes its part, and any number of ranks reads them back.

The plans of torch.distributed.checkpoint (DCP) say who writes what (of tensors that all ranks hold, each writes a
share; of sharded ones, its own slice) and which slices a rank reads. Of DCP's storages the safetensors one is used: the
default one keeps a `.metadata` file that is a pickle, so reading such a folder can run code. Plans and storage are
driven here instead of by `dcp.save` and `dcp.load`, whose errors derive from BaseException and whose collectives cannot
be told apart from a rank that failed before them.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import SavePlan
from torch.distributed.tensor import DTensor

from clip_med.distributed import gather_objects, rank


class _Copies(DefaultSavePlanner):
    """Writes the copies of what was planned."""

    def __init__(self, copies: Mapping[str, Tensor]) -> None:
        super().__init__(flatten_state_dict=False)
        self._copies = copies

    def lookup_object(self, index: MetadataIndex) -> Tensor:
        return self._copies[index.fqn]


@dataclasses.dataclass(frozen=True)
class Part:
    """This rank's part of a set of tensors, on the CPU and apart from training."""

    plans: list[SavePlan]
    copies: dict[str, Tensor]

    def write(self, directory: Path) -> None:
        """Write `shard-RANK-...safetensors` into an existing folder; no file when this rank has no part."""
        writer = HuggingFaceStorageWriter(str(directory), save_distributed=True)
        writer.set_up_storage_writer(is_coordinator=rank() == 0)
        planner = _Copies(self.copies)
        plan = planner.finish_plan(writer.prepare_global_plan(self.plans)[rank()])
        writer.write_data(plan, planner).wait()

    @staticmethod
    def is_of(file: Path, number: int) -> bool:
        """Whether a file is the part that this rank wrote."""
        return file.name.startswith(f"shard-{number + 1:05d}-")


def take_part(tensors: Mapping[str, Tensor]) -> Part:
    """Copy what this rank will write of `tensors`; all ranks together, with the same names in the same order."""
    planner = DefaultSavePlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(tensors), is_coordinator=rank() == 0)
    # Every rank makes the global plan from the same parts, so that it need not be sent around.
    plans, _ = planner.create_global_plan(gather_objects(planner.create_local_plan()))
    copies: dict[str, Tensor] = {}
    for item in plans[rank()].items:
        tensor = tensors[item.index.fqn].detach()
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        # Contiguous, as safetensors must be; a clone, for the optimiser writes into the original.
        copies[item.index.fqn] = local.to("cpu", copy=True, memory_format=torch.contiguous_format)
    return Part(plans, copies)


def stored_tensors(directory: Path) -> dict[str, tuple[torch.Size, torch.dtype]]:
    """Shape and dtype of every tensor in a folder of parts, read from the headers.

    Raises:
        ValueError: no parts, damaged headers, or parts that do not make up the whole.
    """
    return {name: (entry.size, entry.properties.dtype) for name, entry in _entries(_metadata(directory)).items()}


def read_parts(directory: Path, into: Mapping[str, Tensor]) -> None:
    """Fill `into` in place, each rank with its own slices; nothing is communicated.

    Raises:
        ValueError: see `stored_tensors`; a tensor that is absent or of another shape.
    """
    metadata = _metadata(directory)
    stored = _entries(metadata)
    for name, tensor in into.items():
        if name not in stored:
            raise ValueError(f"{directory}: holds no {name}")
        if stored[name].size != tensor.shape:
            raise ValueError(f"{directory}: {name} is {tuple(stored[name].size)}, expected {tuple(tensor.shape)}")
    reader = HuggingFaceStorageReader(str(directory))
    planner = DefaultLoadPlanner(flatten_state_dict=False)
    planner.set_up_planner(dict(into), metadata, is_coordinator=rank() == 0)
    reader.set_up_storage_reader(metadata, is_coordinator=rank() == 0)
    plan = planner.create_global_plan([planner.create_local_plan()])[0]
    reader.read_data(planner.finish_plan(plan), planner).wait()


def _metadata(directory: Path) -> Metadata:
    from safetensors import SafetensorError

    try:
        return HuggingFaceStorageReader(str(directory)).read_metadata()
    except (OSError, SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{directory}: damaged, or no parts written by clip-med: {error!r}") from error


def _entries(metadata: Metadata) -> dict[str, TensorStorageMetadata]:
    entries: dict[str, TensorStorageMetadata] = {}
    for name, entry in metadata.state_dict_metadata.items():
        assert isinstance(entry, TensorStorageMetadata), "safetensors hold nothing else"
        held = sum(math.prod(chunk.sizes) for chunk in entry.chunks)
        if held != math.prod(entry.size):
            raise ValueError(f"the parts of {name} hold {held} values of {math.prod(entry.size)}; one is missing")
        entries[name] = entry
    return entries


__all__ = ["Part", "read_parts", "stored_tensors", "take_part"]
