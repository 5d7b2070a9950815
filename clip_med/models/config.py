"""Choice of the dual encoder. Imports no torch, so that configurations are checked before it is loaded."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Literal

from clip_med.config import Fraction, NonNegativeInt, PositiveFloat, PositiveInt, config


@config
class InputOverrides:
    """What the images become before they enter the tower; None keeps what the architecture or its weights state."""

    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    interpolation: Literal["bicubic", "bilinear"] | None = None
    resize_mode: Literal["shortest", "longest", "squash"] | None = None


@config
class OpenClipModel(InputOverrides):
    """An open_clip architecture by name, with random or pretrained weights."""

    kind: Literal["open_clip"] = "open_clip"
    name: str
    """An entry of `open_clip.list_models()`, for example ViT-B-32."""
    pretrained: str | None = None
    """A pretrained tag (downloaded from the hub) or a weights file; None: random weights (a Hugging Face text tower
    keeps its own pretrained ones)."""
    image_size: PositiveInt | None = None
    """Another size than the architecture's; position embeddings of pretrained weights are interpolated."""
    context_length: PositiveInt | None = None
    """Another length than the architecture's; position embeddings of pretrained weights are interpolated."""
    force_quick_gelu: bool = False
    """QuickGELU in place of GELU, for weights that were trained with it (OpenAI's)."""


@config
class ScratchText:
    """The text side of models from scratch: CLIP's causal transformer on CLIP's own vocabulary."""

    embed_dim: PositiveInt = 128
    text_width: PositiveInt = 128
    text_heads: PositiveInt = 4
    text_layers: PositiveInt = 2
    context_length: PositiveInt = 77
    init_logit_bias: float | None = None
    """Start of the logit bias, for the sigmoid loss (-10 in SigLIP); None: no bias."""

    def __post_init__(self) -> None:
        """Refuse heads that do not divide the width."""
        if self.text_width % self.text_heads:
            raise ValueError(
                f"text_width must be a multiple of text_heads, got {self.text_width} and {self.text_heads}"
            )

    def with_vision(self, vision_cfg: dict[str, Any]) -> dict[str, Any]:
        """The whole model in open_clip's words."""
        model_cfg: dict[str, Any] = {
            "embed_dim": self.embed_dim,
            "vision_cfg": vision_cfg,
            "text_cfg": {
                "context_length": self.context_length,
                "width": self.text_width,
                "heads": self.text_heads,
                "layers": self.text_layers,
            },
        }
        if self.init_logit_bias is not None:
            model_cfg["init_logit_bias"] = self.init_logit_bias
        return model_cfg


@config
class ViTModel(ScratchText):
    """A CLIP of any size with a vision transformer."""

    kind: Literal["vit"] = "vit"
    image_size: PositiveInt = 96
    patch_size: PositiveInt = 16
    image_width: PositiveInt = 192
    image_layers: PositiveInt = 4

    def __post_init__(self) -> None:
        """Refuse patches that leave a border of the image out, and heads that do not divide the width."""
        ScratchText.__post_init__(self)
        if self.image_size % self.patch_size:
            raise ValueError(
                f"image_size must be a multiple of patch_size, got {self.image_size} and {self.patch_size}"
            )
        if self.image_width > 64 and self.image_width % 64:
            raise ValueError(
                f"image_width must be a multiple of 64 (a head's width) or below it, got {self.image_width}"
            )

    def model_cfg(self) -> dict[str, Any]:
        """The same in open_clip's words."""
        return self.with_vision(
            {
                "image_size": self.image_size,
                "layers": self.image_layers,
                "width": self.image_width,
                "patch_size": self.patch_size,
                "head_width": min(64, self.image_width),
            }
        )


@config
class ResNetModel(ScratchText):
    """A CLIP of any size with CLIP's modified ResNet (Radford et al., arXiv 2103.00020, section 2.4).

    Its attention pooling keeps places apart, and on small data and CPUs it learns faster than a transformer.
    """

    kind: Literal["resnet"] = "resnet"
    image_size: PositiveInt = 96
    """A multiple of 32."""
    image_layers: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt] = (1, 1, 1, 1)
    """Blocks per stage; (3, 4, 6, 3) is RN50."""
    image_width: PositiveInt = 16
    """Channels of the first stage, a multiple of 2; 64 is RN50."""

    def __post_init__(self) -> None:
        """Refuse sizes that the five halvings of the tower do not divide."""
        ScratchText.__post_init__(self)
        if self.image_size % 32:
            raise ValueError(f"image_size must be a multiple of 32, got {self.image_size}")

    def model_cfg(self) -> dict[str, Any]:
        """The same in open_clip's words."""
        return self.with_vision(
            {"image_size": self.image_size, "layers": list(self.image_layers), "width": self.image_width}
        )


