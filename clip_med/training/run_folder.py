"""The run folder: one run at a time, one configuration, one record of what happened."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

import torch

from clip_med.config import ConfigError, config_hash, dump_yaml, to_plain
from clip_med.data.shard_index import write_atomically
from clip_med.distributed import gather_objects, rank, world_size
from clip_med.training.checkpoint import sorted_checkpoints

_PACKAGES: Final = (
    "clip-med",
    "torchvision",
    "open_clip_torch",
    "timm",
    "transformers",
    "numpy",
    "simplejpeg",
)

# What the batch system looks for when a run has ended: exit code 0 alone does not say that work is left.
REQUEUE: Final = "requeue.json"

# Settings that change neither weights nor the sequence of samples: they may differ when a run is continued. How the
# model lies on the ranks changes the order of sums, as their number does.
_FREE: Final = frozenset(
    {
        "loader.workers",
        "loader.prefetch",
        "train.ema.use_for_eval",
        "train.parallel.kind",
        "train.parallel.reshard_after_forward",
        "train.parallel.timeout_seconds",
        "train.log_every_steps",
        "train.save_every_samples",
        "train.eval_every_samples",
        "train.keep",
        "train.async_checkpoint",
        "train.max_failed_saves",
        "train.max_bad_steps",
        "train.time_limit_minutes",
        "train.watchdog_seconds",
        "train.tensorboard",
    }
)
# Where checkpoints lie decides what a run that goes back goes back to.
_SCHEDULE: Final = frozenset({"train.save_every_samples", "train.eval_every_samples"})
# Where the data lie and how they are mixed: what matters of it is in the digests that the loader compares.
_DATA: Final = ("shards", "sources", "mixture", "window_shards", "remote")


class RunFolder:
    """A run's directory, locked while open so that two processes cannot write one run.

    Opened by every rank; only rank 0 writes. Holds `config.yaml` (resolved), `environment.json` (one entry for each
    start), `metrics.jsonl`, `checkpoints/step_N/` and `latest.json`; and `requeue.json` while the run waits to be
    started again.

    Args:
        path: created if needed.
        config: the resolved configuration; a folder that holds another one is refused.

    Raises:
        ValueError: another process has the run open.
        ConfigError: the folder belongs to a run with other settings; names the first that differ.
    """

    def __init__(self, path: Path, config: Any) -> None:
        self.path = path
        self.config = config
        self.config_hash = config_hash(config)
        self.writes = rank() == 0
        self.opened = time.monotonic()
        self._lock: IO[str] | None = None

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """Folder of the checkpoint after `step` steps."""
        return self.checkpoints / f"step_{step:08d}"

    @property
    def metrics(self) -> Path:
        """File of the metrics, one JSON object per line."""
        return self.path / "metrics.jsonl"

    def __enter__(self) -> RunFolder:
        fault = None
        if self.writes:
            try:
                self._open()
            except (ValueError, OSError) as error:
                fault = error
        # All ranks refuse what rank 0 does: they would wait for it otherwise.
        said = gather_objects(None if fault is None else str(fault))[0]
        if isinstance(fault, OSError):
            raise ValueError(f"{self.path}: cannot be written: {fault}") from fault
        if fault is not None:
            raise fault
        if said is not None:
            raise ValueError(f"rank 0: {said}")
        return self

    def _open(self) -> None:
        self.checkpoints.mkdir(parents=True, exist_ok=True)
        self._lock = (self.path / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise ValueError(f"{self.path}: another process is writing this run; wait for it or choose --run") from None
        try:
            self._clear_leftovers()
            self._check_config()
            (self.path / REQUEUE).unlink(missing_ok=True)
            self._record_start()
        except BaseException:
            self._lock.close()
            raise

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._lock is not None:
            self._lock.close()

    def accept(self) -> None:
        """Keep this start's configuration: it continues what is in the folder, or begins it."""
        if self.writes:
            write_atomically(self.path / "config.yaml", dump_yaml(self.config))

    def ask_for_requeue(self, *, step: int, samples: int, reason: str) -> None:
        """Leave word that the run is saved and unfinished, and wants to be started again; the next start removes it."""
        if self.writes:
            document = {"step": step, "samples": samples, "reason": reason}
            write_atomically(self.path / REQUEUE, json.dumps(document) + "\n")

    def _clear_leftovers(self) -> None:
        """Remove what writes that were killed left behind; nobody else writes here, for the lock is ours."""
        for leftover in [*self.path.glob("*.tmp-*"), *self.checkpoints.glob("*.tmp-*")]:
            if leftover.is_dir():
                shutil.rmtree(leftover)
            else:
                leftover.unlink()

    def _check_config(self) -> None:
        import yaml

        file = self.path / "config.yaml"
        # Before the first checkpoint there is nothing that another configuration could continue wrongly.
        if file.exists() and sorted_checkpoints(self.checkpoints):
            ours, theirs = _flat(to_plain(self.config)), _flat(yaml.safe_load(file.read_text(encoding="utf-8")))
            goes_back = "rewind" in (ours.get("train.on_nonfinite"), ours.get("train.on_spike"))
            free = _FREE - _SCHEDULE if goes_back else _FREE
            different = [
                f"{key}: {theirs.get(key)!r} there, {ours.get(key)!r} here"
                for key in sorted(ours.keys() | theirs.keys())
                if key not in free and key.split(".")[0] not in _DATA and ours.get(key) != theirs.get(key)
            ]
            if different:
                raise ConfigError(
                    f"{file}: the run was started with other settings ({'; '.join(different[:3])}"
                    f"{f'; and {len(different) - 3} more' if len(different) > 3 else ''}); "
                    "repeat them to continue it, or choose another --run"
                )
        else:
            self.accept()

    def _record_start(self) -> None:
        file = self.path / "environment.json"
        starts = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        starts.append({**environment(), "config_hash": self.config_hash, "world_size": world_size()})
        write_atomically(file, json.dumps(starts, indent=1) + "\n")


def environment() -> dict[str, Any]:
    """What a number depends on besides the configuration: code, library versions and hardware. No host or user name."""
    versions: dict[str, str] = {"torch": torch.__version__}
    for name in _PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "git": _git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "cpus": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "devices": devices,
    }


def _git_revision() -> str:
    """Revision of the checkout that this code runs from, marked when it has changes; "unknown" for a wheel."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return "unknown"
    try:
        revision = subprocess.run(
            ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return f"unknown ({type(error).__name__})"
    return revision.stdout.strip()


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    """Nested mappings as one with dotted keys."""
    if not isinstance(values, Mapping):
        return {prefix: values}
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


__all__ = ["REQUEUE", "RunFolder", "environment"]
