"""Choice of the dual encoder. Imports no torch, so that configurations are checked before it is loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from clip_med.config import PositiveInt, config


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
    """A model folder: written by `save_folder`, or by open_clip (`open_clip_config.json` and safetensors weights)."""

    kind: Literal["folder"] = "folder"
    path: Path


ModelConfig = OpenClipModel | ViTModel | FolderModel
