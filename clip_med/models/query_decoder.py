"""Diseases as queries that look for themselves in the places of an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor, nn

# Since queries are multiplied by sqrt(Q): a decoder that was trained without answers otherwise.
_VERSION: Final = 2


@dataclass(frozen=True, kw_only=True)
class QueryClass:
    """A class that is asked for: its label, the texts that its query is made of, and the weight of each."""

    label: str
    texts: tuple[str, ...]
    weights: tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class DecoderShape:
    """All sizes of a `QueryDecoder`.

    Attributes:
        query_width: of the queries, Q.
        token_width: of the places, K.
        text_width: of text features, D, which can stand in the place of an image; None: no decoder for these.
        width: inside the decoder, a multiple of `heads`.
    """

    query_width: int
    token_width: int
    text_width: int | None = None
    width: int = 256
    layers: int = 4
    heads: int = 4
    feed_forward: int = 1024
    dropout: float = 0.1


class QueryDecoder(nn.Module):
    """A transformer decoder whose queries are fixed embeddings of knowledge and whose memory are places of an image.

    KAD (Zhang et al., arXiv 2302.14042; xiaoman-zhang/KAD): 4 layers, 4 heads, feed-forward 1024, dropout 0.1; a query
    attends to the other queries and to the image, or to a text as a memory of one place. Deviations: one logit for each
    query in place of two under a softmax, whose difference it is; places and texts have each a layer into the decoder,
    where KAD's towers end in its width; queries are unit rows, multiplied by sqrt(Q) here, the length of KAD's, which
    come from a layer norm: left at length 1, what tells them apart is lost beside what they share, and all answer alike
    for hundreds of steps. It stands in a model as `DualEncoder.queries` and is saved with it
    (`knowledge_heads`).

    Attributes:
        classes: those that it is trained on.
        queries: [C, Q], theirs; unit rows of the knowledge encoder, projected by a trained layer.
    """

    queries: Tensor

    def __init__(self, classes: Sequence[QueryClass], queries: Float[Tensor, "C Q"], shape: DecoderShape) -> None:
        super().__init__()
        self.classes, self.shape = tuple(classes), shape
        self.register_buffer("queries", queries.clone())
        width = shape.width
        self.to_query = nn.Linear(shape.query_width, width)
        self.to_memory = nn.Sequential(nn.Linear(shape.token_width, width), nn.LayerNorm(width))
        text = shape.text_width
        self.from_text = None if text is None else nn.Sequential(nn.Linear(text, width), nn.LayerNorm(width))
        layer = nn.TransformerDecoderLayer(
            width, shape.heads, shape.feed_forward, shape.dropout, batch_first=True, norm_first=True
        )
        self.decoder = nn.TransformerDecoder(layer, shape.layers, norm=nn.LayerNorm(width))
        self.answer = nn.Linear(width, 1)

    def forward(self, tokens: Float[Tensor, "B P K"], queries: Float[Tensor, "N Q"] | None = None) -> Tensor:
        """Logits [B, N]: above 0 where the class is seen in the image. `queries`: others than those trained on."""
        return self._ask(self.to_memory(tokens), queries)

    def of_text(self, features: Float[Tensor, "B D"], queries: Float[Tensor, "N Q"] | None = None) -> Tensor:
        """The same of texts, from their features; needs `text_width`."""
        assert self.from_text is not None, "a decoder for images only"
        return self._ask(self.from_text(features[:, None]), queries)

    def _ask(self, memory: Float[Tensor, "B P W"], queries: Float[Tensor, "N Q"] | None) -> Float[Tensor, "B N"]:
        queries = self.queries if queries is None else queries
        asked = self.to_query(queries * queries.shape[1] ** 0.5).expand(len(memory), -1, -1)
        return self.answer(self.decoder(asked, memory))[..., 0]

    def describe(self) -> dict[str, Any]:
        """What `described` needs besides the tensors, as plain values for JSON."""
        classes = [{**asdict(one), "texts": list(one.texts), "weights": list(one.weights)} for one in self.classes]
        return {"version": _VERSION, "classes": classes, "shape": asdict(self.shape)}

    @classmethod
    def described(cls, document: Mapping[str, Any]) -> QueryDecoder:
        """A decoder of that description, whose tensors are still to be read.

        Raises:
            KeyError, TypeError: no such description, or one of another version.
        """
        if document["version"] != _VERSION:
            raise TypeError(f"version {document['version']}, expected {_VERSION}")
        classes = [
            QueryClass(label=one["label"], texts=tuple(one["texts"]), weights=tuple(one["weights"]))
            for one in document["classes"]
        ]
        shape = DecoderShape(**document["shape"])
        return cls(classes, torch.zeros(len(classes), shape.query_width), shape)


__all__ = ["DecoderShape", "QueryClass", "QueryDecoder"]
