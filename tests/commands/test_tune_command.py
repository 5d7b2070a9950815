"""`clip-med tune`: rows, grids that continue, tables and plots, protocols, what is never looked at, and refusals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clip_med.cli import main
from clip_med.config import load_config
from clip_med.models.folder import build_model, save_folder
from clip_med.prompt_learning import tune as module
from clip_med.prompt_learning.results import append_rows, read_rows, summarise, summarise_values
from clip_med.prompt_learning.tune import Grid, cells
from clip_med.prompt_learning.tune_config import TuneConfig
from clip_med.prompt_learning.tune_data import TaskData
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY

pytestmark = pytest.mark.usefixtures("one_thread")

GRID = """model: {root}/model
tasks:
  - name: odd
    train: {root}/data/train
    val: {root}/data/val
    test: {root}/data/test
    descriptions: {root}/sentences.json
methods:
  - {{kind: zero_shot}}
  - {{kind: coop}}
  - {{kind: task_res}}
shots: [1, 2]
seeds: [0, 1]
fits:
  coop: {{epochs: 2}}
  task_res: {{epochs: 2}}
"""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("tune")
    torch.manual_seed(0)
    save_folder(build_model(TINY), root / "model")
    for split in ("train", "val", "test"):
        write_labelled(root / "data" / split, {i: {"group": f"{split}{i}"} for i in range(24)})
    (root / "sentences.json").write_text(json.dumps({name: [f"{name} a", f"{name} b"] for name in CLASSES}))
    (root / "grid.yaml").write_text(GRID.format(root=root))
    return root


def command(root: Path, *words: str) -> list[str]:
    return ["tune", "--data", str(root / "data"), "--model", str(root / "model"), "--device", "cpu", *words]


def test_one_run_prints_its_row_and_appends_it(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--method", "biomedcoop", "--shots", "2", "--descriptions", str(root / "sentences.json")]
    words += ["--set", "fit.epochs=2", "method.n_ctx=2", "--seed", "3", "--out", str(tmp_path), "--views", "2"]
    assert main([*command(root, *words), "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert read_rows(tmp_path) == [row]
    assert (row["method"], row["shots"], row["seed"], row["support"], row["validation"]) == ("biomedcoop", 2, 3, 6, 6)
    assert row["config"]["n_ctx"] == 2
    assert row["descriptions"] == 2
    assert row["n"] == 24
    assert 0 <= row["top1"] <= 1
    assert main(command(root, "--method", "zero_shot", "--shots", "0", "--no-val")) == 0
    assert "all shots seed 0: 24 training and 0 validation images" in capsys.readouterr().out


def test_a_grid_continues_where_it_was_and_its_parts_make_the_whole(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["tune", "grid", str(root / "grid.yaml"), "--device", "cpu", "--json", "--out"]
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == 12
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert json.loads(capsys.readouterr().out) | {"results": ""} == {
        "cells": 12,
        "done_before": 12,
        "run": 0,
        "failed": [],
        "results": "",
    }
    for part in ("0/2", "1/2"):
        assert main([*words, str(tmp_path / "parts"), "--part", part]) == 0
    whole, parts = ({row["cell"]: row | {"seconds": 0} for row in read_rows(tmp_path / n)} for n in ("whole", "parts"))
    assert whole == parts
    # A row that a kill cut short is run again; the rows around it stay.
    file = tmp_path / "whole/results.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])
    capsys.readouterr()
    assert main([*words, str(tmp_path / "whole")]) == 0
    assert json.loads(capsys.readouterr().out)["run"] == 9
    assert {row["cell"]: row | {"seconds": 0} for row in read_rows(tmp_path / "whole")} == whole
    assert main([*words, str(tmp_path / "whole"), "--list"]) == 0
    listed = json.loads(capsys.readouterr().out)["cells"]
    assert [cell["index"] for cell in listed] == list(range(12))
    assert {cell["state"] for cell in listed} == {"done"}


def test_the_table_holds_means_and_intervals_over_seeds(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base: dict[str, Any] = {"task": "t", "method": "coop", "config": {}, "shots": 4, "protocol": "all_classes"}
    values = [0.5, 0.7, 0.9]
    append_rows(
        tmp_path, [base | {"cell": str(i), "scored_on": "test", "top1": v, "n": 9} for i, v in enumerate(values)]
    )
    (summary,) = summarise(read_rows(tmp_path))
    # Student's t for 2 degrees of freedom, 4.303, times 0.2 / sqrt(3).
    assert (summary.mean, summary.deviation) == pytest.approx((0.7, 0.2))
    assert (summary.low, summary.high) == pytest.approx((0.7 - 0.49686, 1.0), abs=1e-4)
    assert summarise_values([0.5])[0] == 0.5
    plot = tmp_path / "shots.png"
    assert main(["tune", "table", str(tmp_path), "--plot", str(plot), "--markdown"]) == 0
    assert "| coop | 0.700 ± 0.200 [0.203, 1.000] |" in capsys.readouterr().out
    assert plot.read_bytes()[:4] == b"\x89PNG"
    assert main(["tune", "table", str(tmp_path), "--plot", str(tmp_path / "shots.pdf")]) == 2
    assert "shots.pdf: expected .png or .svg" in capsys.readouterr().err
    append_rows(tmp_path, [base | {"cell": "3", "shots": 1, "scored_on": "test", "top1": 0.5, "n": 9}])
    assert main(["tune", "table", str(tmp_path), "--json"]) == 0
    of_one_seed = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)["summaries"][-1]
    assert (of_one_seed["shots"], of_one_seed["mean"], of_one_seed["deviation"]) == (1, 0.5, None)
    assert main(["tune", "table", str(tmp_path / "none")]) == 2
    assert "no such file; `clip-med tune grid" in capsys.readouterr().err


def configured(root: Path, **values: Any) -> TuneConfig:
    from dataclasses import replace

    return replace(load_config(TuneConfig, root / "grid.yaml"), **values)


def test_base_to_novel_and_cross_dataset_score_what_was_not_learnt(root: Path) -> None:
    from dataclasses import replace

    config = configured(root, protocol="base_to_novel", shots=(2,), seeds=(0,))
    grid = Grid(config, cache=None)
    zero, coop, task_res = cells(config)
    base, novel = grid.run(coop)
    assert (base["scored_on"], base["n"], base["support"]) == ("base", 20, 4)
    assert (novel["scored_on"], novel["n"]) == ("novel", 4)
    assert [row["n"] for row in grid.run(zero)] == [20, 4]
    with pytest.raises(ValueError, match="task_res learns something for each class and cannot answer for others"):
        grid.run(task_res)
    second = replace(config.tasks[0], name="other", dataset="even")
    both = replace(config, protocol="cross_dataset", tasks=(config.tasks[0], second))
    rows = Grid(both, cache=None).run(cells(both)[1])
    assert [(row["task"], row["scored_on"], row["n"]) for row in rows] == [("odd", "odd", 24), ("odd", "other", 12)]


def test_features_labels_and_images_lie_where_the_model_does(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`meta` stands for a device that is not the CPU."""
    from clip_med.prompt_learning import tune_data

    def zeros(_encoder: Any, _shards: Any, rows: Any, views: Any, **_options: Any) -> np.ndarray:
        return np.zeros((views.count, len(rows), TINY.embed_dim), np.float32)

    monkeypatch.setattr(tune_data, "cached_view_features", zeros)
    grid = Grid(configured(root, views=2), cache=None)
    assert grid.encoding.digest
    grid.encoding.encoder.to("meta")
    data = grid.tasks["odd"]
    shown = data.support(data.train, np.arange(3), images=True)
    assert shown.images is not None
    assert shown.images.shape[:2] == shown.features.shape[:2] == (2, 3)
    assert {tensor.device.type for tensor in (shown.features, shown.labels, shown.images)} == {"meta"}


