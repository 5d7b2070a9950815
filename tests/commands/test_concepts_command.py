"""`clip-med concepts`: what it fits, prints and refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.cli import main
from clip_med.models.folder import build_model, save_folder
from tests.commands.test_robustness_command import CONFIG
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY

OWN = {"cyst": ["a black sac", "a bright zone"], "mass": ["jagged border", "a bright zone"], "normal": ["nothing"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("concepts")
    torch.manual_seed(0)
    save_folder(build_model(TINY), folder / "model")
    shards = write_labelled(folder / "shards")
    (folder / "odd.yaml").write_text(CONFIG.format(name="odd", shards=shards))
    (folder / "own.json").write_text(json.dumps(OWN))
    return folder


def command(folder: Path, *words: str) -> list[str]:
    given = ["concepts", str(folder / "model"), "--config", str(folder / "odd.yaml"), "--task", "odd"]
    given += ["--train", str(folder / "shards"), "--knowledge", str(folder / "own.json"), "--device", "cpu"]
    return [*given, *words]


def test_a_table_and_its_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(folder, "--json", "--draws", "2", "--l2", "0.01")) == 0
    document = json.loads(capsys.readouterr().out)
    # A descriptor of two classes is one concept.
    assert document["concepts"] == ["a black sac", "a bright zone", "jagged border", "nothing"]
    assert (document["train"], document["test"]) == (12, 12)
    assert list(document["weights"]) == ["cyst", "mass", "normal"]
    assert np.array(list(document["weights"].values())).shape == (3, 4)
    values = {result["name"]: result["value"] for result in document["results"]}
    assert list(values) == ["concepts: top-1", "random concepts: top-1", "difference", "zero-shot: top-1"]
    assert values["difference"] == pytest.approx(values["concepts: top-1"] - values["random concepts: top-1"])
    # Fitted and judged on the same images, it is right about at least the commonest class.
    assert values["concepts: top-1"] >= 0.5
    page = folder / "page.html"
    assert main(command(folder, "--draws", "1", "--l2", "0.01", "--limit", "6", "--report", str(page))) == 0
    assert "concepts of odd" in page.read_text()
    text = capsys.readouterr().out
    assert "odd: fitted on 6, judged on 6 images" in text
    assert "of 4 concepts used" in text
    # So strong a penalty leaves no concept.
    assert main(command(folder, "--draws", "1", "--l1", "5")) == 0
    assert "0 of 4 concepts used" in capsys.readouterr().out


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "two.json").write_text(json.dumps({"cyst": ["a sac"], "mass": ["a lump"]}))
    for words, expected in (
        (["--task", "od"], "task 'od' is no classification task"),
        (["--knowledge", str(folder / "two.json")], "finding 'normal' is not known"),
        (["--draws", "0"], "draws must be at least 1"),
        (["--l1", "-1"], "l1 and l2 must be at least 0"),
    ):
        assert main(command(folder, *words)) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert expected in shown.err
