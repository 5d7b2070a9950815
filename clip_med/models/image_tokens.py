"""The image tower's pooled features and its last tokens, from one forward pass."""

from __future__ import annotations

from typing import Any

from jaxtyping import Float, Num
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder


def features_and_tokens(
    encoder: DualEncoder, images: Num[Tensor, "B 3 H W"]
) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B P K"]]:
    """What `encode_image` gives, and the places of the last grid before pooling and projection; see `token_width`.

    Class tokens and registers are no places.
    """
    from open_clip.transformer import VisionTransformer

    visual = encoder.clip.visual
    pixels = encoder.pixels(images)
    if isinstance(visual, VisionTransformer):
        tower: Any = visual
        pooled, tokens = tower._pool(tower.transformer(tower._embeds(pixels)))
        if tower.proj is not None:
            pooled = pooled @ tower.proj
        return encoder.unit_rows(pooled), tokens
    trunk = visual.trunk
    grid: Tensor = trunk.forward_features(pixels)
    pooled = visual.head(trunk.forward_head(grid))
    if grid.ndim == 3:
        tokens = grid[:, trunk.num_prefix_tokens :]
    elif grid.shape[1] == trunk.num_features:
        tokens = grid.flatten(2).transpose(1, 2)
    else:
        tokens = grid.flatten(1, 2)
    return encoder.unit_rows(pooled), tokens


def token_width(encoder: DualEncoder) -> int:
    """K of `features_and_tokens`.

    Raises:
        ValueError: the tower is neither open_clip's vision transformer nor one of timm's, or pools by attention.
    """
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual: Any = encoder.clip.visual
    trunk: Any = getattr(visual, "trunk", None)
    if isinstance(visual, VisionTransformer) and visual.attn_pool is None and visual.pool_type in ("tok", "avg"):
        shape: Any = visual.ln_post.normalized_shape
        return int(shape[0])
    if isinstance(visual, TimmModel) and not hasattr(visual.head, "pool"):
        return trunk.num_features
    raise ValueError(f"places of an image tower of kind {type(visual).__name__} with its pooling are not known")


__all__ = ["features_and_tokens", "token_width"]
