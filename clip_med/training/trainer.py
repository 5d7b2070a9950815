"""The training loop: stopped anywhere and continued, it ends with the same weights, bit for bit (on CPU)."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
import torch.distributed as dist

from clip_med.data.loader import TrainLoader
from clip_med.distributed import gather_objects, world_size
from clip_med.losses.contrastive import ContrastiveLoss
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.unlock import freeze
from clip_med.training.checkpoint import load_checkpoint, newest_intact, prune, save_checkpoint, write_latest
from clip_med.training.config import TrainConfig
from clip_med.training.metrics_log import MetricsLog
from clip_med.training.optim import build_optimizer, learning_rate, set_learning_rate
from clip_med.training.parallel import Towers
from clip_med.training.run_folder import RunFolder
from clip_med.training.step import PooledText, StepResult, TrainStep
from clip_med.training.stop import StopSignals
from clip_med.training.teacher import Distillation
from clip_med.training.watch import ChanceAlarm, Meter, NonFiniteError

log = logging.getLogger(__name__)


@runtime_checkable
class EvaluationResult(Protocol):
    """What an evaluator returns: anything that can be written as JSON."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values; `name` and `value` among them."""
        ...


Evaluator = Callable[[DualEncoder], Sequence[EvaluationResult]]


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """One step as it is logged: the values of this step alone, so that a continued run logs the same."""

    step: int
    samples: int
    total_steps: int
    loss: float
    learning_rate: float
    logit_scale: float
    grad_norm: float
    samples_per_second: float

    def to_line(self) -> dict[str, int | float]:
        """For `metrics.jsonl`."""
        return {name: value for name, value in vars(self).items() if name != "total_steps"}


@dataclass(frozen=True, kw_only=True)
class TrainSummary:
    """How a call of `train` ended. `stopped_by` names the signal when it did not run to the end."""

    step: int
    samples: int
    started_at_step: int
    finished: bool
    stopped_by: str | None
    seconds: float
    checkpoint: Path
    results: tuple[EvaluationResult, ...]


def train(
    encoder: DualEncoder,
    loader: TrainLoader,
    loss: ContrastiveLoss,
    config: TrainConfig,
    run: RunFolder,
    *,
    total_steps: int,
    evaluators: Sequence[Evaluator] = (),
    pooled_text: PooledText | None = None,
    distill: Distillation | None = None,
    chance_loss: float | None = None,
    allow_data_change: bool = False,
    on_step: Callable[[StepReport], None] | None = None,
) -> TrainSummary:
    """Train to `total_steps`, continuing from the newest intact checkpoint of the run if there is one.

    Every step is a function of (weights, optimiser state, step): batches come from their global position, and dropout
    draws from (seed, step, rank). A stop signal ends the run after the current step with a checkpoint.

    Args:
        run: an open run folder.
        pooled_text: pooled features of captions [B, W] from a cache; None computes them from `batch.tokens`.
        distill: see `TrainStep`.
        chance_loss: loss of a model that has learnt nothing; staying there is logged as a warning.
        allow_data_change: continue although shards or mixture have changed, see `TrainLoader.load_state_dict`.
        on_step: called on rank 0 every `log_every_steps` and after the last step.

    Raises:
        NonFiniteError: the loss or a gradient is not finite; the weights of the step before are in no checkpoint, but
            the last checkpoint stands.
        CheckpointError: no checkpoint of the run is intact, or it is of another model.
    """
    freeze(
        encoder,
        image=config.lock_image,
        text=config.lock_text,
        unlock_image=config.unlock_image,
        unlock_text=config.unlock_text,
    )
    encoder.train()
    # Before the optimiser, which must see the parameters as they lie on the ranks.
    towers = Towers(encoder, config)
    optimizer = build_optimizer(encoder, config.optim)
    first = step = _resume(encoder, loader, optimizer, run, allow_data_change=allow_data_change)
    train_step = TrainStep(encoder, towers, optimizer, loss, config, pooled_text, distill)
    began = time.monotonic()
    chance = ChanceAlarm(chance_loss)
    results: tuple[EvaluationResult, ...] = ()
    with contextlib.ExitStack() as stack:
        metrics = None
        if run.writes:
            metrics = MetricsLog(run.metrics, step=step, tensorboard=config.tensorboard)
            stack.callback(metrics.close)
        signals = stack.enter_context(StopSignals())
        stack.callback(loader.close)
        meter = Meter(step)
        stopped: str | None = None
        while step < total_steps and stopped is None:
            rate = learning_rate(
                step * config.batch_size, total_steps * config.batch_size, config.optim, config.schedule
            )
            set_learning_rate(optimizer, rate)
            batch = next(loader)
            result = train_step.gradients(batch, step, lambda: signals.received)
            train_step.update()
            stopped = result.stopped
            step += 1
            chance.add(result.loss, step)
            last = step == total_steps or stopped is not None
            if metrics is not None and (step % config.log_every_steps == 0 or last):
                report = _report(encoder, config, meter, step, total_steps, rate, result)
                metrics.write(report.to_line())
                if on_step is not None:
                    on_step(report)
            evaluate = evaluators and (step == total_steps or _due(step, config.eval_every_samples, config.batch_size))
            try:
                if evaluate:
                    results = _evaluate(encoder, evaluators, metrics, step, config.batch_size)
            finally:
                if last or evaluate or _due(step, config.save_every_samples, config.batch_size):
                    _log_mix(loader, metrics, step, config.batch_size)
                    _save(encoder, optimizer, loader, run, config, step, finished=step == total_steps)
        if stopped not in (None, "SIGINT") and step < total_steps:
            run.ask_for_requeue(step=step, samples=step * config.batch_size, reason=str(stopped))
    return TrainSummary(
        step=step,
        samples=step * config.batch_size,
        started_at_step=first,
        finished=step == total_steps,
        stopped_by=stopped if step < total_steps else None,
        seconds=time.monotonic() - began,
        checkpoint=_checkpoint(run, step),
        results=results,
    )


