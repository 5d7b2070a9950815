"""Where a run stands: it goes on from its newest checkpoint, saves, and goes back when a step was bad."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import torch
from torch import Tensor

from clip_med.data.loader import TrainLoader
from clip_med.distributed import gather_objects
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.bad_steps import BadSteps
from clip_med.training.checkpoint import CheckpointError, load_checkpoint, newest_intact, step_of, write_latest
from clip_med.training.config import TrainConfig
from clip_med.training.run_folder import RunFolder
from clip_med.training.saving import Saver

log = logging.getLogger(__name__)


class Progress:
    """Counts steps; all that a checkpoint holds passes through here.

    A run that goes back (`rewind`) takes the weights of the last checkpoint of its schedule, never of one that a signal
    caused: where it goes is then a function of the step alone, and a continued run goes where the unbroken one does.

    Args:
        extra: further tensors to restore, see `load_checkpoint`.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        optimizer: torch.optim.Optimizer,
        loader: TrainLoader,
        run: RunFolder,
        config: TrainConfig,
        bad_steps: BadSteps,
        *,
        total_steps: int,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        self._encoder, self._optimizer, self._loader = encoder, optimizer, loader
        self._run, self._config, self._bad_steps, self._total = run, config, bad_steps, total_steps
        self._extra = extra
        self._goes_back = "rewind" in (config.on_nonfinite, config.on_spike)
        self._scheduled = 0
        self.step = 0

    def resume(self, *, allow_data_change: bool) -> None:
        """Load the newest intact checkpoint, if any, on all ranks.

        Raises:
            CheckpointError: there are checkpoints and none is intact, or it is of another model.
        """
        step = self._newest()
        if step is None:
            return
        state = load_checkpoint(self._run.checkpoint(step), self._encoder, self._optimizer, self._extra)
        self._loader.load_state_dict(state["loader"], allow_data_change=allow_data_change)
        self._bad_steps.load_state_dict(state["bad_steps"])
        self._run.accept()
        self.step, self._scheduled = step, state["scheduled"]
        if self._run.writes:
            # It may name a checkpoint that has been damaged since.
            directory = self._run.checkpoint(step)
            write_latest(self._run.path, directory, step=step, samples=state["samples"], finished=state["finished"])
            log.info("continuing from %s", directory)

    def begin(self, saver: Saver) -> None:
        """Before the first step: save what a run that goes back would go back to."""
        if self._goes_back and self.step == 0:
            self.save(saver, scheduled=True, last=False)

    def save(self, saver: Saver, *, scheduled: bool, last: bool) -> None:
        """Write a checkpoint of this step; see `Saver.save`."""
        before = self._scheduled
        if scheduled:
            self._scheduled = self.step
        state = {
            "step": self.step,
            "samples": self.step * self._config.batch_size,
            "finished": self.step == self._total,
            "scheduled": self._scheduled,
            "loader": self._loader.state_dict(),
            "bad_steps": self._bad_steps.state_dict(),
            "config_hash": self._run.config_hash,
        }
        saver.save(state, last=last, protect=self._run.checkpoint(before) if self._goes_back else None)

    def go_back(self, saver: Saver) -> int:
        """Weights and optimiser of the last scheduled checkpoint, at the place where the run is; and save that.

        Returns the step of that checkpoint.

        Raises:
            CheckpointError: no such checkpoint is intact.
        """
        saver.wait()
        step = self._newest(at_most=self._scheduled)
        if step is None:
            raise CheckpointError(f"{self._run.checkpoints}: no checkpoint to go back to")
        load_checkpoint(self._run.checkpoint(step), self._encoder, self._optimizer, self._extra)
        self._bad_steps.rewinds.append([step, self.step])
        self.save(saver, scheduled=True, last=False)
        return step

    def _newest(self, at_most: int | None = None) -> int | None:
        """The step of the newest intact checkpoint as rank 0 finds it; all ranks raise what it raises."""
        step, fault = None, None
        if self._run.writes:
            try:
                directory = newest_intact(self._run.checkpoints, at_most)
                step = None if directory is None else step_of(directory)
            except CheckpointError as error:
                fault = str(error)
        step, fault = gather_objects((step, fault))[0]
        if fault is not None:
            raise CheckpointError(fault)
        return step


__all__ = ["Progress"]
