"""Features of a frozen text trunk, computed once per caption instead of once per step."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from jaxtyping import Float
from torch import Tensor

from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_file import load_features, save_features

# Texts tokenised at a time to learn their lengths: 8 MB of ids at 256 positions.
_MEASURED_TOGETHER: Final = 4096
# Part of every digest: raise it when the features of the same weights and texts change.
_VERSION: Final = 1


class FrozenTextCache:
    """Pooled features [N, W] of N distinct texts, before the projection head, in fp32 on the CPU."""

    def __init__(self, features: Float[Tensor, "N W"], rows: dict[str, int]) -> None:
        self._features = features
        self._rows = rows

    @classmethod
    def build(
        cls,
        encoder: DualEncoder,
        texts: Sequence[str],
        *,
        batch_size: int = 256,
        directory: Path | None = None,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> FrozenTextCache:
        """Encode distinct texts, fewest tokens first, in fp32 and evaluation mode.

        The order depends on the texts and the tokenizer alone, so that a continued run sees the same bits.

        Args:
            directory: where features are kept between runs, as `text_features-DIGEST.safetensors`; the texts are not
                in the file. None: nowhere.
            on_progress: called with the number of texts encoded and of all.

        Raises:
            ValueError: the text trunk can be trained, or there are no texts.
        """
        if any(parameter.requires_grad for parameter in encoder.trunk_parameters("text")):
            raise ValueError("the text trunk is trainable; lock it (text='trunk' or 'all') before caching its features")
        if not texts:
            raise ValueError("there are no texts to cache")
        distinct, tokens_digest = _by_length(encoder, sorted(set(texts)))
        rows = {text: row for row, text in enumerate(distinct)}
        if directory is None:
            return cls(_encode(encoder, distinct, batch_size, on_progress), rows)
        digest = _digest(encoder, tokens_digest, batch_size)
        file = directory / f"text_features-{digest[:24]}.safetensors"
        features = load_features(file, digest)
        if features is None:
            features = _encode(encoder, distinct, batch_size, on_progress)
            save_features(file, digest, features)
        return cls(features, rows)

    def __len__(self) -> int:
        """Distinct texts."""
        return len(self._rows)

    def pooled(self, captions: Sequence[str]) -> Float[Tensor, "B W"]:
        """The features of captions, in their order.

        Raises:
            ValueError: a caption that was not among the texts.
        """
        try:
            return self._features[[self._rows[caption] for caption in captions]]
        except KeyError as error:
            raise ValueError(f"caption {error.args[0]!r:.80} is not in the text cache") from error


def _by_length(encoder: DualEncoder, texts: list[str]) -> tuple[list[str], bytes]:
    """Sorted texts ordered by their number of tokens, then by themselves; and a digest of all their token ids."""
    lengths: list[int] = []
    digest = hashlib.blake2b(digest_size=32)
    for start in range(0, len(texts), _MEASURED_TOGETHER):
        tokens = encoder.tokenize(texts[start : start + _MEASURED_TOGETHER], trim=False)
        digest.update(tokens.numpy().tobytes())
        lengths += encoder.text_tower.lengths(tokens).tolist()
    order = sorted(range(len(texts)), key=lambda row: (lengths[row], row))
    # Texts that differ in nothing that the tower sees would still change places.
    digest.update("\0".join(texts).encode())
    return [texts[row] for row in order], digest.digest()


def _encode(
    encoder: DualEncoder, texts: list[str], batch_size: int, on_progress: Callable[[int, int], None] | None
) -> Float[Tensor, "N W"]:
    training = encoder.training
    device = encoder.logit_scale.device
    parts: list[Tensor] = []
    encoder.eval()
    try:
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            for start in range(0, len(texts), batch_size):
                tokens = encoder.tokenize(texts[start : start + batch_size]).to(device)
                parts.append(encoder.pool_text(tokens).float().cpu())
                if on_progress is not None:
                    on_progress(min(start + batch_size, len(texts)), len(texts))
    finally:
        encoder.train(training)
    return torch.cat(parts)


def _digest(encoder: DualEncoder, tokens_digest: bytes, batch_size: int) -> str:
    """Digest of everything that the features depend on: trunk, its description, token ids of the texts in order."""
    digest = hashlib.blake2b(digest_size=32)
    tower = encoder.text_tower
    description: dict[str, Any] = {
        "version": _VERSION,
        "batch_size": batch_size,
        "quick_gelu": encoder.model_cfg.get("quick_gelu", False),
        # Where a tower lies says nothing of what it is: two runs may have it in two places.
        "text_cfg": {k: v for k, v in encoder.model_cfg["text_cfg"].items() if k not in _PLACES},
        "transformer": {k: v for k, v in tower.module.config.to_dict().items() if k not in _PLACES}
        if tower.is_hf
        else {},
    }
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    digest.update(tokens_digest)
    trunk = {id(parameter) for parameter in encoder.trunk_parameters("text")}
    for name, parameter in tower.module.named_parameters():
        if id(parameter) in trunk:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


_PLACES: Final = ("hf_model_name", "hf_tokenizer_name", "hf_model_pretrained", "_name_or_path", "transformers_version")


__all__ = ["FrozenTextCache"]
