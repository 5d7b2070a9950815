"""Checkpoints that survive a kill at any moment: a new folder each, digests, commit by rename, fall-back on damage.

A checkpoint `step_N/` holds `model/` (a model folder that open_clip reads, written by rank 0), `state/` (optimiser and
other tensors of training, a part from each rank: see `tensor_parts`), `state.json` and `manifest.json` with the size
and SHA-256 of every other file. It is written under a temporary name, flushed to disk and renamed, so a folder named
`step_N` is complete; the digests find what happens to it afterwards. No file is pickled, and no pickle is read.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from clip_med.data.shard_index import sha256_of, write_atomically
from clip_med.distributed import gather_objects, rank
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import FolderTensors, folder_tensors, save_folder
from clip_med.models.knowledge_heads import head_parameters, load_heads
from clip_med.models.lora import load_adapters
from clip_med.models.weights import load_weights
from clip_med.training.optimizer_state import PREFIX, optimizer_tensors, restore_optimizer
from clip_med.training.tensor_parts import Part, read_parts, take_part

log = logging.getLogger(__name__)

MANIFEST: Final = "manifest.json"
# Files that other tools unpickle, `.metadata` being that of torch.distributed.checkpoint: no checkpoint holds one.
_PICKLES: Final = frozenset({".metadata", ".distcp", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle"})

T = TypeVar("T")


class CheckpointError(ValueError):
    """A checkpoint that is damaged or belongs to another run; the message names the file and what is wrong."""


class SaveError(ValueError):
    """A checkpoint could not be written; the message names the rank and what failed. Older checkpoints stand."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """All that a checkpoint will hold, apart from training: it may be written while training goes on."""

    model: FolderTensors
    """Of the whole model, on rank 0; empty elsewhere."""
    part: Part
    document: str
    """For `state.json`."""


def take_snapshot(
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    state: Mapping[str, Any],
    extra: Mapping[str, Tensor] | None = None,
) -> Snapshot:
    """Copy weights, optimiser state and `extra` tensors to the CPU; all ranks together.

    Args:
        state: plain values; `step` among them.
        extra: further tensors that training needs, by names of their own; `load_checkpoint` fills them in place.
    """
    model = folder_tensors(encoder, keep=rank() == 0)
    parameters = _parameters(encoder)
    assert not any(name.startswith(PREFIX) for name in extra or {})
    part = take_part({**optimizer_tensors(optimizer, parameters), **(extra or {})})
    return Snapshot(model=model, part=part, document=json.dumps(dict(state), indent=1, sort_keys=True) + "\n")


def write_checkpoint(
    directory: Path, encoder: DualEncoder, snapshot: Snapshot, group: dist.ProcessGroup | None = None
) -> None:
    """Write one checkpoint and commit it, all ranks together; an intact one of that name is left alone.

    Args:
        encoder: describes the model; its weights are not read.
        group: of all ranks, over which nothing else is sent meanwhile.

    Raises:
        SaveError: on all ranks, when one of them failed; nothing of the attempt is left if it can be removed.
    """
    temporary = directory.with_name(gather_objects(f"{directory.name}.tmp-{os.getpid()}", group)[0])
    writes = rank() == 0
    if _together(lambda: writes and _is_intact(directory), group)[0]:
        return
    try:
        _together(lambda: _make(temporary) if writes else None, group)
        parts = _together(lambda: _write_files(directory, temporary, encoder, snapshot), group)
        manifest = {name: entry for part in parts for name, entry in part.items()}
        _together(lambda: _commit(directory, temporary, manifest) if writes else None, group)
    except SaveError:
        if writes:
            shutil.rmtree(temporary, ignore_errors=True)
        raise


def _together(work: Callable[[], T], group: dist.ProcessGroup | None) -> list[T]:
    """Do it on all ranks; returns what each got, or raises on all ranks what any could not do.

    An error that is no fault of disk or memory is raised as it is on its own rank; the others hear of it at once
    instead of waiting for their time-out.
    """
    outcome: Any = None
    fault: str | None = None
    unforeseen: Exception | None = None
    try:
        outcome = work()
    except (OSError, SafetensorError, MemoryError) as error:
        fault = f"rank {rank()}: {str(error) or repr(error)}"
    except Exception as error:  # noqa: BLE001 - raised again below
        unforeseen, fault = error, f"rank {rank()}: {error!r}"
    outcomes = gather_objects((outcome, fault), group)
    if unforeseen is not None:
        raise unforeseen
    faults = [fault for _, fault in outcomes if fault is not None]
    if faults:
        raise SaveError("; ".join(faults))
    return [outcome for outcome, _ in outcomes]


def _is_intact(directory: Path) -> bool:
    if not directory.exists():
        return False
    try:
        verify_checkpoint(directory)
    except CheckpointError as error:
        log.warning("replacing a damaged checkpoint: %s", error)
        return False
    return True


def _make(temporary: Path) -> None:
    shutil.rmtree(temporary, ignore_errors=True)
    (temporary / "state").mkdir(parents=True)


def _write_files(
    directory: Path, temporary: Path, encoder: DualEncoder, snapshot: Snapshot
) -> dict[str, dict[str, Any]]:
    """Write and flush this rank's files; returns their sizes and digests."""
    snapshot.part.write(temporary / "state")
    if rank() == 0:
        save_folder(encoder, temporary / "model", tensors=snapshot.model, described_as=directory / "model")
        (temporary / "state.json").write_text(snapshot.document, encoding="utf-8")
    # The others list `state` alone: rank 0 renames the model's folder meanwhile, and what has gone cannot be listed.
    written = temporary if rank() == 0 else temporary / "state"
    files = sorted(
        path
        for path in written.rglob("*")
        if path.is_file() and (path.parent.name != "state" or Part.is_of(path, rank()))
    )
    for path in files:
        _flush(path)
    return {
        str(path.relative_to(temporary)): {"size": path.stat().st_size, "sha256": sha256_of(path)} for path in files
    }


