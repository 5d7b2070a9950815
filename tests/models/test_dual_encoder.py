"""Dual encoders against open_clip itself: features, trimming, locking, and folders that both sides read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.config import FolderModel, OpenClipModel, ViTModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, load_folder, relocate, save_folder

TEXTS = ["left effusion!", "a small nodule in the upper lobe of the right lung", "!"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
TEXT = {"context_length": 77, "width": 32, "heads": 2, "layers": 2}
VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] left effusion a small nodule in the upper lobe of right lung !"
WORDS = VOCABULARY.split()


def make(kind: str, tmp_path: Path) -> DualEncoder:
    """A tiny model of each family of text tower, through a folder where the configuration is open_clip's own."""
    torch.manual_seed(0)
    if kind == "vit":
        return build_model(ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=2, text_width=32))
    text = {
        "custom": {**TEXT},
        "eos": {**TEXT, "pool_type": "eos", "eos_id": 49407},
        "siglip": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "bert": bert_folder(tmp_path / "bert") if kind == "bert" else {},
        "bert_mean": bert_folder(tmp_path / "bert") | {"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
        if kind == "bert_mean"
        else {},
    }[kind]
    from open_clip.model import CustomTextCLIP
    from safetensors.torch import save_file

    model_cfg: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    arguments = copy.deepcopy({k: v for k, v in model_cfg.items() if k != "custom_text"})
    if "hf_model_name" in text:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    clip = CustomTextCLIP(**arguments)
    folder = tmp_path / "bert" if "hf_model_name" in text else tmp_path / kind
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": 32}}))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return build_model(FolderModel(path=folder))


def bert_folder(folder: Path) -> dict[str, Any]:
    """A BiomedCLIP-shaped text tower: BERT, CLS of the last layer, MLP head, 256 positions."""
    from transformers import BertConfig, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    BertTokenizerFast(vocab=str(folder / "vocab.txt")).save_pretrained(folder)
    BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=256,
    ).save_pretrained(folder)
    return {
        "context_length": 256,
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_proj_type": "mlp",
    }


FAMILIES = ["vit", "custom", "eos", "siglip", "bert", "bert_mean"]


@pytest.fixture
def encoder_of(tmp_path: Path) -> Callable[[str], DualEncoder]:
    return lambda kind: make(kind, tmp_path).eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_equal_open_clips_and_do_not_depend_on_trimming(
    kind: str, encoder_of: Callable[[str], DualEncoder]
) -> None:
    encoder = encoder_of(kind)
    whole, trimmed = encoder.tokenize(TEXTS, trim=False), encoder.tokenize(TEXTS)
    assert whole.shape == (3, 256 if kind.startswith("bert") else 77)
    # The longest text has 11 words: 11 tokens of the BERT vocabulary or 13 of CLIP's, and two special ones.
    assert trimmed.shape[1] == (77 if kind == "siglip" else 13 if kind.startswith("bert") else 15)
    assert encoder.text_tower.trims == (kind != "siglip")
    with torch.no_grad():
        reference = encoder.clip.encode_text(whole, normalize=True)
        torch.testing.assert_close(encoder.encode_text(whole), reference, rtol=0, atol=1e-6)
        torch.testing.assert_close(encoder.encode_text(trimmed), reference, rtol=0, atol=1e-5)
        # One caption alone, trimmed to its own length, is the same as among longer ones.
        torch.testing.assert_close(encoder.encode_text(encoder.tokenize(TEXTS[:1])), reference[:1], rtol=0, atol=1e-5)
        assert (reference[0] - reference[1]).abs().max() > 1e-3


