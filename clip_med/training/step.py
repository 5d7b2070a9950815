"""One optimiser step: gradients of a global batch that all ranks share, then the update."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from clip_med.data.batch import Batch
from clip_med.distributed import rank, world_size
from clip_med.losses.contrastive import ContrastiveLoss
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.config import TrainConfig
from clip_med.training.grad_cache import CachedFeatures, Inputs, refuse_batch_statistics
from clip_med.training.heads import KnowledgeHeads
from clip_med.training.parallel import Towers, clip_gradients
from clip_med.training.stop import REASONS
from clip_med.training.terms import Term
from clip_med.training.watch import NonFiniteError, describe_gradients, describe_loss

PooledText = Callable[[Sequence[str]], Tensor]


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What all ranks know after the backward pass: mean loss, norm before clipping, a stop signal that any rank got."""

    loss: float
    grad_norm: float
    stopped: str | None


class TrainStep:
    """Gradients of one batch, and the update; a function of (weights, optimiser state, step), equal on all ranks.

    Args:
        pooled_text: pooled features of captions [B, W] from a cache; None computes them from `batch.tokens`.
        heads: of the encoder; their losses are added last.
        terms: what is added to the contrastive loss, each to what the ones before it made.

    Raises:
        ValueError: `micro_batch` with layers whose output depends on the other rows.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        towers: Towers,
        optimizer: torch.optim.Optimizer,
        loss: ContrastiveLoss,
        config: TrainConfig,
        pooled_text: PooledText | None = None,
        terms: Sequence[Term] = (),
        heads: KnowledgeHeads | None = None,
    ) -> None:
        self._encoder, self._towers, self._optimizer, self._loss = encoder, towers, optimizer, loss
        self._config, self._pooled_text, self._terms = config, pooled_text, terms
        self._heads = KnowledgeHeads() if heads is None else heads
        if config.micro_batch is not None:
            refuse_batch_statistics(encoder.clip)

    def gradients(self, batch: Batch, step: int, received: Callable[[], str | None]) -> StepResult:
        """Leave the clipped gradients of `batch` in the parameters. `received` is asked for this rank's stop signal.

        Raises:
            NonFiniteError: the loss or a gradient is not finite, on all ranks; `update` must not follow.
        """
        encoder, config = self._encoder, self._config
        device = encoder.logit_scale.device
        self._towers.begin()
        self._heads.begin()
        image_features, text_features, replay = self._features(self._inputs(batch, device), step)
        image_features, text_features, of_heads = self._heads.split(image_features, text_features)
        group_ids = batch.group_ids.to(device, non_blocking=True)
        objective = self._loss(image_features, text_features, encoder.logit_scale, encoder.logit_bias, group_ids)
        for term in self._terms:
            objective = term(objective, batch, image_features, text_features, encoder.logit_scale)
        objective = self._heads.add(objective, of_heads, batch, encoder.logit_scale)
        value, stopped = _agree(float(objective.detach()), received())
        if not math.isfinite(value):
            raise NonFiniteError(describe_loss(value, step, batch, image_features, text_features))
        self._optimizer.zero_grad(set_to_none=True)
        objective.backward()
        replay()
        self._towers.finish()
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        norm = clip_gradients(trained, config.max_grad_norm or math.inf)
        if not math.isfinite(norm):
            raise NonFiniteError(describe_gradients(step, batch, encoder))
        return StepResult(loss=value, grad_norm=norm, stopped=stopped)

    def update(self) -> None:
        """Apply the gradients, and keep the logit scale at or below its limit."""
        self._optimizer.step()
        with torch.no_grad():
            # As a minimum only: a scale that shrinks below 1 is a sign of trouble that the log should show.
            self._encoder.logit_scale.clamp_(max=math.log(self._config.max_logit_scale))

    def _features(self, inputs: Inputs, step: int) -> tuple[Tensor, Tensor, Callable[[], None]]:
        """Features of this rank's rows, and what remains to be done once the loss has sent its gradient to them."""
        seed, rows = self._config.seed, len(inputs[0])
        if (self._config.micro_batch or rows) < rows:
            cached = CachedFeatures(
                self._towers, inputs, self._config.micro_batch or rows, lambda chunk: _seed(seed, step, rank(), chunk)
            )
            return cached.image, cached.text, cached.backward
        torch.manual_seed(_seed(seed, step, rank()))
        return *self._towers(*inputs), lambda: None

    def _inputs(self, batch: Batch, device: torch.device) -> Inputs:
        """Images, then token ids or pooled text features from the cache, on the device."""
        images = batch.images.to(device, non_blocking=True)
        if self._pooled_text is not None:
            return images, None, self._pooled_text(batch.captions).to(device)
        return images, None if batch.tokens is None else batch.tokens.to(device, non_blocking=True), None


def _agree(value: float, received: str | None) -> tuple[float, str | None]:
    """Mean loss over the ranks, and a reason to stop if any rank has one: all ranks stop at the same step."""
    if world_size() == 1:
        return value, received
    code = 0 if received is None else 1 + REASONS.index(received)
    gathered = [torch.zeros(2, dtype=torch.float64) for _ in range(world_size())]
    dist.all_gather(gathered, torch.tensor([value, code], dtype=torch.float64))
    table = torch.stack(gathered)
    highest = int(table[:, 1].max())
    return float(table[:, 0].mean()), None if highest == 0 else REASONS[highest - 1]


def _seed(*place: int) -> int:
    """Seed of everything random at (seed, step, rank) or at a chunk there."""
    digest = hashlib.blake2b("/".join(map(str, place)).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") >> 1


__all__ = ["PooledText", "StepResult", "TrainStep"]
