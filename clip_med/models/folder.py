"""Building dual encoders, and model folders that open_clip reads and writes too."""

from __future__ import annotations

import copy
import functools
import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_med.data.images import Preprocess
from clip_med.distributed import whole
from clip_med.models.config import FolderModel, ModelConfig, OpenClipModel, ResNetModel, TwoTowerModel, ViTModel
from clip_med.models.construct import construct
from clip_med.models.context import extend_context
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.hf_encoder import is_hf_folder, load_hf_folder
from clip_med.models.knowledge_heads import drop_heads, head_tensors, load_heads, save_heads
from clip_med.models.lora import adapter_tensors, merged_state, save_adapters
from clip_med.models.open_clip_names import is_named, named, open_clip_encoder
from clip_med.models.two_tower import two_tower
from clip_med.models.weights import PICKLED_NAME, WEIGHTS_NAMES, load_weights

CONFIG_NAME = "open_clip_config.json"
# open_clip's own way of naming a model on the Hugging Face hub.
HUB = "hf-hub:"


def build_model(config: ModelConfig) -> DualEncoder:
    """The dual encoder of a configuration.

    Raises:
        ValueError: an unknown architecture (naming the nearest), or a folder that is incomplete.
    """
    match config:
        case OpenClipModel():
            return open_clip_encoder(config)
        case ViTModel() | ResNetModel():
            model_cfg = config.model_cfg()
            tokenizer = _clip_tokenizer(config.context_length)
            return DualEncoder(construct(model_cfg), model_cfg, Preprocess(size=config.image_size), tokenizer)
        case TwoTowerModel():
            return two_tower(config)
        case FolderModel():
            encoder = load_folder(resolve_folder(config.path))
            # The towers go on; what trains beside them is made anew from the configuration.
            drop_heads(encoder)
            if config.context_length is None:
                return encoder
            return extend_context(encoder, config.context_length, keep=config.keep_positions)


@functools.cache
def _clip_tokenizer(context_length: int) -> Any:
    """CLIP's own tokenizer; reading its 49,000 words takes 0.15 s, and it is never changed."""
    import open_clip

    return open_clip.SimpleTokenizer(context_length=context_length)


@dataclass(frozen=True)
class FolderTensors:
    """What the safetensors of a model folder hold: contiguous copies on the CPU."""

    weights: dict[str, Tensor]
    adapters: dict[str, Tensor]
    heads: dict[str, Tensor]


def folder_tensors(encoder: DualEncoder, *, keep: bool = True) -> FolderTensors:
    """Copy a model's tensors; of a sharded model, all ranks together.

    Args:
        keep: False only takes part in putting shards together and returns nothing.
    """

    def copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        copied: dict[str, Tensor] = {}
        for name, tensor in tensors.items():
            complete = whole(tensor)
            if keep:
                # Copies: tensors that share memory are refused by safetensors, and training goes on writing to these.
                copied[name] = complete.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
        return copied

    adapters = adapter_tensors(encoder) if encoder.lora is not None else {}
    return FolderTensors(
        weights=copies(merged_state(encoder.clip)), adapters=copies(adapters), heads=copies(head_tensors(encoder))
    )


