"""Encoders that transformers made (CLIP, SigLIP, MedSigLIP): read from their folder, evaluated as they are."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float, Int64, Num
from torch import Tensor, nn

from clip_med.data.images import Preprocess
from clip_med.models.dual_encoder import DualEncoder

# `model_type` of a configuration; the second word says whether padding may be left out.
KINDS: Final = {"clip": True, "siglip": False}
_RESAMPLE: Final = {2: "bilinear", 3: "bicubic"}


def is_hf_folder(directory: Path) -> bool:
    """Whether a folder is that of a transformers dual encoder of a kind that is read here."""
    return _model_type(directory) in KINDS


class HFEncoder(DualEncoder):
    """A transformers CLIP or SigLIP model with the interface of a `DualEncoder`.

    It encodes, so it can be evaluated, compared, probed and adapted on features. What takes towers apart (training,
    LoRA, learned words, similarity maps, export) works on open_clip models and is refused here by name.
    """

    def __init__(self, model: Any, tokenizer: Any, preprocess: Preprocess, *, directory: Path) -> None:
        nn.Module.__init__(self)
        self.model = model
        self.preprocess = preprocess
        self.lora = None
        self._directory = directory
        self._tokenizer = tokenizer
        self._locked = ()
        self.model_cfg: dict[str, Any] = {"vision_cfg": model.config.vision_config.to_dict()}
        self._context = int(model.config.text_config.max_position_embeddings)
        self._trims = KINDS[model.config.model_type]
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (preprocess.mean, preprocess.std))
        self.register_buffer("_factor", 1 / (255 * std), persistent=False)
        self.register_buffer("_shift", -mean / std, persistent=False)

    def __getattr__(self, name: str) -> Any:
        if name in ("clip", "text_tower"):
            raise ValueError(
                f"{self._directory}: a transformers model is evaluated as it is; training, LoRA, learned words, maps "
                "and export need an open_clip model folder"
            )
        return super().__getattr__(name)

    @property
    def logit_scale(self) -> nn.Parameter:
        """The logarithm of the scale."""
        return self.model.logit_scale

    @property
    def logit_bias(self) -> nn.Parameter | None:
        """SigLIP's bias."""
        return getattr(self.model, "logit_bias", None)

    @property
    def dtype(self) -> torch.dtype:
        """Of the weights."""
        return next(self.model.vision_model.parameters()).dtype

    def image_state(self) -> Mapping[str, Tensor]:
        """What image features depend on."""
        names = ("vision_model.", "visual_projection.")
        return {name: value for name, value in self.model.state_dict().items() if name.startswith(names)}

    def encode_image(self, images: Num[Tensor, "B 3 H W"]) -> Float[Tensor, "B D"]:
        """Unit rows for images: uint8 0..255, normalised here, or floating point, taken as already normalised."""
        return self.unit_rows(_features(self.model.get_image_features(pixel_values=self.pixels(images))))

    def encode_text(self, tokens: Int64[Tensor, "B T"]) -> Float[Tensor, "B D"]:
        """Unit rows for token ids."""
        return self.unit_rows(_features(self.model.get_text_features(input_ids=tokens)))

    def tokenize(self, texts: Sequence[str], *, trim: bool = True) -> Int64[Tensor, "B T"]:
        """Token ids, padded to the context, or for causal towers to the longest text; longer ones are cut."""
        found = self._tokenizer(
            list(texts),
            padding="longest" if trim and self._trims else "max_length",
            truncation=True,
            max_length=self._context,
            return_tensors="pt",
        )
        return found["input_ids"]

    def truncated(self, texts: Sequence[str]) -> int:
        """How many texts are longer than the context and are cut by `tokenize`."""
        ids = self._tokenizer(list(texts), truncation=False, verbose=False)["input_ids"] if texts else []
        return sum(len(row) > self._context for row in ids)


def load_hf_folder(directory: Path) -> HFEncoder:
    """Read a folder with config.json, safetensors weights, tokenizer and preprocessor_config.json; offline, no code.

    Raises:
        ValueError: a file is missing or damaged, weights do not fit, or the preprocessing is of a kind unknown here;
            names the file.
    """
    from transformers import AutoModel, AutoTokenizer

    if not any(directory.glob("*.safetensors")):
        raise ValueError(f"{directory}: no safetensors weights; a pickle is not loaded")
    preprocess = _preprocess(directory)
    try:
        model, report = AutoModel.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
        tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(f"{directory}: not readable as a transformers model: {error}") from error
    if report["missing_keys"] or report["mismatched_keys"]:
        wrong = sorted(map(str, (*report["missing_keys"], *report["mismatched_keys"])))
        raise ValueError(f"{directory}: weights do not fit the configuration: {wrong[:5]}")
    return HFEncoder(model.eval(), tokenizer, preprocess, directory=directory)


def _preprocess(directory: Path) -> Preprocess:
    file = directory / "preprocessor_config.json"
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: missing or damaged; it says how images are prepared: {error}") from error
    size = values.get("size", {})
    shown = {key: values.get(key) for key in ("size", "crop_size", "resample", "rescale_factor")}
    if isinstance(size, int):
        size = {"shortest_edge": size}
    side = size.get("shortest_edge", size.get("height"))
    crop = values.get("crop_size")
    cropped = crop.get("height") if isinstance(crop, dict) else crop
    square = size.get("height") == size.get("width") and (cropped in (None, side) or not values.get("do_center_crop"))
    if (
        not isinstance(side, int)
        or not square
        or ("shortest_edge" in size and cropped != side)
        or values.get("resample", 3) not in _RESAMPLE
        or abs(float(values.get("rescale_factor", 1 / 255)) * 255 - 1) > 1e-6
    ):
        raise ValueError(f"{file}: preprocessing of a kind that is not known: {shown}")
    return Preprocess(
        size=side,
        mean=tuple(values["image_mean"]),
        std=tuple(values["image_std"]),
        interpolation=_RESAMPLE[values.get("resample", 3)],  # type: ignore[arg-type]
        resize_mode="shortest" if "shortest_edge" in size else "squash",
    )


def _features(found: Any) -> Tensor:
    """transformers 5 wraps the features, 4 returns them bare."""
    return found if isinstance(found, Tensor) else found.pooler_output


def _model_type(directory: Path) -> str | None:
    try:
        values: Any = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return values.get("model_type") if isinstance(values, dict) else None


__all__ = ["HFEncoder", "is_hf_folder", "load_hf_folder"]
