"""A text tower trained on knowledge: it learns, repeats itself, and is what a two-tower model starts from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clip_med.cli import main
from clip_med.models.config import HFTower, TimmTower, TwoTowerModel
from clip_med.models.folder import build_model
from clip_med.models.text_only import TextOnly
from tests.models.tiny_bert import write_bert

pytestmark = pytest.mark.usefixtures("one_thread")

KNOWLEDGE = """
sources: [us]
modality: CT
anatomy: lung
findings:
  - {id: effusion, name: left effusion, synonyms: [effusion of left lung, effusion left], excludes: [nodule],
     definition: Effusion in the left lung.}
  - {id: nodule, name: small nodule, synonyms: [a nodule, nodule in upper lobe], definition: A nodule of the lobe.}
  - {id: right, name: right lung, synonyms: [lung right, the right lung], definition: The lung of right.}
"""
SETTINGS = {
    "steps": 40,
    "groups": 3,
    "instances": 2,
    "optim": {"lr": 2e-3},
    "schedule": {"warmup_samples": 12},
    "facets": ["synonyms", "definition"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("knowledge_text")
    torch.manual_seed(0)
    write_bert(root / "bert", weights=True)
    (root / "known.yaml").write_text(KNOWLEDGE)
    config = {"text": {"path": str(root / "bert"), "context_length": 16}, "path": str(root / "known.yaml"), **SETTINGS}
    (root / "config.yaml").write_text(json.dumps(config))
    return root


def run(folder: Path, name: str, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, object]:
    command = ["knowledge", "train", str(folder / "config.yaml"), "--out", str(folder / name), "--json", *more]
    assert main(command) == 0
    return json.loads(capsys.readouterr().out)


def test_it_learns_and_repeats_itself_and_pretraining_starts_from_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = run(folder, "first", capsys)
    assert first["findings"] == 3
    assert first["texts"] == 9
    before, after = first["before"], first["after"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert before["n"] == after["n"] == 3
    assert (
        after["cosine_to_name"] - after["cosine_to_excluded"] > before["cosine_to_name"] - before["cosine_to_excluded"]
    )
    again = run(folder, "again", capsys)
    assert {**again, "out": ""} == {**first, "out": ""}
    name = "model.safetensors"
    assert (folder / "first" / name).read_bytes() == (folder / "again" / name).read_bytes()
    assert (folder / "first" / name).read_bytes() != (folder / "bert" / name).read_bytes()
    text = HFTower(path=str(folder / "first"), context_length=16)
    encoder = build_model(TwoTowerModel(image=TimmTower(name="test_efficientnet", image_size=64), text=text)).eval()
    texts = ["left effusion", "a small nodule in the upper lobe"]
    with torch.no_grad():
        pooled = torch.nn.functional.normalize(encoder.pool_text(encoder.tokenize(texts)), dim=1)
    torch.testing.assert_close(pooled, TextOnly(text).features(texts))
    with pytest.raises(ValueError, match="exists"):
        TextOnly(text).save(folder / "first")


def test_an_existing_folder_and_a_loss_that_breaks_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(folder / "config.yaml")
    assert main(["knowledge", "train", config, "--out", str(folder / "bert")]) == 2
    assert "a text tower is written to a new folder" in capsys.readouterr().err
    assert main(["knowledge", "train", config, "--out", str(folder / "x"), "--optim.lr", "1e30"]) == 2
    assert "try a lower optim.lr" in capsys.readouterr().err
    assert not (folder / "x").exists()


def test_the_report_says_what_was_gained(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["knowledge", "train", str(folder / "config.yaml"), "--out", str(folder / "y"), "--steps", "8"]) == 0
    printed = capsys.readouterr().out
    assert "R@1 of 3 held-out synonyms" in printed
    assert "McNemar" in printed


def test_adasp_draws_synonyms_near_their_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = run(folder, "adasp", capsys, "--loss", "adasp", "--scale", "10", "--steps", "20")
    before, after = found["before"], found["after"]
    assert isinstance(before, dict)
    assert isinstance(after, dict)
    assert (
        after["cosine_to_name"] - after["cosine_to_excluded"] > before["cosine_to_name"] - before["cosine_to_excluded"]
    )
