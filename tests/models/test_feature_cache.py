"""The feature cache: what was computed is found again, what depends on it is in its name, damage is mended."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.data.augment import AugmentConfig
from clip_med.data.shards import ShardSet
from clip_med.data.views import ViewConfig
from clip_med.models import feature_cache
from clip_med.models.config import LoRAConfig
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_cache import (
    cached_image_features,
    cached_view_features,
    image_tower_digest,
    kept_files,
)
from clip_med.models.features import image_features
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.models.lora import add_lora
from tests.tiny_run import TINY, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def encoder() -> DualEncoder:
    torch.manual_seed(0)
    return build_model(TINY)


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return ShardSet.open(write_shards(tmp_path / "s", 12))


def files(cache: Path) -> set[str]:
    return {path.name for path in cache.iterdir()}


def test_a_selection_is_encoded_once(encoder: DualEncoder, shards: ShardSet, tmp_path: Path) -> None:
    cache, steps = tmp_path / "cache", []
    first = cached_image_features(encoder, shards, [3, 1, 7], cache=cache, on_progress=lambda *s: steps.append(s))
    np.testing.assert_array_equal(first, image_features(encoder, shards, [3, 1, 7]))
    assert steps == [(3, 3)]
    again = cached_image_features(encoder, shards, [3, 1, 7], cache=cache, on_progress=lambda *s: steps.append(s))
    np.testing.assert_array_equal(first, again)
    assert steps == [(3, 3)]
    assert len(files(cache)) == 1
    np.testing.assert_array_equal(first, cached_image_features(encoder, shards, [3, 1, 7], cache=None))
    assert cached_image_features(encoder, shards, [], cache=cache).shape == (0, 0)
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        cached_image_features(encoder, shards, [3], cache=tmp_path / "file", on_progress=lambda *s: steps.append(s))
    assert steps == [(3, 3)]


def test_all_that_features_depend_on_is_in_the_name(encoder: DualEncoder, shards: ShardSet, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    cached_image_features(encoder, shards, [0, 1], cache=cache)
    cached_image_features(encoder, shards, [1, 0], cache=cache)
    cached_image_features(encoder, shards, [0, 1], cache=cache, precision="bf16")
    cached_image_features(encoder, ShardSet.open(write_shards(tmp_path / "o", 12, seed=1)), [0, 1], cache=cache)
    cached_view_features(encoder, shards, [0, 1], ViewConfig(count=2), cache=cache)
    cached_view_features(encoder, shards, [0, 1], ViewConfig(count=2, seed=1), cache=cache)
    cached_view_features(encoder, shards, [0, 1], ViewConfig(count=2, augment=AugmentConfig(rotation=1.0)), cache=cache)
    with torch.no_grad():
        next(encoder.clip.visual.parameters())[0] += 1e-3
    cached_image_features(encoder, shards, [0, 1], cache=cache)
    assert len(files(cache)) == 8
    cached_view_features(encoder, shards, [0, 1], ViewConfig(), cache=cache)
    assert len(files(cache)) == 8


def test_views_are_rows_of_their_own(encoder: DualEncoder, shards: ShardSet) -> None:
    steps: list[tuple[int, int]] = []
    rows = cached_view_features(
        encoder,
        shards,
        [5, 2, 8],
        ViewConfig(count=3),
        cache=None,
        batch_size=6,
        on_progress=lambda *s: steps.append(s),
    )
    assert rows.shape == (3, 3, 16)
    assert steps == [(2, 3), (3, 3)]
    np.testing.assert_allclose(rows[0], image_features(encoder, shards, [5, 2, 8]), atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(rows, axis=2), 1, atol=1e-6)
    assert np.abs(rows[1] - rows[2]).max() > 1e-4


def test_the_digest_is_of_the_image_tower(encoder: DualEncoder, tmp_path: Path) -> None:
    digest = image_tower_digest(encoder)
    save_folder(encoder, tmp_path / "m")
    assert image_tower_digest(load_folder(tmp_path / "m")) == digest
    with torch.no_grad():
        encoder.clip.positional_embedding += 1  # of the text tower
    assert image_tower_digest(encoder) == digest
    add_lora(encoder, LoRAConfig(rank=1))
    assert image_tower_digest(encoder) != digest


@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_damaged_files_are_computed_again(
    encoder: DualEncoder, shards: ShardSet, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    cache = tmp_path / "cache"
    first = cached_image_features(encoder, shards, [0, 1, 2], cache=cache)
    (file,) = cache.iterdir()
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data[:-8] if damage == "cut" else data)
    np.testing.assert_array_equal(first, cached_image_features(encoder, shards, [0, 1, 2], cache=cache))
    assert "computed again" in caplog.text
    caplog.clear()
    cached_image_features(encoder, shards, [0, 1, 2], cache=cache)
    assert not caplog.text
    assert files(cache) == {file.name}


def test_features_that_are_not_finite_are_refused_by_name(
    encoder: DualEncoder, shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        feature_cache, "view_batches", lambda *_, **__: (x for x in [torch.zeros(2, 2, 3, 32, 32, dtype=torch.uint8)])
    )
    monkeypatch.setattr(encoder, "encode_image", lambda images: torch.full((len(images), 4), float("nan")))
    with pytest.raises(ValueError, match=r"k003: the image feature is not finite"):
        cached_view_features(encoder, shards, [3, 4], ViewConfig(count=2), cache=None)


def test_a_file_that_somebody_deletes_is_not_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("image_features-a.safetensors", "image_features-b.safetensors", "other.safetensors"):
        (tmp_path / name).write_bytes(b"123")
    assert kept_files(tmp_path) == (2, 6)
    there = tuple(tmp_path.glob("image_features-*"))
    monkeypatch.setattr(Path, "glob", lambda *_: iter(there))
    there[0].unlink()
    assert kept_files(tmp_path) == (1, 3)
