"""Disease queries beside the contrastive loss: knowledge between image and label, as in KAD."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.config import Fraction, PositiveFloat, PositiveInt, config
from clip_med.data.batch import Batch
from clip_med.data.sample import Sample
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.losses.queries import query_loss
from clip_med.models.config import HFTower
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.image_tokens import token_width
from clip_med.models.query_decoder import DecoderShape, QueryDecoder
from clip_med.models.text_only import TextOnly
from clip_med.training.class_labels import ClassLabels
from clip_med.training.class_sentences import ClassSentences


@config
class QueryConfig:
    """Classes as queries to the image: contrastive loss + weight binary cross-entropy of the answers."""

    text: HFTower
    """The knowledge encoder that embeds the queries, once and frozen, as `clip-med knowledge train` writes it."""
    prompts: ClassPrompts
    """The classes, and what is said of each: the query is the direction of the (weighted) mean of its texts."""
    modalities: tuple[str, ...] = ()
    """Only samples of these, as they write it; empty: all that carry one of the labels."""
    captions: bool = False
    """The decoder also answers from the caption in place of the image; the cross-entropy of both is added."""
    weight: PositiveFloat = 1.0
    width: PositiveInt = 256
    layers: PositiveInt = 4
    heads: PositiveInt = 4
    feed_forward: PositiveInt = 1024
    dropout: Fraction = 0.1

    def __post_init__(self) -> None:
        """Refuse queries that know nothing, and heads that do not divide the width."""
        if not self.text.pretrained:
            raise ValueError("queries.text.pretrained: false: random queries know nothing")
        if self.width % self.heads:
            raise ValueError(f"queries.width {self.width} must be a multiple of queries.heads {self.heads}")


class KnowledgeQueries:
    """The decoder, which trains with the towers as `DualEncoder.queries`, and the loss of its answers.

    "Align, Reason and Learn" (Chen et al., arXiv 2209.07118) and KAD let knowledge stand between image and text; here
    it does so as queries. An image with one of the labels answers for all classes; those that it lacks are absent.
    With `captions`, so does its caption: KAD's decoder reads the entities of a report as one feature of its text tower.

    Raises:
        ValueError: an image tower whose places are not known.
    """

    def __init__(self, settings: QueryConfig, model: DualEncoder) -> None:
        self._settings = settings
        sentences = ClassSentences.of(settings.prompts)
        self._labels = ClassLabels(sentences.labels, settings.modalities)
        queries = sentences.prototypes(TextOnly(settings.text).features(sentences.texts))
        shape = DecoderShape(
            query_width=queries.shape[1],
            token_width=token_width(model),
            text_width=int(model.model_cfg["embed_dim"]) if settings.captions else None,
            width=settings.width,
            layers=settings.layers,
            heads=settings.heads,
            feed_forward=settings.feed_forward,
            dropout=settings.dropout,
        )
        self.decoder = QueryDecoder(sentences.classes(), queries, shape).to(model.logit_scale.device)
        model.queries = self.decoder

    def coverage(self, samples: Sequence[Sample]) -> str:
        """A line that says how many of the samples take part.

        Raises:
            ValueError: none takes part.
        """
        trained = sum(parameter.numel() for parameter in self.decoder.parameters())
        return f"queries of {self._labels.coverage(samples)}; {trained:,} parameters in their decoder"

    def split(
        self, image: Float[Tensor, "B E"], text: Float[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B R"], Float[Tensor, "B D"], tuple[Float[Tensor, "B C"], ...]]:
        """What `Towers` gives side by side: rows of images and of texts up to the answers, and these."""
        classes = len(self.decoder.queries)
        answers = [image[:, -classes:]]
        if self._settings.captions:
            answers.append(text[:, -classes:])
            text = text[:, :-classes]
        return image[:, :-classes], text, tuple(answers)

    def loss(self, answers: Sequence[Float[Tensor, "B C"]], batch: Batch) -> Float[Tensor, ""]:
        """What is added to the contrastive loss: its mean over ranks is that of the global batch."""
        present, rows = self._labels.taking_part(batch, answers[0].device)
        return self._settings.weight * torch.stack([query_loss(own, present, rows) for own in answers]).sum()


__all__ = ["KnowledgeQueries", "QueryConfig"]
