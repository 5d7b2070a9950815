"""A projection of text features for each facet of knowledge: what a finding is, how it looks, how reports word it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn


class FacetProjections(nn.Module):
    """e = n((I + R_k) t) for a text feature t of facet k; R_k is trained and begins at 0, so that e begins as t.

    The projection layer of DeViDe (arXiv 2404.03618), which lets one image stand near descriptions of several kinds.
    Weight decay draws R_k to 0, and so the projection to the identity. It stands in a model as `DualEncoder.facets` and
    is saved with it (`knowledge_heads`).

    Attributes:
        names: of the facets.
    """

    texts: Tensor

    def __init__(self, names: Sequence[str], width: int) -> None:
        super().__init__()
        self.names = tuple(names)
        self.change = nn.Parameter(torch.zeros(len(self.names), width, width))
        self.register_buffer("texts", torch.zeros(0, width), persistent=False)
        self._rows_of: list[Tensor] = []

    def compare_with(self, texts: Float[Tensor, "N D"], facet_of: Int64[Tensor, " N"]) -> None:
        """Take the text features, and the number of each one's facet, that `forward` compares images with."""
        if self.texts.shape == texts.shape:
            # In place: DistributedDataParallel holds on to the buffers that it finds.
            self.texts.copy_(texts)
        else:
            self.texts = texts.to(self.change)
        own = [(facet_of == number).nonzero()[:, 0] for number in range(len(self.names))]
        self._rows_of = [rows.to(self.change.device) for rows in own]

    def project(self, texts: Float[Tensor, "N D"], name: str) -> Float[Tensor, "N D"]:
        """Unit rows of texts of one facet.

        Raises:
            ValueError: a facet that has no projection.
        """
        if name not in self.names:
            raise ValueError(f"facet {name!r} has no projection in this model; it has {', '.join(self.names)}")
        return F.normalize(texts + texts @ self.change[self.names.index(name)].T, dim=1)

    def forward(self, image_features: Float[Tensor, "B D"]) -> Float[Tensor, "B N"]:
        """Cosines of images with the texts of `compare_with`, in fp32 at least, also under autocast."""
        with torch.autocast(image_features.device.type, enabled=False):
            told = self.texts
            for name, rows in zip(self.names, self._rows_of, strict=True):
                told = told.index_copy(0, rows, self.project(self.texts[rows], name))
            return image_features @ told.to(image_features.dtype).T

    def describe(self) -> dict[str, Any]:
        """What `described` needs besides the tensors, as plain values for JSON."""
        return {"names": list(self.names), "width": self.change.shape[1]}

    @classmethod
    def described(cls, document: Mapping[str, Any]) -> FacetProjections:
        """Projections of that description, whose tensors are still to be read.

        Raises:
            KeyError, TypeError: no such description.
        """
        return cls(document["names"], document["width"])


__all__ = ["FacetProjections"]
