"""The text tower over real tokens only: a batch of texts becomes one row without padding.

Everything but attention works on single positions, so rows can be joined; attention gets told where each text begins
and ends. After the last attention only the pooled positions are needed, and only these go on. Features and gradients
are those of the padded tower up to the order of sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from torch.utils.checkpoint import checkpoint


class Packing:
    """Where the texts of the current batch lie in the row of real tokens; one for all blocks of a tower.

    Attributes:
        mask: which positions of the padded batch are real.
        offsets: where each text begins in the row, and its end.
        pooled: the positions in the row that pooling takes; None for all.
    """

    mask: Bool[Tensor, "B T"]
    offsets: Int64[Tensor, " B1"]
    pooled: Int64[Tensor, " B"] | None

    def begin(
        self,
        tokens: Int64[Tensor, "B T"],
        lengths: Int64[Tensor, " B"],
        pool: Literal["first", "last", "all"],
    ) -> tuple[Int64[Tensor, "1 N"], Int64[Tensor, "1 N"]]:
        """Take the next batch; returns its real tokens and the position of each in its text."""
        positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        self.mask = positions < lengths[:, None]
        self.offsets = F.pad(lengths.cumsum(0), (1, 0))
        self.pooled = {"first": self.offsets[:-1], "last": self.offsets[1:] - 1, "all": None}[pool]
        return tokens[self.mask][None], positions[self.mask][None]

    def pad(self, row: Float[Tensor, "N *dims"]) -> Float[Tensor, "B T *dims"]:
        """The padded batch, zeros where no token is."""
        return row.new_zeros(*self.mask.shape, *row.shape[1:]).index_put((self.mask,), row)

    def attend(
        self,
        query: Float[Tensor, "M W"],
        key: Float[Tensor, "N W"],
        value: Float[Tensor, "N W"],
        heads: int,
        *,
        causal: bool,
        dropout: float = 0.0,
    ) -> Float[Tensor, "M W"]:
        """Attention inside each text: on GPUs over ragged rows, elsewhere over the padded batch.

        Args:
            query: of all tokens, or of the pooled one of each text. That one sees its whole text: it is the last of a
                causal tower, or the first of one that sees everything.
        """
        q, k, v = (row.unflatten(1, (heads, -1)) for row in (query, key, value))
        alone = len(query) != len(key)
        attend = self._ragged if query.is_cuda else self._padded
        return attend(q, k, v, alone=alone, causal=causal and not alone, dropout=dropout).flatten(1)

    def _ragged(self, q: Tensor, k: Tensor, v: Tensor, *, alone: bool, causal: bool, dropout: float) -> Tensor:
        """Variable-length kernels behind torch's jagged layout."""
        ends = torch.arange(len(q) + 1, device=q.device) if alone else self.offsets
        jagged = (
            torch.nested.nested_tensor_from_jagged(row, offsets, max_seqlen=longest).transpose(1, 2)
            for row, offsets, longest in (
                (q, ends, 1 if alone else self.mask.shape[1]),
                (k, self.offsets, self.mask.shape[1]),
                (v, self.offsets, self.mask.shape[1]),
            )
        )
        attended = F.scaled_dot_product_attention(*jagged, dropout_p=dropout, is_causal=causal)
        return attended.transpose(1, 2).values()

    def _padded(self, q: Tensor, k: Tensor, v: Tensor, *, alone: bool, causal: bool, dropout: float) -> Tensor:
        query = (q[:, None] if alone else self.pad(q)).transpose(1, 2)
        key, value = (self.pad(row).transpose(1, 2) for row in (k, v))
        # A real query of a causal tower sees real keys only: padding comes after them.
        mask = None if causal else self.mask[:, None, None, :]
        attended = F.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, dropout_p=dropout, is_causal=causal
        ).transpose(1, 2)
        return attended[:, 0] if alone else attended[self.mask]


def pack_clip_blocks(transformer: Any) -> Packing:
    """Let the blocks of an open_clip text transformer take a packed row, in place.

    Raises:
        ValueError: blocks of another kind, naming it.
    """
    from open_clip.transformer import ResidualAttentionBlock

    packing = Packing()
    blocks = list(transformer.resblocks)
    for block in blocks:
        if type(block) is not ResidualAttentionBlock:
            raise ValueError(f"pack_text: blocks of kind {type(block).__name__} are not supported")
    for number, block in enumerate(blocks):
        # A partial over the block and not a closure: a deep copy of the model (EMA) then refers to its own block.
        block.forward = partial(_clip_block, block, packing, number == len(blocks) - 1)
    return packing


