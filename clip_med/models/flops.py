"""Floating-point operations of a training step, by arithmetic, and the share of a device's peak that they are (MFU).

A multiplication with its addition counts 2. A block of W channels with a matrix of P entries per token costs, for T
tokens of one sample,

    forward    2 P T   for its matrices (12 W^2 in a usual block: 4 W^2 attention, 8 W^2 MLP)
             + 4 T^2 W for attention (T^2 W for the products of query and key, as much for the weighted values, times 2)
    backward   2 P T   for the gradients of the weights, where the block is trained
             + 2 P T + 8 T^2 W for those of activations, where the block or anything below it is trained

so a trained tower costs three times its forward pass, a frozen one once, as usual (Kaplan et al., arXiv 2001.08361,
section 2.1; Chowdhery et al., arXiv 2204.02311, appendix B). Causal attention counts in full, as there. Padding does
not count; blocks that are computed twice to save memory count once; a last block that ends at the pooled token counts
what it does. Norms, activations, softmax, the loss and the optimiser are left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
from jaxtyping import Int64
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from clip_med.models.compute_config import ComputeConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.text import TextTower
from clip_med.models.unlock import tower_of

# Dense bf16 matrix products, 10^12 per second, without sparsity, as NVIDIA's datasheets of these products state them;
# by a part of `torch.cuda.get_device_name()`, the longest that fits.
_PEAK_TFLOPS: Final = {
    "B200": 2250.0,
    "H200": 989.4,
    "H100": 989.4,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "A100": 312.0,
    "A40": 149.7,
    "A10": 125.0,
    "L40S": 362.0,
    "L4": 121.0,
}


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak of a device per second in this precision, or None where it is not in the table (fp32 never is).

    Example:
        >>> peak_flops("NVIDIA H100 80GB HBM3", "bf16")
        989400000000000.0
    """
    words = device_name.replace("-", " ").split()
    found = [name for name in _PEAK_TFLOPS if all(part in words for part in name.split())]
    if precision not in ("bf16", "pure_bf16") or not found:
        return None
    return _PEAK_TFLOPS[max(found, key=len)] * 1e12


@dataclass(frozen=True)
class _Block:
    """Matrix entries that each token meets (`keys_values`: of these, for keys and values), and channels."""

    matrices: int
    keys_values: int
    width: int
    trained: bool


class FlopCount:
    """Operations of the towers of an encoder as they are now: what is frozen counts once, what is trained thrice.

    Transformers are counted by the arithmetic above, other image towers (ResNets, hybrids) by running one image.

    Example:
        >>> FlopCount(encoder, ComputeConfig()).step(lengths)  # doctest: +SKIP
        1.7e+12
    """

    def __init__(self, encoder: DualEncoder, compute: ComputeConfig) -> None:
        self._image = _image(encoder, compute)
        text = encoder.text_tower
        self._blocks = _blocks(text.module.transformer, _text_width(text))
        below = _below(encoder.trunk_parameters("text"), _block_list(text.module.transformer))
        self._embedded = any(parameter.requires_grad for parameter in below)
        self._pooled = text.packs_pooled
        self._head = _head(encoder, "text")

    def step(self, lengths: Int64[Tensor, " B"], *, cached: bool = False) -> float:
        """Of a forward and backward pass of B pairs with texts of so many tokens.

        Args:
            cached: the features of the text trunk come from a cache; only its head is computed.
        """
        pairs = len(lengths)
        heads = pairs * self._head
        if cached:
            return pairs * self._image + heads
        tokens, squares = int(lengths.sum()), int(lengths.square().sum())
        trunk = _trunk(self._blocks, tokens, squares, pairs, reached=self._embedded, pooled=self._pooled)
        return pairs * self._image + trunk + heads


def _trunk(blocks: list[_Block], tokens: int, squares: int, pairs: int, *, reached: bool, pooled: bool) -> float:
    """Of the blocks for all samples: `tokens` in sum, `squares` the sum of their squares.

    Args:
        reached: something below the blocks is trained, so gradients go down to it.
        pooled: the last block ends at one token of each sample.
    """
    total = 0.0
    for number, block in enumerate(blocks):
        reached = reached or block.trained
        if pooled and number == len(blocks) - 1:
            # Keys and values of all tokens; one query against T keys; all else for one token.
            linear = 2.0 * (block.keys_values * tokens + (block.matrices - block.keys_values) * pairs)
            attention = 4.0 * tokens * block.width
        else:
            linear = 2.0 * block.matrices * tokens
            attention = 4.0 * squares * block.width
        total += linear * (1 + block.trained + reached) + attention * (1 + 2 * reached)
    return total


