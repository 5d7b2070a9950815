"""What knowledge trains beside the towers, in a step: facets of classes, and queries to the places of an image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from clip_med.data.batch import Batch
from clip_med.training.config import FSDPConfig, TrainConfig
from clip_med.training.facets import FacetConfig, KnowledgeFacets
from clip_med.training.queries import KnowledgeQueries, QueryConfig


@dataclass(frozen=True)
class KnowledgeHeads:
    """The heads of a run. `Towers` gives what they say of each row beside its features."""

    facets: KnowledgeFacets | None = None
    queries: KnowledgeQueries | None = None

    def begin(self) -> None:
        """Before the first forward pass of a step."""
        if self.facets is not None:
            self.facets.begin()

    def split(
        self, image: Float[Tensor, "B E"], text: Float[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], HeadRows]:
        """Image features, text features and what the heads say of them."""
        cosines, answers = None, ()
        if self.queries is not None:
            image, text, answers = self.queries.split(image, text)
        if self.facets is not None:
            image, cosines = image[:, : -self.facets.columns], image[:, -self.facets.columns :]
        return image, text, HeadRows(cosines, answers)

    def add(
        self, objective: Float[Tensor, ""], rows: HeadRows, batch: Batch, logit_scale: Float[Tensor, "*one"]
    ) -> Float[Tensor, ""]:
        """The objective with the losses of the heads, whose mean over ranks is that of the global batch."""
        if self.facets is not None and rows.cosines is not None:
            objective = objective + self.facets.loss(rows.cosines, batch, logit_scale)
        if self.queries is not None:
            objective = objective + self.queries.loss(rows.answers, batch)
        return objective


@dataclass(frozen=True, eq=False)
class HeadRows:
    """Cosines of images with facets, and answers to queries, from images and perhaps from texts."""

    cosines: Float[Tensor, "B N"] | None
    answers: Sequence[Float[Tensor, "B C"]]


def check_heads(facets: FacetConfig | None, queries: QueryConfig | None, train: TrainConfig, positives: str) -> None:
    """Refuse heads where they could not train as the towers do, or would not see places or labels.

    Raises:
        ValueError: names the head and the setting.
    """
    for name in [name for name, given in (("facets", facets), ("queries", queries)) if given is not None]:
        if positives != "label":
            raise ValueError(f"{name} needs loader.positives: label, got {positives}: labels name classes")
        for setting, chosen, why in (
            (
                "parallel.kind: fsdp",
                isinstance(train.parallel, FSDPConfig),
                "heads are kept whole on each rank; use ddp",
            ),
            ("precision: pure_bf16", train.precision == "pure_bf16", "heads have no bf16 copy; use bf16"),
            ("compute.compile", name == "queries" and train.compute.compile, "the compiled tower gives no places"),
            (
                "compute.pooled_last_block",
                name == "queries" and train.compute.pooled_last_block,
                "the last block then gives no places",
            ),
        ):
            if chosen:
                raise ValueError(f"{name} does not go with train.{setting}: {why}")


__all__ = ["HeadRows", "KnowledgeHeads", "check_heads"]
