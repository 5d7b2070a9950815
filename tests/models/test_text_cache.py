"""The cache of frozen text features: equal to encoding, the same bits each time, and safe on disk."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_med.models.config import HFTower, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.text_cache import FrozenTextCache
from tests.models.tiny_bert import WORDS, write_bert

TEXTS = [" ".join(WORDS[5 + (i * k) % 12] for k in range(1, 2 + i % 9)) for i in range(40)]


@pytest.fixture(params=["bert", "vit"])
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> DualEncoder:
    return make(request.param, tmp_path)


def make(kind: str, tmp_path: Path, seed: int = 0) -> DualEncoder:
    """A model with a locked text trunk, in training mode: dropout must not reach the cache."""
    torch.manual_seed(seed)
    if kind == "vit":
        model = build_model(ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=1, text_width=32))
    else:
        bert = tmp_path / "bert"
        config = TwoTowerModel(
            image=TimmTower(name="test_efficientnet", image_size=64),
            text=HFTower(path=str(bert if bert.exists() else write_bert(bert)), pretrained=False),
        )
        model = build_model(config)
    model.lock(text="trunk")
    return model.train()


def distinct() -> list[str]:
    return sorted(set(TEXTS))


def test_projected_cache_equals_encoding(encoder: DualEncoder) -> None:
    progress: list[tuple[int, int]] = []
    cache = FrozenTextCache.build(encoder, TEXTS, batch_size=8, on_progress=lambda *step: progress.append(step))
    assert encoder.training
    count = len(distinct())
    assert len(cache) == count
    assert progress == [(min(end, count), count) for end in range(8, count + 8, 8)]
    captions = [TEXTS[3], TEXTS[0], TEXTS[3], TEXTS[17]]
    encoder.eval()
    with torch.no_grad():
        expected = encoder.encode_text(encoder.tokenize(captions))
        torch.testing.assert_close(encoder.project_text(cache.pooled(captions)), expected, rtol=0, atol=1e-5)
    assert cache.pooled(captions).dtype == torch.float32
    with pytest.raises(ValueError, match="caption 'unheard of' is not in the text cache"):
        cache.pooled([TEXTS[0], "unheard of"])


def test_the_bits_do_not_depend_on_order_mode_or_autocast(encoder: DualEncoder) -> None:
    cache = FrozenTextCache.build(encoder, TEXTS, batch_size=8)
    encoder.eval()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        again = FrozenTextCache.build(encoder, [*reversed(TEXTS), TEXTS[1]], batch_size=8)
    assert torch.equal(cache.pooled(distinct()), again.pooled(distinct()))


def test_a_trunk_frozen_by_hand_is_encoded_without_dropout(tmp_path: Path) -> None:
    encoder = make("bert", tmp_path)
    expected = FrozenTextCache.build(encoder, TEXTS).pooled(distinct())
    encoder.lock()
    for parameter in encoder.trunk_parameters("text"):
        parameter.requires_grad_(False)
    assert encoder.clip.text.transformer.training
    assert torch.equal(FrozenTextCache.build(encoder, TEXTS).pooled(distinct()), expected)


def test_texts_of_one_length_are_encoded_together(encoder: DualEncoder, monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []
    pool = encoder.pool_text

    def recorded(tokens: Tensor) -> Tensor:
        lengths.extend([tokens.shape[1]] * len(tokens))
        return pool(tokens)

    monkeypatch.setattr(encoder, "pool_text", recorded)
    FrozenTextCache.build(encoder, TEXTS, batch_size=4)
    needed = int(encoder.text_tower.lengths(encoder.tokenize(distinct())).sum())
    assert lengths == sorted(lengths)
    # Each batch is as wide as its longest text: ordered, that costs less than one position per text.
    assert needed <= sum(lengths) < needed + len(lengths)


def test_trainable_trunks_and_no_texts_are_refused(encoder: DualEncoder) -> None:
    with pytest.raises(ValueError, match="no texts"):
        FrozenTextCache.build(encoder, [])
    encoder.lock(image="all")
    with pytest.raises(ValueError, match="trunk is trainable"):
        FrozenTextCache.build(encoder, TEXTS)
    encoder.lock(text="all")
    FrozenTextCache.build(encoder, TEXTS[:2])


def counted(encoder: DualEncoder, texts: list[str], directory: Path) -> tuple[Tensor, int]:
    """Features of all texts, and how many batches had to be encoded for them."""
    batches: list[int] = []
    cache = FrozenTextCache.build(encoder, texts, directory=directory, on_progress=lambda done, _: batches.append(done))
    return cache.pooled(sorted(set(texts))), len(batches)


def test_kept_features_are_found_again(tmp_path: Path, encoder: DualEncoder) -> None:
    kind = "bert" if encoder.text_tower.is_hf else "vit"
    directory = tmp_path / "cache"
    features, batches = counted(encoder, TEXTS, directory)
    assert batches == 1
    (file,) = directory.iterdir()
    again, batches = counted(make(kind, tmp_path), list(reversed(TEXTS)), directory)
    assert batches == 0
    assert torch.equal(features, again)
    # A trained head is no part of the trunk.
    with torch.no_grad():
        for name, parameter in encoder.clip.named_parameters():
            if parameter.requires_grad and not name.startswith("visual"):
                parameter.add_(1)
    assert counted(encoder, TEXTS, directory)[1] == 0
    # Other texts and other weights are other files.
    assert counted(encoder, [*TEXTS, "left left left"], directory)[1] == 1
    other, batches = counted(make(kind, tmp_path, seed=1), TEXTS, directory)
    assert batches == 1
    assert not torch.equal(other, features)
    assert len(list(directory.iterdir())) == 3
    assert not any(text.encode() in file.read_bytes() for text in TEXTS if len(text) > 10)


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "other"])
def test_damaged_files_are_computed_again(tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture) -> None:
    encoder = make("vit", tmp_path)
    directory = tmp_path / "cache"
    features, _ = counted(encoder, TEXTS, directory)
    (file,) = directory.iterdir()
    content = bytearray(file.read_bytes())
    if damage == "cut":
        file.write_bytes(content[:-10])
    elif damage == "flip":
        content[-7] ^= 1
        file.write_bytes(content)
    elif damage == "empty":
        file.write_bytes(b"")
    else:
        counted(encoder, TEXTS[:5], directory)
        (second,) = set(directory.iterdir()) - {file}
        second.rename(file)
    again, batches = counted(encoder, TEXTS, directory)
    assert batches == 1
    assert torch.equal(features, again)
    assert "damaged" in caplog.text
    assert "computed again" in caplog.text
    assert counted(encoder, TEXTS, directory)[1] == 0
    assert [path.name for path in directory.iterdir()] == [file.name]
