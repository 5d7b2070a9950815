"""Texts against a frozen knowledge encoder: the second stage of KEP keeps what the first one taught."""

from __future__ import annotations

from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.config import PositiveFloat, config
from clip_med.data.batch import Batch
from clip_med.distributed import gather, gather_with_gradient, rank
from clip_med.losses.infonce import info_nce
from clip_med.losses.tiled_infonce import tiled_info_nce
from clip_med.models.config import HFTower
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.text_only import TextOnly


@config
class AlignConfig:
    """Knowledge-text alignment: (contrastive loss + weight InfoNCE(texts, their knowledge features)) / (1 + weight)."""

    text: HFTower
    """The knowledge encoder, as `clip-med knowledge train` writes it; its features have its own width, without a
    projection, and the model must have that `embed_dim`."""
    weight: PositiveFloat = 0.3
    """Of the alignment, where the contrastive loss has 1 (MAGIC-AI4Med/KEP)."""
    scale: PositiveFloat = 25.0
    """Of cosines in the alignment; fixed, 1 / 0.04 in KEP."""

    def __post_init__(self) -> None:
        """Refuse an encoder that knows nothing."""
        if not self.text.pretrained:
            raise ValueError("align.text.pretrained: false: with random weights there is nothing to keep")


class KnowledgeAlignment:
    """The knowledge encoder, frozen and in evaluation mode; called as a `Term` of the step.

    With t the model's features of the captions and k those of the frozen encoder, the added loss is InfoNCE of (t, k)
    in both directions, where captions that share a group id are positives of each other, as in the contrastive loss. No
    gradient reaches k. KEP (MAGIC-AI4Med/KEP) trains so with weights 1 and 0.3, divided by their sum; there the towers
    rest for the first 5 epochs and negatives of the same label can be left out, where we make them positives.

    Raises:
        ValueError: the knowledge encoder has another width than the model's features.
    """

    def __init__(
        self,
        settings: AlignConfig,
        model: DualEncoder,
        precision: Literal["fp32", "bf16", "pure_bf16"],
        tile: int | None = None,
    ) -> None:
        self._settings, self._precision, self._tile = settings, precision, tile
        self.encoder = TextOnly(settings.text)
        self.encoder.to(model.logit_scale.device).eval().requires_grad_(False)
        ours, theirs = int(model.model_cfg["embed_dim"]), self.encoder.width
        if ours != theirs:
            raise ValueError(
                f"align.text has features of {theirs} numbers, the model of {ours}: they are compared as they are, so "
                f"set model.embed_dim: {theirs}"
            )

    def features(self, batch: Batch) -> Float[Tensor, "B D"]:
        """Unit rows of the captions by the knowledge encoder's own tokenizer."""
        device = next(self.encoder.parameters()).device
        with torch.no_grad(), torch.autocast(device.type, dtype=torch.bfloat16, enabled=self._precision != "fp32"):
            return self.encoder(batch.captions)

    def __call__(
        self,
        objective: Float[Tensor, ""],
        batch: Batch,
        image_features: Float[Tensor, "B D"],
        text_features: Float[Tensor, "B D"],
        logit_scale: Float[Tensor, "*one"],
    ) -> Float[Tensor, ""]:
        """What is minimised; exact across ranks as the contrastive loss is."""
        known = self.features(batch).to(text_features.dtype)
        ids, scale = batch.group_ids.to(known.device), text_features.new_tensor(self._settings.scale)
        if self._tile is not None:
            aligned = tiled_info_nce(text_features, known, scale, ids, tile=self._tile)
        else:
            aligned = info_nce(
                text_features,
                known,
                scale,
                ids,
                all_image_features=gather_with_gradient(text_features),
                all_text_features=gather(known),
                all_group_ids=gather(ids),
                row_offset=rank() * len(known),
            )
        return (objective + self._settings.weight * aligned) / (1 + self._settings.weight)


__all__ = ["AlignConfig", "KnowledgeAlignment"]
