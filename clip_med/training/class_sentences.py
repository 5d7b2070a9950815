"""What is said of a set of classes, and the prototypes that it makes of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.knowledge.prompts import ClassPrompts, prompt_weights, render_prompts
from clip_med.losses.prototypes import class_prototypes
from clip_med.models.query_decoder import QueryClass


@dataclass(frozen=True, eq=False)
class ClassSentences:
    """The sentences of all classes one after the other, the class of each and its weight, on the CPU."""

    labels: tuple[str, ...]
    texts: tuple[str, ...]
    owner: Int64[Tensor, " N"]
    weights: Float[Tensor, " N"]

    @classmethod
    def of(cls, prompts: ClassPrompts) -> ClassSentences:
        """Rendered as `render_prompts` does it; classes in the order of the configuration."""
        told, weights = render_prompts(prompts), prompt_weights(prompts)
        texts = tuple(text for own in told.values() for text in own)
        return cls(
            labels=tuple(told),
            texts=texts,
            owner=torch.tensor([number for number, own in enumerate(told.values()) for _ in own]),
            weights=torch.tensor([1.0] * len(texts) if weights is None else [one for own in weights for one in own]),
        )

    def classes(self) -> tuple[QueryClass, ...]:
        """What is said of each class, as a decoder keeps it."""
        owner, weights = self.owner.tolist(), self.weights.tolist()
        own = [[row for row, number in enumerate(owner) if number == c] for c in range(len(self.labels))]
        return tuple(
            QueryClass(label=label, texts=tuple(self.texts[i] for i in rows), weights=tuple(weights[i] for i in rows))
            for label, rows in zip(self.labels, own, strict=True)
        )

    def prototypes(self, features: Float[Tensor, "N D"]) -> Float[Tensor, "C D"]:
        """Unit rows of the classes, from unit rows of the sentences."""
        device = features.device
        return class_prototypes(features, self.owner.to(device), self.weights.to(device), len(self.labels))


__all__ = ["ClassSentences"]
