"""Image features of samples, encoded once and kept on disk by the digest of everything that they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float32, UInt8
from torch import Tensor

from clip_med.config import to_plain
from clip_med.data.shards import ShardSet
from clip_med.data.views import ViewConfig, view_batches
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_file import load_features, save_features
from clip_med.models.features import Precision, Progress, evaluating, image_features, image_rows

# Part of every digest: raise it when the features of the same weights and images change.
_VERSION: Final = 1
_NAME: Final = "image_features-"


def image_tower_digest(encoder: DualEncoder) -> str:
    """Of the image tower's weights, adapters included, its description and its preprocessing: 64 hexadecimal digits.

    Equal for two folders of one model, whatever their text towers.
    """
    digest = hashlib.blake2b(digest_size=32)
    description: dict[str, Any] = {
        "version": _VERSION,
        "vision_cfg": encoder.model_cfg.get("vision_cfg"),
        "quick_gelu": encoder.model_cfg.get("quick_gelu", False),
        "preprocess": asdict(encoder.preprocess),
        "lora": None if encoder.lora is None else asdict(encoder.lora.config),
    }
    digest.update(json.dumps(description, sort_keys=True, default=str).encode())
    for name, tensor in sorted(encoder.image_state().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def cached_image_features(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    *,
    cache: Path | None,
    model_digest: str | None = None,
    batch_size: int = 128,
    workers: int = 0,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> Float32[np.ndarray, "N D"]:
    """Unit rows for the samples `indices`, in their order, as `image_features` gives them.

    A file `image_features-DIGEST.safetensors` in `cache` holds one selection. Batch size, workers and device are not
    part of the digest: they change the last bits of a feature only.

    Args:
        cache: folder of the files; None keeps nothing. Processes may share it: files appear whole, and two that
            compute the same selection write the same file.
        model_digest: `image_tower_digest(encoder)`, where it is known already.
        on_progress: images done and images in all where they are encoded; not called where they are read.

    Raises:
        ValueError: a damaged sample, or one whose feature is not finite; each by shard and key.
    """

    def compute() -> Tensor:
        return torch.from_numpy(
            image_features(
                encoder,
                shards,
                indices,
                batch_size=batch_size,
                workers=workers,
                precision=precision,
                on_progress=on_progress,
            )
        )

    if cache is None or not len(indices):
        return compute().numpy()
    return _kept(cache, _digest(encoder, shards, indices, precision, model_digest, None), compute).numpy()


def cached_view_features(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    views: ViewConfig,
    *,
    cache: Path | None,
    model_digest: str | None = None,
    batch_size: int = 128,
    workers: int = 0,
    precision: Precision = "fp32",
    on_progress: Progress | None = None,
) -> Float32[np.ndarray, "M N D"]:
    """Unit rows for every view of the samples `indices` (`clip_med.data.views`); arguments as above.

    Row 0 is that of `cached_image_features` and shares its file where there is one view only.

    Raises:
        ValueError: as above.
    """
    if views.count == 1 or not len(indices):
        return cached_image_features(
            encoder,
            shards,
            indices,
            cache=cache,
            model_digest=model_digest,
            batch_size=batch_size,
            workers=workers,
            precision=precision,
            on_progress=on_progress,
        )[None]

    def compute() -> Tensor:
        parts: list[Tensor] = []
        done = 0
        per_batch = max(1, batch_size // views.count)
        batches = view_batches(shards, indices, encoder.preprocess, views, batch_size=per_batch, workers=workers)
        with evaluating(encoder, precision), closing(batches):
            for images in batches:
                parts.append(_rows(encoder, images, shards, indices[done : done + images.shape[1]]))
                done += images.shape[1]
                if on_progress is not None:
                    on_progress(done, len(indices))
        return torch.cat(parts, dim=1)

    if cache is None:
        return compute().numpy()
    return _kept(cache, _digest(encoder, shards, indices, precision, model_digest, views), compute).numpy()


def kept_files(cache: Path) -> tuple[int, int]:
    """How many files of features a folder holds, and their bytes. Any can be deleted: it is computed again."""
    sizes: list[int] = []
    for file in cache.glob(f"{_NAME}*.safetensors"):
        # Somebody may delete it meanwhile.
        with suppress(FileNotFoundError):
            sizes.append(file.stat().st_size)
    return len(sizes), sum(sizes)


def _rows(
    encoder: DualEncoder, images: UInt8[Tensor, "M B 3 S S"], shards: ShardSet, indices: Sequence[int]
) -> Float32[Tensor, "M B D"]:
    rows = image_rows(encoder, images.flatten(0, 1)).unflatten(0, images.shape[:2])
    if not bool(rows.isfinite().all()):
        first = indices[int((~rows.isfinite()).any(dim=2).any(dim=0).nonzero()[0])]
        raise ValueError(f"{shards.tar(first)}: {shards.key(first)}: the image feature is not finite")
    return rows


def _kept(cache: Path, digest: str, compute: Any) -> Tensor:
    file = cache / f"{_NAME}{digest[:24]}.safetensors"
    features = load_features(file, digest)
    if features is None:
        # Before the work, not after it: a folder that cannot be made costs no encoding.
        cache.mkdir(parents=True, exist_ok=True)
        features = compute()
        save_features(file, digest, features)
    return features


def _digest(
    encoder: DualEncoder,
    shards: ShardSet,
    indices: Sequence[int],
    precision: Precision,
    model_digest: str | None,
    views: ViewConfig | None,
) -> str:
    described = {
        "model": model_digest or image_tower_digest(encoder),
        "shards": shards.digest,
        "precision": precision,
        "views": None if views is None else to_plain(views),
    }
    digest = hashlib.blake2b(json.dumps(described, sort_keys=True).encode(), digest_size=32)
    digest.update(np.asarray(indices, dtype="<i8").tobytes())
    return digest.hexdigest()


__all__ = ["cached_image_features", "cached_view_features", "image_tower_digest", "kept_files"]
