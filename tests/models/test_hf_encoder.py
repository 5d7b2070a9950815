"""transformers' CLIP and SigLIP: their own features, their preprocessing, evaluation, and refusals by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertTokenizerFast, CLIPConfig, CLIPModel, SiglipConfig, SiglipModel

from clip_med.cli import main
from clip_med.models.feature_cache import image_tower_digest
from clip_med.models.folder import load_folder, resolve_folder
from clip_med.models.hf_encoder import HFEncoder
from tests.labelled_shards import write_labelled

pytestmark = pytest.mark.usefixtures("one_thread")
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "photo", "of", "cyst", "mass", "normal", ".", "{", "}"]
TEXTS = ["a cyst", "a photo of a mass . normal"]


def write_model(folder: Path, kind: str) -> Any:
    """A tiny random model in transformers' own layout."""
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = shared | {"vocab_size": len(WORDS), "max_position_embeddings": 12, "eos_token_id": 3, "pad_token_id": 0}
    vision = shared | {"image_size": 32, "patch_size": 16}
    torch.manual_seed(0)
    if kind == "clip":
        model: Any = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))
        prepared: dict[str, Any] = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
        prepared |= {"do_center_crop": True}
    else:
        model = SiglipModel(SiglipConfig(text_config=text, vision_config=vision))
        prepared = {"size": {"height": 32, "width": 32}}
    model.eval().save_pretrained(folder)
    prepared |= {"resample": 3, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4], "rescale_factor": 1 / 255}
    (folder / "preprocessor_config.json").write_text(json.dumps(prepared))
    return model


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_features_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    model = write_model(tmp_path / kind, kind)
    encoder = load_folder(resolve_folder(tmp_path / kind))
    assert isinstance(encoder, HFEncoder)
    tokenizer = BertTokenizerFast(vocab=str(tmp_path / kind / "vocab.txt"))
    ids = tokenizer(TEXTS, padding="max_length", max_length=12, return_tensors="pt")["input_ids"]
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in ([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=(images / 255 - mean) / std)
        torch.testing.assert_close(encoder.encode_image(images), F.normalize(out.image_embeds, dim=-1))
        tokens = encoder.tokenize(TEXTS)
        # A causal tower is computed up to the longest text; one that sees its padding is not trimmed.
        assert tokens.shape == ((2, 9) if kind == "clip" else (2, 12))
        torch.testing.assert_close(encoder.encode_text(tokens), F.normalize(out.text_embeds, dim=-1))
    assert encoder.preprocess.resize_mode == ("shortest" if kind == "clip" else "squash")
    assert float(encoder.logit_scale.detach()) == pytest.approx(float(model.logit_scale.detach()))
    assert (encoder.logit_bias is None) == (kind == "clip")
    assert encoder.truncated([*TEXTS, "a " * 20]) == 1
    first = image_tower_digest(encoder)
    with torch.no_grad():
        next(iter(encoder.model.vision_model.parameters())).add_(0.1)
    assert image_tower_digest(encoder) != first


def test_it_is_evaluated_probed_and_adapted_on_features(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "siglip"
    write_model(folder, "siglip")
    for split in ("train", "test"):
        write_labelled(tmp_path / "data" / split, {i: {"group": f"{split}{i}"} for i in range(24)})
    config = tmp_path / "eval.yaml"
    config.write_text(
        f"tasks:\n  - kind: classification\n    name: t\n    shards: {tmp_path}/data/test\n    prompts:\n"
        "      classes: {cyst: [cyst], mass: [mass], normal: [normal]}\n"
    )
    data = ["--data", str(tmp_path / "data"), "--model", str(folder), "--device", "cpu", "--json"]
    assert main(["eval", str(folder), "--config", str(config), "--device", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["tasks"][0]["n"] == 24
    assert main(["probe", *data, "--C", "1"]) == 0
    assert np.isfinite(json.loads(capsys.readouterr().out)["results"][0]["value"])
    assert main(["tune", *data, "--method", "task_res", "--shots", "2", "--set", "fit.epochs=1"]) == 0
    capsys.readouterr()
    assert main(["tune", *data, "--method", "coop", "--shots", "2", "--set", "fit.epochs=1"]) == 2
    assert "a transformers model is evaluated as it is" in capsys.readouterr().err
    assert main(["export", str(folder), str(tmp_path / "out")]) == 2
    assert "need an open_clip model folder" in capsys.readouterr().err


def test_incomplete_folders_are_named(tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    write_model(folder, "clip")
    good = (folder / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(good.replace('"resample": 3', '"resample": 1'))
    with pytest.raises(ValueError, match=r"preprocessor_config.json: preprocessing of a kind that is not known"):
        load_folder(folder)
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"preprocessor_config.json: missing or damaged"):
        load_folder(folder)
    (folder / "preprocessor_config.json").write_text(good)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match="no safetensors weights; a pickle is not loaded"):
        load_folder(folder)
