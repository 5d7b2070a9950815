"""Images against the prototypes of their classes, as a term of pretraining: what a zero-shot evaluation will ask."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from clip_med.config import PositiveFloat, config
from clip_med.data.batch import Batch
from clip_med.data.sample import Sample
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.losses.prototypes import prototype_loss
from clip_med.models.dual_encoder import DualEncoder
from clip_med.training.class_labels import ClassLabels
from clip_med.training.class_sentences import ClassSentences, LiveSentences


@config
class PrototypeConfig:
    """A set of classes and what is said of them: contrastive loss + weight cross-entropy of images to prototypes."""

    prompts: ClassPrompts
    """As in a classification task, whose ensemble `embedding` compares with the same prototypes."""
    modalities: tuple[str, ...] = ()
    """Only samples of these, as they write it; empty: all that carry one of the labels."""
    weight: PositiveFloat = 0.5

    def __post_init__(self) -> None:
        """Refuse a choice of one."""
        if len(self.prompts.classes) < 2:
            raise ValueError(
                f"prototypes.prompts.classes must hold two classes or more, got {list(self.prompts.classes)}"
            )


class Prototypes:
    """The classes' prototypes by the text tower as it is at each step; called as a `Term` of the step.

    No gradient reaches the sentences: images move to them, and the text tower learns from the contrastive loss alone.
    An image that carries several of the labels belongs to all these classes, one without any takes no part; the mean is
    over the images of all ranks that take part.
    """

    def __init__(
        self, settings: PrototypeConfig, model: DualEncoder, precision: Literal["fp32", "bf16", "pure_bf16"]
    ) -> None:
        self._settings, self._model = settings, model
        self._sentences = ClassSentences.of(settings.prompts)
        self._labels = ClassLabels(self._sentences.labels, settings.modalities)
        self.live = LiveSentences(self._sentences, model, precision)

    @property
    def texts(self) -> tuple[str, ...]:
        """All sentences, class by class."""
        return self._sentences.texts

    def coverage(self, samples: Sequence[Sample]) -> str:
        """A line that says how many of the samples take part, and how many sentences the text tower cuts.

        Raises:
            ValueError: none takes part.
        """
        counted = self._labels.coverage(samples)
        cut = self._model.truncated(self.texts)
        return f"prototypes of {counted}; {len(self.texts)} sentences, {cut} longer than the context"

    def __call__(
        self,
        objective: Float[Tensor, ""],
        batch: Batch,
        image_features: Float[Tensor, "B D"],
        text_features: Float[Tensor, "B D"],
        logit_scale: Float[Tensor, "*one"],
    ) -> Float[Tensor, ""]:
        """What is minimised: its mean over ranks is that of the global batch."""
        present, rows = self._labels.taking_part(batch, image_features.device)
        loss = prototype_loss(image_features, self.live.prototypes(), logit_scale.exp().reshape(()), present, rows)
        return objective + self._settings.weight * loss


__all__ = ["PrototypeConfig", "Prototypes"]
