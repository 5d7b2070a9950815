"""`clip-med merge`: a folder, a table over alpha, and refusals in one line."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from clip_med.cli import main
from clip_med.models.folder import build_model, load_folder, save_folder
from tests.commands.test_evaluate_command import CONFIG
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for number, name in enumerate(("a", "b")):
        torch.manual_seed(number)
        save_folder(build_model(TINY), tmp_path / name)
    (tmp_path / "small.yaml").write_text(CONFIG.format(shards=write_labelled(tmp_path / "shards")))
    return tmp_path


def test_a_merged_folder_and_a_table(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ends = [str(models / "a"), str(models / "b")]
    assert main(["merge", *ends, "--alpha", "0.25", "--out", str(models / "out")]) == 0
    assert capsys.readouterr().out == f"{models / 'out'}: 0.75 of {ends[0]} and 0.25 of {ends[1]}\n"
    merged, first, second = (load_folder(models / name).clip.visual.proj for name in ("out", "a", "b"))
    torch.testing.assert_close(merged, 0.75 * first + 0.25 * second)
    command = ["merge", *ends, "--eval", str(models / "small.yaml"), "--device", "cpu", "--alpha", "0", "0.5", "1"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [row["alpha"] for row in document["evaluations"]] == [0.0, 0.5, 1.0]
    for end, row in zip(("a", "b"), document["evaluations"][::2], strict=True):
        assert (
            main(["eval", str(models / end), "--config", str(models / "small.yaml"), "--device", "cpu", "--json"]) == 0
        )
        alone = json.loads(capsys.readouterr().out)
        assert row["tasks"] == alone["tasks"]
    assert main(command) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split("  ")[0] == "alpha"
    assert "findings: top-1" in lines[0]
    assert "captions: image to text R@1" in lines[0]
    assert [line.split()[0] for line in lines[1:]] == ["0", "0.5", "1"]


def test_refusals_are_one_line(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    save_folder(build_model(dataclasses.replace(TINY, text_width=64)), models / "wide")
    a, b, out = str(models / "a"), str(models / "b"), str(models / "out")
    for command, expected in (
        ([a, b], "give --out (write the model), --eval (evaluate it), or both"),
        ([a, b, "--alpha", "0", "1", "--out", out], "--out writes one model; give one --alpha, got [0.0, 1.0]"),
        ([a, b, "--alpha", "1.5", "--out", out], "--alpha takes distinct numbers from 0 to 1, got [1.5]"),
        ([a, str(models / "wide"), "--out", out], "no models of one architecture: text_cfg.width: 32 and 64"),
        ([a, str(models / "nothing"), "--out", out], "nothing: is neither a run nor a model folder"),
        ([a, b, "--out", a], f"{a}: exists"),
    ):
        assert main(["merge", *command]) == 2
        error = capsys.readouterr().err
        assert error.startswith("clip-med: error: ")
        assert error.count("\n") == 1
        assert expected in error
    assert not (models / "out").exists()
