"""A transformers text tower on its own, as a two-tower model would hold it, and the folder that it starts from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from clip_med.models.config import HFTower
from clip_med.models.text import TextTower
from clip_med.models.two_tower import load_text, text_folder, text_width


class TextOnly(nn.Module):
    """The transformer with its pooling, without a projection head: unit rows of its own width.

    What `save` writes is a folder for `HFTower.path`; pooling and context length stand in that configuration too, so
    they should be the same there.
    """

    def __init__(self, tower: HFTower) -> None:
        """Build the tower and read its weights.

        Raises:
            ValueError: see `clip_med.models.two_tower`.
        """
        super().__init__()
        from open_clip.hf_model import HFTextEncoder
        from open_clip.tokenizer import HFTokenizer

        path = text_folder(tower.path)
        self.width = text_width(path, tower)
        self.encoder: Any = HFTextEncoder(
            path, output_dim=self.width, pooler_type=tower.pooler, proj_type=cast(Any, None), pretrained=False
        )
        if tower.pretrained:
            load_text(self.encoder.transformer, path)
        self.tokenizer: Any = HFTokenizer(path, context_length=tower.context_length)
        holder = nn.Module()
        holder.text = self.encoder
        self._tower = TextTower(holder)

    def forward(self, texts: Sequence[str]) -> Float[Tensor, "B W"]:
        """Unit rows of texts; what is longer than the context is cut."""
        tokens = self._tower.trim(self.tokenizer(list(texts)))
        device = next(self.encoder.parameters()).device
        return F.normalize(self._tower.pooled(tokens.to(device)).float(), dim=-1)

    @torch.no_grad()
    def features(self, texts: Sequence[str], *, batch_size: int = 256) -> Float[Tensor, "N W"]:
        """Unit rows in evaluation mode, on the CPU."""
        training = self.training
        self.eval()
        rows = [self(texts[start : start + batch_size]).cpu() for start in range(0, len(texts), batch_size)]
        self.train(training)
        return torch.cat(rows)

    def save(self, directory: Path) -> None:
        """Write configuration, tokenizer and weights as transformers reads them; committed by a rename.

        Raises:
            ValueError: the directory exists.
        """
        if directory.exists():
            raise ValueError(f"{directory}: exists; a text tower is written to a new folder")
        temporary = directory.with_name(f"{directory.name}.tmp-{os.getpid()}")
        shutil.rmtree(temporary, ignore_errors=True)
        self.encoder.transformer.save_pretrained(temporary)
        self.tokenizer.save_pretrained(temporary)
        os.rename(temporary, directory)


__all__ = ["TextOnly"]
