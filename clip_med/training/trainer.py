"""The training loop: stopped anywhere and continued, it ends with the same weights, bit for bit (on CPU)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, runtime_checkable

from torch import Tensor

from clip_med.data.loader import TrainLoader
from clip_med.distributed import gather_objects, rank
from clip_med.losses.contrastive import ContrastiveLoss
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.knowledge_heads import heads
from clip_med.models.unlock import freeze
from clip_med.training.bad_steps import BadStep, BadSteps
from clip_med.training.config import TrainConfig
from clip_med.training.ema import Ema
from clip_med.training.heads import KnowledgeHeads
from clip_med.training.metrics_log import MetricsLog
from clip_med.training.optim import add_parameters, build_optimizer, learning_rate, set_learning_rate
from clip_med.training.parallel import Towers
from clip_med.training.progress import Progress
from clip_med.training.run_folder import RunFolder
from clip_med.training.saving import Saver
from clip_med.training.step import PooledText, StepResult, TrainStep
from clip_med.training.stop import StopSignals, TimeLimit
from clip_med.training.terms import Term
from clip_med.training.throughput import Throughput
from clip_med.training.watch import ChanceAlarm, NonFiniteError
from clip_med.training.watchdog import Watchdog

# Of the watchdog's limit for a step: for one that compiles, and for evaluations.
_SLOW: Final = 4.0


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
    flops_per_second: float
    mfu: float | None

    def to_line(self) -> dict[str, int | float]:
        """For `metrics.jsonl`."""
        return {name: value for name, value in vars(self).items() if name != "total_steps" and value is not None}


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
    terms: Sequence[Term] = (),
    knowledge: KnowledgeHeads | None = None,
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
        terms, knowledge: see `TrainStep`; the latter is its `heads`.
        chance_loss: loss of a model that has learnt nothing; staying there is logged as a warning.
        allow_data_change: continue although shards or mixture have changed, see `TrainLoader.load_state_dict`.
        on_step: called on rank 0 every `log_every_steps` and after the last step.

    Raises:
        NonFiniteError, SpikeError: a bad step, and the policy is to stop; the weights of the step before are in no
            checkpoint, but the last checkpoint stands.
        SaveError: `max_failed_saves` checkpoints in a row could not be written, or the last one.
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
    began = time.monotonic()
    loop = _Loop(encoder, loader, config, run, total_steps, evaluators, on_step)
    loop.prepare(loss, pooled_text, terms, knowledge, chance_loss, allow_data_change=allow_data_change)
    first = loop.progress.step
    stopped = loop.go()
    step = loop.progress.step
    if stopped not in (None, "SIGINT") and step < total_steps:
        run.ask_for_requeue(step=step, samples=step * config.batch_size, reason=str(stopped))
    return TrainSummary(
        step=step,
        samples=step * config.batch_size,
        started_at_step=first,
        finished=step == total_steps,
        stopped_by=stopped if step < total_steps else None,
        seconds=time.monotonic() - began,
        checkpoint=run.checkpoint(step),
        results=loop.results,
    )


class _Loop:
    """`prepare` makes what the steps need and goes to the newest checkpoint; `go` takes the steps."""

    def __init__(
        self,
        encoder: DualEncoder,
        loader: TrainLoader,
        config: TrainConfig,
        run: RunFolder,
        total_steps: int,
        evaluators: Sequence[Evaluator],
        on_step: Callable[[StepReport], None] | None,
    ) -> None:
        self.encoder, self.loader, self.config, self.run = encoder, loader, config, run
        self.total_steps, self.evaluators, self.on_step = total_steps, evaluators, on_step
        self.metrics: MetricsLog | None = None
        self.results: tuple[EvaluationResult, ...] = ()

    def prepare(
        self,
        loss: ContrastiveLoss,
        pooled_text: PooledText | None,
        terms: Sequence[Term],
        knowledge: KnowledgeHeads | None,
        chance_loss: float | None,
        *,
        allow_data_change: bool,
    ) -> None:
        encoder, config = self.encoder, self.config
        self.throughput = Throughput(encoder, config, cached_text=pooled_text is not None)
        # Before the optimiser, which must see the parameters as they lie on the ranks.
        self.towers = Towers(encoder, config)
        self.optimizer = build_optimizer(encoder, config.optim)
        self.bad_steps = BadSteps(config, encoder)
        self.ema = None if config.ema is None else Ema(encoder, config.ema)
        self.extra: dict[str, Tensor] = {} if self.ema is None else dict(self.ema.tensors)
        for name, head in heads(encoder).items():
            add_parameters(self.optimizer, head, config.optim, name=name)
        self.progress = Progress(
            encoder,
            self.optimizer,
            self.loader,
            self.run,
            config,
            self.bad_steps,
            total_steps=self.total_steps,
            extra=self.extra,
        )
        self.progress.resume(allow_data_change=allow_data_change)
        self.train_step = TrainStep(encoder, self.towers, self.optimizer, loss, config, pooled_text, terms, knowledge)
        self.chance = ChanceAlarm(chance_loss)

    def go(self) -> str | None:
        """Take steps to the end or to the first reason to stop, which is returned."""
        config, progress, first = self.config, self.progress, self.progress.step
        with contextlib.ExitStack() as stack:
            watchdog = stack.enter_context(Watchdog(config.watchdog_seconds, self.run.path, rank()))
            if self.run.writes:
                self.metrics = MetricsLog(self.run.metrics, step=first, tensorboard=config.tensorboard)
                stack.callback(self.metrics.close)
            saver = Saver(self.encoder, self.optimizer, self.run, config, metrics=self.metrics, extra=self.extra)
            stack.callback(saver.close)
            signals = stack.enter_context(StopSignals())
            limit = TimeLimit(config.time_limit_minutes, self.run.opened)
            stack.callback(self.loader.close)
            progress.begin(saver)
            self.throughput.begin()
            stopped: str | None = None
            while progress.step < self.total_steps and stopped is None:
                watchdog.tick(f"step {progress.step + 1}", times=_SLOW if progress.step == first else 1.0)
                limit.begin_step()
                rate = _learning_rate(config, progress.step, self.total_steps)
                set_learning_rate(self.optimizer, rate)
                batch = next(self.loader)
                result = self.bad_steps.attempt(
                    self.train_step, batch, progress.step, lambda: signals.received or limit.reached(saver.seconds)
                )
                self.throughput.add(batch)
                limit.end_step()
                progress.step += 1
                stopped = result.stopped
                last = progress.step == self.total_steps or stopped is not None
                if isinstance(result, BadStep):
                    back = progress.go_back(saver) if result.action == "rewind" else None
                    _log_bad_step(result, self.bad_steps, self.metrics, progress.step, back)
                else:
                    self._after_good_step(result, rate, last=last)
                self._evaluate_and_save(saver, watchdog, last=last)
                saver.poll()
        return stopped

    def _after_good_step(self, result: StepResult, rate: float, *, last: bool) -> None:
        step, config = self.progress.step, self.config
        self.chance.add(result.loss, step)
        if self.ema is not None:
            self.ema.update(step * config.batch_size, config.batch_size)
        if self.metrics is not None and (step % config.log_every_steps == 0 or last):
            report = _report(self.encoder, config, self.throughput, step, self.total_steps, rate, result)
            self.metrics.write(report.to_line())
            if self.on_step is not None:
                self.on_step(report)

    def _evaluate_and_save(self, saver: Saver, watchdog: Watchdog, *, last: bool) -> None:
        """Where one is due; the checkpoint is also written when an evaluator fails."""
        step, config = self.progress.step, self.config
        evaluate = bool(self.evaluators) and (step == self.total_steps or config.evaluation_due(step))
        watchdog.tick(f"what follows step {step}", times=_SLOW if evaluate else 1.0)
        try:
            if evaluate:
                averaged = self.ema.weights if self.ema is not None and self.ema.for_eval else {}
                with self.towers.for_evaluation(averaged) as whole:
                    self.results = _evaluate(whole, self.evaluators, self.metrics, step, config.batch_size)
        finally:
            if last or evaluate or config.save_due(step):
                _log_mix(self.loader, self.metrics, step, config.batch_size)
                self.progress.save(saver, scheduled=evaluate or config.save_due(step), last=last)


def _learning_rate(config: TrainConfig, step: int, total_steps: int) -> float:
    return learning_rate(step * config.batch_size, total_steps * config.batch_size, config.optim, config.schedule)


def _log_bad_step(
    bad: BadStep, bad_steps: BadSteps, metrics: MetricsLog | None, step: int, back_to: int | None
) -> None:
    if metrics is not None:
        line = {"step": step, "bad_step": bad.action, "reason": bad.reason, "bad_steps": bad_steps.total}
        metrics.write(line | ({} if back_to is None else {"back_to": back_to}))


def _report(
    encoder: DualEncoder,
    config: TrainConfig,
    throughput: Throughput,
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
        **vars(throughput.rates()),
    )


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


__all__ = ["Evaluator", "NonFiniteError", "PooledText", "StepReport", "TrainSummary", "train"]