def test_uint8_images_are_normalised_as_open_clip_does(encoder_of: Callable[[str], DualEncoder]) -> None:
    encoder = encoder_of("vit")
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (encoder.preprocess.mean, encoder.preprocess.std))
    normalised = (images / 255 - mean) / std
    with torch.no_grad():
        expected = F.normalize(encoder.clip.visual(normalised), dim=-1)
        torch.testing.assert_close(encoder.encode_image(images), expected, rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.encode_image(normalised), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", FAMILIES)
def test_folders_load_here_and_in_open_clip(
    kind: str, encoder_of: Callable[[str], DualEncoder], tmp_path: Path
) -> None:
    import open_clip

    encoder = encoder_of(kind)
    folder = tmp_path / "saved"
    save_folder(encoder, folder)
    again = load_folder(folder).eval()
    theirs, _, _ = open_clip.create_model_and_transforms(f"local-dir:{folder}")
    tokens = open_clip.get_tokenizer(f"local-dir:{folder}")(TEXTS)
    assert torch.equal(tokens, encoder.tokenize(TEXTS, trim=False))
    assert again.preprocess == encoder.preprocess
    for name, weight in encoder.clip.state_dict().items():
        assert torch.equal(weight, again.clip.state_dict()[name]), name
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    theirs.eval()
    with torch.no_grad():
        text: Tensor = theirs.encode_text(tokens, normalize=True)  # type: ignore[operator]
        image: Tensor = theirs.encode_image(images, normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(again.encode_text(again.tokenize(TEXTS)), text, rtol=0, atol=1e-5)
        torch.testing.assert_close(again.encode_image(images), image, rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="exists"):
        save_folder(encoder, folder)


def test_a_moved_folder_with_a_hugging_face_tower(encoder_of: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    import open_clip

    encoder = encoder_of("bert")
    save_folder(encoder, tmp_path / "saved")
    shutil.move(tmp_path / "saved", tmp_path / "moved")
    with torch.no_grad():
        expected = encoder.encode_text(encoder.tokenize(TEXTS))
        again = load_folder(tmp_path / "moved").eval()
        torch.testing.assert_close(again.encode_text(again.tokenize(TEXTS)), expected, rtol=0, atol=1e-6)
        relocate(tmp_path / "moved")
        theirs = open_clip.create_model(f"local-dir:{tmp_path / 'moved'}").eval()
        text: Tensor = theirs.encode_text(encoder.tokenize(TEXTS, trim=False), normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(text, expected, rtol=0, atol=1e-5)


def test_damaged_folders_are_named(encoder_of: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "saved"
    save_folder(encoder_of("vit"), folder)
    weights = load_file(folder / "open_clip_model.safetensors")
    save_file({k: v for k, v in weights.items() if k != "text_projection"} | {"extra": torch.ones(1)}, folder / "w")
    (folder / "w").rename(folder / "open_clip_model.safetensors")
    with pytest.raises(ValueError, match=r"missing weights \['text_projection'\], unexpected weights \['extra'\]"):
        load_folder(folder)
    (folder / "open_clip_model.safetensors").unlink()
    with pytest.raises(ValueError, match="no weights"):
        load_folder(folder)
    (folder / "open_clip_config.json").write_text("{")
    with pytest.raises(ValueError, match="damaged"):
        load_folder(folder)
    with pytest.raises(ValueError, match="no such file"):
        load_folder(tmp_path / "nothing")


@pytest.mark.parametrize("kind", ["vit", "custom", "bert"])
@pytest.mark.parametrize("policy", ["trunk", "all"])
def test_locked_parts_do_not_train(kind: str, policy: Any, encoder_of: Callable[[str], DualEncoder]) -> None:
    encoder = encoder_of(kind)
    encoder.train()
    encoder.lock(text=policy, image=policy)
    encoder.train()
    trainable = {name for name, p in encoder.clip.named_parameters() if p.requires_grad}
    heads = {
        "vit": {"visual.proj", "text_projection"},
        "custom": {"visual.proj", "text.text_projection"},
        "bert": {"visual.proj", "text.proj.0.weight", "text.proj.2.weight"},
    }[kind]
    assert trainable == {"logit_scale"} | (heads if policy == "trunk" else set())
    assert not encoder.clip.visual.training
    tokens = encoder.tokenize(TEXTS)
    with torch.no_grad():  # BERT's dropout of 0.1 stays off
        assert torch.equal(encoder.encode_text(tokens), encoder.encode_text(tokens))
    encoder.lock()
    encoder.train()
    assert encoder.clip.visual.training
    assert all(p.requires_grad for p in encoder.clip.parameters())


def test_unknown_architectures_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ViT-B32'.*did you mean 'ViT-B-32'"):
        build_model(OpenClipModel(name="ViT-B32"))
