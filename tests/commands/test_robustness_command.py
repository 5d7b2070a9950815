"""`clip-med robustness`: tables, JSON, what a run keeps, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image

from clip_med.cli import main
from clip_med.models.folder import build_model, save_folder
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY

CONFIG = """tasks:
  - kind: classification
    name: {name}
    shards: {shards}
    datasets: [{name}]
    prompts:
      classes: {{cyst: [cyst], mass: [mass], normal: [normal]}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("robustness")
    torch.manual_seed(0)
    save_folder(build_model(TINY), folder / "model")
    shards = write_labelled(folder / "shards")
    first, second = (CONFIG.format(name=name, shards=shards) for name in ("odd", "even"))
    (folder / "both.yaml").write_text(first + second.removeprefix("tasks:\n"))
    (folder / "odd.yaml").write_text(first)
    return folder


def test_tables_and_json(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["robustness", str(folder / "model"), "--config", str(folder / "both.yaml"), "--device", "cpu"]
    command += ["--levels", "1", "5", "--by", "modality", "--regions", "2"]
    assert main([*command, "--json", "--out", str(tmp_path / "out.json")]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document == json.loads((tmp_path / "out.json").read_text())
    assert [task["name"] for task in document["tasks"]] == ["odd", "even"]
    assert len(document["tasks"][0]["corrupted"]) == 14
    assert [row["images"] for row in document["regions"]] == [12, 12]
    page = tmp_path / "page.html"
    assert main([*command, "--plots", str(tmp_path / "plots"), "--report", str(page)]) == 0
    for words in ("model: robustness on both", "SHA-256 of open_clip_model.safetensors", "name: odd", "odd: subgroups"):
        assert words in page.read_text()
    assert "http" not in page.read_text()
    pictures = sorted((tmp_path / "plots").iterdir())
    names = [f"{task}.{kind}.png" for task in ("1.odd", "2.even") for kind in ("corruptions", "reliability")]
    assert [path.name for path in pictures] == names
    for path in pictures:
        with Image.open(path) as picture:
            assert picture.size[0] >= 500
    text = capsys.readouterr().out
    clean = document["tasks"][0]["clean"]
    assert text.splitlines()[0] == "odd: 12 images"
    assert f"{clean['value']:.3f} [{clean['low']:.3f}, {clean['high']:.3f}]" in text.splitlines()[2]
    for words in ("rotation", "level 5", "template", "class and modality", "conformal sets for 90%", "Mahalanobis"):
        assert words in text
    assert not list((folder / "model").glob("eval*"))


def test_what_is_left_out_and_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["robustness", str(folder / "model"), "--config", str(folder / "odd.yaml"), "--device", "cpu"]
    assert main([*command, "--corruption", "--limit", "8"]) == 0
    text = capsys.readouterr().out
    assert "odd: 8 images" in text
    assert "corruption" not in text
    assert "unknown" not in text
    for words, expected in (
        (["--corruption", "snow"], "snow"),
        (["--levels", "7"], "levels must lie in 1 .. 5"),
        (["--by", "view"], "no sample of any task states view"),
        (["--regions", "9", "--corruption"], "fewer than 9"),
    ):
        assert main([*command, *words]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert expected in shown.err
