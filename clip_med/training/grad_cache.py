"""Features of a large batch whose gradient needs the activations of one micro-batch only (GradCache)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.training.parallel import Towers

Inputs = tuple[Tensor, Tensor | None, Tensor | None]


class CachedFeatures:
    """Features of all rows without a graph; `backward` computes their chunks again and sends the gradient through.

    Gao et al., arXiv 2101.06983 (luyug/GradCache): (1) the chunks are encoded without gradient, (2) the loss of all
    features leaves dL/dfeature in `image` and `text`, (3) each chunk is encoded again, with the same random numbers,
    and sum(feature * dL/dfeature) is differentiated. Exact for any loss and any number of ranks; costs a second forward
    pass. Random numbers are not stored: each chunk starts from a seed of its own in both passes.

    Args:
        inputs: images, token ids, pooled text features of this rank's rows.
        micro_batch: rows encoded with a graph at a time.
        seed: seeds of chunk 0, 1, ...
    """

    image: Float[Tensor, "b D"]
    text: Float[Tensor, "b D"]

    def __init__(self, towers: Towers, inputs: Inputs, micro_batch: int, seed: Callable[[int], int]) -> None:
        self._towers, self._seed = towers, seed
        parts = [None if rows is None else rows.split(micro_batch) for rows in inputs]
        assert parts[0] is not None
        count = len(parts[0])
        self._chunks: Sequence[Inputs] = [tuple(None if p is None else p[i] for p in parts) for i in range(count)]  # type: ignore[misc]
        with torch.no_grad():
            features = [self._encode(number) for number in range(count)]
        image, text = (torch.cat(rows) for rows in zip(*features, strict=True))
        self.image, self.text = image.requires_grad_(), text.requires_grad_()

    def backward(self) -> None:
        """Add the gradients of the towers, once the loss has left its own in `image` and `text`."""
        assert self.image.grad is not None
        assert self.text.grad is not None
        start = 0
        for number in range(len(self._chunks)):
            last = number == len(self._chunks) - 1
            with contextlib.nullcontext() if last else self._towers.unsynchronised():
                features = self._encode(number)
                rows = slice(start, start + len(features[0]))
                pairs = zip(features, (self.image.grad[rows], self.text.grad[rows]), strict=True)
                # A locked tower has nothing to learn.
                trained = [(feature, gradient) for feature, gradient in pairs if feature.requires_grad]
                if trained:
                    torch.autograd.backward([feature for feature, _ in trained], [gradient for _, gradient in trained])
            start = rows.stop

    def _encode(self, number: int) -> tuple[Tensor, Tensor]:
        torch.manual_seed(self._seed(number))
        return self._towers(*self._chunks[number])


def refuse_batch_statistics(module: nn.Module) -> None:
    """Gradients by chunks are those of the large batch only where a row's features do not depend on other rows.

    Raises:
        ValueError: a layer in training mode normalises by statistics of the batch; names it.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.training:
            raise ValueError(
                f"train.micro_batch: {name} ({type(layer).__name__}) normalises by statistics of the batch, so chunks "
                "have other features than the batch; lock that tower, or choose a model without batch normalisation"
            )


__all__ = ["CachedFeatures", "Inputs", "refuse_batch_statistics"]
