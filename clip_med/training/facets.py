"""Images against several facets of knowledge at once, each with a projection of its own, as in DeViDe."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from clip_med.config import PositiveFloat, config
from clip_med.data.batch import Batch
from clip_med.data.sample import Sample
from clip_med.knowledge.prompts import ClassPrompts, prompt_facets
from clip_med.losses.prototypes import facet_loss
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.facet_projections import FacetProjections
from clip_med.training.class_labels import ClassLabels
from clip_med.training.class_sentences import ClassSentences, LiveSentences


@config
class FacetConfig:
    """Classes, and facets of knowledge that are all right for their images: contrastive loss + weight facet loss."""

    prompts: ClassPrompts
    """The classes; `knowledge.facets` names the facets. What a class has of a facet is one text feature: their mean."""
    modalities: tuple[str, ...] = ()
    """Only samples of these, as they write it; empty: all that carry one of the labels."""
    weight: PositiveFloat = 1.0

    def __post_init__(self) -> None:
        """Refuse classes without facets, and a choice of one."""
        if self.prompts.knowledge is None or self.prompts.knowledge.absent:
            raise ValueError("facets.prompts.knowledge must name the facets, and has no absent labels")
        if len(self.prompts.classes) < 2:
            raise ValueError(f"facets.prompts.classes must hold two classes or more, got {list(self.prompts.classes)}")


@dataclass(frozen=True, eq=False)
class FacetTexts:
    """The pairs (class, facet) of which there are texts: their sentences, and each pair's number of class and facet.

    A pair stands in `sentences` where a class does elsewhere.
    """

    sentences: ClassSentences
    class_of: Int64[Tensor, " N"]
    facet_of: Int64[Tensor, " N"]

    @classmethod
    def of(cls, prompts: ClassPrompts) -> FacetTexts:
        """In the order of the classes, then of the facets."""
        assert prompts.knowledge is not None
        names, told = prompts.knowledge.facets, ClassSentences.of(prompts)
        facets = [names.index(facet) for own in prompt_facets(prompts) for facet in own if facet is not None]
        pairs = list(zip(told.owner.tolist(), facets, strict=True))
        columns = sorted(set(pairs))
        by_pair = ClassSentences(
            labels=tuple(f"{told.labels[number]}: {names[facet]}" for number, facet in columns),
            texts=told.texts,
            owner=torch.tensor([columns.index(pair) for pair in pairs]),
            weights=told.weights,
        )
        class_of, facet_of = torch.tensor(columns).T
        return cls(by_pair, class_of, facet_of)


class KnowledgeFacets:
    """The projections, which train with the towers as `DualEncoder.facets`, and the loss of images against facets.

    As with prototypes, the sentences are encoded without gradient: images and projections learn here, the text tower
    from the contrastive loss. An image that carries several of the labels belongs to all facets of all these classes,
    one without any takes no part; the mean is over the images of all ranks that take part.
    """

    def __init__(
        self, settings: FacetConfig, model: DualEncoder, precision: Literal["fp32", "bf16", "pure_bf16"]
    ) -> None:
        assert settings.prompts.knowledge is not None
        self._settings, self._model = settings, model
        self._texts = FacetTexts.of(settings.prompts)
        self._labels = ClassLabels(tuple(settings.prompts.classes), settings.modalities)
        self._live = LiveSentences(self._texts.sentences, model, precision)
        names = settings.prompts.knowledge.facets
        self.projections = FacetProjections(names, int(model.model_cfg["embed_dim"])).to(model.logit_scale.device)
        model.facets = self.projections
        self.begin()

    def coverage(self, samples: Sequence[Sample]) -> str:
        """A line that says how many of the samples take part, and how many texts there are.

        Raises:
            ValueError: none takes part.
        """
        sentences, names = self._texts.sentences, self.projections.names
        counts = torch.bincount(self._texts.facet_of, minlength=len(names)).tolist()
        each = ", ".join(f"{name} of {count} classes" for name, count in zip(names, counts, strict=True))
        cut = self._model.truncated(sentences.texts)
        return (
            f"facets of {self._labels.coverage(samples)}; {each}; {len(sentences.texts)} sentences, "
            f"{cut} longer than the context"
        )

    def begin(self) -> None:
        """Before a step: compare with the texts as the text tower encodes them now."""
        self.projections.compare_with(self._live.prototypes(), self._texts.facet_of)

    @property
    def columns(self) -> int:
        """Cosines of each image."""
        return len(self._texts.facet_of)

    def loss(
        self, cosines: Float[Tensor, "B N"], batch: Batch, logit_scale: Float[Tensor, "*one"]
    ) -> Float[Tensor, ""]:
        """What is added to the contrastive loss: its mean over ranks is that of the global batch."""
        present, rows = self._labels.taking_part(batch, cosines.device)
        positive = present[:, self._texts.class_of.to(cosines.device)]
        return self._settings.weight * facet_loss(cosines, logit_scale.exp().reshape(()), positive, rows)


__all__ = ["FacetConfig", "FacetTexts", "KnowledgeFacets"]
