"""Checkpoints that survive a kill at any moment: a new folder each, digests, commit by rename, fall-back on damage.

A checkpoint `step_N/` holds `model/` (a model folder that open_clip reads), `optimizer.safetensors`, `state.json` and
`manifest.json` with the size and SHA-256 of every other file. It is written under a temporary name, flushed to disk
and renamed, so a folder named `step_N` is complete; the digests find what happens to it afterwards. No file is pickled.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from clip_med.data.shard_index import write_atomically
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import load_weights, save_folder
from clip_med.models.lora import load_adapters

log = logging.getLogger(__name__)

MANIFEST = "manifest.json"


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another run; the message names the file and what is wrong."""


def save_checkpoint(
    directory: Path, encoder: DualEncoder, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]
) -> None:
    """Write one checkpoint and commit it; an intact one of that name is left alone, a damaged one is replaced."""
    if directory.exists():
        try:
            verify_checkpoint(directory)
            return
        except CheckpointError as error:
            log.warning("replacing a damaged checkpoint: %s", error)
    from safetensors.torch import save_file

    temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    save_folder(encoder, temporary / "model", described_as=directory / "model")
    save_file(_optimizer_tensors(encoder, optimizer), temporary / "optimizer.safetensors")
    (temporary / "state.json").write_text(json.dumps(dict(state), indent=1, sort_keys=True) + "\n", encoding="utf-8")
    files = sorted(path for path in temporary.rglob("*") if path.is_file())
    manifest = {
        str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": _digest(path)} for path in files
    }
    (temporary / MANIFEST).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in [*files, temporary / MANIFEST, temporary / "model", temporary]:
        _flush(path)
    if directory.exists():
        shutil.rmtree(directory)
    os.rename(temporary, directory)
    _flush(directory.parent)


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with the manifest.

    Raises:
        CheckpointError: a file that is missing, unexpected or changed.
    """
    path = directory / MANIFEST
    try:
        manifest: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error!r})") from error
    present = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()} - {MANIFEST}
    if present != set(expected):
        raise CheckpointError(
            f"{directory}: missing {sorted(set(expected) - present)}, unexpected {sorted(present - set(expected))}"
        )
    for name, (size, sha256) in expected.items():
        file = directory / name
        if file.stat().st_size != size or _digest(file) != sha256:
            raise CheckpointError(f"{file}: damaged (size or SHA-256 differs from {MANIFEST})")


def newest_intact(checkpoints: Path) -> Path | None:
    """The checkpoint with the highest step whose files are all as they were written; None when there is none at all.

    Each damaged one that is passed over is logged as a warning.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = sorted_checkpoints(checkpoints)
    faults: list[str] = []
    for directory in reversed(found):
        try:
            verify_checkpoint(directory)
        except CheckpointError as error:
            log.warning("passing over a damaged checkpoint: %s", error)
            faults.append(str(error))
        else:
            return directory
    if faults:
        raise CheckpointError(f"{checkpoints}: none of {len(faults)} checkpoint(s) is intact: {faults[0]}")
    return None


def load_checkpoint(directory: Path, encoder: DualEncoder, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Restore weights and optimiser from a verified checkpoint; returns its `state`.

    Raises:
        CheckpointError: it belongs to another model or to other trainable parameters.
    """
    from safetensors.torch import load_file

    try:
        load_weights(encoder.clip, directory / "model")
        if encoder.lora is not None:
            load_adapters(encoder, directory / "model")
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    parameters = dict(encoder.clip.named_parameters())
    optimizer.state.clear()
    for key, tensor in load_file(directory / "optimizer.safetensors").items():
        name, _, field = key.rpartition("/")
        parameter = parameters.get(name)
        if parameter is None or not parameter.requires_grad:
            raise CheckpointError(f"{directory}: holds optimiser state for {name}, which is not trained here")
        # In the memory layout of the parameter, which the fused optimiser takes for granted.
        like = torch.zeros((), device=parameter.device) if tensor.ndim == 0 else torch.empty_like(parameter)
        optimizer.state[parameter][field] = like.detach().copy_(tensor)
    return json.loads((directory / "state.json").read_text(encoding="utf-8"))


def sorted_checkpoints(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, by step."""
    found = [path for path in checkpoints.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=lambda path: int(path.name.removeprefix("step_")))


def prune(checkpoints: Path, keep: int) -> None:
    """Delete all but the `keep` checkpoints with the highest steps."""
    for directory in sorted_checkpoints(checkpoints)[:-keep]:
        # First out of the namespace: a half-deleted folder must not look like a damaged checkpoint.
        doomed = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
        os.rename(directory, doomed)
        shutil.rmtree(doomed)


def write_latest(run: Path, checkpoint: Path, *, step: int, samples: int, finished: bool) -> None:
    """Point `latest.json` at a committed checkpoint; readers of a run follow it."""
    document = {
        "checkpoint": str(checkpoint.relative_to(run)),
        "step": step,
        "samples": samples,
        "finished": finished,
    }
    write_atomically(run / "latest.json", json.dumps(document, indent=1) + "\n")


def _optimizer_tensors(encoder: DualEncoder, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    names = {id(parameter): name for name, parameter in encoder.clip.named_parameters()}
    return {
        f"{names[id(parameter)]}/{field}": value.detach().cpu().clone().contiguous()
        for parameter, fields in optimizer.state.items()
        for field, value in fields.items()
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Force a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "CheckpointError",
    "load_checkpoint",
    "newest_intact",
    "prune",
    "save_checkpoint",
    "sorted_checkpoints",
    "verify_checkpoint",
    "write_latest",
]
