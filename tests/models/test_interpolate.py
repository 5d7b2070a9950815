"""Weighted sums of weights against NumPy, ends bit for bit, and models that do not belong together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from clip_med.models.config import HFTower, ResNetModel, TimmTower, TwoTowerModel, ViTModel
from clip_med.models.folder import build_model, load_folder, save_folder
from clip_med.models.interpolate import ModelFamily, weighted_sum
from tests.models.tiny_bert import write_bert

WEIGHTS = "open_clip_model.safetensors"


def write(folder: Path, seed: int, **changes: Any) -> Path:
    """A ResNet, for its batch statistics, with statistics and counters of its own."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"embed_dim": 16, "image_size": 32, "image_width": 8, "text_width": 32, "text_heads": 2}
    encoder = build_model(ResNetModel(**settings | changes))
    for name, buffer in encoder.clip.visual.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2.0)
        elif name.endswith("num_batches_tracked"):
            buffer.fill_(seed)
    save_folder(encoder, folder)
    return folder


def test_sums_against_numpy_and_ends_bit_for_bit(tmp_path: Path) -> None:
    paths = [write(tmp_path / f"m{seed}", seed) for seed in (1, 2, 3)]
    states = [{name: value.numpy() for name, value in load_file(path / WEIGHTS).items()} for path in paths]
    family = ModelFamily(paths[:2])
    for alpha in (0.0, 0.3, 1.0):
        save_folder(family.between(alpha), tmp_path / f"out{alpha}")
        mixed = load_file(tmp_path / f"out{alpha}" / WEIGHTS)
        statistics = 0
        for name, first in states[0].items():
            if first.dtype == np.int64:
                statistics += 1
                assert mixed[name] == (2 if alpha >= 0.5 else 1)
                continue
            expected = (1 - alpha) * first.astype(np.float64) + alpha * states[1][name].astype(np.float64)
            np.testing.assert_allclose(mixed[name].numpy(), expected, rtol=1e-6, atol=1e-8, err_msg=name)
        assert statistics > 5
    for alpha, path in ((0.0, paths[0]), (1.0, paths[1])):
        assert (tmp_path / f"out{alpha}" / WEIGHTS).read_bytes() == (path / WEIGHTS).read_bytes()
    soup = ModelFamily(paths).mix((0.2, 0.3, 0.5)).clip.state_dict()
    name = "visual.layer1.0.bn1.running_var"
    expected = 0.2 * states[0][name] + 0.3 * states[1][name] + 0.5 * states[2][name]
    np.testing.assert_allclose(soup[name].numpy(), expected, rtol=1e-6)


def test_weights_that_make_no_model_are_refused() -> None:
    states = [{"w": torch.ones(2)}, {"w": torch.zeros(2)}]
    assert weighted_sum(states, (0.25, 0.75))["w"].tolist() == [0.25, 0.25]
    for weights in ((0.5, 0.6), (1.5, -0.5), (float("nan"), 0.5)):
        with pytest.raises(ValueError, match=r"weights must lie in 0 .. 1 and sum to 1"):
            weighted_sum(states, weights)
    with pytest.raises(ValueError, match="2 models need as many weights, got 1"):
        weighted_sum(states, (1.0,))


def test_models_that_do_not_belong_together_are_named(tmp_path: Path) -> None:
    first = write(tmp_path / "a", 1)
    with pytest.raises(ValueError, match="at least two models"):
        ModelFamily([first])
    wider = write(tmp_path / "b", 1, text_width=64)
    with pytest.raises(ValueError, match=r"/a and .*/b are no models of one architecture: text_cfg.width: 32 and 64"):
        ModelFamily([first, wider])
    torch.manual_seed(0)
    save_folder(build_model(ViTModel(image_size=32)), tmp_path / "c")
    with pytest.raises(ValueError, match=r"embed_dim: 16 and 128; .*; and \d+ more"):
        ModelFamily([first, tmp_path / "c"])
    encoder = load_folder(first)
    encoder.clip.visual.attnpool.c_proj = torch.nn.Linear(256, 16, bias=False)
    other = ModelFamily([first, first])
    from clip_med.models.interpolate import _check_alike  # no folder of such a model loads

    with pytest.raises(ValueError, match=r"1 weights differ: visual.attnpool.c_proj.bias: \(16,\) and none"):
        _check_alike(other.encoder, encoder, first, first)


def test_two_towers_of_one_architecture_in_two_places(tmp_path: Path) -> None:
    """Folders name their text tower by path, which is no difference; another vocabulary is one."""
    folders: list[Path] = []
    for name in ("x", "y"):
        bert = write_bert(tmp_path / f"bert-{name}")
        config = TwoTowerModel(
            image=TimmTower(name="test_efficientnet", image_size=64, dropout=0.1 if name == "x" else 0.0),
            text=HFTower(path=str(bert), pretrained=False, context_length=40),
            embed_dim=16,
        )
        folders.append(tmp_path / name)
        save_folder(build_model(config), folders[-1])
    mixed = ModelFamily(folders).between(0.5)
    first, second = (load_file(folder / WEIGHTS) for folder in folders)
    name = "text.proj.weight"
    torch.testing.assert_close(mixed.clip.state_dict()[name], (first[name] + second[name]) / 2)
    words = (folders[1] / "tokenizer.json").read_text()
    (folders[1] / "tokenizer.json").write_text(words.replace('"right"', '"tight"'))
    with pytest.raises(ValueError, match="their tokenizers give a text different ids"):
        ModelFamily(folders)
