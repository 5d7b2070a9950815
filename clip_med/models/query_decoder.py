"""Diseases as queries that look for themselves in the places of an image."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn


class QueryDecoder(nn.Module):
    """A transformer decoder whose queries are fixed embeddings of knowledge and whose memory are places of an image.

    KAD (Zhang et al., arXiv 2302.14042; xiaoman-zhang/KAD): 4 layers, 4 heads, feed-forward 1024, dropout 0.1; a query
    attends to the other queries and to the image. Deviation: one logit for each query in place of two under a softmax,
    whose difference it is.

    Args:
        queries: [C, Q], kept as they are and projected by a trained layer.
        token_width: of the places.
        width: inside the decoder, a multiple of `heads`.
    """

    queries: Tensor

    def __init__(
        self,
        queries: Float[Tensor, "C Q"],
        token_width: int,
        *,
        width: int = 256,
        layers: int = 4,
        heads: int = 4,
        feed_forward: int = 1024,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.register_buffer("queries", queries.clone(), persistent=False)
        self.to_query = nn.Linear(queries.shape[1], width)
        self.to_memory = nn.Sequential(nn.Linear(token_width, width), nn.LayerNorm(width))
        layer = nn.TransformerDecoderLayer(width, heads, feed_forward, dropout, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, layers, norm=nn.LayerNorm(width))
        self.answer = nn.Linear(width, 1)

    def forward(self, tokens: Float[Tensor, "B P K"]) -> Float[Tensor, "B C"]:
        """Logits: above 0 where the class is seen in the image."""
        asked = self.to_query(self.queries).expand(len(tokens), -1, -1)
        return self.answer(self.decoder(asked, self.to_memory(tokens)))[..., 0]


__all__ = ["QueryDecoder"]
