"""`clip-med export`: open_clip loads the folder and computes the same features."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from clip_med.cli import main
from clip_med.config import dump_yaml
from clip_med.models.config import FolderModel, HFTower, LoRAConfig, TimmTower, TwoTowerModel
from clip_med.models.folder import build_model, load_folder, save_folder
from tests.models.tiny_bert import write_bert
from tests.tiny_run import tiny_config, write_shards

TEXTS = ["left effusion", "a small nodule in the upper lobe of the right lung", "nodule"]

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("kind", ["vit", "two_tower"])
def test_an_exported_run_in_open_clip(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import open_clip

    config = tiny_config(write_shards(tmp_path / "shards", 16), samples=24)
    if kind == "two_tower":
        bert = write_bert(tmp_path / "bert", weights=True)
        model = TwoTowerModel(
            image=TimmTower(name="test_efficientnet", image_size=64),
            text=HFTower(path=str(bert), context_length=24),
            embed_dim=16,
        )
        config = dataclasses.replace(config, model=model)
    (tmp_path / "c.yaml").write_text(dump_yaml(config))
    run, out = tmp_path / "run", tmp_path / "out"
    assert main(["pretrain", str(tmp_path / "c.yaml"), "--run", str(run), "--device", "cpu"]) == 0
    capsys.readouterr()
    assert main(["export", str(run), str(out), "--json"]) == 0
    written = json.loads(capsys.readouterr().out)
    assert written == {"source": str(run / "checkpoints/step_00000003/model"), "model": str(out)}
    ours = load_folder(run / "checkpoints/step_00000003/model").eval()
    if kind == "two_tower":
        # The exported folder stands alone.
        (tmp_path / "bert").rename(tmp_path / "moved")
        run.rename(tmp_path / "gone")
    theirs, _, transform = open_clip.create_model_and_transforms(f"local-dir:{out}")
    theirs.eval()
    tokens = open_clip.get_tokenizer(f"local-dir:{out}")(TEXTS)
    size = ours.preprocess.size
    pixels = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    from PIL import Image

    pictures = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in pixels]
    images = torch.stack([transform(picture) for picture in pictures])  # type: ignore[operator]
    with torch.no_grad():
        image = theirs.encode_image(images, normalize=True)  # type: ignore[operator]
        text = theirs.encode_text(tokens, normalize=True)  # type: ignore[operator]
        torch.testing.assert_close(ours.encode_image(pixels), image, rtol=0, atol=1e-5)
        torch.testing.assert_close(ours.encode_text(ours.tokenize(TEXTS)), text, rtol=0, atol=1e-5)
    assert (image[0] - image[1]).abs().max() > 1e-4
    assert (text[0] - text[1]).abs().max() > 1e-4
    torch.testing.assert_close(theirs.logit_scale, ours.logit_scale)
    assert main(["export", str(out), str(tmp_path / "again")]) == 0
    assert f"local-dir:{tmp_path / 'again'}" in capsys.readouterr().out
    again, first = (folder / "open_clip_model.safetensors" for folder in (tmp_path / "again", out))
    assert again.read_bytes() == first.read_bytes()


def test_refusals_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for source, expected in (
        (tmp_path / "nothing", "nothing: is neither a run nor a model folder"),
        (tmp_path, "is neither a run nor a model folder"),
    ):
        assert main(["export", str(source), str(tmp_path / "out")]) == 2
        error = capsys.readouterr().err
        assert error.startswith("clip-med: error: ")
        assert error.count("\n") == 1
        assert expected in error
    assert list(tmp_path.iterdir()) == []


def test_adapters_are_exported_merged_and_beside(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """From the run, and from the base model with the run's adapters alone: one model, byte for byte."""
    plain = tiny_config(write_shards(tmp_path / "shards", 16), samples=24, lock_image="trunk", lock_text="trunk")
    torch.manual_seed(plain.train.seed)
    base = build_model(plain.model)
    save_folder(base, tmp_path / "base")
    adapted = dataclasses.replace(plain, model=FolderModel(path=tmp_path / "base"), lora=LoRAConfig(rank=2))
    (tmp_path / "c.yaml").write_text(dump_yaml(adapted))
    run = tmp_path / "run"
    assert main(["pretrain", str(tmp_path / "c.yaml"), "--run", str(run), "--device", "cpu"]) == 0
    assert "adapters on 4 weights: 1,024 parameters" in capsys.readouterr().err
    assert main(["export", str(run), str(tmp_path / "whole")]) == 0
    (tmp_path / "adapters").mkdir()
    for name in ("lora.safetensors", "lora.json"):
        (tmp_path / "adapters" / name).write_bytes((tmp_path / "whole" / name).read_bytes())
    for number, source in enumerate((run, tmp_path / "whole", tmp_path / "adapters")):
        out = tmp_path / f"out{number}"
        assert main(["export", str(tmp_path / "base"), str(out), "--lora", str(source)]) == 0
        for name in ("open_clip_model.safetensors", "lora.safetensors", "lora.json"):
            assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name
    capsys.readouterr()
    assert main(["export", str(tmp_path / "whole"), str(tmp_path / "no"), "--lora", str(run)]) == 2
    assert "lora.json: the adapters were trained on another model" in capsys.readouterr().err