def _report(
    encoder: DualEncoder,
    config: TrainConfig,
    meter: Meter,
    step: int,
    total_steps: int,
    rate: float,
    result: StepResult,
) -> StepReport:
    return StepReport(
        step=step,
        samples=step * config.batch_size,
        total_steps=total_steps,
        loss=result.loss,
        learning_rate=rate,
        logit_scale=float(encoder.logit_scale.detach().exp()),
        grad_norm=result.grad_norm,
        samples_per_second=meter.rate(step) * config.batch_size,
    )


def _resume(
    encoder: DualEncoder,
    loader: TrainLoader,
    optimizer: torch.optim.Optimizer,
    run: RunFolder,
    *,
    allow_data_change: bool,
) -> int:
    """Load the newest intact checkpoint, if any, on all ranks; returns the number of steps done."""
    chosen = newest_intact(run.checkpoints) if run.writes else None
    step = -1 if chosen is None else int(chosen.name.removeprefix("step_"))
    if world_size() > 1:
        holder: list[Any] = [step]
        dist.broadcast_object_list(holder, src=0)
        step = int(holder[0])
    if step < 0:
        return 0
    directory = _checkpoint(run, step)
    state = load_checkpoint(directory, encoder, optimizer)
    loader.load_state_dict(state["loader"], allow_data_change=allow_data_change)
    run.accept()
    if run.writes:
        # It may name a checkpoint that has been damaged since.
        write_latest(run.path, directory, step=step, samples=state["samples"], finished=state["finished"])
        log.info("continuing from %s", directory)
    return step


def _checkpoint(run: RunFolder, step: int) -> Path:
    return run.checkpoints / f"step_{step:08d}"


def _save(
    encoder: DualEncoder,
    optimizer: torch.optim.Optimizer,
    loader: TrainLoader,
    run: RunFolder,
    config: TrainConfig,
    step: int,
    *,
    finished: bool,
) -> None:
    if run.writes:
        directory, samples = _checkpoint(run, step), step * config.batch_size
        state = {
            "step": step,
            "samples": samples,
            "finished": finished,
            "loader": loader.state_dict(),
            "config_hash": run.config_hash,
        }
        save_checkpoint(directory, encoder, optimizer, state)
        write_latest(run.path, directory, step=step, samples=samples, finished=finished)
        prune(run.checkpoints, config.keep)
    if world_size() > 1:
        dist.barrier()


def _evaluate(
    encoder: DualEncoder, evaluators: Sequence[Evaluator], metrics: MetricsLog | None, step: int, batch_size: int
) -> tuple[EvaluationResult, ...]:
    """Run the evaluators on rank 0; the others wait at the save that follows."""
    if metrics is None:
        return ()
    results = tuple(result for evaluator in evaluators for result in evaluator(encoder))
    encoder.train()
    line = {"step": step, "samples": step * batch_size, "results": [result.to_dict() for result in results]}
    metrics.write(line)
    return results


def _log_mix(loader: TrainLoader, metrics: MetricsLog | None, step: int, batch_size: int) -> None:
    """Of the rows since the last such line, on all ranks: how many came from each source and modality."""
    loader.mix.merge(gather_objects(loader.mix.fresh()))
    if metrics is not None:
        metrics.write({"step": step, "samples": step * batch_size, **loader.mix.line()})


def _due(step: int, every_samples: int | None, batch_size: int) -> bool:
    """Whether this step reached or passed a multiple of `every_samples`."""
    return (
        every_samples is not None and (step * batch_size) // every_samples > ((step - 1) * batch_size) // every_samples
    )


__all__ = ["Evaluator", "NonFiniteError", "PooledText", "StepReport", "TrainSummary", "train"]
