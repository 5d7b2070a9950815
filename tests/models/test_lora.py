"""Adapters against formulas by hand, in every family of tower; merged folders in open_clip; runs that are continued."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from clip_med.models.config import HFTower, LoRAConfig, ResNetModel, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.models.lora import LowRank, add_lora, load_adapters, merged_state
from clip_med.models.unlock import freeze
from clip_med.pretrain import PretrainConfig, pretrain
from tests.models.tiny_bert import write_bert
from tests.tiny_run import TINY, final_tensors, signal_at, tiny_config, write_shards

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["left effusion", "a small nodule in the upper lobe", "right lung"]
VIT = ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=2, text_width=32, text_layers=2)
FAMILIES = ["vit", "timm_bert", "resnet"]
# Adapted weights with all of q, k, v, out and mlp: per block of a fused tower in_proj, out and two of the MLP.
COUNTS = {"vit": 4 * 4, "timm_bert": 6 * 4 + 2 * 6, "resnet": 3 + 2 * 4}
EVERYTHING = LoRAConfig(rank=2, alpha=4.0, parts=("q", "k", "v", "out", "mlp"))


def make(kind: str, tmp_path: Path) -> DualEncoder:
    bert = tmp_path / "bert"
    if not bert.exists():
        write_bert(bert, weights=True)
    torch.manual_seed(0)
    if kind == "vit":
        return build_model(VIT)
    if kind == "resnet":
        return build_model(ResNetModel(embed_dim=16, image_size=32, image_width=8, text_width=32, text_heads=2))
    image = TimmTower(name="test_vit", image_size=160)
    return build_model(TwoTowerModel(image=image, text=HFTower(path=str(bert), context_length=40), embed_dim=16))


def features(encoder: DualEncoder) -> tuple[Tensor, Tensor]:
    size = encoder.preprocess.size
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return encoder.encode_image(images), encoder.encode_text(encoder.tokenize(TEXTS))


def disturb(encoder: DualEncoder) -> None:
    """Adapters as after training: B no longer zero."""
    generator = torch.Generator().manual_seed(2)
    for module in encoder.modules():
        if isinstance(module, LowRank):
            module.lora_b.data.normal_(0, 0.1, generator=generator)


@pytest.mark.parametrize("kind", FAMILIES)
@pytest.mark.parametrize("training", [False, True])
def test_adapters_change_nothing_at_first(kind: str, training: bool, tmp_path: Path) -> None:
    encoder = make(kind, tmp_path)
    freeze(encoder, image="trunk", text="trunk")
    encoder.train(training)
    with torch.no_grad():
        before = features(encoder)
    state = {name: value.clone() for name, value in encoder.clip.state_dict().items()}
    adapted = add_lora(encoder, EVERYTHING)
    assert len(adapted) == len(set(adapted)) == COUNTS[kind]
    with torch.no_grad():
        for old, new in zip(before, features(encoder), strict=True):
            assert torch.equal(old, new)
    merged = merged_state(encoder.clip)
    assert set(merged) == set(state)
    assert all(torch.equal(value, state[name]) for name, value in merged.items())
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(encoder, EVERYTHING)


@pytest.mark.parametrize("kind", FAMILIES)
def test_only_adapters_heads_and_scale_train(kind: str, tmp_path: Path) -> None:
    encoder = make(kind, tmp_path)
    heads = {name for name, p in encoder.clip.named_parameters()} - {
        name
        for tower in ("image", "text")
        for name, p in encoder.clip.named_parameters()
        if any(p is q for q in encoder.trunk_parameters(tower))
    }
    adapted = add_lora(encoder, EVERYTHING)
    disturb(encoder)
    freeze(encoder, image="trunk", text="trunk")
    encoder.train()
    image, text = features(encoder)
    (encoder.logit_scale.exp() * (image * text).sum()).backward()
    got = {name for name, p in encoder.clip.named_parameters() if p.grad is not None}
    adapters = {name for name in got if ".lora_" in name}
    assert got - adapters == heads
    assert len(adapters) == 2 * len(adapted)
    assert all(
        p.grad.abs().max() > 0 for n, p in encoder.clip.named_parameters() if n in adapters and p.grad is not None
    )
    trained = {name for name, p in encoder.clip.named_parameters() if p.requires_grad}
    assert trained == got
    # Adapters are in training mode, for their dropout; the attention around them is not.
    modes = {m.training for m in encoder.modules() if isinstance(m, LowRank)}
    around = {m.training for m in encoder.modules() if hasattr(m, "parametrizations")}
    assert (modes, around) == ({True}, {False})


def test_the_weight_and_its_gradients_are_the_formula() -> None:
    """W + (alpha / r) B A by hand in float64 for fused q and v; dB = s dW A', dA = s B' dW."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    adapter = LowRank(weight, LoRAConfig(rank=2, alpha=3.0, parts=("q", "v")), adapted=(0, 2), blocks=3)
    assert adapter.lora_b.abs().max() == 0
    assert 0.3 < adapter.lora_a.abs().max() <= 0.5  # 1 / sqrt(4)
    adapter.lora_b.data.normal_(generator=generator)
    sensitivity = torch.randn(12, 4, dtype=torch.float64, generator=generator)
    changed = adapter(weight)
    (changed * sensitivity).sum().backward()
    a, b, s = adapter.lora_a.detach().numpy(), adapter.lora_b.detach().numpy(), 3.0 / 2
    expected = weight.numpy().copy()
    expected[:4] += s * b[0] @ a[0]
    expected[8:] += s * b[1] @ a[1]
    torch.testing.assert_close(changed.detach(), torch.from_numpy(expected), rtol=0, atol=1e-12)
    assert torch.equal(changed[4:8], weight[4:8])
    assert adapter.lora_a.grad is not None
    assert adapter.lora_b.grad is not None
    for part, rows in ((0, slice(0, 4)), (1, slice(8, 12))):
        slope = sensitivity[rows].numpy()
        torch.testing.assert_close(adapter.lora_b.grad[part], torch.from_numpy(s * slope @ a[part].T))
        torch.testing.assert_close(adapter.lora_a.grad[part], torch.from_numpy(s * b[part].T @ slope))


