"""What is said of a set of classes, and the prototypes that it makes of them, by the text tower as it is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.knowledge.prompts import ClassPrompts, prompt_weights, render_prompts
from clip_med.losses.prototypes import class_prototypes
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating
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
        """Rendered as `render_prompts` does it; classes in the order of the configuration.

        Raises:
            ValueError: prompts that are to be projected, which is of evaluations; see also `render_prompts`.
        """
        if prompts.knowledge is not None and prompts.knowledge.project:
            raise ValueError("prompts.knowledge.project is for evaluations; leave it out here")
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


class LiveSentences:
    """The sentences by the text tower as it is at each step, in evaluation mode and without gradient.

    A trunk that does not train encodes them once; the projection head follows in every step.
    """

    def __init__(
        self, sentences: ClassSentences, model: DualEncoder, precision: Literal["fp32", "bf16", "pure_bf16"]
    ) -> None:
        self._sentences, self._model = sentences, model
        self._precision: Literal["fp32", "bf16"] = "fp32" if precision == "fp32" else "bf16"
        self._pooled: Tensor | None = None

    def prototypes(self) -> Float[Tensor, "C D"]:
        """Unit rows of the classes, in their order."""
        device = self._model.logit_scale.device
        with evaluating(self._model, self._precision):
            pooled = self._pooled
            if pooled is None:
                pooled = self._model.pool_text(self._model.tokenize(self._sentences.texts).to(device))
            if not any(parameter.requires_grad for parameter in self._model.trunk_parameters("text")):
                self._pooled = pooled
            return self._sentences.prototypes(self._model.project_text(pooled))


__all__ = ["ClassSentences", "LiveSentences"]
