"""`clip-med explain` of image files and of shards: tables, JSON, overlays, boxes, and refusals."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from clip_med.cli import main
from clip_med.models.folder import build_model, save_folder
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY, write_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, shards, two images, descriptors and boxes."""
    folder = tmp_path_factory.mktemp("explained")
    torch.manual_seed(0)
    save_folder(build_model(TINY), folder / "model")
    write_shards(folder / "shards", samples=3)
    write_labelled(folder / "labelled")
    rng = np.random.default_rng(0)
    for name in ("left.png", "right.png"):
        Image.fromarray(rng.integers(0, 255, (40, 50), dtype=np.uint8)).save(folder / name)
    (folder / "own.json").write_text(json.dumps({"cyst": ["a black sac", "a bright zone"], "mass": ["jagged border"]}))
    (folder / "boxes.json").write_text(json.dumps({"left.png": {"cyst": [[10, 10, 20, 25]]}}))
    return folder


def explain(folder: Path, *words: str) -> int:
    return main(["explain", str(folder / "model"), "--device", "cpu", "--knowledge", str(folder / "own.json"), *words])


def test_images_with_boxes_and_overlays(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [str(folder / "left.png"), str(folder / "right.png")]
    words = ["--image", *files, "--boxes", str(folder / "boxes.json"), "--out", str(tmp_path / "out")]
    assert explain(folder, *words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out/explanation.json").read_text())
    assert [one["study"] for one in document["studies"]] == ["left.png", "right.png"]
    findings = document["studies"][0]["findings"]
    assert {one["finding"]: len(one["descriptors"]) for one in findings} == {"cyst": 2, "mass": 1}
    for one in findings:
        assert one["decision"] == (one["present"] > one["absent"])
    assert [(row["picture"], row["finding"], "hit" in row) for row in document["maps"]] == [
        ("left.png", "cyst", True),
        ("left.png", "mass", False),
        ("right.png", "cyst", False),
        ("right.png", "mass", False),
    ]
    assert 0 <= document["maps"][0]["hit"] <= 1
    assert abs(document["maps"][0]["cnr"]) == pytest.approx(document["maps"][0]["absolute_cnr"])
    for row in document["maps"]:
        assert Image.open(BytesIO((tmp_path / "out" / row["overlay"]).read_bytes())).size == (50, 40)
    assert len(list((tmp_path / "out").iterdir())) == 5
    # Two views of one study: the mean of the probabilities.
    assert explain(folder, "--image", *files, "--views", "--json") == 0
    together = json.loads(capsys.readouterr().out)
    assert [one["views"] for one in together["studies"]] == [["left.png", "right.png"]]

    def probability(study: dict[str, list[dict[str, list[dict[str, float]]]]]) -> float:
        return next(f for f in study["findings"] if f["finding"] == "mass")["descriptors"][0]["probability"]

    mean = np.mean([probability(study) for study in document["studies"]])
    assert probability(together["studies"][0]) == pytest.approx(mean)
    assert together["maps"] == []


def test_shards_and_the_shipped_knowledge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(folder / "shards"), "--limit", "2", "--finding", "mass", "--report", str(folder / "p.html")]
    assert explain(folder, *words) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:4] == ["study", "finding", "S+", "S-"]
    assert [line.split()[:2] for line in lines[2:]] == [["k000", "mass"], ["k001", "mass"]]
    assert "k001" in (folder / "p.html").read_text()
    command = ["explain", str(folder / "model"), "--device", "cpu", "--image", str(folder / "left.png"), "--json"]
    assert main([*command, "--finding", "pneumothorax", "--template", "{descriptor}", "no {descriptor}"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["templates"] == ["{descriptor}", "no {descriptor}"]
    assert len(document["studies"][0]["findings"][0]["descriptors"]) >= 3


def test_findings_are_judged_by_the_labels_of_samples(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--data", str(folder / "labelled"), "--limit", "24"]
    assert explain(folder, *words, "--json") == 0
    document = json.loads(capsys.readouterr().out)
    assert [(r["name"], r["n"]) for r in document["auroc"]] == [("cyst", 24), ("mass", 24)]
    score = {
        one["study"]: next(f["present"] for f in one["findings"] if f["finding"] == "mass")
        for one in document["studies"]
    }
    own, others = ([s for k, s in score.items() if (12 <= int(k[1:]) < 20) == side] for side in (True, False))
    wins = [(a > b) + 0.5 * (a == b) for a in own for b in others]
    assert document["auroc"][1]["value"] == pytest.approx(np.mean(wins))
    # Patients have two images each.
    assert explain(folder, *words, "--views", "--finding", "mass") == 0
    assert "mass     " in capsys.readouterr().out.splitlines()[-1]


def test_refusals(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = ["--image", str(folder / "left.png")]
    (tmp_path / "other.json").write_text('{"absent.png": {"cyst": [[0, 0, 1, 1]]}}')
    (tmp_path / "what.json").write_text('{"left.png": {"tumour": [[0, 0, 1, 1]]}}')
    (tmp_path / "three.json").write_text('{"left.png": {"cyst": [[0, 0, 1]]}}')
    (tmp_path / "text.json").write_text("boxes")
    for words, expected in (
        ([*image, "--finding", "cist"], "did you mean"),
        ([*image, "--boxes", str(tmp_path / "other.json")], "'absent.png' is not among the images left.png"),
        ([*image, "--boxes", str(tmp_path / "what.json")], "boxes of 'tumour', but the findings are cyst, mass"),
        ([*image, "--boxes", str(tmp_path / "three.json")], "three.json"),
        ([*image, "--boxes", str(tmp_path / "text.json")], "cannot be read as JSON"),
        ([*image, "--out", str(folder)], "exists; explanations are written to a new folder"),
        ([*image, *image[1:]], "two images are called left.png"),
        (["--data", str(folder / "shards"), "--limit", "0"], "--limit must be at least 1"),
        ([*image, "--template", "same {descriptor}", "same {descriptor}"], "must differ"),
    ):
        assert explain(folder, *words) == 2, words
        shown = capsys.readouterr()
        assert shown.out == ""
        assert shown.err.startswith("clip-med: error: ")
        assert expected in shown.err
    assert main(["explain", str(folder / "model"), *image, "--device", "cpu"]) == 2
    assert "several findings are called" in capsys.readouterr().err