def test_parts_choose_what_is_adapted(tmp_path: Path) -> None:
    encoder = make("timm_bert", tmp_path)
    adapted = add_lora(encoder, LoRAConfig(rank=2, parts=("v", "out"), image=False))
    assert adapted == [
        f"text.transformer.encoder.layer.{layer}.attention.{part}.weight"
        for layer in (0, 1)
        for part in ("self.value", "output.dense")
    ]
    encoder = make("timm_bert", tmp_path)
    adapted = add_lora(encoder, LoRAConfig(rank=2, parts=("k",), text=False))
    assert adapted == [f"visual.trunk.blocks.{block}.attn.qkv.weight" for block in range(6)]
    before = merged_state(make("timm_bert", tmp_path).clip)
    disturb(encoder)
    after = merged_state(encoder.clip)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == set(adapted)
    rows = (before[adapted[0]] != after[adapted[0]]).any(dim=1)
    width = len(rows) // 3
    assert rows.tolist() == [False] * width + [True] * width + [False] * width


def test_dropout_is_of_training_alone() -> None:
    encoder = build_model(VIT)
    add_lora(encoder, dataclasses.replace(EVERYTHING, dropout=0.5))
    disturb(encoder)
    freeze(encoder, image="trunk", text="trunk")
    with torch.no_grad():
        encoder.train()
        assert not torch.equal(features(encoder)[0], features(encoder)[0])
        torch.manual_seed(3)
        first = features(encoder)[0]
        torch.manual_seed(3)
        assert torch.equal(first, features(encoder)[0])
        merged = merged_state(encoder.clip)
        encoder.eval()
        assert torch.equal(features(encoder)[0], features(encoder)[0])
    assert all(torch.equal(value, merged[name]) for name, value in merged_state(encoder.clip).items())


@pytest.mark.parametrize("kind", FAMILIES)
def test_merged_folders_equal_adapted_models_here_and_in_open_clip(kind: str, tmp_path: Path) -> None:
    import open_clip

    encoder = make(kind, tmp_path)
    with torch.no_grad():
        base = features(encoder.eval())
    add_lora(encoder, EVERYTHING)
    disturb(encoder)
    freeze(encoder, image="trunk", text="all")
    encoder.eval()
    save_folder(encoder, tmp_path / "saved")
    plain = load_folder(tmp_path / "saved").eval()
    assert plain.lora is None
    theirs: Any = open_clip.create_model(f"local-dir:{tmp_path / 'saved'}").eval()
    size = encoder.preprocess.size
    pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        adapted = features(encoder)
        for old, new, merged in zip(base, adapted, features(plain), strict=True):
            assert (old - new).abs().max() > 1e-3
            torch.testing.assert_close(merged, new, rtol=0, atol=1e-5)
        torch.testing.assert_close(
            theirs.encode_image(pixels, normalize=True), encoder.encode_image(pixels), rtol=0, atol=1e-5
        )
    # The adapters on the model that they were trained on are the same model, bit for bit.
    again = make(kind, tmp_path)
    load_adapters(again, tmp_path / "saved")
    again.eval()
    with torch.no_grad():
        assert all(torch.equal(a, b) for a, b in zip(features(again), adapted, strict=True))
    saved = load_file(tmp_path / "saved" / "lora.safetensors")
    assert "logit_scale" in saved
    assert {name for name in saved if ".lora_" not in name} < set(merged_state(encoder.clip))


def test_batch_statistics_of_unlocked_layers_go_with_the_adapters(tmp_path: Path) -> None:
    def build() -> DualEncoder:
        torch.manual_seed(0)
        text = HFTower(path=str(tmp_path / "bert"), context_length=40)
        image = TimmTower(name="test_efficientnet", image_size=64)
        return build_model(TwoTowerModel(image=image, text=text, embed_dim=16))

    write_bert(tmp_path / "bert", weights=True)
    encoder = build()
    add_lora(encoder, LoRAConfig(rank=2, image=False))
    freeze(encoder, image="trunk", text="trunk", unlock_image=2)
    encoder.train()
    features(encoder)
    save_folder(encoder, tmp_path / "saved")
    again = build()
    load_adapters(again, tmp_path / "saved")
    expected = merged_state(encoder.clip)
    assert all(torch.equal(value, expected[name]) for name, value in merged_state(again.clip).items())
    start = build().clip.state_dict()
    assert sum(not torch.equal(start[name], expected[name]) for name in start if "running_mean" in name) > 2


