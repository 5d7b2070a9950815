"""Layer groups by hand for every family of tower, LiT's frozen sides, and unlocked blocks that really train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from clip_med.models.config import HFTower, ResNetModel, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model
from clip_med.models.unlock import depth_multipliers, freeze, layer_depths
from tests.models.tiny_bert import write_bert

TEXTS = ["left effusion", "a small nodule"]


def vit() -> DualEncoder:
    torch.manual_seed(0)
    return build_model(ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=3, text_width=32))


def two_tower(tmp_path: Path, name: str = "test_vit", size: int = 160) -> DualEncoder:
    torch.manual_seed(0)
    bert = write_bert(tmp_path / "bert")
    image = TimmTower(name=name, image_size=size, dropout=0.5, drop_path=0.2)
    return build_model(TwoTowerModel(image=image, text=HFTower(path=str(bert), pretrained=False), embed_dim=16))


def gradients(encoder: DualEncoder, size: int) -> set[str]:
    images = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = encoder.encode_image(images), encoder.encode_text(encoder.tokenize(TEXTS * 2))
    (encoder.logit_scale.exp() * (features[0] * features[1]).sum()).backward()
    return {name for name, parameter in encoder.clip.named_parameters() if parameter.grad is not None}


def test_depths_of_each_family_by_hand(tmp_path: Path) -> None:
    encoder = vit()
    image, text = layer_depths(encoder, "image"), layer_depths(encoder, "text")
    for name, depth in {
        "visual.class_embedding": 0,
        "visual.positional_embedding": 0,
        "visual.conv1.weight": 0,
        "visual.ln_pre.weight": 0,
        "visual.transformer.resblocks.0.attn.in_proj_weight": 1,
        "visual.transformer.resblocks.2.mlp.c_fc.bias": 3,
        "visual.ln_post.bias": 3,
        "visual.proj": 4,
    }.items():
        assert image[name] == depth, name
    for name, depth in {
        "token_embedding.weight": 0,
        "positional_embedding": 0,
        "transformer.resblocks.1.ln_2.weight": 2,
        "ln_final.weight": 2,
        "text_projection": 3,
    }.items():
        assert text[name] == depth, name
    everything = {name for name, _ in encoder.clip.named_parameters()}
    assert image.keys() | text.keys() == everything - {"logit_scale"}
    resnet = build_model(ResNetModel(embed_dim=16, image_size=32, image_width=8, text_width=32, text_heads=2))
    image = layer_depths(resnet, "image")
    for name, depth in {
        "visual.conv3.weight": 0,
        "visual.bn1.bias": 0,
        "visual.layer1.0.conv1.weight": 1,
        "visual.layer4.0.bn3.weight": 4,
        "visual.attnpool.positional_embedding": 4,
        "visual.attnpool.c_proj.weight": 5,
    }.items():
        assert image[name] == depth, name
    encoder = two_tower(tmp_path)
    image, text = layer_depths(encoder, "image"), layer_depths(encoder, "text")
    for name, depth in {
        "visual.trunk.pos_embed": 0,
        "visual.trunk.patch_embed.proj.weight": 0,
        "visual.trunk.blocks.5.attn.qkv.weight": 6,
        "visual.trunk.norm.weight": 6,
        "visual.head.proj.weight": 7,
    }.items():
        assert image[name] == depth, name
    for name, depth in {
        "text.transformer.embeddings.word_embeddings.weight": 0,
        "text.transformer.embeddings.LayerNorm.bias": 0,
        "text.transformer.encoder.layer.0.attention.self.query.weight": 1,
        "text.transformer.encoder.layer.1.output.dense.weight": 2,
        "text.proj.weight": 3,
    }.items():
        assert text[name] == depth, name


def test_multipliers_fall_by_the_decay_per_layer() -> None:
    encoder = vit()
    got = depth_multipliers(encoder, 0.5)
    assert set(got) == {name for name, _ in encoder.clip.named_parameters()}
    for name, multiplier in {
        "visual.proj": 1.0,
        "visual.ln_post.weight": 0.5,
        "visual.transformer.resblocks.2.ln_1.weight": 0.5,
        "visual.transformer.resblocks.0.ln_1.weight": 0.125,
        "visual.conv1.weight": 0.0625,
        "text_projection": 1.0,
        "transformer.resblocks.1.ln_1.weight": 0.5,
        "token_embedding.weight": 0.125,
        "logit_scale": 1.0,
    }.items():
        assert got[name] == multiplier, name
    # Without a head the trunk keeps its rates.
    encoder.clip.visual.proj = None
    assert depth_multipliers(encoder, 0.5)["visual.ln_post.weight"] == 0.5


@pytest.mark.parametrize("side", ["image", "text"])
def test_lit_of_either_side_has_no_gradients_no_dropout_and_no_batch_statistics(side: Any, tmp_path: Path) -> None:
    encoder = two_tower(tmp_path, "test_efficientnet", 64)
    freeze(encoder, **{side: "all"})
    encoder.train()
    before = {name: value.clone() for name, value in encoder.clip.visual.named_buffers()}
    reached = gradients(encoder, 64)
    locked = {"image": "visual.", "text": "text."}[side]
    assert len(reached) > 20
    assert "logit_scale" in reached
    assert not {name for name in reached if name.startswith(locked)}
    tower = encoder.clip.visual if side == "image" else encoder.clip.text.transformer
    assert not any(module.training for module in tower.modules())
    unchanged = all(torch.equal(before[name], value) for name, value in encoder.clip.visual.named_buffers())
    assert unchanged == (side == "image")


@pytest.mark.parametrize(("groups", "policy"), [(1, "trunk"), (2, "all"), (4, "trunk")])
def test_unlocked_blocks_of_open_clip_train_and_those_below_do_not(groups: int, policy: Any) -> None:
    encoder = vit()
    freeze(encoder, image=policy, text=policy, unlock_image=groups, unlock_text=min(groups, 3))
    encoder.train()
    reached = gradients(encoder, 32)
    depths = layer_depths(encoder, "image") | {"logit_scale": 9}
    texts = layer_depths(encoder, "text")
    head = policy == "trunk"
    assert reached == {"logit_scale"} | {
        name
        for table, last, count in ((depths, 3, groups), (texts, 2, min(groups, 3)))
        for name, depth in table.items()
        if last - count < depth <= last or (head and depth == last + 1)
    }
    blocks = encoder.clip.visual.transformer.resblocks
    assert [block.training for block in blocks] == [i >= 3 - groups for i in range(3)]
    assert encoder.clip.visual.ln_post.training
    encoder.eval()
    assert not any(module.training for module in encoder.modules())


def test_unlocked_blocks_of_timm_and_bert_have_their_dropout_back(tmp_path: Path) -> None:
    encoder = two_tower(tmp_path)
    freeze(encoder, image="trunk", text="trunk", unlock_image=2, unlock_text=1)
    encoder.train()
    blocks = encoder.clip.visual.trunk.blocks
    assert [all(m.training for m in block.modules()) for block in blocks] == [False] * 4 + [True] * 2
    assert not any(m.training for m in blocks[3].modules())
    layers = encoder.clip.text.transformer.encoder.layer
    assert [layer.output.dropout.training for layer in layers] == [False, True]
    reached = gradients(encoder, 160)
    assert "visual.trunk.blocks.4.attn.qkv.weight" in reached
    assert "visual.trunk.blocks.3.attn.qkv.weight" not in reached
    assert "text.transformer.encoder.layer.1.attention.self.query.weight" in reached
    assert "text.transformer.encoder.layer.0.attention.self.query.weight" not in reached


def test_what_cannot_be_unlocked_is_refused() -> None:
    encoder = vit()
    with pytest.raises(ValueError, match=r"unlock_image must be at most 4 .*, got 5"):
        freeze(encoder, image="all", unlock_image=5)
    with pytest.raises(ValueError, match="unlock_text: 1 layer groups of a tower that is not locked"):
        freeze(encoder, image="all", unlock_text=1)
