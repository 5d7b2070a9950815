"""`clip-med compare` of models and of scores made elsewhere: tables, JSON, page, figures, and refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import roc_auc_score

from clip_med.cli import main
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, save_folder
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY
from zero_shot import encoded
from zero_shot.scores import ClassScores, LabelScores, read_scores, write_scores

CONFIG = """
tasks:
  - kind: classification
    name: findings
    shards: {shards}
    prompts:
      classes: {{cyst: [cyst], mass: [mass], normal: [normal]}}
  - kind: retrieval
    name: captions
    shards: {shards}
"""

FINDINGS = """
tasks:
  - kind: multi_label
    name: several
    shards: {shards}
    prompts:
      classes: {{cyst: [cyst], mass: [mass], never: [stone]}}
    absent:
      templates: ["no {{}}"]
      classes: {{cyst: [cyst], mass: [mass], never: [stone]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, an evaluation with a validation split beside it, and scores of a third that knows everything."""
    folder = tmp_path_factory.mktemp("compared")
    for name in ("one", "two"):
        torch.manual_seed(len(name) + ord(name[0]))
        save_folder(build_model(TINY), folder / name)
    test = write_labelled(folder / "test")
    write_labelled(folder / "val", {i: {"key": f"v{i:02d}"} for i in range(24)})
    (folder / "small.yaml").write_text(CONFIG.format(shards=test))
    return folder


def compare(folder: Path, *words: str) -> int:
    return main(["compare", str(folder / "one"), str(folder / "two"), *words, "--device", "cpu"])


def test_models_then_their_scores_with_those_of_a_probe(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ["--data", str(folder / "small.yaml"), "--validation", "val"]
    out = tmp_path / "out"
    assert compare(folder, *data, "--out", str(out), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((out / "comparison.json").read_text())
    assert [c["metric"] for c in document["comparisons"]] == ["top-1", "macro AUROC"]
    assert list(document["comparisons"][0]["values"]) == [
        "findings",
        "captions: image to text",
        "captions: text to image",
    ]
    assert document["comparisons"][1]["left_out"].keys() == {"captions: image to text", "captions: text to image"}
    choice = document["prompts"]["two"]["findings"]
    assert choice["values"][choice["taken"]] == max(choice["values"].values())
    assert (choice["measure"], choice["images"]) == ("balanced accuracy", 24)
    assert choice["chosen_on"] == str(folder / "val")
    page = (out / "comparison.html").read_text()
    assert "<svg" in page
    for text in ("SHA-256 of open_clip_model.safetensors", "24 samples", "seed 0, level 0.05", "name: captions"):
        assert text in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert (out / "ranks.top-1.svg").read_text().startswith("<?xml")
    assert Image.open(BytesIO((out / "ranks.top-1.png").read_bytes())).width > 500
    # A probe's scores of the same images come in as a folder; the models need not be run again.
    own = read_scores(out / "scores/one")["findings"]
    assert isinstance(own, ClassScores)
    right = np.eye(3)[own.truth]
    write_scores(
        tmp_path / "probe",
        {"findings": ClassScores(keys=own.keys, groups=own.groups, classes=CLASSES, truth=own.truth, scores=right)},
    )
    stored = [str(out / "scores/one"), str(out / "scores/two"), f"linear={tmp_path / 'probe'}"]
    assert main(["compare", *stored, "--metric", "top-1"]) == 0
    table = capsys.readouterr().out
    assert "top-1 of 3 models" in table
    assert "captions: image to text is left out, not scored for linear" in table
    assert "1.000 [1.000, 1.000]" in table
    # The same files give the same bytes.
    for name in ("a", "b"):
        assert main(["compare", *stored[:2], "--out", str(tmp_path / name), "--markdown"]) == 0
        assert "| task | images | one | two |" in capsys.readouterr().out
    for name in ("comparison.html", "ranks.top-1.svg", "comparison.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_an_image_is_encoded_for_the_first_task_that_asks_and_weights_are_digested_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, digests = [], []
    encode, digest = DualEncoder.encode_image, encoded.image_tower_digest

    def counted(model: DualEncoder, batch: torch.Tensor) -> torch.Tensor:
        images.append(len(batch))
        return encode(model, batch)

    monkeypatch.setattr(DualEncoder, "encode_image", counted)
    monkeypatch.setattr(encoded, "image_tower_digest", lambda model: digests.append(1) or digest(model))
    data = ["--data", str(folder / "small.yaml"), "--validation", "val", "--metric", "top-1"]
    assert compare(folder, *data) == 0
    # Of each of two models the 24 of val and the 24 of test, which two tasks ask for.
    assert (sum(images), len(digests)) == (2 * 48, 0)
    assert compare(folder, *data, "--cache", str(tmp_path / "features")) == 0
    assert (sum(images), len(digests)) == (4 * 48, 2)
    capsys.readouterr()


def test_kept_features_serve_another_comparison(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("an image is encoded again")

    data = ["--data", str(folder / "small.yaml"), "--cache", str(tmp_path / "features"), "--metric", "top-1"]
    assert compare(folder, *data) == 0
    first = capsys.readouterr().out
    # One of each model: both tasks ask for the same images.
    assert len(list((tmp_path / "features").iterdir())) == 2
    monkeypatch.setattr(DualEncoder, "encode_image", refuse)
    assert compare(folder, *data) == 0
    assert capsys.readouterr().out == first


def test_findings_are_compared_by_macro_auroc_alone(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "findings.yaml").write_text(FINDINGS.format(shards=folder / "test"))
    out = tmp_path / "out"
    data = ["--data", str(tmp_path / "findings.yaml"), "--validation", "val"]
    assert compare(folder, *data, "--out", str(out), "--json") == 0
    document = json.loads(capsys.readouterr().out)
    (only,) = document["comparisons"]
    assert only["metric"] == "macro AUROC"
    stored = read_scores(out / "scores/one")["several"]
    assert isinstance(stored, LabelScores)
    assert stored.classes == ("cyst", "mass", "never")
    assert stored.truth.sum(axis=0).tolist() == [12, 8, 0]
    choice = document["prompts"]["one"]["several"]
    assert choice["values"][choice["taken"]] == max(choice["values"].values())
    assert (choice["measure"], choice["images"], choice["left_out"]) == ("macro AUROC", 24, {"never": 0})
    assert "macro AUROC of 2 of 3 findings" in (out / "comparison.html").read_text()
    theirs = [roc_auc_score(stored.truth[:, k], stored.scores[:, k]) for k in (0, 1)]
    assert only["values"]["several"]["one"]["value"] == pytest.approx(np.mean(theirs))
    # One that knows everything is better than chance; with another truth it is refused, and so is a metric of single
    # classes.
    right = replace(stored, scores=stored.truth.astype(np.float64))
    write_scores(tmp_path / "right", {"several": right})
    write_scores(tmp_path / "other", {"several": replace(right, truth=~stored.truth)})
    drawn = np.random.default_rng(0).normal(size=right.scores.shape)
    write_scores(tmp_path / "chance", {"several": replace(right, scores=drawn)})
    assert main(["compare", str(tmp_path / "chance"), str(tmp_path / "right"), "--json"]) == 0
    (only,) = json.loads(capsys.readouterr().out)["comparisons"]
    assert only["pairs"][0]["better"] == "right"
    for words, message in (
        ([str(tmp_path / "other")], "task several: one and other have other truth"),
        ([str(tmp_path / "right"), "--metric", "top-1"], "no task has top-1 for all of one, right"),
    ):
        assert main(["compare", str(out / "scores/one"), *words]) == 2
        assert message in capsys.readouterr().err


def test_what_cannot_be_compared_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = str(folder / "one")
    for words, message in (
        ([one], "at least two models, got one"),
        ([one, one], "two models are called one: write NAME="),
        ([one, f"a/b={one}"], "a name without /"),
        ([one, str(folder / "none")], "none: no such folder"),
        ([one, f"x={one}"], "one, x: no folder of scores; give --data"),
        ([one, f"x={one}", "--level", "2"], "--level must lie in"),
        ([one, f"x={one}", "--out", str(folder)], "exists; a comparison is written to a new folder"),
        ([one, f"x={one}", "--data", *[str(folder / "small.yaml")] * 2], "two tasks are called findings"),
    ):
        assert main(["compare", *words]) == 2
        assert message in capsys.readouterr().err
