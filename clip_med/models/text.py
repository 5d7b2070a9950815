"""The text side of open_clip models: which lengths may be trimmed, and the forward pass over trimmed tokens.

open_clip pads every caption to the context length (77 or 256 positions) and computes all of them. A position after the
end of a caption cannot influence a causal tower that pools at the end token, nor a tower with an attention mask, so the
forward pass here runs over the longest caption of the batch only. Towers that attend to their padding (SigLIP: no mask,
last position pooled) were trained with it and are never trimmed.

CoCa appends a class token behind the padding, sees the whole caption from there and pools it. It keeps the last
position when the padding is trimmed. open_clip's mask of the padding is off by one, and published weights were trained
with it: the first padding token is seen, and the class token sees itself only where the caption fills the context.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from clip_med.models.packed_text import (
    Packing,
    pack_bert_layers,
    pack_clip_blocks,
    packed_bert,
    packed_clip,
    pools_first,
)


class TextTower:
    """A view of the text tower inside an open_clip `CLIP` (parameters on the model itself) or `CustomTextCLIP`."""

    def __init__(self, clip: nn.Module) -> None:
        nested = getattr(clip, "text", None)
        self.module: Any = clip if nested is None else nested
        self.is_hf = hasattr(self.module, "config") and hasattr(self.module, "pooler")
        if not self.is_hf:
            self.pool: str = getattr(self.module, "text_pool_type" if nested is None else "pool_type")
            self.eos_id: int = getattr(self.module, "text_eos_id" if nested is None else "eos_id")
            if getattr(self.module, "use_pad_mask", False):
                raise ValueError("text towers without a causal mask and with a pad mask are not supported")
            if self.pool not in ("argmax", "eos", "first", "last"):
                raise ValueError(f"text pooling {self.pool!r} is not supported; one of argmax, eos, first, last")
        self.multiple = 1
        """Trimmed lengths are multiples of this, or the context."""
        self._packing: Packing | None = None

    @property
    def trims(self) -> bool:
        """Whether positions after the longest caption can be left out without changing any feature."""
        return self.is_hf or (self.module.attn_mask is not None and self.pool in ("argmax", "eos"))

    @property
    def appends_class(self) -> bool:
        """Whether a class token follows the text (CoCa), and is what is pooled."""
        return getattr(self.module, "cls_emb", None) is not None

    @property
    def packs(self) -> bool:
        """Whether the blocks take packed rows only."""
        return self._packing is not None

    @property
    def packs_pooled(self) -> bool:
        """Whether the last block is computed for the pooled positions only."""
        return self._packing is not None and (not self.is_hf or pools_first(self.module))

    def lengths(self, tokens: Int64[Tensor, "B T"]) -> Int64[Tensor, " B"]:
        """Positions of each caption up to its end; all of them where the tower cannot be trimmed."""
        positions = tokens.shape[1]
        if not self.trims:
            return torch.full((len(tokens),), positions, device=tokens.device)
        if self.is_hf:
            return positions - (tokens != self.module.config.pad_token_id).flip(1).int().argmax(dim=1)
        # Not by the first zero: in CLIP's vocabulary 0 is both padding and "!".
        return self._end(tokens) + 1

    def trim(self, tokens: Int64[Tensor, "B T"]) -> Int64[Tensor, "B T2"]:
        """The tokens up to the end of the longest caption, rounded up to `multiple`, where the tower allows it."""
        if len(tokens) == 0:
            return tokens
        return tokens[:, : -(-int(self.lengths(tokens).max()) // self.multiple) * self.multiple]

    def pack(self) -> None:
        """Compute real tokens only from now on (`clip_med.models.packed_text`).

        Raises:
            ValueError: a tower that cannot be trimmed, or of a kind that is not supported; names it.
        """
        if not self.trims:
            raise ValueError("pack_text: this text tower attends to its padding, so the padding cannot be left out")
        if self.appends_class:
            raise ValueError("pack_text: text towers with an appended class token (CoCa) are not supported")
        if self._packing is None:
            pack = pack_bert_layers if self.is_hf else pack_clip_blocks
            self._packing = pack(self.module.transformer)

    def pooled(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B W"]:
        """Pooled features before the projection head."""
        tower = self.module
        if self._packing is not None:
            packed = packed_bert if self.is_hf else packed_clip
            return packed(tower, self._packing, tokens, self.lengths(tokens))
        if self.is_hf:
            mask = (tokens != tower.config.pad_token_id).long()
            return tower.pooler(tower.transformer(input_ids=tokens, attention_mask=mask), mask)
        x, mask = self.enter(tower.token_embedding(tokens), tokens)
        return self.finish(tower.transformer(x, attn_mask=mask), tokens)

    def enter(
        self, words: Float[Tensor, "B T W"], tokens: Int64[Tensor, "B T"]
    ) -> tuple[Float[Tensor, "B T2 W"], Float[Tensor, "*heads T2 T2"] | None]:
        """What enters the first block of an open_clip tower, from word embeddings, and its additive attention mask.

        T2 is T but for the class token that CoCa appends.
        """
        tower = self.module
        dtype = tower.transformer.get_cast_dtype()
        if self.appends_class:
            return self._enter_with_class(words.to(dtype), tokens)
        length = tokens.shape[1]
        mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        return words.to(dtype) + tower.positional_embedding[:length].to(dtype), mask

    def _enter_with_class(self, words: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        tower = self.module
        if tokens.shape[1] < tower.context_length:  # one padding token, which the mask lets through
            tokens = F.pad(tokens, (0, 1), value=tower.pad_id)
            padding = tower.token_embedding.weight[tower.pad_id].to(words.dtype)
            words = torch.cat([words, padding.expand(len(words), 1, -1)], dim=1)
        x = torch.cat([words, tower.cls_emb.to(words.dtype).expand(len(words), 1, -1)], dim=1)
        length = x.shape[1]
        positions = torch.cat([tower.positional_embedding[: length - 1], tower.positional_embedding[-1:]])
        seen = F.pad(tokens != tower.pad_id, (1, 0), value=True)
        causal = 0.0 if tower.attn_mask is None else tower.attn_mask[:length, :length]
        mask = torch.where(seen, 0.0, -torch.inf)[:, None] + causal
        return x + positions.to(x.dtype), mask.expand(-1, length, -1).repeat_interleave(tower.heads, dim=0)

    def finish(self, x: Float[Tensor, "B T2 W"], tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B W"]:
        """Pooled features from the output of the last block of an open_clip tower."""
        if self.appends_class:
            x = x[:, -1]
        elif self.pool in ("first", "last"):
            x = x[:, 0 if self.pool == "first" else -1]
        else:
            x = x[torch.arange(len(x), device=x.device), self._end(tokens)]
        return self.module.ln_final(x)  # per position, so after pooling it costs 1/T and gives the same

    def projected(self, pooled: Float[Tensor, "B W"]) -> Float[Tensor, "B D"]:
        """The projection head; not normalised."""
        if self.is_hf:
            return self.module.proj(pooled)
        head = self.module.text_projection
        if head is None:
            return pooled
        return head(pooled) if isinstance(head, nn.Module) else pooled @ head

    def _end(self, tokens: Int64[Tensor, "B T"]) -> Int64[Tensor, " B"]:
        """Position of the end token: the highest id in CLIP's vocabulary, or the first `eos_id`."""
        return tokens.argmax(dim=-1) if self.pool == "argmax" else (tokens == self.eos_id).int().argmax(dim=-1)


__all__ = ["TextTower"]
