"""Models between models: weighted sums of the weights of fine-tuned and pretrained models of one architecture."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import load_folder, resolve_folder
from clip_med.models.knowledge_heads import drop_heads

# Where towers lie, how they were first filled, and what acts in training only: models may differ in these.
_NO_ARCHITECTURE: Final = frozenset(
    {
        "hf_model_name",
        "hf_tokenizer_name",
        "hf_model_pretrained",
        "timm_model_pretrained",
        "timm_drop",
        "timm_drop_path",
        "patch_dropout",
        "init_logit_scale",
        "init_logit_bias",
        "_name_or_path",
        "transformers_version",
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "dtype",
        "torch_dtype",
        "architectures",
    }
)
# Words, digits and signs: tokenizers with other vocabularies cut it otherwise.
_PROBE: Final = "Chest X-ray, PA: a 12 mm nodule in the right upper lobe; no pleural effusion (COVID-19 negative)."


class ModelFamily:
    """Models of one architecture, for weighted sums of their weights; `encoder` takes them on.

    Args:
        paths: model folders or runs, two or more.

    Raises:
        ValueError: models that differ in architecture, tokenizer or preprocessing; names what differs first.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        if len(paths) < 2:
            raise ValueError(f"at least two models are needed, got {len(paths)}")
        self.encoder = load_folder(resolve_folder(paths[0]))
        drop_heads(self.encoder)
        self._states: list[dict[str, Tensor]] = [_copied(self.encoder)]
        for path in paths[1:]:
            other = load_folder(resolve_folder(path))
            _check_alike(self.encoder, other, paths[0], path)
            self._states.append(_copied(other))

    def mix(self, weights: Sequence[float]) -> DualEncoder:
        """Give `encoder` the weighted sum of the models' weights and return it.

        Example:
            >>> family = ModelFamily([Path("models/pretrained"), Path("runs/tuned")])  # doctest: +SKIP
            >>> encoder = family.mix((0.5, 0.5))  # doctest: +SKIP
        """
        self.encoder.clip.load_state_dict(weighted_sum(self._states, weights))
        return self.encoder

    def between(self, alpha: float) -> DualEncoder:
        """(1 - alpha) first + alpha second: WiSE-FT (Wortsman et al., arXiv 2109.01903, equation 2) of two models."""
        return self.mix((1.0 - alpha, alpha))


def weighted_sum(states: Sequence[Mapping[str, Tensor]], weights: Sequence[float]) -> dict[str, Tensor]:
    """Sum of equal-shaped states with weights in [0, 1] that sum to 1, in float64, in the dtype of the first.

    One weight of 1 gives that state bit for bit. The logarithm of the logit scale is averaged as every parameter.
    Means and variances of batch normalisation are averaged too, as WiSE-FT and model soups (Wortsman et al., arXiv
    2203.05482) do; they are not the statistics that the mixed network would see. Counters (integers) are those of the
    model with the highest weight, of equal ones the last.

    Raises:
        ValueError: another number of weights than states, or weights out of range or with another sum.
    """
    if len(weights) != len(states):
        raise ValueError(f"{len(states)} models need as many weights, got {len(weights)}")
    if not all(0.0 <= weight <= 1.0 for weight in weights) or not math.isclose(sum(weights), 1.0, abs_tol=1e-6):
        raise ValueError(f"weights must lie in 0 .. 1 and sum to 1, got {list(weights)}")
    heaviest = max(range(len(weights)), key=lambda number: (weights[number], number))
    if weights[heaviest] == 1.0:
        return dict(states[heaviest])
    summed: dict[str, Tensor] = {}
    for name, first in states[0].items():
        if not first.is_floating_point():
            summed[name] = states[heaviest][name]
            continue
        parts = [weight * state[name].double() for state, weight in zip(states, weights, strict=True) if weight > 0]
        summed[name] = torch.stack(parts).sum(dim=0).to(first.dtype)
    return summed


def _copied(encoder: DualEncoder) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in encoder.clip.state_dict().items()}


def _check_alike(first: DualEncoder, second: DualEncoder, path: Path, other: Path) -> None:
    where = f"{path} and {other} are no models of one architecture"
    ours, theirs = _described(first), _described(second)
    different = [key for key in sorted(ours.keys() | theirs.keys()) if ours.get(key) != theirs.get(key)]
    if different:
        shown = "; ".join(f"{key}: {ours.get(key)!r} and {theirs.get(key)!r}" for key in different[:3])
        more = f"; and {len(different) - 3} more" if len(different) > 3 else ""
        raise ValueError(f"{where}: {shown}{more}")
    shapes, other_shapes = (
        {name: tuple(value.shape) for name, value in encoder.clip.state_dict().items()} for encoder in (first, second)
    )
    names = [n for n in sorted(shapes.keys() | other_shapes.keys()) if shapes.get(n) != other_shapes.get(n)]
    if names:
        shown = "; ".join(f"{n}: {shapes.get(n, 'none')} and {other_shapes.get(n, 'none')}" for n in names[:3])
        raise ValueError(f"{where}: {len(names)} weights differ: {shown}")
    tokens, other_tokens = (encoder.tokenize([_PROBE]) for encoder in (first, second))
    if not torch.equal(tokens, other_tokens):
        raise ValueError(f"{where}: their tokenizers give a text different ids")


def _described(encoder: DualEncoder) -> dict[str, Any]:
    """Architecture and preprocessing as one flat mapping; what does not decide the features is left out."""
    parts: dict[str, Any] = {**encoder.model_cfg, "preprocess_cfg": encoder.preprocess.to_open_clip()}
    if encoder.text_tower.is_hf:
        parts["text_cfg"] = {**parts["text_cfg"], "config": encoder.text_tower.module.config.to_dict()}
    # By way of JSON: tuples and lists are alike there.
    return _flat(json.loads(json.dumps(parts, default=str)))


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if key not in _NO_ARCHITECTURE:
            flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


__all__ = ["ModelFamily", "weighted_sum"]
