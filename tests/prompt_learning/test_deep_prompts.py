"""Prompted towers against hooks on the plain ones, value and gradient; towers without tokens are refused by name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from clip_med.models.config import HFTower, TimmTower, TwoTowerModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.last_block import pool_in_last_block
from clip_med.prompt_learning.deep_prompts import encode_image, encode_text, tower_widths, word_embeddings
from tests.models.tiny_bert import WORDS, write_bert
from tests.prompt_learning.few_shot import NAMES, TEMPLATE, encoder_of, noise

pytestmark = pytest.mark.usefixtures("one_thread")

IMAGES = ["vit", "timm_bert"]
TEXTS = [*IMAGES, "biomedclip", "coca", "siglip"]
DEPTH = {"vit": 3, "timm_bert": 2, "biomedclip": 2, "coca": 3, "siglip": 3}
N = 2


@contextmanager
def hooked(*changes: tuple[nn.Module, Callable[[Tensor], Tensor]]) -> Iterator[None]:
    """Change what enters modules."""

    def before(change: Callable[[Tensor], Tensor]) -> Any:
        return lambda _, inputs: (change(inputs[0]), *inputs[1:])

    handles = [module.register_forward_pre_hook(before(change)) for module, change in changes]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def prompts_for(width: int, depth: int, seed: int = 5) -> Tensor:
    return torch.randn(depth, N, width, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.mark.parametrize("kind", IMAGES)
@pytest.mark.parametrize("pooled_last", [False, True])
def test_images_with_prompts(kind: str, pooled_last: bool, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path).eval()
    visual: Any = encoder.clip.visual
    trunk = visual.trunk if kind == "timm_bert" else visual
    blocks = trunk.blocks if kind == "timm_bert" else trunk.transformer.resblocks
    first = trunk.norm_pre if kind == "timm_bert" else trunk.ln_pre
    prompts = prompts_for(tower_widths(encoder, DEPTH[kind])[0], DEPTH[kind])
    images = noise(encoder)

    def join(x: Tensor) -> Tensor:
        return torch.cat([x, prompts[0].expand(len(x), -1, -1)], dim=1)

    def overwrite(row: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat([x[:, :-N], row.expand(len(x), -1, -1)], dim=1)

    deeper = [(blocks[j], overwrite(prompts[j])) for j in range(1, len(prompts))]
    with hooked((first, join), *deeper):
        expected = encoder.encode_image(images)
    (wanted,) = torch.autograd.grad(expected[:, 0].sum(), prompts)
    if pooled_last:
        pool_in_last_block(visual)
    found = encode_image(encoder, images, prompts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), prompts)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)
    assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()
    assert (found - encoder.encode_image(images)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", TEXTS)
def test_texts_with_prompts(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path).eval()
    module = encoder.text_tower.module
    blocks = module.transformer.encoder.layer if encoder.text_tower.is_hf else module.transformer.resblocks
    table = module.transformer.embeddings.word_embeddings if encoder.text_tower.is_hf else module.token_embedding
    prompts = prompts_for(tower_widths(encoder, DEPTH[kind])[1], DEPTH[kind])
    tokens = encoder.tokenize([TEMPLATE.replace("{}", name) for name in NAMES])

    def overwrite(row: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda x: torch.cat([x[:, :1], row.expand(len(x), -1, -1), x[:, 1 + N :]], dim=1)

    handle = table.register_forward_hook(lambda _, __, words: overwrite(prompts[0])(words))
    with hooked(*[(blocks[j], overwrite(prompts[j])) for j in range(1, len(prompts))]):
        expected = encoder.encode_text(tokens)
    handle.remove()
    (wanted,) = torch.autograd.grad(expected[:, 0].sum(), prompts)
    found = encode_text(encoder, tokens, prompts)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    (gradient,) = torch.autograd.grad(found[:, 0].sum(), prompts)
    torch.testing.assert_close(gradient, wanted, atol=1e-6, rtol=1e-4)
    assert (gradient.flatten(1).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("kind", TEXTS)
def test_its_own_words_change_nothing(kind: str, tmp_path: Path) -> None:
    encoder = encoder_of(kind, tmp_path).eval()
    tokens = encoder.tokenize([TEMPLATE.replace("{}", name) for name in NAMES])
    own = word_embeddings(encoder, tokens[:1, 1 : 1 + N])
    torch.testing.assert_close(encode_text(encoder, tokens, own), encoder.encode_text(tokens), atol=1e-6, rtol=1e-5)


def test_roberta_keeps_its_positions(tmp_path: Path) -> None:
    from transformers import RobertaConfig  # type: ignore[attr-defined]

    folder = write_bert(tmp_path / "roberta")
    config = RobertaConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=50,
        pad_token_id=0,
    )
    config.save_pretrained(folder)
    text = HFTower(path=str(folder), context_length=40, pretrained=False)
    encoder = build_model(TwoTowerModel(image=TimmTower(name="test_vit", image_size=160), text=text, embed_dim=16))
    tokens = encoder.eval().tokenize([TEMPLATE.replace("{}", name) for name in NAMES])
    own = word_embeddings(encoder, tokens[:1, 1 : 1 + N])
    torch.testing.assert_close(encode_text(encoder, tokens, own), encoder.encode_text(tokens), atol=1e-6, rtol=1e-5)


def test_towers_without_tokens_are_refused(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="image tower ModifiedResNet is not supported; a vision transformer"):
        tower_widths(encoder_of("resnet", tmp_path), 1)
    with pytest.raises(ValueError, match="image tower EfficientNet is not supported"):
        tower_widths(encoder_of("efficientnet", tmp_path / "other"), 1)
    encoder: DualEncoder = encoder_of("timm_bert", tmp_path)
    with pytest.raises(ValueError, match=r"depth must be at most 2 .* got 3"):
        tower_widths(encoder, 3)
    encoder.text_tower.module.config.model_type = "t5"
    with pytest.raises(ValueError, match="text towers of type 't5' are not supported"):
        tower_widths(encoder, 1)
    packed = encoder_of("vit", tmp_path)
    packed.text_tower.pack()
    with pytest.raises(ValueError, match="pack_text"):
        tower_widths(packed, 1)
