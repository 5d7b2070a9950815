"""Steps whose loss or gradients are no numbers, or whose loss jumps: told from good ones, and what follows.

The policy is decided from values that all ranks share, and what it needs to know is in every checkpoint: a run that is
killed and continued skips and rewinds where the uninterrupted one does.
"""

from __future__ import annotations

import logging
import statistics
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from torch import Tensor, nn

from clip_med.data.batch import Batch
from clip_med.training.config import TrainConfig
from clip_med.training.step import StepResult, TrainStep
from clip_med.training.watch import NonFiniteError

log = logging.getLogger(__name__)

# A spread below this fraction of the median is taken as this: losses that hardly move would make any change a spike.
_LEAST_SPREAD: Final = 1e-3


class SpikeError(ValueError):
    """The loss has jumped; the message names the step, the loss and what was usual before."""


@dataclass(frozen=True)
class BadStep:
    """A step without an update: what follows, and why."""

    action: Literal["skip", "rewind"]
    reason: str
    stopped: None = None
    """A reason to stop waits for the next good step."""


class SpikeDetector:
    """Tells a loss above median + `deviations` x MAD of the last `window` good losses; silent until it has so many.

    MAD is the median absolute deviation from the median.
    """

    def __init__(self, window: int, deviations: float) -> None:
        self._deviations = deviations
        self.losses: deque[float] = deque(maxlen=window)

    def limit(self) -> float | None:
        """The highest loss that is no spike; None while there are too few losses."""
        if len(self.losses) < (self.losses.maxlen or 0):
            return None
        median = statistics.median(self.losses)
        spread = statistics.median(abs(loss - median) for loss in self.losses)
        return median + self._deviations * max(spread, _LEAST_SPREAD * abs(median))

    def check(self, loss: float, step: int) -> None:
        """Raise SpikeError if this is a spike; `step` counts from 0."""
        limit = self.limit()
        if limit is not None and loss > limit:
            raise SpikeError(
                f"step {step + 1}: the loss is {loss:.4f}, above {limit:.4f} (median of the last {len(self.losses)} "
                f"good steps plus {self._deviations:g} deviations)"
            )


class BadSteps:
    """Decides what follows a bad step, counts, and undoes what the forward pass of a skipped one has done.

    Args:
        model: whose buffers (statistics of normalisation layers) a skipped step must leave as they were.
    """

    def __init__(self, config: TrainConfig, model: nn.Module) -> None:
        self._config, self._model = config, model
        self._spikes = SpikeDetector(config.spike_window, config.spike_deviations)
        self._in_a_row = self.total = 0
        self.rewinds: list[list[int]] = []
        """[step of the checkpoint, first step after the bad one] of each time the run went back."""
        self._buffers: list[tuple[Tensor, Tensor]] = []

    def attempt(
        self, train_step: TrainStep, batch: Batch, step: int, received: Callable[[], str | None]
    ) -> StepResult | BadStep:
        """Gradients and update of a good step, or what follows a bad one.

        Raises:
            NonFiniteError, SpikeError: the policy is to stop, or too many have come in a row.
        """
        if "skip" in (self._config.on_nonfinite, self._config.on_spike):
            self._buffers = [(buffer, buffer.clone()) for buffer in self._model.buffers()]
        try:
            result = train_step.gradients(batch, step, received)
            if self._config.on_spike != "off":
                self._spikes.check(result.loss, step)
        except (NonFiniteError, SpikeError) as error:
            return self._judge(error)
        train_step.update()
        self._in_a_row = 0
        if self._config.on_spike != "off":
            self._spikes.losses.append(result.loss)
        return result

    def _judge(self, error: NonFiniteError | SpikeError) -> BadStep:
        policy = self._config.on_nonfinite if isinstance(error, NonFiniteError) else self._config.on_spike
        self._in_a_row += 1
        self.total += 1
        if policy not in ("skip", "rewind"):
            raise error
        if self._in_a_row > self._config.max_bad_steps:
            raise type(error)(f"{error}; {self._in_a_row} bad steps in a row (max_bad_steps)") from error
        log.warning("%s: %s", "skipped" if policy == "skip" else "going back to the last checkpoint", error)
        if policy == "skip":
            with torch.no_grad():
                for buffer, before in self._buffers:
                    buffer.copy_(before)
        return BadStep(policy, str(error))

    def state_dict(self) -> dict[str, Any]:
        """Plain values for a checkpoint."""
        return {
            "losses": list(self._spikes.losses),
            "in_a_row": self._in_a_row,
            "total": self.total,
            "rewinds": self.rewinds,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a checkpoint."""
        self._spikes.losses.extend(state["losses"])
        self._in_a_row, self.total, self.rewinds = state["in_a_row"], state["total"], state["rewinds"]


__all__ = ["BadStep", "BadSteps", "SpikeDetector", "SpikeError"]