def test_adapters_of_another_model_are_refused(tmp_path: Path) -> None:
    encoder = build_model(VIT)
    add_lora(encoder, EVERYTHING)
    freeze(encoder, image="trunk", text="trunk")
    save_folder(encoder, tmp_path / "saved")
    torch.manual_seed(9)
    other = build_model(VIT)
    with pytest.raises(ValueError, match=r"lora.json: the adapters were trained on another model \(SHA-256"):
        load_adapters(other, tmp_path / "saved")
    third = build_model(VIT)
    add_lora(third, dataclasses.replace(EVERYTHING, rank=4))
    with pytest.raises(ValueError, match=r"lora.json: adapters are of LoRAConfig\(rank=2.*the model has .*rank=4"):
        load_adapters(third, tmp_path / "saved")
    with pytest.raises(ValueError, match=r"lora.json: no adapters, or damaged: FileNotFoundError"):
        load_adapters(build_model(VIT), tmp_path)


def test_towers_without_attention_are_refused(tmp_path: Path) -> None:
    write_bert(tmp_path / "bert")
    image, text = (
        TimmTower(name="test_efficientnet", image_size=64),
        HFTower(path=str(tmp_path / "bert"), pretrained=False),
    )
    encoder = build_model(TwoTowerModel(image=image, text=text, embed_dim=16))
    with pytest.raises(
        ValueError, match=r"lora.image: true, but the image tower has no layers .* set lora.image: false"
    ):
        add_lora(encoder, LoRAConfig())
    for wrong in ({"parts": ()}, {"parts": ("q", "q")}):
        with pytest.raises(ValueError, match="parts must name some of"):
            LoRAConfig(**wrong)
    with pytest.raises(ValueError, match="adapters would be nowhere"):
        LoRAConfig(image=False, text=False)


def lora_config(shards: Path, **train: object) -> PretrainConfig:
    config = tiny_config(shards, **({"lock_image": "trunk", "lock_text": "trunk"} | train))
    return dataclasses.replace(config, lora=LoRAConfig(rank=2, dropout=0.1))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_run_with_adapters_is_continued_bit_for_bit_and_leaves_a_plain_model(precision: str, tmp_path: Path) -> None:
    config = lora_config(write_shards(tmp_path / "shards"), precision=precision)
    pretrain(config, tmp_path / "whole")

    assert pretrain(config, tmp_path / "stopped", on_step=signal_at(6)).step == 7
    assert pretrain(config, tmp_path / "stopped").finished
    whole = final_tensors(tmp_path / "whole")
    assert whole == final_tensors(tmp_path / "stopped")
    assert any(".lora_a" in name for name in whole)
    torch.manual_seed(config.train.seed)
    base = merged_state(build_model(TINY).clip)
    trained = load_file(tmp_path / "whole/checkpoints/step_00000012/model/open_clip_model.safetensors")
    changed = {name for name in base if not torch.equal(base[name], trained[name])}
    assert changed == {
        *(
            f"{t}transformer.resblocks.0.attn.{w}"
            for t in ("visual.", "")
            for w in ("in_proj_weight", "out_proj.weight")
        ),
        "visual.proj",
        "text_projection",
        "logit_scale",
    }


def test_adapters_of_images_work_beside_cached_frozen_text(tmp_path: Path) -> None:
    plain = tiny_config(
        write_shards(tmp_path / "shards"), lock_image="all", lock_text="trunk", cache_text=True, samples=32
    )
    summary = pretrain(dataclasses.replace(plain, lora=LoRAConfig(rank=2, text=False)), tmp_path / "run")
    saved = load_file(summary.checkpoint / "model" / "lora.safetensors")
    path = "visual.transformer.resblocks.0.attn"
    adapters = {f"{path}.{weight}.0.lora_{part}" for weight in ("in_proj_weight", "out_proj.weight") for part in "ab"}
    assert set(saved) == adapters | {"text_projection", "logit_scale"}
    assert all(saved[name].abs().max() > 0 for name in adapters)


def test_more_than_a_weight_can_hold_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"lora.rank 5 is more than the rank that a weight of 8 x 4 can have; at most 4"
    ):
        LowRank(torch.zeros(24, 4), LoRAConfig(rank=5), blocks=3)


def test_settings_that_contradict_adapters_are_refused(tmp_path: Path) -> None:
    for train, message in (
        ({"lock_image": "none"}, r"lora.image: true needs train.lock_image: trunk .* got none and 0"),
        ({"unlock_text": 1}, r"lora.text: true needs train.lock_text: trunk .* got trunk and 1"),
        ({"cache_text": True}, r"lora.text: true changes the features that train.cache_text keeps"),
    ):
        with pytest.raises(ValueError, match=message):
            lora_config(tmp_path, **train)
