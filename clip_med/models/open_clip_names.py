"""Models of open_clip by name: in configurations, and as open_clip:NAME:WEIGHTS wherever a command takes a model."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, Final

from clip_med.config import nearest
from clip_med.data.images import Preprocess
from clip_med.models.config import OpenClipModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.two_tower import check_image_size, overridden

_PREFIX: Final = "open_clip:"


def is_named(model: Path) -> bool:
    """Whether a path is no path: open_clip:ViT-B-16:laion2b_s34b_b88k."""
    return str(model).startswith(_PREFIX)


def named(model: Path) -> OpenClipModel:
    """The configuration that open_clip:NAME:WEIGHTS means, with the activation that a tag's weights were trained with.

    Raises:
        ValueError: no weights, without which a model has nothing to say.
    """
    from open_clip.pretrained import get_pretrained_cfg

    name, _, weights = str(model).removeprefix(_PREFIX).partition(":")
    if not name or not weights:
        raise ValueError(f"{model}: expected open_clip:NAME:WEIGHTS, a tag of open_clip's weights or a file of weights")
    quick = bool(get_pretrained_cfg(name, weights).get("quick_gelu", False))
    return OpenClipModel(name=name, pretrained=weights, force_quick_gelu=quick)


def weights_of(model: Path) -> Path:
    """The file of weights of open_clip:NAME:WEIGHTS; of a tag the one that was downloaded."""
    from open_clip.pretrained import download_pretrained, get_pretrained_cfg

    config = named(model)
    assert config.pretrained is not None, "named() refuses it"
    tag = get_pretrained_cfg(config.name, config.pretrained)
    return Path(download_pretrained(tag)) if tag else Path(config.pretrained)


def open_clip_encoder(config: OpenClipModel) -> DualEncoder:
    """The dual encoder of an architecture of open_clip.

    Raises:
        ValueError: an unknown architecture (naming the nearest), unknown weights, damaged ones or those of another
            architecture, or weights of the other activation.
    """
    import open_clip

    names = open_clip.list_models()
    if config.name not in names:
        raise ValueError(f"model name {config.name!r} is not an open_clip architecture; {nearest(config.name, names)}")
    model_cfg = open_clip.get_model_config(config.name)
    assert model_cfg is not None, "list_models named it"
    if config.image_size is not None:
        model_cfg["vision_cfg"]["image_size"] = config.image_size
    if config.context_length is not None:
        model_cfg["text_cfg"]["context_length"] = config.context_length
    if config.force_quick_gelu:
        model_cfg["quick_gelu"] = True
    if config.pretrained is not None:
        _check_pretrained(config.name, config.pretrained, quick_gelu=model_cfg.get("quick_gelu", False))
    clip = _created(config)
    if hasattr(clip.visual, "trunk"):
        check_image_size(clip.visual.trunk, config.name, model_cfg["vision_cfg"]["image_size"])
    preprocess = overridden(Preprocess.from_open_clip(clip.visual.preprocess_cfg), config)
    tokenizer = open_clip.get_tokenizer(config.name, context_length=config.context_length)
    return DualEncoder(clip, model_cfg, preprocess, tokenizer)


def _created(config: OpenClipModel) -> Any:
    import open_clip
    from safetensors import SafetensorError

    try:
        return open_clip.create_model(
            config.name,
            pretrained=config.pretrained,
            pretrained_text=config.pretrained is None,
            force_image_size=config.image_size,
            force_context_length=config.context_length,
            force_quick_gelu=config.force_quick_gelu,
        )
    except (RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
        if config.pretrained is None:
            raise
        # torch names every weight that is missing, in lines.
        found = " ".join(str(error).split())
        raise ValueError(
            f"model pretrained {config.pretrained!r} cannot be read into {config.name}: {found:.500}"
        ) from error


def _check_pretrained(name: str, pretrained: str, *, quick_gelu: bool) -> None:
    """Refuse unknown weights, and weights of the other activation: open_clip warns of it and the features are wrong."""
    from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    tag = get_pretrained_cfg(name, pretrained)
    if not tag:
        if not Path(pretrained).is_file():
            tags = list_pretrained_tags_by_model(name)
            raise ValueError(
                f"model pretrained {pretrained!r} is neither a file nor weights of {name}; one of {', '.join(tags)}"
            )
        return
    trained_with = bool(tag.get("quick_gelu", False))
    if trained_with != quick_gelu:
        mend = "set force_quick_gelu: true" if trained_with else "take an architecture without QuickGELU"
        raise ValueError(
            f"model pretrained {pretrained!r} of {name} was trained {'with' if trained_with else 'without'} QuickGELU; "
            f"{mend}"
        )


__all__ = ["is_named", "named", "open_clip_encoder", "weights_of"]
