"""Terms that a step adds to the contrastive loss: a teacher's similarities, a frozen knowledge encoder."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from clip_med.data.batch import Batch

Term = Callable[[Tensor, Batch, Tensor, Tensor, Tensor], Tensor]
"""From what is minimised so far, the batch, this rank's image and text features and the model's log scale to what is
minimised: a mean over this rank's rows whose mean over ranks is that of the global batch. A term has no parameters."""

__all__ = ["Term"]