def _commit(directory: Path, temporary: Path, manifest: Mapping[str, Any]) -> None:
    file = temporary / MANIFEST
    file.write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    for path in (file, temporary / "model", temporary / "state", temporary):
        _flush(path)
    if directory.exists():
        shutil.rmtree(directory)
    os.rename(temporary, directory)
    _flush(directory.parent)


def verify_checkpoint(directory: Path) -> None:
    """Compare every file with the manifest, and the step with the folder's name.

    Raises:
        CheckpointError: a file that is missing, unexpected, changed, or of a kind that no checkpoint holds.
    """
    path = directory / MANIFEST
    try:
        manifest: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        expected = {name: (entry["size"], entry["sha256"]) for name, entry in manifest.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error!r})") from error
    present = {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()} - {MANIFEST}
    pickles = sorted(name for name in present if {Path(name).name, Path(name).suffix} & _PICKLES)
    if pickles:
        raise CheckpointError(f"{directory / pickles[0]}: a pickle; checkpoints hold safetensors and JSON only")
    if present != set(expected):
        raise CheckpointError(
            f"{directory}: missing {sorted(set(expected) - present)}, unexpected {sorted(present - set(expected))}"
        )
    for name, (size, sha256) in expected.items():
        file = directory / name
        if file.stat().st_size != size or sha256_of(file) != sha256:
            raise CheckpointError(f"{file}: damaged (size or SHA-256 differs from {MANIFEST})")
    step = _read_state(directory).get("step")
    if step != step_of(directory):
        raise CheckpointError(f"{directory}: is the checkpoint of step {step!r}, under another name")


def newest_intact(checkpoints: Path, at_most: int | None = None) -> Path | None:
    """The checkpoint with the highest step whose files are all as they were written; None when there is none at all.

    `at_most`: only up to this step. Each damaged one that is passed over is logged as a warning.

    Raises:
        CheckpointError: there are checkpoints, and every one is damaged.
    """
    found = [path for path in sorted_checkpoints(checkpoints) if at_most is None or step_of(path) <= at_most]
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


def load_checkpoint(
    directory: Path,
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    extra: Mapping[str, Tensor] | None = None,
) -> dict[str, Any]:
    """Restore weights, optimiser and `extra` from a verified checkpoint, however many ranks wrote it; returns `state`.

    Raises:
        CheckpointError: it belongs to another model or to other trainable parameters.
    """
    try:
        load_weights(encoder.clip, directory / "model")
        if encoder.lora is not None:
            load_adapters(encoder, directory / "model")
        load_heads(encoder, directory / "model")
        restore_optimizer(directory / "state", optimizer, _parameters(encoder))
        read_parts(directory / "state", extra or {})
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return _read_state(directory)


def _parameters(encoder: DualEncoder) -> dict[str, Tensor]:
    return {**dict(encoder.clip.named_parameters()), **head_parameters(encoder)}


def step_of(directory: Path) -> int:
    """The step in the name of a checkpoint."""
    return int(directory.name.removeprefix("step_"))


def sorted_checkpoints(checkpoints: Path) -> list[Path]:
    """The committed checkpoints of a run, by step."""
    found = [path for path in checkpoints.glob("step_*") if path.name.removeprefix("step_").isdigit()]
    return sorted(found, key=step_of)


def prune(checkpoints: Path, keep: int, *, newest: Path, protect: Path | None = None) -> None:
    """Delete what is older than the `keep` checkpoints that end with `newest`, after reading that one back.

    Args:
        newest: the last one written. Those of higher steps are damaged ones that were passed over: they count for
            nothing and are replaced when training comes to them.
        protect: one that stays whatever its age.

    Raises:
        CheckpointError: `newest` is not what was written; nothing is deleted.
    """
    older = [path for path in sorted_checkpoints(checkpoints) if step_of(path) <= step_of(newest)][:-keep]
    doomed = [path for path in older if path != protect]
    if doomed:
        verify_checkpoint(newest)
    for directory in doomed:
        # First out of the namespace: a half-deleted folder must not look like a damaged checkpoint.
        leaving = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
        os.rename(directory, leaving)
        shutil.rmtree(leaving)


def write_latest(run: Path, checkpoint: Path, *, step: int, samples: int, finished: bool) -> None:
    """Point `latest.json` at a committed checkpoint; readers of a run follow it."""
    document = {
        "checkpoint": str(checkpoint.relative_to(run)),
        "step": step,
        "samples": samples,
        "finished": finished,
    }
    write_atomically(run / "latest.json", json.dumps(document, indent=1) + "\n")


def _read_state(directory: Path) -> dict[str, Any]:
    file = directory / "state.json"
    try:
        state = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{file}: missing or damaged ({error!r})") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{file}: expected a JSON object, got {type(state).__name__}")
    return state


def _flush(path: Path) -> None:
    """Force a file or the names in a directory to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


__all__ = [
    "CheckpointError",
    "SaveError",
    "Snapshot",
    "load_checkpoint",
    "newest_intact",
    "prune",
    "sorted_checkpoints",
    "step_of",
    "take_snapshot",
    "verify_checkpoint",
    "write_checkpoint",
    "write_latest",
]
