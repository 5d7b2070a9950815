"""Dual encoders against open_clip itself: features, trimming, locking, and folders that both sides read."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from clip_med.models.config import FolderModel, OpenClipModel, ResNetModel, ViTModel
from clip_med.models.context import extend_context
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, load_folder, relocate, resolve_folder, save_folder
from clip_med.models.open_clip_names import named, weights_of
from tests.models.tiny_bert import write_bert

TEXTS = ["left effusion!", "a small nodule in the upper lobe of the right lung", "!"]
VISION = {"image_size": 32, "layers": 2, "width": 32, "patch_size": 16, "head_width": 16}
TEXT: dict[str, Any] = {"context_length": 77, "width": 32, "heads": 2, "layers": 2}
COCA_TEXT = TEXT | {"context_length": 76, "embed_cls": True, "output_tokens": True}


def make(kind: str, tmp_path: Path) -> DualEncoder:
    """A tiny model of each family of text tower, through a folder where the configuration is open_clip's own."""
    torch.manual_seed(0)
    if kind == "vit":
        return build_model(ViTModel(embed_dim=16, image_size=32, image_width=32, image_layers=2, text_width=32))
    text = {
        "custom": {**TEXT},
        "eos": {**TEXT, "pool_type": "eos", "eos_id": 49407},
        "coca": COCA_TEXT,
        "siglip": {**TEXT, "no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "bert": bert_folder(tmp_path / "bert") if kind == "bert" else {},
        "bert_mean": bert_folder(tmp_path / "bert") | {"hf_pooler_type": "mean_pooler", "hf_proj_type": "linear"}
        if kind == "bert_mean"
        else {},
    }[kind]
    from open_clip.coca_model import CoCa
    from open_clip.model import CustomTextCLIP
    from safetensors.torch import save_file

    model_cfg: dict[str, Any] = {"embed_dim": 16, "vision_cfg": VISION, "text_cfg": text, "custom_text": True}
    if kind == "coca":
        model_cfg["vision_cfg"] = VISION | {"attentional_pool": True, "output_tokens": True}
        model_cfg["multimodal_cfg"] = {**TEXT, "context_length": 76, "layers": 1}
    arguments = copy.deepcopy({k: v for k, v in model_cfg.items() if k != "custom_text"})
    if "hf_model_name" in text:
        arguments["text_cfg"]["hf_model_pretrained"] = False
    clip = (CoCa if "multimodal_cfg" in arguments else CustomTextCLIP)(**arguments)
    folder = tmp_path / "bert" if "hf_model_name" in text else tmp_path / kind
    folder.mkdir(exist_ok=True)
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg, "preprocess_cfg": {"size": 32}}))
    save_file({k: v.contiguous() for k, v in clip.state_dict().items()}, folder / "open_clip_model.safetensors")
    return build_model(FolderModel(path=folder))


def bert_folder(folder: Path) -> dict[str, Any]:
    """A BiomedCLIP-shaped text tower: BERT, CLS of the last layer, MLP head, 256 positions."""
    write_bert(folder)
    return {
        "context_length": 256,
        "hf_model_name": str(folder),
        "hf_tokenizer_name": str(folder),
        "hf_pooler_type": "cls_last_hidden_state_pooler",
        "hf_proj_type": "mlp",
    }


FAMILIES = ["vit", "custom", "eos", "coca", "siglip", "bert", "bert_mean"]


@pytest.fixture
def encoder_of(tmp_path: Path) -> Callable[[str], DualEncoder]:
    return lambda kind: make(kind, tmp_path).eval()


@pytest.mark.parametrize("kind", FAMILIES)
def test_features_equal_open_clips_and_do_not_depend_on_trimming(
    kind: str, encoder_of: Callable[[str], DualEncoder]
) -> None:
    encoder = encoder_of(kind)
    whole, trimmed = encoder.tokenize(TEXTS, trim=False), encoder.tokenize(TEXTS)
    assert whole.shape == (3, 256 if kind.startswith("bert") else 76 if kind == "coca" else 77)
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


def test_cocas_decoder_does_not_train_and_its_class_token_stays(encoder_of: Callable[[str], DualEncoder]) -> None:
    encoder = encoder_of("coca")
    encoder.lock()
    untrained = {name.partition(".")[0] for name, p in encoder.clip.named_parameters() if not p.requires_grad}
    assert untrained == {"text_decoder"}
    full = encoder.tokenize(["left " * 74, "left " * 73], trim=False)  # no padding, and one padding token
    with torch.no_grad():
        reference = encoder.clip.encode_text(full, normalize=True)
        torch.testing.assert_close(encoder.encode_text(full), reference, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match=r"pack_text: .* appended class token"):
        encoder.text_tower.pack()
    with pytest.raises(ValueError, match=r"model context_length: .* appended class token"):
        extend_context(encoder, 100)


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


