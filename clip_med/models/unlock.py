"""Which layers of a tower train: towers frozen from below, their top layers unlocked, and the depth of each parameter.

Depths run from 0 (embeddings, patch convolution, first norm) over the blocks 1 .. L to L + 1 (projection head). What
follows the last block (final norm, attention pooling, BERT's pooler) counts to block L, as in open_clip and timm.
"""

from __future__ import annotations

import re
from typing import Any, Final, Literal

from torch import nn

from clip_med.models.dual_encoder import DualEncoder, LockPolicy
from clip_med.models.lora import LowRank

Tower = Literal["image", "text"]

# Numbered blocks of open_clip's transformers, of BERT, RoBERTa, DistilBERT and ELECTRA (layer), of T5 (block).
_BLOCK: Final = re.compile(r"(?:^|\.)(?:resblocks|layer|block)\.(\d+)\.")
# CLIP's ResNet: stages 1 to 4; its attention pooling has embeddings of its own, at the top.
_STAGE: Final = re.compile(r"^visual\.layer(\d)\.")
_BOTTOM: Final = re.compile(r"(?:embed|cls_token|ln_pre|patchnorm|shared|\.conv\d\.|\.bn\d\.)")


def freeze(
    encoder: DualEncoder,
    *,
    image: LockPolicy = "none",
    text: LockPolicy = "none",
    unlock_image: int = 0,
    unlock_text: int = 0,
) -> None:
    """Lock towers (`DualEncoder.lock`), then let the top layer groups of the locked ones train.

    LiT (Zhai et al., arXiv 2111.07991) is image "all"; `unlock_image=1` trains the last block with what follows it,
    L all blocks, L + 1 the whole trunk. Unlocked blocks are in training mode (dropout, batch statistics) in `train()`;
    everything below stays in evaluation mode. Adapters (`clip_med.models.lora`) train in any locked tower.

    Raises:
        ValueError: more groups than the tower has, groups of a tower that is not locked, or see `DualEncoder.lock`.
    """
    encoder.lock(image=image, text=text)
    for module in encoder.clip.modules():
        if isinstance(module, LowRank):
            module.requires_grad_(True)
    choices: tuple[tuple[Tower, LockPolicy, int], ...] = (("image", image, unlock_image), ("text", text, unlock_text))
    for tower, policy, groups in choices:
        if groups == 0:
            continue
        if policy == "none":
            raise ValueError(f"unlock_{tower}: {groups} layer groups of a tower that is not locked")
        depths = layer_depths(encoder, tower)
        top = max(depths.values()) - 1
        if groups > top + 1:
            raise ValueError(f"unlock_{tower} must be at most {top + 1} (the layer groups of this tower), got {groups}")
        for name, parameter in encoder.clip.named_parameters():
            if top - groups < depths.get(name, -1) <= top:
                parameter.requires_grad_(True)
    encoder.train(encoder.training)


def layer_depths(encoder: DualEncoder, tower: Tower) -> dict[str, int]:
    """Depth of every parameter of a tower by its name in `encoder.clip`: 0 .. L in the trunk, L + 1 in the head.

    Raises:
        ValueError: a tower whose layers are not known.
    """
    trunk = {id(parameter) for parameter in encoder.trunk_parameters(tower)}
    names = [name for name, _ in encoder.clip.named_parameters() if tower_of(name) == tower]
    inside = [name for name, parameter in encoder.clip.named_parameters() if id(parameter) in trunk]
    if tower == "image" and hasattr(encoder.clip.visual, "trunk"):
        depths = _timm_depths(encoder.clip.visual.trunk)
    else:
        depths = {name: depth for name in inside if (depth := _numbered(name)) is not None}
    if not depths:
        raise ValueError(f"the layers of the {tower} tower ({inside[0]}, ...) are not known")
    last = max(depths.values())
    return {name: depths.get(name, last) if name in set(inside) else last + 1 for name in names}


def depth_multipliers(encoder: DualEncoder, decay: float) -> dict[str, float]:
    """Learning-rate multiplier of every parameter: decay^(L + 1 - depth), so 1 in the head; 1 for scale and bias.

    Layer-wise learning-rate decay as in BEiT (Bao et al., arXiv 2106.08254, appendix) and ELECTRA (Clark et al., arXiv
    2003.10555): the embeddings of a tower with L blocks get decay^(L + 1).
    """
    multipliers = {name: 1.0 for name, _ in encoder.clip.named_parameters()}
    for tower in ("image", "text"):
        depths = layer_depths(encoder, tower)
        head = max(depths.values()) if _has_head(encoder, tower) else max(depths.values()) + 1
        multipliers |= {name: decay ** (head - depth) for name, depth in depths.items()}
    return multipliers


def tower_of(name: str) -> Literal["image", "text", "scale", "decoder"]:
    """The tower that a parameter of an open_clip model belongs to, by its name; the decoder is CoCa's."""
    if name.startswith("visual."):
        return "image"
    if name.startswith("text_decoder."):
        return "decoder"
    return "scale" if name in ("logit_scale", "logit_bias") else "text"


def _has_head(encoder: DualEncoder, tower: Tower) -> bool:
    names = [name for name, _ in encoder.clip.named_parameters() if tower_of(name) == tower]
    return len(names) > len(encoder.trunk_parameters(tower))


def _numbered(name: str) -> int | None:
    """Depth by the number in the name; 0 for what lies below the blocks, None for what follows them."""
    if ".attnpool." in name:
        return None
    found = _BLOCK.search(name)
    if found:
        return int(found[1]) + 1
    stage = _STAGE.search(name)
    if stage:
        return int(stage[1])
    return 0 if _BOTTOM.search(name) else None


def _timm_depths(trunk: nn.Module) -> dict[str, int]:
    """timm's own grouping, which every architecture of it describes."""
    from timm.models import group_parameters

    described: Any = trunk
    groups: dict[int, list[str]] = group_parameters(trunk, described.group_matcher(coarse=False))  # type: ignore[assignment]
    return {f"visual.trunk.{name}": depth for depth, names in groups.items() for name in names}


__all__ = ["Tower", "depth_multipliers", "freeze", "layer_depths", "tower_of"]
