"""Features of a frozen text trunk, computed once per caption instead of once per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder


class FrozenTextCache:
    """Pooled features [N, W] of N distinct texts, before the projection head, in fp32 on the CPU."""

    def __init__(self, features: Float[Tensor, "N W"], rows: dict[str, int]) -> None:
        self._features = features
        self._rows = rows

    @classmethod
    def build(
        cls,
        encoder: DualEncoder,
        texts: Sequence[str],
        *,
        batch_size: int = 256,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> FrozenTextCache:
        """Encode distinct texts, shortest first, in fp32 and evaluation mode.

        The order depends on the texts alone, so that a continued run sees the same bits.

        Raises:
            ValueError: the text trunk can be trained, or there are no texts.
        """
        if any(parameter.requires_grad for parameter in encoder.text_tower.module.transformer.parameters()):
            raise ValueError("the text trunk is trainable; lock it (text='trunk' or 'all') before caching its features")
        distinct = sorted(set(texts), key=lambda text: (len(text), text))
        if not distinct:
            raise ValueError("there are no texts to cache")
        training = encoder.training
        encoder.eval()
        device = encoder.logit_scale.device
        parts: list[Tensor] = []
        with torch.no_grad():
            for start in range(0, len(distinct), batch_size):
                tokens = encoder.tokenize(distinct[start : start + batch_size]).to(device)
                parts.append(encoder.pool_text(tokens).float().cpu())
                if on_progress is not None:
                    on_progress(min(start + batch_size, len(distinct)), len(distinct))
        encoder.train(training)
        return cls(torch.cat(parts), {text: row for row, text in enumerate(distinct)})

    def __len__(self) -> int:
        """Distinct texts."""
        return len(self._rows)

    def pooled(self, captions: Sequence[str]) -> Float[Tensor, "B W"]:
        """The features of captions, in their order.

        Raises:
            ValueError: a caption that was not among the texts.
        """
        try:
            return self._features[[self._rows[caption] for caption in captions]]
        except KeyError as error:
            raise ValueError(f"caption {error.args[0]!r:.80} is not in the text cache") from error


__all__ = ["FrozenTextCache"]
