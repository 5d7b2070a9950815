"""When checkpoints are written, while training goes on or not, and what becomes of a save that fails."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from clip_med.distributed import gather_objects, world_size
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.checkpoint import (
    CheckpointError,
    SaveError,
    Snapshot,
    prune,
    take_snapshot,
    write_checkpoint,
    write_latest,
)
from clip_med.training.config import TrainConfig
from clip_med.training.metrics_log import MetricsLog
from clip_med.training.run_folder import RunFolder

log = logging.getLogger(__name__)


class Saver:
    """Writes the checkpoints of a run, all ranks together and one at a time.

    A save is a snapshot on the CPU, then the writing: with `async_checkpoint` in a thread, over process groups of its
    own, so that its messages never mix with those of training. `latest.json` moves and older checkpoints go only once
    every rank's part is committed. A save that fails is a warning and a line in the log until `max_failed_saves` in a
    row have; the checkpoints before it stand.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        optimizer: torch.optim.Optimizer,
        run: RunFolder,
        config: TrainConfig,
        *,
        metrics: MetricsLog | None,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._encoder, self._optimizer, self._run, self._config = encoder, optimizer, run, config
        self._metrics, self._extra = metrics, extra
        self.seconds = 0.0
        """The longest that a save has taken."""
        self._failed = 0
        self._step = 0
        self._pending: Future[float] | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        # One for the thread, one to ask whether all threads are done; on CPUs, whatever training uses.
        self._files, self._word = _group(), _group()

    def save(self, state: Mapping[str, Any], *, last: bool, protect: Path | None = None) -> None:
        """Save `state` (with `step`, `samples`, `finished`) and all tensors; waits for the save before this one.

        Args:
            last: nothing follows: the save is waited for, and must succeed.
            protect: a checkpoint that stays when older ones are deleted.

        Raises:
            SaveError: on all ranks: `max_failed_saves` in a row have failed, or the last save has.
        """
        self.wait()
        began = time.monotonic()
        snapshot = take_snapshot(self._encoder, self._optimizer, state, self._extra)
        self._step = int(state["step"])
        self._pending = self._thread.submit(self._write, snapshot, dict(state), protect, began)
        if last or not self._config.async_checkpoint:
            self.wait(last=last)

    def poll(self) -> None:
        """At the end of a step: take note of a save that has ended on all ranks.

        Raises:
            SaveError: see `save`.
        """
        if self._pending is not None and all(gather_objects(self._pending.done(), self._word)):
            self.wait()

    def wait(self, *, last: bool = False) -> None:
        """Wait for the save in flight, if any.

        Raises:
            SaveError: see `save`.
        """
        if self._pending is None:
            return
        pending, self._pending = self._pending, None
        try:
            self.seconds = max(self.seconds, pending.result())
        except SaveError as error:
            self._failed += 1
            log.warning("step %d: checkpoint not written (%d in a row): %s", self._step, self._failed, error)
            if self._metrics is not None:
                self._metrics.write({"step": self._step, "failed_saves": self._failed, "error": str(error)})
            if last or self._failed >= self._config.max_failed_saves:
                raise SaveError(
                    f"step {self._step}: checkpoint not written, {self._failed} in a row: {error}; older ones stand: "
                    "make room or mend the folder, then repeat the command to continue"
                ) from error
        else:
            self._failed = 0

    def close(self) -> None:
        """Let the save in flight end; what becomes of it no longer matters to this process."""
        self._thread.shutdown(wait=True)

    def _write(self, snapshot: Snapshot, state: Mapping[str, Any], protect: Path | None, began: float) -> float:
        """Write, commit, point `latest.json` there, delete older ones; returns the seconds since `began`."""
        run, step = self._run, int(state["step"])
        directory = run.checkpoint(step)
        write_checkpoint(directory, self._encoder, snapshot, self._files)
        fault = None
        if run.writes:
            try:
                write_latest(run.path, directory, step=step, samples=state["samples"], finished=state["finished"])
                prune(run.checkpoints, self._config.keep, newest=directory, protect=protect)
            except (OSError, CheckpointError) as error:
                fault = f"rank 0: {error}"
        fault = gather_objects(fault, self._files)[0]
        if fault is not None:
            raise SaveError(fault)
        return time.monotonic() - began


def _group() -> dist.ProcessGroup | None:
    """Another group of all ranks, or None for a single process."""
    if world_size() == 1:
        return None
    group = dist.new_group(backend="gloo")
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


__all__ = ["Saver"]