def save_folder(
    encoder: DualEncoder,
    directory: Path,
    *,
    tensors: FolderTensors | None = None,
    described_as: Path | None = None,
) -> None:
    """Write a model folder that `load_folder` and open_clip's `local-dir:` schema read; committed by a rename.

    A Hugging Face text tower is described by its absolute folder, since open_clip resolves it by path: after moving
    such a folder, `load_folder` still reads it, and `relocate` mends it for open_clip.

    Of a model with adapters the weights are merged, and the adapters lie beside them (`clip_med.models.lora`); so do
    its knowledge heads (`clip_med.models.knowledge_heads`).

    Args:
        tensors: what `folder_tensors` gave earlier; None takes it now.
        described_as: where the folder will be once its parent has been renamed.

    Raises:
        ValueError: the directory exists.
    """
    from safetensors.torch import save_file

    if directory.exists():
        raise ValueError(f"{directory}: exists; a model is written to a new folder")
    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    model_cfg = copy.deepcopy(encoder.model_cfg)
    if encoder.text_tower.is_hf:
        encoder.text_tower.module.config.save_pretrained(temporary)
        encoder.tokenizer.save_pretrained(temporary)  # type: ignore[attr-defined]
        _point_text_tower_at(described_as or directory, model_cfg)
    document = {"model_cfg": model_cfg, "preprocess_cfg": encoder.preprocess.to_open_clip()}
    (temporary / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    tensors = tensors or folder_tensors(encoder)
    save_file(tensors.weights, temporary / WEIGHTS_NAMES[0])
    if encoder.lora is not None:
        save_adapters(encoder, temporary, tensors.adapters)
    save_heads(encoder, temporary, tensors.heads)
    os.rename(temporary, directory)


def load_folder(directory: Path) -> DualEncoder:
    """Read a model folder, offline and strictly: no missing and no unexpected weights, no code of a pickle.

    A folder of transformers (CLIP, SigLIP and their kin) gives an `HFEncoder`, which encodes and does not train;
    open_clip:NAME:WEIGHTS the model of that name.

    Raises:
        ValueError: no configuration or no weights; weights that do not fit, naming them.
    """
    import open_clip

    if is_named(directory):
        return open_clip_encoder(named(directory))
    if not (directory / CONFIG_NAME).is_file() and is_hf_folder(directory):
        return load_hf_folder(directory)
    document = _read_config(directory)
    model_cfg = document["model_cfg"]
    if "hf_model_name" in model_cfg["text_cfg"] and (directory / "config.json").is_file():
        _point_text_tower_at(directory, model_cfg)
    clip = construct(model_cfg)
    load_weights(clip, directory)
    preprocess = Preprocess.from_open_clip(document.get("preprocess_cfg", {}))
    encoder = DualEncoder(clip, model_cfg, preprocess, open_clip.get_tokenizer(f"local-dir:{directory}"))
    load_heads(encoder, directory)
    return encoder


def resolve_folder(path: Path) -> Path:
    """The model folder of a run (where its `latest.json` points) or of a checkpoint, or the path itself if it is one.

    `hf-hub:OWNER/NAME` is a model on the Hugging Face hub, in its local cache after the first time;
    `open_clip:NAME:WEIGHTS` (`clip_med.models.open_clip_names`) stays as it is.

    Raises:
        ValueError: none of these, a run without a checkpoint, or a `latest.json` that points to no model; a model that
            the hub does not have or that cannot be reached.
    """
    if is_named(path):
        return path
    if str(path).startswith(HUB):
        path = _from_hub(str(path).removeprefix(HUB))
    for folder in (path, path / "model"):
        if (folder / CONFIG_NAME).is_file() or is_hf_folder(folder):
            return folder
    latest = path / "latest.json"
    if not latest.is_file():
        reason = (
            "holds no checkpoint yet" if (path / "config.yaml").is_file() else "is neither a run nor a model folder"
        )
        raise ValueError(f"{path}: {reason}; expected latest.json (a run) or {CONFIG_NAME} (a model)")
    try:
        folder = path / json.loads(latest.read_text(encoding="utf-8"))["checkpoint"] / "model"
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{latest}: damaged; expected {{"checkpoint": "checkpoints/step_N"}}') from error
    if not (folder / CONFIG_NAME).is_file():
        raise ValueError(f"{latest}: points to {folder}, which is no model folder (it has no {CONFIG_NAME})")
    return folder


def is_name(path: Path) -> bool:
    """Whether a model is named and not a path: hf-hub:OWNER/NAME or open_clip:NAME:WEIGHTS."""
    return str(path).startswith(HUB) or is_named(path)


def _from_hub(name: str) -> Path:
    """The folder of a model of the hub, in the local cache."""
    from huggingface_hub import snapshot_download

    # Configurations, tokenizers and weights; pickled ones only where there are no others.
    plain = ["*.json", "*.txt", "*.model", "*.safetensors"]
    try:
        folder = Path(snapshot_download(name, allow_patterns=plain))
        if any((folder / weights).is_file() for weights in WEIGHTS_NAMES):
            return folder
        return Path(snapshot_download(name, allow_patterns=[*plain, PICKLED_NAME]))
    except (OSError, ValueError) as error:
        raise ValueError(f"{HUB}{name}: cannot be taken from the Hugging Face hub: {error}") from error


def relocate(directory: Path) -> None:
    """Rewrite the absolute path that a moved folder with a Hugging Face text tower holds, for open_clip's sake."""
    document = _read_config(directory)
    if "hf_model_name" in document["model_cfg"]["text_cfg"]:
        _point_text_tower_at(directory, document["model_cfg"])
        (directory / CONFIG_NAME).write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def _point_text_tower_at(directory: Path, model_cfg: dict[str, Any]) -> None:
    path = str(directory.resolve())
    model_cfg["text_cfg"] |= {"hf_model_name": path, "hf_tokenizer_name": path}


def _read_config(directory: Path) -> dict[str, Any]:
    path = directory / CONFIG_NAME
    if not path.is_file():
        raise ValueError(f"{path}: no such file; expected a model folder as written by clip-med or open_clip")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(f"{path}: damaged: {error}") from error
    if not isinstance(document, dict) or "text_cfg" not in document.get("model_cfg", {}):
        raise ValueError(f"{path}: has no model_cfg with a text_cfg")
    return document


__all__ = ["build_model", "is_name", "load_folder", "relocate", "resolve_folder", "save_folder"]