def test_a_locked_resnet_keeps_its_projection() -> None:
    encoder = build_model(ResNetModel(embed_dim=16, image_size=32, image_width=8, text_width=32, text_heads=2))
    encoder.lock(image="trunk", text="all")
    trainable = {name for name, p in encoder.clip.named_parameters() if p.requires_grad}
    assert trainable == {"logit_scale", "visual.attnpool.c_proj.weight", "visual.attnpool.c_proj.bias"}


def test_a_tower_without_a_projection_is_not_locked_up_to_it(encoder_of: Callable[[str], DualEncoder]) -> None:
    encoder = encoder_of("vit")
    encoder.clip.visual.proj = None
    with pytest.raises(ValueError, match=r"lock image: 'trunk' needs a projection head.*use 'all'"):
        encoder.lock(image="trunk")


@pytest.mark.parametrize("kind", ["vit", "bert"])
def test_texts_over_the_context_are_counted(kind: str, encoder_of: Callable[[str], DualEncoder]) -> None:
    encoder = encoder_of(kind)
    # Two positions go to the special tokens; "!" has id 0 in CLIP's vocabulary, as its padding.
    room = (256 if kind == "bert" else 77) - 2
    fits, cut = ["lung " * room, "! " * room, "", "left"], ["lung " * (room + 1), "! " * (room + 1), "a " * 3 * room]
    assert encoder.truncated(fits) == 0
    assert encoder.truncated(cut) == 3
    assert encoder.truncated((fits + cut) * 200) == 600  # more than are counted at once
    assert encoder.truncated([]) == 0


