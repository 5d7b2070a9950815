"""The last image block where only its class token is read: the others are needed as keys and values, and no further.

Of 12 W^2 multiplications per token (query, key, value, output: 4 W^2; MLP: 8 W^2) the last block then needs 2 W^2: with
12 blocks 7 % of the tower is saved, forward and backward. Features and gradients are the same up to the order of sums.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor


def pool_in_last_block(visual: Any) -> None:
    """Let the last block of an image tower return its class token only, in place.

    Raises:
        ValueError: the tower does not pool a class token, or its blocks are of another kind; names it.
    """
    from open_clip.transformer import ResidualAttentionBlock, VisionTransformer
    from timm.layers.attention import Attention
    from timm.models.vision_transformer import Block
    from timm.models.vision_transformer import VisionTransformer as TimmVisionTransformer

    trunk, plain = getattr(visual, "trunk", None), True
    if isinstance(visual, VisionTransformer):
        block, kind, forward = visual.transformer.resblocks[-1], ResidualAttentionBlock, _open_clip
        pools = visual.pool_type == "tok" and visual.attn_pool is None and not visual.output_tokens
        pools = pools and visual.transformer.batch_first
    elif type(trunk) is TimmVisionTransformer:
        block, kind, forward = trunk.blocks[-1], Block, _timm
        pools = trunk.global_pool == "token" and trunk.attn_pool is None
        plain = type(block.attn) is Attention and getattr(block.attn, "gate", None) is None
    else:
        raise ValueError(f"pooled_last_block: image tower {type(trunk or visual).__name__} is no vision transformer")
    if not pools:
        raise ValueError("pooled_last_block: the image tower pools more than its class token")
    if type(block) is not kind or not plain:
        found = f"{type(block).__name__} with {type(block.attn).__name__}"
        raise ValueError(f"pooled_last_block: blocks of kind {found} are not supported")
    # A partial over the block and not a closure: a deep copy of the model (EMA) then refers to its own block.
    block.forward = partial(forward, block)  # type: ignore[method-assign]


def _open_clip(block: Any, x: Float[Tensor, "B T W"], *unused: None, attn_mask: None = None) -> Float[Tensor, "B 1 W"]:
    normed = block.ln_1(x)
    attended = block.attention(q_x=normed[:, :1], k_x=normed, v_x=normed)
    x = x[:, :1] + block.ls_1(attended)
    return x + block.ls_2(block.mlp(block.ln_2(x)))


def _timm(block: Any, x: Float[Tensor, "B T W"], attn_mask: None = None, is_causal: bool = False) -> Tensor:
    attention, normed = block.attn, block.norm1(x)
    weight, bias = attention.qkv.weight, attention.qkv.bias
    width = attention.num_heads * attention.head_dim
    # Rows of the fused weight: query, key, value.
    query = F.linear(normed[:, :1], weight[:width], None if bias is None else bias[:width])
    both = F.linear(normed, weight[width:], None if bias is None else bias[width:])
    q, k, v = (
        part.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for part in (query, *both.chunk(2, dim=-1))
    )
    dropout = attention.attn_drop.p if attention.training else 0.0
    attended = F.scaled_dot_product_attention(attention.q_norm(q), attention.k_norm(k), v, dropout_p=dropout)
    attended = attention.norm(attended.transpose(1, 2).flatten(2))
    x = x[:, :1] + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(attended))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x))))


__all__ = ["pool_in_last_block"]