@pytest.mark.parametrize("kind", ["tip_adapter", "linear_probe", "biomedcoop"])
def test_nothing_is_chosen_on_test_images(root: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test split may be opened only after the method has been adapted."""
    from clip_med.prompt_learning.methods import KINDS

    adapted: list[bool] = []
    real_adapt, real_split = module.adapt, TaskData._split

    def adapt(*arguments: Any, **options: Any) -> Any:
        method = real_adapt(*arguments, **options)
        adapted.append(True)
        return method

    def split(self: TaskData, location: str, name: str) -> Any:
        if name == "test" and not adapted:
            raise AssertionError("the test split was opened before the method was adapted")
        return real_split(self, location, name)

    monkeypatch.setattr(module, "adapt", adapt)
    monkeypatch.setattr(TaskData, "_split", split)
    config = configured(root, methods=(KINDS[kind](),), shots=(2,), seeds=(0,), fits={})
    grid = Grid(config, cache=None)
    assert grid.run(cells(config)[0])[0]["n"] == 24
    assert adapted == [True]
    # The sentinel itself can fail.
    adapted.clear()
    with pytest.raises(AssertionError, match="opened before"):
        _ = Grid(config, cache=None).tasks["odd"].test


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "coop", "--shots", "5"], "class 'normal' has 4 training images, fewer than the 5 shots"),
        (["--method", "coop", "--classes", "cyst", "tumour"], "class 'tumour' is no label of"),
        (["--method", "copo"], "did you mean 'coop'?"),
        (["--method", "biomedcoop", "--shots", "1"], "biomedcoop needs descriptions"),
        (["--method", "coop", "--shots", "1", "--template", "x " * 99 + "{}"], "longer than the text tower's context"),
        (["--method", "coop", "--set", "lr=3"], "--set lr=3: expected method.KEY=VALUE or fit.KEY=VALUE"),
        (["--shots", "1"], "--method is missing"),
        (
            ["--method", "vmf_coop", "--shots", "1", "--descriptions", "knowledge"],
            "class 'normal' stands for several findings",
        ),
        (
            ["--method", "coop", "--shots", "1", "--descriptions", "{root}/grid.yaml"],
            "descriptions must be a JSON object",
        ),
        (["--method", "coop", "--shots", "1", "--descriptions", "no.json"], "no.json: no such file of descriptions"),
    ],
)
def test_wrong_input_is_named(root: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command(root, *(word.format(root=root) if "{root}" in word else word for word in words))) == 2
    assert message in capsys.readouterr().err


def test_a_class_without_descriptions_is_named(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "some.json"
    file.write_text(json.dumps({"cyst": ["x"], "mass": ["y"]}))
    assert main(command(root, "--method", "biomedcoop", "--shots", "1", "--descriptions", str(file))) == 2
    assert "no descriptions of class 'normal'" in capsys.readouterr().err


def test_a_cell_that_fails_is_named_and_the_others_go_on(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "grid.yaml"
    text = GRID.format(root=root).replace("shots: [1, 2]", "shots: [5, 1]").replace("seeds: [0, 1]", "seeds: [0]")
    config.write_text(text)
    assert main(["tune", "grid", str(config), "--out", str(tmp_path / "o"), "--device", "cpu", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["run"], len(document["failed"])) == (3, 3)
    assert "fewer than the 5 shots" in document["failed"][0]
