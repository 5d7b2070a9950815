"""What a few-shot method is: frozen features and class texts in, logits and a loss out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from clip_med.models.dual_encoder import DualEncoder


@dataclass(frozen=True, kw_only=True)
class ClassTexts:
    """What is known of the classes in words, encoded once by the frozen text tower; all rows have length 1.

    `scale` is the model's exponentiated logit scale. `templates` is the mean, renormalised, of the class's template
    prompts: the zero-shot classifier. `descriptions` are the class's sentences, as many for each class.
    """

    names: tuple[str, ...]
    scale: float
    templates: Float[Tensor, "C D"]
    descriptions: Float[Tensor, "C N D"] | None = None

    def zero_shot(self, image_features: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Logits of the untouched model."""
        return self.scale * image_features @ self.templates.T


@dataclass(frozen=True, kw_only=True)
class Support:
    """The labelled images that a method may learn from: M views of each of N, as features or as pixels.

    View 0 is the image as evaluation shows it; the others are augmented. `images` (uint8) only for methods that change
    the image tower.
    """

    features: Float[Tensor, "M N D"]
    labels: Int64[Tensor, " N"]
    images: Num[Tensor, "M N 3 S S"] | None = None


class Method(nn.Module, ABC):
    """A few-shot method. What it learns are its parameters with `requires_grad`; the encoder's are frozen.

    `takes` says what `logits` and `loss` are given: unit rows of image features [B, D], or uint8 images [B, 3, S, S]
    where the image tower itself is changed, which costs an image forward and backward pass for every step.
    """

    takes: Literal["features", "images"] = "features"

    @abstractmethod
    def logits(self, inputs: Tensor) -> Float[Tensor, "B C"]:
        """Scores of the classes, scaled; differentiable in what is learned."""

    def loss(self, inputs: Tensor, labels: Int64[Tensor, " B"]) -> Float[Tensor, ""]:
        """Cross-entropy; methods add their terms."""
        return F.cross_entropy(self.logits(inputs), labels)

    def backward(self, inputs: Tensor, labels: Int64[Tensor, " B"]) -> float:
        """Leave gradients in the learned parameters (cleared before) and return the loss; ProGrad changes them."""
        loss = self.loss(inputs, labels)
        loss.backward()
        return float(loss.detach())

    def prepare(self, support: Support) -> None:
        """See the labelled images once before the first step: caches, closed forms, weights of constraints."""

    def select(self, validation: Support) -> None:
        """Choose what no gradient learns (weights of a cache, a penalty) on validation images, after the fit."""

    def end_epoch(self, epoch: int, epochs: int) -> None:
        """Called after each epoch, counted from 0."""

    @torch.no_grad()
    def predict(self, inputs: Tensor, *, batch_size: int = 1024) -> Float[Tensor, "B C"]:
        """Logits in evaluation mode, in parts."""
        training = self.training
        self.eval()
        try:
            return torch.cat([self.logits(part) for part in inputs.split(batch_size)])
        finally:
            self.train(training)


class ZeroShot(Method):
    """The untouched model: nothing is learned."""

    def __init__(self, encoder: DualEncoder, texts: ClassTexts) -> None:
        super().__init__()
        del encoder
        self._texts = texts

    def logits(self, inputs: Float[Tensor, "B D"]) -> Float[Tensor, "B C"]:
        """Cosines with the template prompts, scaled."""
        return self._texts.zero_shot(inputs)


__all__ = ["ClassTexts", "Method", "Support", "ZeroShot"]
