"""Longer contexts: positions between the old ones, short texts as before, folders that open_clip reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_med.models.config import FolderModel, HFTower, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.context import extend_context, stretch_positions
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, save_folder
from tests.models.tiny_bert import write_bert

SHORT = ["left effusion!", "a small nodule in the upper lobe"]
LONG = "left effusion a small nodule " * 12


def make(kind: str, tmp_path: Path) -> DualEncoder:
    torch.manual_seed(0)
    if kind == "vit":
        return build_model(ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=1, text_width=32)).eval()
    write_bert(tmp_path / "bert", positions=40)
    image, text = (
        TimmTower(name="test_efficientnet", image_size=64),
        HFTower(path=str(tmp_path / "bert"), pretrained=False, context_length=32),
    )
    return build_model(TwoTowerModel(image=image, text=text, embed_dim=16)).eval()


@pytest.mark.parametrize("keep", [0, 3])
def test_stretched_positions_against_numpy(keep: int) -> None:
    positions = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    got = stretch_positions(positions, 20, keep=keep)
    assert got.shape == (20, 4)
    assert torch.equal(got[:keep], positions[:keep])
    old, new = np.arange(9 - keep), np.linspace(0, 8 - keep, 20 - keep)
    for column in range(4):
        expected = np.interp(new, old, positions[keep:, column].numpy())
        np.testing.assert_allclose(got[keep:, column].numpy(), expected, rtol=0, atol=1e-6)
    assert torch.equal(got[-1], positions[-1])
    assert torch.equal(got[keep], positions[keep])
    # A rising table still rises: the order of positions is kept.
    rising = stretch_positions(torch.arange(9.0)[:, None], 20, keep=keep).flatten()
    assert (rising.diff() > 0).all()
    assert torch.equal(stretch_positions(positions, 9, keep=keep), positions)


def test_lengths_that_cannot_be_are_refused() -> None:
    positions = torch.zeros(9, 4)
    for length, keep in ((8, 0), (20, 8), (20, -1)):
        with pytest.raises(ValueError, match=f"at least that, got {length}, and keep_positions at most 7, got {keep}"):
            stretch_positions(positions, length, keep=keep)


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_short_texts_keep_their_features_and_long_ones_are_read_whole(kind: str, tmp_path: Path) -> None:
    import open_clip

    encoder = make(kind, tmp_path)
    own = 77 if kind == "vit" else 32
    assert encoder.truncated([LONG * 2]) == 1
    with torch.no_grad():
        before = encoder.encode_text(encoder.tokenize(SHORT))
    save_folder(encoder, tmp_path / "saved")
    longer = build_model(FolderModel(path=tmp_path / "saved", context_length=200, keep_positions=20)).eval()
    stretched = build_model(FolderModel(path=tmp_path / "saved", context_length=200, keep_positions=0)).eval()
    tokens = longer.tokenize([*SHORT, LONG], trim=False)
    assert tokens.shape == (3, 200)
    assert longer.truncated([LONG * 2]) == 0
    with torch.no_grad():
        torch.testing.assert_close(longer.encode_text(longer.tokenize(SHORT)), before, rtol=0, atol=1e-6)
        torch.testing.assert_close(longer.encode_text(tokens)[:2], before, rtol=0, atol=1e-5)
        assert (stretched.encode_text(stretched.tokenize(SHORT)) - before).abs().max() > 1e-4
    # The folder of the longer model is whole: here, and in open_clip.
    save_folder(longer, tmp_path / "longer")
    again = build_model(FolderModel(path=tmp_path / "longer")).eval()
    theirs: Any = open_clip.create_model(f"local-dir:{tmp_path / 'longer'}").eval()
    with torch.no_grad():
        expected = longer.encode_text(tokens)
        torch.testing.assert_close(again.encode_text(again.tokenize([*SHORT, LONG])), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(theirs.encode_text(tokens, normalize=True), expected, rtol=0, atol=1e-5)
    assert open_clip.get_tokenizer(f"local-dir:{tmp_path / 'longer'}")(SHORT).shape == (2, 200)
    with pytest.raises(ValueError, match=f"context_length must be at least the model's own {own}, got 20"):
        build_model(FolderModel(path=tmp_path / "saved", context_length=20))


def test_positions_that_bert_has_are_used_before_any_is_stretched(tmp_path: Path) -> None:
    encoder = make("bert", tmp_path)
    table = encoder.clip.text.transformer.embeddings.position_embeddings.weight.clone()
    longer = extend_context(encoder, 40)
    assert longer.tokenize([LONG], trim=False).shape == (1, 40)
    assert torch.equal(longer.clip.text.transformer.embeddings.position_embeddings.weight, table)


def test_roberta_keeps_the_rows_before_its_first_position(tmp_path: Path) -> None:
    from transformers import RobertaConfig, RobertaModel

    from clip_med.models.context import _extend_hf  # open_clip needs a tokenizer, which a tiny RoBERTa has not

    torch.manual_seed(0)
    tower = RobertaModel(
        RobertaConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            max_position_embeddings=12,
            pad_token_id=1,
        )
    ).eval()
    ids = torch.tensor([[0, 5, 6, 2]])
    with torch.no_grad():
        before = tower(ids).last_hidden_state
        old = tower.embeddings.position_embeddings.weight.clone()
        _extend_hf(tower, 30, keep=4)
        new = tower.embeddings.position_embeddings.weight
        torch.testing.assert_close(tower(ids).last_hidden_state, before, rtol=0, atol=1e-6)
        assert new.shape == (32, 16)
        assert torch.equal(new[:6], old[:6])
        assert torch.equal(new[-1], old[-1])
        assert tower(torch.randint(3, 20, (1, 30))).last_hidden_state.shape == (1, 30, 16)


def test_a_tower_that_attends_to_padding_is_refused() -> None:
    encoder = make("vit", Path())
    encoder.text_tower.pool = "last"
    with pytest.raises(ValueError, match="attends to its padding"):
        extend_context(encoder, 100)