def _image(encoder: DualEncoder, compute: ComputeConfig) -> float:
    """Of one image through tower and head."""
    visual: Any = encoder.clip.visual
    trunk: Any = getattr(visual, "trunk", None)
    head = _head(encoder, "image")
    if isinstance(getattr(visual, "transformer", None), nn.Module) and hasattr(visual, "conv1"):
        stem, inside, prefix, width = visual.conv1, visual.transformer, 1, visual.conv1.out_channels
        patches = visual.grid_size[0] * visual.grid_size[1]
    elif isinstance(getattr(trunk, "blocks", None), nn.Sequential) and hasattr(trunk, "num_prefix_tokens"):
        stem, inside, prefix, width = trunk.patch_embed.proj, trunk.blocks, trunk.num_prefix_tokens, trunk.embed_dim
        patches = trunk.patch_embed.num_patches
    else:
        trained = any(parameter.requires_grad for parameter in encoder.trunk_parameters("image"))
        return (3 if trained else 1) * _counted(encoder)
    tokens = prefix + (max(1, int(patches * (1 - compute.patch_dropout))) if compute.patch_dropout else patches)
    learns = stem.weight.requires_grad
    below = _below(encoder.trunk_parameters("image"), _block_list(inside))
    blocks = _trunk(
        _blocks(inside, width),
        tokens,
        tokens**2,
        1,
        reached=any(parameter.requires_grad for parameter in below),
        pooled=compute.pooled_last_block,
    )
    # Pixels need no gradient: at the stem, two passes and not three.
    return 2.0 * stem.weight.numel() * patches * (1 + learns) + blocks + head


def _counted(encoder: DualEncoder) -> float:
    """Of a forward pass of one image, as torch counts it."""
    size, training = encoder.preprocess.size, encoder.training
    image = torch.zeros(1, 3, size, size, device=encoder.logit_scale.device, dtype=encoder.logit_scale.dtype)
    counter = FlopCounterMode(display=False)
    encoder.eval()
    with torch.no_grad(), counter:
        encoder.encode_image(image)
    encoder.train(training)
    return float(counter.get_total_flops())


def _blocks(module: nn.Module, width: int) -> list[_Block]:
    found: list[_Block] = []
    for block in _block_list(module):
        matrices = [parameter for parameter in block.parameters() if parameter.ndim == 2]
        entries = sum(parameter.numel() for parameter in matrices)
        trained = any(parameter.requires_grad for parameter in matrices)
        found.append(_Block(matrices=entries, keys_values=2 * width * width, width=width, trained=trained))
    return found


def _block_list(module: nn.Module) -> nn.ModuleList | nn.Sequential:
    """The blocks of a transformer, however it names them: the outermost list of modules."""
    return next(part for part in module.modules() if isinstance(part, nn.ModuleList | nn.Sequential))


def _below(parameters: list[nn.Parameter], blocks: nn.Module) -> list[nn.Parameter]:
    """Parameters of a trunk outside its blocks: embeddings, and the norms that follow, which cost nothing."""
    inside = {id(parameter) for parameter in blocks.parameters()}
    return [parameter for parameter in parameters if id(parameter) not in inside and parameter.ndim >= 2]


def _text_width(text: TextTower) -> int:
    if not text.is_hf:
        return text.module.positional_embedding.shape[1]
    return text.module.config.hidden_size


def _head(encoder: DualEncoder, tower: Literal["image", "text"]) -> float:
    """Of the projection of one sample; three times where anything of the tower is trained."""
    trunk = encoder.trunk_parameters(tower)
    inside = {id(parameter) for parameter in trunk}
    named = [p for name, p in encoder.clip.named_parameters() if tower_of(name) == tower]
    head = [parameter for parameter in named if id(parameter) not in inside and parameter.ndim == 2]
    forward = 2.0 * sum(parameter.numel() for parameter in head)
    learns = any(parameter.requires_grad for parameter in head)
    return forward * (1 + learns + any(parameter.requires_grad for parameter in trunk))


__all__ = ["FlopCount", "peak_flops"]