@config
class FolderModel:
    """A run folder, or a model folder: written by `save_folder` or open_clip (`open_clip_config.json`, safetensors)."""

    kind: Literal["folder"] = "folder"
    path: Path
    context_length: PositiveInt | None = None
    """Longer texts than the model was made for: its position embeddings are interpolated. None: its own length."""
    keep_positions: NonNegativeInt = 20
    """With context_length: the first positions, which stay as they are, so that texts of up to so many tokens keep
    their features (20 as in LongCLIP, arXiv 2403.15378); 0 interpolates all."""


@config
class TimmTower(InputOverrides):
    """An image tower from timm, and how images enter it."""

    name: str
    """A timm architecture, for example tf_efficientnet_lite0."""
    weights: Path | None = None
    """A safetensors file of the whole network under timm's names, read strictly; only a classifier is left out.
    None: random weights."""
    pretrained: bool = False
    """Take timm's own weights from the hub instead."""
    image_size: PositiveInt = 224
    pool: Literal["avg", "token", "map", ""] = ""
    """timm's pooling; "" keeps the architecture's own."""
    proj: Literal["linear", "mlp"] = "linear"
    dropout: Fraction = 0.0
    """Before the projection."""
    drop_path: Fraction = 0.0
    """Stochastic depth inside the tower; 0 for towers that have none."""

    def __post_init__(self) -> None:
        """Refuse two sources of weights."""
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained: true are two sources of weights; give one")


@config
class HFTower:
    """A text tower from transformers."""

    path: str
    """A folder, a name on the hub, or `package:NAME/FOLDER` for a folder inside an installed Python package."""
    pooler: Literal["mean_pooler", "cls_last_hidden_state_pooler", "cls_pooler"] = "mean_pooler"
    """open_clip's names (its max_pooler fails on every input). mean: over the tokens that are no padding;
    cls_last_hidden_state: the first token; cls: the first token through BERT's pooler layer, right only where that
    layer was trained."""
    proj: Literal["linear", "mlp"] | None = "linear"
    """None: no projection; the width of the tower must equal embed_dim."""
    context_length: PositiveInt = 128
    """Tokens, special ones included; longer texts are cut."""
    pretrained: bool = True
    """False: the architecture of that folder with random weights."""


@config
class TwoTowerModel:
    """An image tower from timm and a text tower from transformers, each with a projection head of its own."""

    kind: Literal["two_tower"] = "two_tower"
    image: TimmTower
    text: HFTower
    embed_dim: PositiveInt = 256
    init_logit_scale: float = math.log(1 / 0.07)
    """Start of the logarithm of the scale (SigLIP: log 10)."""
    init_logit_bias: float | None = None
    """Start of the logit bias, for the sigmoid loss (SigLIP: -10); None: no bias."""


@config
class LoRAConfig:
    """Low-rank adapters in frozen towers: each chosen weight W becomes W + (alpha / rank) B A (arXiv 2106.09685)."""

    rank: PositiveInt = 8
    alpha: PositiveFloat = 16.0
    """The adapter's product is scaled by alpha / rank, so that alpha can stay when the rank changes."""
    dropout: Fraction = 0.0
    """Share of the input features that the adapter does not see in a step; the same ones for all tokens and images."""
    parts: tuple[Literal["q", "k", "v", "out", "mlp"], ...] = ("q", "k", "v", "out")
    """Query, key, value and output projections of attention, fused or not; mlp: the linear layers after it too."""
    image: bool = True
    text: bool = True
    """Which towers get adapters; each must be locked (train.lock_image, train.lock_text)."""

    def __post_init__(self) -> None:
        """Refuse adapters that are nowhere."""
        if not self.parts or len(set(self.parts)) != len(self.parts):
            raise ValueError(f"parts must name some of q, k, v, out, mlp, each once; got {list(self.parts)}")
        if not (self.image or self.text):
            raise ValueError("image and text are both false: adapters would be nowhere")


ModelConfig = OpenClipModel | ViTModel | ResNetModel | TwoTowerModel | FolderModel
