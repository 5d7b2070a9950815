"""Features on disk under the digest of what they were computed from: whole and intact, or computed again."""

from __future__ import annotations

import hashlib
import logging
import os
import platform
from pathlib import Path

from jaxtyping import Float
from torch import Tensor

log = logging.getLogger(__name__)


def save_features(file: Path, digest: str, features: Float[Tensor, "..."]) -> None:
    """Write under a temporary name, flush, rename: a reader sees the whole file or none."""
    from safetensors.torch import save

    file.parent.mkdir(parents=True, exist_ok=True)
    content = save({"features": features}, metadata={"digest": digest, "content": _content_digest(features)})
    # Ranks on several nodes write the same file, and their process ids may be equal.
    temporary = file.with_name(f"{file.name}.tmp-{platform.node()}-{os.getpid()}")
    with temporary.open("wb") as stream:
        stream.write(content)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, file)


def load_features(file: Path, digest: str) -> Float[Tensor, "..."] | None:
    """The features of a file, or None where there is none or, with a warning, where it is damaged."""
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        return None
    try:
        with safe_open(file, framework="pt") as opened:
            metadata = opened.metadata() or {}
            # A copy: the file stays mapped otherwise, and changes with it.
            features: Tensor = opened.get_tensor("features").clone()
    except (SafetensorError, OSError) as error:
        log.warning("%s: damaged (%s); the features are computed again", file, error)
        return None
    # safetensors notices a cut file and no flipped bit.
    if metadata.get("digest") != digest or metadata.get("content") != _content_digest(features):
        log.warning("%s: damaged (digests differ); the features are computed again", file)
        return None
    return features


def _content_digest(features: Tensor) -> str:
    return hashlib.blake2b(features.numpy().tobytes(), digest_size=32).hexdigest()


__all__ = ["load_features", "save_features"]