def test_overrides_of_an_architecture_are_stored_with_it(tmp_path: Path) -> None:
    import open_clip

    config = OpenClipModel(
        name="ViT-S-32-alt",
        image_size=64,
        context_length=20,
        force_quick_gelu=True,
        mean=(0.5, 0.5, 0.5),
        resize_mode="longest",
    )
    encoder = build_model(config).eval()
    assert encoder.preprocess.size == 64
    assert (encoder.preprocess.mean, encoder.preprocess.resize_mode) == ((0.5, 0.5, 0.5), "longest")
    assert encoder.preprocess.std == build_model(OpenClipModel(name="ViT-S-32-alt")).preprocess.std
    assert encoder.tokenize(TEXTS, trim=False).shape == (3, 20)
    save_folder(encoder, tmp_path / "saved")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{tmp_path / 'saved'}")
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    theirs.eval()
    with torch.no_grad():
        image: Tensor = theirs.encode_image(images, normalize=True)  # type: ignore[operator]
        text: Tensor = theirs.encode_text(encoder.tokenize(TEXTS, trim=False), normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(encoder.encode_image(images), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(encoder.encode_text(encoder.tokenize(TEXTS)), text, rtol=0, atol=1e-5)
    assert "mean=[0.5, 0.5, 0.5]" in str(transform)


@pytest.mark.parametrize(
    ("name", "pretrained", "quick", "message"),
    [
        ("ViT-B-32", "openai", False, "trained with QuickGELU; set force_quick_gelu: true"),
        ("ViT-B-32-quickgelu", "laion400m_e32", True, None),
        ("ViT-B-32", "laion2b_s34b_b79k", True, "trained without QuickGELU; take an architecture without"),
        ("ViT-B-32", "laion3b", False, "neither a file nor weights of ViT-B-32; one of .*laion2b_s34b_b79k"),
    ],
)
def test_weights_of_another_activation_are_refused(
    name: str, pretrained: str, quick: bool, message: str | None
) -> None:
    config = OpenClipModel(name=name, pretrained=pretrained, force_quick_gelu=quick)
    if message is None:
        from clip_med.models.open_clip_names import _check_pretrained  # what follows would download

        _check_pretrained(name, pretrained, quick_gelu=quick)
        return
    with pytest.raises(ValueError, match=message):
        build_model(config)


def test_a_model_of_the_hub_is_taken_from_its_cache(
    encoder_of: Callable[[str], DualEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    cached, commit = tmp_path / "models--ours--tiny", "0" * 40
    (cached / "refs").mkdir(parents=True)
    (cached / "refs/main").write_text(commit)
    (cached / "snapshots").mkdir()
    encoder = encoder_of("vit")
    folder = cached / "snapshots" / commit
    save_folder(encoder, folder)
    state = encoder.clip.state_dict()
    for pickled in (False, True):
        if pickled:
            (folder / "open_clip_model.safetensors").unlink()
            torch.save(state, folder / "open_clip_pytorch_model.bin")
        loaded = load_folder(resolve_folder(Path("hf-hub:ours/tiny")))
        assert all(value.equal(state[name]) for name, value in loaded.clip.state_dict().items())
    with pytest.raises(ValueError, match="hf-hub:ours/other: cannot be taken from the Hugging Face hub"):
        resolve_folder(Path("hf-hub:ours/other"))


class Hostile:
    """Asks whoever unpickles it to make a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_of_pickled_weights_only_weights_are_read(encoder_of: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    encoder, folder = encoder_of("vit"), tmp_path / "model"
    save_folder(encoder, folder)
    (folder / "open_clip_model.safetensors").unlink()
    file, made = folder / "open_clip_pytorch_model.bin", tmp_path / "made"
    for content, message in (
        ({"weight": Hostile(made)}, "more than weights, which is not read"),
        ({"state_dict": encoder.clip.state_dict()}, "expected a dictionary of tensors"),
    ):
        torch.save(content, file)
        with pytest.raises(ValueError, match=message):
            load_folder(folder)
    assert not made.exists()
    # As torch wrote it before 1.6.
    torch.save(encoder.clip.state_dict(), file, _use_new_zipfile_serialization=False)
    own = encoder.clip.state_dict()
    assert all(value.equal(own[name]) for name, value in load_folder(folder).clip.state_dict().items())
    torch.save(own, file)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"model\.bin: damaged"):
        load_folder(folder)


def test_open_clip_models_are_taken_by_name_and_weights(
    encoder_of: Callable[[str], DualEncoder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import open_clip
    from safetensors.torch import save_file

    encoder = encoder_of("vit").eval()
    save_folder(encoder, tmp_path / "saved")
    weights = tmp_path / "saved/open_clip_model.safetensors"
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {"tiny": encoder.model_cfg})
    path = Path(f"open_clip:tiny:{weights}")
    again = load_folder(resolve_folder(path)).eval()
    images = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again.encode_image(images), encoder.encode_image(images))
        torch.testing.assert_close(
            again.encode_text(again.tokenize(TEXTS)), encoder.encode_text(encoder.tokenize(TEXTS))
        )
    assert weights_of(path) == weights
    other, damaged = tmp_path / "other.safetensors", tmp_path / "damaged.safetensors"
    save_file({"visual.other": torch.zeros(1)}, other)
    damaged.write_bytes(b"nothing")
    # A tag brings the activation that its weights were trained with.
    assert named(Path("open_clip:ViT-B-32:openai")).force_quick_gelu
    assert not named(Path("open_clip:ViT-B-32:laion2b_s34b_b79k")).force_quick_gelu
    for wrong, message in (
        ("open_clip:tiny", "expected open_clip:NAME:WEIGHTS"),
        ("open_clip:tniy:x", "did you mean 'tiny'"),
        ("open_clip:tiny:none.pt", "'none.pt' is neither a file nor weights of tiny"),
        (
            f"open_clip:tiny:{other}",
            r"other\.safetensors' cannot be read into tiny: .*Missing key.*positional_embedding",
        ),
        (f"open_clip:tiny:{damaged}", r"damaged\.safetensors' cannot be read into tiny"),
    ):
        with pytest.raises(ValueError, match=message):
            load_folder(resolve_folder(Path(wrong)))


def test_runs_checkpoints_and_models_are_told_apart(encoder_of: Callable[[str], DualEncoder], tmp_path: Path) -> None:
    run = tmp_path / "run"
    model = run / "checkpoints" / "step_3" / "model"
    model.parent.mkdir(parents=True)
    save_folder(encoder_of("vit"), model)
    with pytest.raises(ValueError, match="neither a run nor a model folder"):
        resolve_folder(run)
    (run / "config.yaml").write_text("")
    with pytest.raises(ValueError, match="holds no checkpoint yet"):
        resolve_folder(run)
    (run / "latest.json").write_text(json.dumps({"checkpoint": "checkpoints/step_3"}))
    assert resolve_folder(run) == resolve_folder(model.parent) == resolve_folder(model) == model
    assert build_model(FolderModel(path=run)).preprocess.size == 32
    for damaged in ("{", "[]", '{"step": 3}'):
        (run / "latest.json").write_text(damaged)
        with pytest.raises(ValueError, match=r"latest.json: damaged; expected"):
            resolve_folder(run)
    (run / "latest.json").write_text(json.dumps({"checkpoint": "checkpoints/step_4"}))
    with pytest.raises(ValueError, match=r"points to .*step_4/model, which is no model folder"):
        resolve_folder(run)


def test_unknown_architectures_name_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"'ViT-B32'.*did you mean 'ViT-B-32'"):
        build_model(OpenClipModel(name="ViT-B32"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"text_width": 32, "text_heads": 3}, "text_width must be a multiple of text_heads, got 32 and 3"),
        ({"image_size": 32, "patch_size": 7}, "image_size must be a multiple of patch_size, got 32 and 7"),
        ({"image_width": 200}, "image_width must be a multiple of 64 .* got 200"),
    ],
)
def test_sizes_that_do_not_divide_are_refused(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ViTModel(**settings)  # type: ignore[arg-type]
