"""`clip-med merge-compare`: its table, its JSON with base and novel tasks, and refusals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from clip_med.cli import main
from clip_med.models.folder import build_model, save_folder
from tests.commands.test_robustness_command import CONFIG
from tests.labelled_shards import write_labelled
from tests.tiny_run import TINY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("compared")
    for seed, name in enumerate(("first", "second", "third")):
        torch.manual_seed(seed)
        save_folder(build_model(TINY), folder / name)
    shards = write_labelled(folder / "shards")
    first, second = (CONFIG.format(name=name, shards=shards) for name in ("odd", "even"))
    (folder / "captions.yaml").write_text(f"tasks: [{{kind: retrieval, name: r, shards: {shards}}}]\n")
    (folder / "both.yaml").write_text(first + second.removeprefix("tasks:\n"))
    return folder


def test_base_novel_and_corrupted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    both = str(folder / "both.yaml")
    command = ["merge-compare", str(folder / "first"), str(folder / "second"), "--eval", both, "--device", "cpu"]
    command += ["--limit", "2", "--batch", "2", "--corruption", "jpeg", "--greedy-on", both]
    command += ["--soup", str(folder / "third"), "--base", "odd", "--novel", "even"]
    assert main([*command, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert len(document["models"]) == 3
    assert sum(document["greedy_soup"]) == pytest.approx(1)
    # Four alone and together, one WiSE-FT, two soups, eight T3; two tasks, two conditions.
    assert len(document["outcomes"]) == 15 * 4
    assert len(document["means"]) == 30
    for row in document["means"]:
        b, n = row["base"], row["novel"]
        assert row["mean_top1"] == pytest.approx((b + n) / 2)
        assert row["harmonic_mean"] == pytest.approx(2 * b * n / (b + n) if b + n else 0)
    sample = next(row for row in document["means"] if row["method"] == "T3 sample pt published")
    batch = next(row for row in document["means"] if row["method"] == "T3 batch 2 pt published")
    assert (sample["merges"], batch["merges"]) == (4, 2)
    page = folder / "page.html"
    assert main([*command, "--no-sample-wise", "--report", str(page)]) == 0
    assert page.read_text().count("SHA-256 of open_clip_model.safetensors") == 3
    assert "uniform soup" in page.read_text()
    text = capsys.readouterr().out
    assert "jpeg 3: top-1 (paired change from B [95 %])" in text
    assert "uniform soup" in text
    assert "sample" not in text


def test_refusals(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["merge-compare", str(folder / "first"), str(folder / "second"), "--eval", str(folder / "both.yaml")]
    for words, expected in (
        (["--base", "odd"], "--base and --novel go together"),
        (["--base", "odd", "--novel", "evn"], "task 'evn' is no classification task"),
        (["--greedy-on", str(folder / "captions.yaml")], "chosen by classification tasks"),
        (["--batch", "0"], "--batch must be at least 1"),
        (["--corruption", "snow"], "snow"),
        (["--low", "0.9", "--high", "0.1"], "low must be at most high"),
    ):
        assert main([*command, "--device", "cpu", *words]) == 2
        shown = capsys.readouterr()
        assert shown.out == ""
        assert expected in shown.err
