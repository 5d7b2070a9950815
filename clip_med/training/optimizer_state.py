"""The optimiser's tensors under the names of the parameters that they belong to."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from clip_med.training.tensor_parts import read_parts, stored_tensors

PREFIX: Final = "optimizer/"


def optimizer_tensors(optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The live tensors of the optimiser as `optimizer/PARAMETER/FIELD`, in the order of `parameters`.

    Args:
        parameters: what the optimiser trains (and possibly more), by name.
    """
    return {
        f"{PREFIX}{name}/{field}": value
        for name, parameter in parameters.items()
        for field, value in optimizer.state.get(parameter, {}).items()
    }


def restore_optimizer(directory: Path, optimizer: torch.optim.Optimizer, parameters: Mapping[str, Tensor]) -> None:
    """Replace the optimiser's tensors by those in a folder of parts, sharded as the parameters are here.

    Raises:
        ValueError: state of a parameter that is not trained here or has another shape; damaged files.
    """
    groups = {parameter: group for group in optimizer.param_groups for parameter in group["params"]}
    restored: dict[str, Tensor] = {}
    state: dict[Tensor, dict[str, Tensor]] = {}
    for key, (shape, dtype) in stored_tensors(directory).items():
        if not key.startswith(PREFIX):
            continue
        name, _, field = key.removeprefix(PREFIX).rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or parameter not in groups:
            raise ValueError(f"{directory}: holds optimiser state for {name}, which is not trained here")
        group = groups[parameter]
        if field == "step" and not shape:
            # Adam's counter stays on the CPU, as the optimiser itself keeps it, unless its kernel reads it.
            on_device = group.get("fused") or group.get("capturable")
            value = torch.zeros((), dtype=dtype, device=parameter.device if on_device else "cpu")
        else:
            value = torch.zeros_like(parameter, dtype=dtype, requires_grad=False)
        restored[key] = state.setdefault(parameter, {})[field] = value
    read_parts(directory, restored)
    optimizer.state.clear()
    optimizer.state.update(state)


__all__ = ["optimizer_tensors", "restore_optimizer"]
