"""Every way to compute the towers gives the features and gradients of the plain one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from clip_med.models.compute import apply_compute
from clip_med.models.compute_config import ComputeConfig
from clip_med.models.config import HFTower, ModelConfig, ResNetModel, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, save_folder
from clip_med.models.packed_text import Packing
from clip_med.training.config import TrainConfig
from tests.models.tiny_bert import write_bert

VIT = ViTModel(
    embed_dim=16,
    image_size=32,
    image_width=64,
    image_layers=2,
    text_width=32,
    text_layers=2,
    text_heads=2,
    context_length=24,
)
RESNET = ResNetModel(embed_dim=16, image_size=32, image_width=8, text_width=32, text_layers=1, text_heads=2)
TEXTS = ["left effusion", "a small nodule in the upper lobe of the right lung", "!", "effusion of the left lung"]


def bert_model(folder: Path, pooler: str = "cls_last_hidden_state_pooler") -> TwoTowerModel:
    return TwoTowerModel(
        image=TimmTower(name="test_vit", image_size=160),
        text=HFTower(path=str(write_bert(folder)), pooler=pooler, context_length=24, pretrained=False),  # type: ignore[arg-type]
        embed_dim=16,
    )


def built(config: ModelConfig) -> DualEncoder:
    torch.manual_seed(0)
    encoder = build_model(config).eval()
    with torch.no_grad():
        # BERT starts its biases at zero: positions that get mixed up would not show.
        for parameter in encoder.clip.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return encoder.double()


def images(encoder: DualEncoder) -> Tensor:
    size = encoder.preprocess.size
    return torch.rand(len(TEXTS), 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def features_and_gradients(
    encoder: DualEncoder, *, seed: int | None = None
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    if seed is not None:
        torch.manual_seed(seed)
    text = encoder.encode_text(encoder.tokenize(TEXTS))
    image = encoder.encode_image(images(encoder))
    weights = torch.linspace(-1, 1, text.numel(), dtype=torch.float64).view_as(text)
    ((text * weights).sum() + (image * weights.flip(0)).sum() + (text @ image.T).sum()).backward()
    gradients = {name: p.grad.clone() for name, p in encoder.clip.named_parameters() if p.grad is not None}
    encoder.zero_grad()
    return image.detach(), text.detach(), gradients


def assert_same(changed: DualEncoder, plain: DualEncoder, *, seed: int | None = None) -> None:
    ours, theirs = features_and_gradients(changed, seed=seed), features_and_gradients(plain, seed=seed)
    torch.testing.assert_close(ours[:2], theirs[:2], rtol=0, atol=1e-10)
    assert ours[2].keys() == theirs[2].keys()
    assert len(ours[2]) > 20
    torch.testing.assert_close(ours[2], theirs[2], rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("pooler", ["cls_last_hidden_state_pooler", "mean_pooler", "cls_pooler"])
def test_packed_bert_is_the_padded_one(pooler: str, tmp_path: Path) -> None:
    encoder = built(bert_model(tmp_path / "bert", pooler))
    packed = copy.deepcopy(encoder)
    packed.text_tower.pack()
    assert_same(packed, encoder)


@pytest.mark.parametrize("recompute", ["none", "both"])
def test_packed_clip_text_is_the_padded_one(recompute: str) -> None:
    encoder = built(VIT)
    packed = copy.deepcopy(encoder)
    apply_compute(packed, ComputeConfig(pack_text=True, activation_checkpointing=recompute))  # type: ignore[arg-type]
    assert_same(packed, encoder)
    assert packed.encode_text(packed.tokenize([])).shape == (0, 16)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_ragged_rows_attend_as_padded_ones() -> None:
    """The kernels for GPUs, as far as this torch runs them on CPUs: without a causal mask."""
    packing = Packing()
    lengths = torch.tensor([3, 1, 5])
    packing.begin(torch.ones(3, 6, dtype=torch.int64), lengths, "first")
    q, k, v = (torch.randn(9, 2, 4, dtype=torch.float64, requires_grad=True) for _ in range(3))
    for query, alone in ((q, False), (q[packing.pooled], True)):
        gradients: list[Tensor] = []
        for attend in (packing._ragged, packing._padded):
            attended = attend(query, k, v, alone=alone, causal=False, dropout=0.0)
            gradients += torch.autograd.grad((attended * torch.linspace(0, 1, 4)).sum(), (q, k, v), retain_graph=True)
            gradients.append(attended)
        torch.testing.assert_close(gradients[:4], gradients[4:], rtol=0, atol=1e-12)


def test_packed_row_holds_real_tokens_only() -> None:
    encoder = built(VIT)
    encoder.text_tower.pack()
    rows: list[tuple[int, ...]] = []
    for block in encoder.clip.transformer.resblocks:
        block.mlp.register_forward_pre_hook(lambda module, inputs: rows.append(tuple(inputs[0].shape)))
    tokens = encoder.tokenize(TEXTS)
    encoder.encode_text(tokens)
    real = int(encoder.text_tower.lengths(tokens).sum())
    assert rows == [(real, 32), (len(TEXTS), 32)]
    assert real < tokens.numel()


def test_a_copy_of_a_packed_model_computes_with_its_own_weights() -> None:
    encoder = built(VIT)
    apply_compute(encoder, ComputeConfig(pack_text=True, pooled_last_block=True))
    before = features_and_gradients(encoder)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for parameter in other.clip.parameters():
            parameter.zero_()
    torch.testing.assert_close(features_and_gradients(encoder)[:2], before[:2], rtol=0, atol=0)
    with torch.no_grad():
        assert float(other.text_tower.pooled(other.tokenize(TEXTS)).abs().max()) == 0.0


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_last_block_for_the_class_token_only_changes_nothing(kind: str, tmp_path: Path) -> None:
    encoder = built(VIT if kind == "open_clip" else bert_model(tmp_path / "bert"))
    pooled = copy.deepcopy(encoder)
    apply_compute(pooled, ComputeConfig(pooled_last_block=True))
    visual = pooled.clip.visual
    block = visual.transformer.resblocks[-1] if kind == "open_clip" else visual.trunk.blocks[-1]
    seen: list[int] = []
    block.mlp.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    assert_same(pooled, encoder)
    assert seen == [1]


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_recomputed_activations_give_the_same_gradients(kind: str, tmp_path: Path) -> None:
    encoder = built(VIT if kind == "open_clip" else bert_model(tmp_path / "bert")).train()
    recomputed = copy.deepcopy(encoder)
    apply_compute(recomputed, ComputeConfig(activation_checkpointing="both"))
    calls: list[int] = []
    for tower in (recomputed.clip.visual, recomputed.text_tower.module.transformer):
        modules = [m for m in tower.modules() if type(m) is torch.nn.GELU or "GELU" in type(m).__name__]
        modules[0].register_forward_hook(lambda module, inputs, output: calls.append(1))
    # With BERT's dropout on: the second pass must draw what the first one drew.
    assert_same(recomputed, encoder, seed=5)
    assert len(calls) == 4, "each tower computes its first block twice"


@pytest.mark.parametrize("kind", ["open_clip", "timm"])
def test_patches_are_dropped_in_training_only(kind: str, tmp_path: Path) -> None:
    encoder = built(VIT if kind == "open_clip" else bert_model(tmp_path / "bert"))
    plain = encoder.encode_image(images(encoder))
    names = list(encoder.clip.state_dict())
    apply_compute(encoder, ComputeConfig(patch_dropout=0.5))
    visual = encoder.clip.visual
    block = visual.transformer.resblocks[0] if kind == "open_clip" else visual.trunk.blocks[0]
    lengths: list[int] = []
    block.register_forward_pre_hook(lambda module, inputs: lengths.append(inputs[0].shape[1]))
    torch.testing.assert_close(encoder.encode_image(images(encoder)), plain, rtol=0, atol=0)
    encoder.train()
    torch.manual_seed(0)
    first = encoder.encode_image(images(encoder))
    torch.manual_seed(0)
    assert torch.equal(first, encoder.encode_image(images(encoder)))
    assert not torch.allclose(first, plain)
    patches = lengths[0] - 1
    assert lengths == [1 + patches, 1 + patches // 2, 1 + patches // 2]
    assert list(encoder.clip.state_dict()) == names


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # dynamo looks at it
def test_compiled_towers_keep_features_and_names(tmp_path: Path) -> None:
    encoder = built(VIT)
    compiled = copy.deepcopy(encoder)
    apply_compute(compiled, ComputeConfig(compile=True, compile_backend="eager", text_multiple=8))
    assert_same(compiled, encoder)
    assert list(compiled.clip.state_dict()) == list(encoder.clip.state_dict())
    save_folder(compiled.float(), tmp_path / "model")
    from safetensors.torch import load_file

    assert load_file(tmp_path / "model" / "open_clip_model.safetensors").keys() == encoder.clip.state_dict().keys()


@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_bucketed_lengths_reuse_graphs() -> None:
    encoder = built(VIT)
    encoder.text_tower.multiple = 8
    texts = ["left", "left " * 4, "left " * 9, "left " * 12, "left " * 30]
    assert [encoder.tokenize([text]).shape[1] for text in texts] == [8, 8, 16, 16, 24]
    from torch._dynamo.testing import CompileCounter

    torch._dynamo.reset()
    graphs = CompileCounter()
    encoder.clip.transformer.compile(backend=graphs, dynamic=False)
    for text in texts:
        encoder.encode_text(encoder.tokenize([text]))
    assert graphs.frame_count == 3


def test_buckets_change_no_feature() -> None:
    encoder = built(VIT)
    plain = encoder.encode_text(encoder.tokenize(TEXTS))
    encoder.text_tower.multiple = 8
    torch.testing.assert_close(encoder.encode_text(encoder.tokenize(TEXTS)), plain, rtol=0, atol=1e-12)


def _first_pool() -> DualEncoder:
    encoder = build_model(VIT)
    encoder.text_tower.pool = "last"
    return encoder


REFUSED: list[tuple[Callable[[], DualEncoder], ComputeConfig, str]] = [
    (lambda: build_model(RESNET), ComputeConfig(pooled_last_block=True), "ModifiedResNet is no vision transformer"),
    (lambda: build_model(RESNET), ComputeConfig(patch_dropout=0.5), "ModifiedResNet has no patches"),
    (lambda: build_model(RESNET), ComputeConfig(activation_checkpointing="image"), "ModifiedResNet does not support"),
    (_first_pool, ComputeConfig(pack_text=True), "attends to its padding"),
    (lambda: build_model(RESNET), ComputeConfig(compile=True, compile_backend="nope"), "'nope' is none of .*inductor"),
]


@pytest.mark.parametrize(("make", "config", "message"), REFUSED)
def test_what_a_tower_cannot_do_is_refused_by_name(
    make: Callable[[], DualEncoder], config: ComputeConfig, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        apply_compute(make(), config)


def test_text_towers_other_than_bert_are_not_packed(tmp_path: Path) -> None:
    encoder = build_model(bert_model(tmp_path / "bert"))
    encoder.text_tower.module.transformer.config.model_type = "electra"
    with pytest.raises(ValueError, match="'electra' are not supported"):
        encoder.text_tower.pack()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pack_text": True, "text_multiple": 8}, "text_multiple must be 1, got 8"),
        ({"pack_text": True, "compile": True}, "another number of tokens"),
        ({"patch_dropout": 1.0}, "no patch would be left"),
    ],
)
def test_settings_that_undo_each_other_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ComputeConfig(**settings)  # type: ignore[arg-type]


def test_patches_of_a_locked_tower_cannot_be_dropped() -> None:
    with pytest.raises(ValueError, match="patch_dropout needs lock_image: none, got trunk"):
        TrainConfig(samples=8, lock_image="trunk", compute=ComputeConfig(patch_dropout=0.5))
