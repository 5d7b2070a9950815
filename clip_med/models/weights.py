"""The weights of a model folder: read strictly, and nothing of a pickle but tensors."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import torch
from torch import Tensor, nn

from clip_med.distributed import placed_like
from clip_med.models.lora import merged_state

WEIGHTS_NAMES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "model.safetensors")
# What open_clip wrote before safetensors, and all that some models of the hub have (BiomedCLIP).
PICKLED_NAME = "open_clip_pytorch_model.bin"


def load_weights(clip: nn.Module, directory: Path) -> None:
    """Read the weights of a model folder into an open_clip model of the same architecture.

    Of a model with adapters the adapted weights and the adapters are left as they are: see `load_adapters`.

    Raises:
        ValueError: no weights, damaged ones, or weights that do not fit, naming them.
    """
    names = (*WEIGHTS_NAMES, PICKLED_NAME)
    found = [directory / name for name in names if (directory / name).is_file()]
    if not found:
        raise ValueError(f"{directory}: no weights; expected one of {', '.join(names)}")
    weights = _read_weights(found[0])
    # Written by transformers before 4.31, and never a weight.
    weights.pop("text.transformer.embeddings.position_ids", None)
    own = merged_state(clip)
    wrong = [f"{name} {tuple(w.shape)}" for name, w in weights.items() if name in own and own[name].shape != w.shape]
    missing, unexpected = sorted(own.keys() - weights.keys()), sorted(weights.keys() - own.keys())
    if missing or unexpected or wrong:
        raise ValueError(
            f"{found[0]}: missing weights {missing[:5]}, unexpected weights {unexpected[:5]}, "
            f"of another shape {wrong[:5]}"
        )
    # Adapted weights keep their base, which the merged ones here do not tell.
    state = clip.state_dict()
    clip.load_state_dict(
        {name: placed_like(weights[name], value) if name in weights else value for name, value in state.items()}
    )


def _read_weights(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if file.name != PICKLED_NAME:
        try:
            return load_file(file)
        except SafetensorError as error:
            raise ValueError(f"{file}: damaged, or no safetensors file: {error}") from error
    try:
        # Reads tensors and plain values; whatever else a pickle asks for is refused, not run. What torch wrote before
        # 1.6 is no archive that could be mapped.
        weights = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{file}: damaged, or more than weights, which is not read: {error}") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise ValueError(f"{file}: expected a dictionary of tensors, as open_clip writes it for the hub")
    return weights


__all__ = ["PICKLED_NAME", "WEIGHTS_NAMES", "load_weights"]
