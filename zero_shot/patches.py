"""Features of the places of an image in the space that it shares with text, from the image tower of a dual encoder."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float, Num
from torch import Tensor, nn

from clip_med.models.dual_encoder import DualEncoder


def patch_features(
    encoder: DualEncoder, images: Num[Tensor, "B 3 S S"], *, normalize: bool = True
) -> Float[Tensor, "B h w D"]:
    """One row per place of the tower's last grid, each through the pooling and projection that a whole image takes.

    - transformers that average their patches, and convolutional towers: the last features, place by place. Where what
      follows the average is linear, the mean over places (with normalize=False) is the image feature before its length
      is set to 1.
    - transformers that pool a class token never compared their other tokens with text. In their last block each token
      attends to itself alone, which leaves its value (MaskCLIP, Zhou et al., arXiv 2112.01071, section 3.2).
    - CLIP's ResNet: value and output projection of its attention pooling (the same section), without its positions.

    Args:
        images: as for `encode_image`; call it in evaluation mode.

    Raises:
        ValueError: a tower of another kind, or one that pools by attention in another way; names it.
    """
    from open_clip.modified_resnet import ModifiedResNet
    from open_clip.timm_model import TimmModel
    from open_clip.transformer import VisionTransformer

    visual = encoder.clip.visual
    images = encoder.pixels(images)
    if isinstance(visual, VisionTransformer):
        features = _open_clip_vit(visual, images)
    elif isinstance(visual, ModifiedResNet):
        features = _modified_resnet(visual, images)
    elif isinstance(visual, TimmModel):
        features = _timm(visual, images)
    else:
        raise ValueError(f"places of an image tower of kind {type(visual).__name__} are not known")
    features = features.to(torch.promote_types(features.dtype, torch.float32))
    return F.normalize(features, dim=-1) if normalize else features


def _open_clip_vit(visual: Any, images: Tensor) -> Tensor:
    if visual.attn_pool is not None or visual.pool_type not in ("tok", "avg"):
        raise ValueError("the image tower pools by attention: its places have no features of their own")
    if visual.pool_type == "tok":
        tokens = _each_alone(visual.transformer.resblocks[-1], visual, images)[:, 1:]
    else:
        tokens = visual.transformer(visual._embeds(images))[:, 1:]
    # ln_post comes before the average or after it, and works token by token.
    tokens = visual.ln_post(tokens)
    if visual.proj is not None:
        tokens = tokens @ visual.proj
    return tokens.unflatten(1, visual.grid_size)


def _modified_resnet(visual: Any, images: Tensor) -> Tensor:
    grid = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(images)))))
    return visual.attnpool.c_proj(visual.attnpool.v_proj(grid.permute(0, 2, 3, 1)))


def _timm(visual: Any, images: Tensor) -> Tensor:
    from timm.models.vision_transformer import VisionTransformer

    trunk = visual.trunk
    if hasattr(visual.head, "pool"):
        raise ValueError("the image tower pools by attention: its places have no features of their own")
    if isinstance(trunk, VisionTransformer):
        if trunk.attn_pool is not None or trunk.global_pool not in ("token", "avg"):
            raise ValueError(
                f"the image tower {type(trunk).__name__} pools by {trunk.global_pool or 'nothing'}: its places have no "
                "features of their own"
            )
        prefix = trunk.num_prefix_tokens
        if trunk.global_pool == "token":
            tokens = trunk.norm(_each_alone(trunk.blocks[-1], visual, images)[:, prefix:])
        else:
            tokens = trunk.forward_features(images)[:, prefix:]
        batch, places = tokens.shape[:2]
        # A sequence that is this token throughout: class token and average are both it.
        alone = tokens.flatten(0, 1)[:, None].expand(-1, prefix + 1, -1)
        features = visual.head(trunk.forward_head(alone))
        return features.view(batch, places, -1).unflatten(1, trunk.patch_embed.grid_size)
    grid = trunk.forward_features(images)
    if grid.ndim != 4 or (grid.shape[1] != trunk.num_features and grid.shape[-1] == trunk.num_features):
        raise ValueError(f"places of an image tower of kind {type(trunk).__name__} are not known")
    batch, channels, height, width = grid.shape
    # The average over one place is that place.
    alone = grid.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
    return visual.head(trunk.forward_head(alone)).view(batch, height, width, -1)


def _each_alone(block: nn.Module, visual: nn.Module, images: Tensor) -> Tensor:
    """Output [B, T, W] of the last block when each token is a sequence of its own: attention then gives its value."""
    entered: list[Tensor] = []
    handle = block.register_forward_pre_hook(lambda _, inputs: entered.append(inputs[0]))
    try:
        visual(images)
    finally:
        handle.remove()
    (tokens,) = entered
    if tokens.shape[0] != images.shape[0]:
        raise ValueError("the blocks of the image tower take sequences before batches, which is not supported here")
    return block(tokens.flatten(0, 1)[:, None])[:, 0].unflatten(0, tokens.shape[:2])


__all__ = ["patch_features"]
