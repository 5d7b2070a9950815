"""What the trained query decoder of a model says of images: a logit for each class, asked by its query."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.config import HFTower
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import Precision, of_samples
from clip_med.models.image_tokens import features_and_tokens
from clip_med.models.query_decoder import QueryDecoder
from clip_med.models.text_only import TextOnly
from clip_med.training.class_sentences import ClassSentences

# Cosine of a query that was trained on and the same by another run of its encoder; other encoders are far below.
_SAME = 0.999


@dataclass(frozen=True, eq=False)
class Queries:
    """What is asked of every image: a query for each label, and the texts that it is made of."""

    texts: Mapping[str, tuple[str, ...]]
    rows: Float[Tensor, "C Q"]

    @classmethod
    def of(cls, encoder: DualEncoder, prompts: ClassPrompts, text: HFTower | None = None) -> Queries:
        """The queries of the labels that `prompts` names.

        Args:
            text: the knowledge encoder that the decoder was trained with, for which any class can be put into words;
                None asks for classes that the decoder was trained on, by the texts that it was trained on.

        Raises:
            ValueError: a model without decoder, a label that it was not trained on, or another knowledge encoder.
        """
        decoder = _decoder(encoder)
        if text is None:
            trained = {one.label: number for number, one in enumerate(decoder.classes)}
            if unknown := [label for label in prompts.classes if label not in trained]:
                raise ValueError(
                    f"the decoder was not trained on {unknown}; it knows {', '.join(trained)}: state knowledge_encoder"
                    f", the encoder that it was trained with, to ask for others"
                )
            chosen = [trained[label] for label in prompts.classes]
            texts = {
                label: decoder.classes[number].texts for label, number in zip(prompts.classes, chosen, strict=True)
            }
            return cls(texts, decoder.queries[chosen])
        told, tower = ClassSentences.of(prompts), TextOnly(text)
        _check_same(decoder, tower, text.path)
        texts = {one.label: one.texts for one in told.classes()}
        return cls(texts, told.prototypes(tower.features(told.texts)).to(decoder.queries))


def query_answers(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    queries: Queries,
    *,
    batch_size: int = 128,
    workers: int = 0,
    precision: Precision = "fp32",
    on_progress: Callable[[int, int], None] | None = None,
) -> NDArray[np.float64]:
    """Logits [N, C] of the samples `indices`: above 0 where the class is seen. Queries attend to each other.

    Raises:
        ValueError: a model without decoder, a damaged sample, or a logit that is not finite.
    """
    decoder = _decoder(encoder)
    return of_samples(
        encoder,
        shards,
        indices,
        lambda images: decoder(features_and_tokens(encoder, images)[1], queries.rows),
        what="answer",
        batch_size=batch_size,
        workers=workers,
        precision=precision,
        on_progress=on_progress,
    ).astype(np.float64)


def _decoder(encoder: DualEncoder) -> QueryDecoder:
    if encoder.queries is None:
        raise ValueError(
            "score queries: this model has no query decoder; it is trained by `queries` of a configuration"
        )
    return encoder.queries


def _check_same(decoder: QueryDecoder, tower: TextOnly, path: str) -> None:
    """The first query by this encoder is the one that was trained on."""
    first = decoder.classes[0]
    if tower.width != decoder.queries.shape[1]:
        raise ValueError(f"knowledge_encoder {path}: is {tower.width} wide, the decoder's {decoder.queries.shape[1]}")
    told = ClassSentences(
        labels=(first.label,),
        texts=first.texts,
        owner=torch.zeros(len(first.texts), dtype=torch.int64),
        weights=torch.tensor(first.weights),
    )
    cosine = float(told.prototypes(tower.features(first.texts))[0] @ decoder.queries[0].cpu())
    if cosine < _SAME:
        raise ValueError(
            f"knowledge_encoder {path}: is not the one that the decoder was trained with: cosine {cosine:.3f} of the "
            f"queries for {first.label!r}"
        )


__all__ = ["Queries", "query_answers"]