def pack_bert_layers(bert: Any) -> Packing:
    """The same for transformers' BERT.

    Raises:
        ValueError: another architecture, naming it.
    """
    if bert.config.model_type != "bert" or bert.config.is_decoder:
        raise ValueError(f"pack_text: text towers of type {bert.config.model_type!r} are not supported, only 'bert'")
    packing = Packing()
    layers = list(bert.encoder.layer)
    for number, layer in enumerate(layers):
        layer.forward = partial(_bert_layer, layer, packing, number == len(layers) - 1)
    return packing


def packed_clip(tower: Any, packing: Packing, tokens: Tensor, lengths: Tensor) -> Float[Tensor, "B W"]:
    """Pooled features of an open_clip text tower that pools at the end token."""
    ids, positions = packing.begin(tokens, lengths, "last")
    dtype = tower.transformer.get_cast_dtype()
    x = tower.token_embedding(ids).to(dtype) + tower.positional_embedding[positions].to(dtype)
    return tower.ln_final(_run(tower.transformer.resblocks, x, recompute=tower.transformer.grad_checkpointing)[0])


def packed_bert(tower: Any, packing: Packing, tokens: Tensor, lengths: Tensor) -> Float[Tensor, "B W"]:
    """Pooled features of open_clip's tower around transformers' BERT."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    bert = tower.transformer
    first = pools_first(tower)
    ids, positions = packing.begin(tokens, lengths, "first" if first else "all")
    x = bert.embeddings(input_ids=ids, position_ids=positions)
    # BERT's layers know from `gradient_checkpointing` themselves whether to compute again.
    x = _run(bert.encoder.layer, x, recompute=False)[0]
    x, mask = (x[:, None], packing.mask[:, :1]) if first else (packing.pad(x), packing.mask)
    pooled = None if bert.pooler is None else bert.pooler(x)
    return tower.pooler(BaseModelOutputWithPooling(last_hidden_state=x, pooler_output=pooled), mask.long())


def pools_first(tower: Any) -> bool:
    """Whether an open_clip tower around a transformers model reads the first token only."""
    from open_clip.hf_model import ClsLastHiddenStatePooler, ClsPooler

    return isinstance(tower.pooler, ClsLastHiddenStatePooler | ClsPooler)


def _run(blocks: Any, x: Tensor, *, recompute: bool) -> Tensor:
    for block in blocks:
        x = checkpoint(block, x, use_reentrant=False) if recompute else block(x)
    return x


def _clip_block(block: Any, packing: Packing, last: bool, x: Tensor) -> Tensor:
    """A pre-norm block (attention, then MLP) over a packed row [1, N, W]; the last keeps the pooled positions only."""
    row = x[0]
    attention, normed = block.attn, block.ln_1(row)
    weight, bias, width = attention.in_proj_weight, attention.in_proj_bias, attention.embed_dim
    if last and packing.pooled is not None:
        row = row[packing.pooled]
        # Rows of the fused weight: query, key, value.
        query = F.linear(normed[packing.pooled], weight[:width], bias[:width])
        key, value = F.linear(normed, weight[width:], bias[width:]).chunk(2, dim=-1)
    else:
        query, key, value = F.linear(normed, weight, bias).chunk(3, dim=-1)
    attended = packing.attend(query, key, value, attention.num_heads, causal=True)
    row = row + block.ls_1(attention.out_proj(attended))
    return (row + block.ls_2(block.mlp(block.ln_2(row))))[None]


def _bert_layer(layer: Any, packing: Packing, last: bool, x: Tensor) -> Tensor:
    """A post-norm layer over a packed row [1, N, W]; the last keeps the pooled positions only."""
    whole = x[0]
    row = whole[packing.pooled] if last and packing.pooled is not None else whole
    own = layer.attention.self
    dropout = own.dropout.p if own.training else 0.0
    attended = packing.attend(
        own.query(row), own.key(whole), own.value(whole), own.num_attention_heads, causal=False, dropout=dropout
    )
    return layer.feed_forward_chunk(layer.attention.output(attended, row))[None]


__all__ = ["Packing", "pack_bert_layers", "pack_clip_blocks", "packed_bert", "packed_clip", "pools_first"]
