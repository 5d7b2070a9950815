"""open_clip models from a description in open_clip's words, with random weights and nothing downloaded."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn


def construct(model_cfg: dict[str, Any]) -> nn.Module:
    """An open_clip model with random weights, nothing downloaded."""
    from open_clip.coca_model import CoCa
    from open_clip.model import CLIP, CustomTextCLIP

    arguments = copy.deepcopy(model_cfg)
    custom = arguments.pop("custom_text", False) or "hf_model_name" in arguments["text_cfg"]
    if "timm_model_name" in arguments["vision_cfg"]:
        arguments["vision_cfg"]["timm_model_pretrained"] = False
    if "hf_model_name" in arguments["text_cfg"]:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    if "multimodal_cfg" in arguments:
        return CoCa(**arguments)
    return CustomTextCLIP(**arguments) if custom else CLIP(**arguments)


__all__ = ["construct"]
