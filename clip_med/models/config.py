"""Choice of the dual encoder. Imports no torch, so that configurations are checked before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from clip_med.config import Fraction, PositiveInt, config


@config
class OpenClipModel:
    """An open_clip architecture by name, with random or pretrained weights."""

    kind: Literal["open_clip"] = "open_clip"
    name: str
    """An entry of `open_clip.list_models()`, for example ViT-B-32."""
    pretrained: str | None = None
    """A pretrained tag (downloaded from the hub) or a weights file; None: random weights."""


@config
class ViTModel:
    """A CLIP of any size: vision transformer and causal text transformer on CLIP's own vocabulary."""

    kind: Literal["vit"] = "vit"
    embed_dim: PositiveInt = 128
    image_size: PositiveInt = 96
    patch_size: PositiveInt = 16
    image_width: PositiveInt = 192
    image_layers: PositiveInt = 4
    text_width: PositiveInt = 128
    text_heads: PositiveInt = 4
    text_layers: PositiveInt = 2
    context_length: PositiveInt = 77
    init_logit_bias: float | None = None
    """Start of the logit bias, for the sigmoid loss (-10 in SigLIP); None: no bias."""

    def model_cfg(self) -> dict[str, Any]:
        """The same in open_clip's words."""
        model_cfg: dict[str, Any] = {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "image_size": self.image_size,
                "layers": self.image_layers,
                "width": self.image_width,
                "patch_size": self.patch_size,
                "head_width": min(64, self.image_width),
            },
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
class FolderModel:
    """A run folder, or a model folder: written by `save_folder` or open_clip (`open_clip_config.json`, safetensors)."""

    kind: Literal["folder"] = "folder"
    path: Path


@config
class TimmTower:
    """An image tower from timm."""

    name: str
    """A timm architecture, for example tf_efficientnet_lite0."""
    weights: Path | None = None
    """A safetensors file of the whole network; its classifier is left out. None: random weights."""
    pretrained: bool = False
    """Take timm's own weights from the hub instead."""
    image_size: PositiveInt = 224
    pool: Literal["avg", "token", "map", ""] = "avg"
    """timm's pooling; "" keeps the architecture's own."""
    proj: Literal["linear", "mlp"] = "linear"
    dropout: Fraction = 0.0
    """Before the projection."""
    drop_path: Fraction = 0.0
    """Stochastic depth inside the tower; 0 for towers that have none."""
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None
    """Normalisation of the input; None takes what timm states for the architecture."""

    def __post_init__(self) -> None:
        """Refuse two sources of weights."""
        if self.weights is not None and self.pretrained:
            raise ValueError("weights and pretrained: true are two sources of weights; give one")


@config
class HFTower:
    """A text tower from transformers."""

    path: str
    """A folder, a name on the hub, or `package:NAME/FOLDER` for a folder inside an installed Python package."""
    pooler: Literal["mean_pooler", "cls_last_hidden_state_pooler", "cls_pooler", "max_pooler"] = "mean_pooler"
    """open_clip's names. mean: over the tokens that are no padding; cls_last_hidden_state: the first token;
    cls: the first token through BERT's pooler layer, right only where that layer was trained."""
    proj: Literal["linear", "mlp"] = "linear"
    context_length: PositiveInt = 128
    pretrained: bool = True
    """False: the architecture of that folder with random weights."""


@config
class TwoTowerModel:
    """An image tower from timm and a text tower from transformers, each with a projection head of its own."""

    kind: Literal["two_tower"] = "two_tower"
    image: TimmTower
    text: HFTower
    embed_dim: PositiveInt = 256
    init_logit_bias: float | None = None
    """Start of the logit bias, for the sigmoid loss; None: no bias."""


ModelConfig = OpenClipModel | ViTModel | TwoTowerModel | FolderModel
