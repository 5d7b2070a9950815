"""The benchmark of evaluation runs small, its two sides score the same, and features that differ are found."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import zero_shot as benchmark
from benchmarks.zero_shot_loop import evaluate as loop
from benchmarks.zero_shot_loop import file_tasks
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.folder import build_model, load_folder, save_folder
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.suite import evaluate

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_folder(build_model(TINY), tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def config(tmp_path: Path) -> EvalConfig:
    shards = str(benchmark.every(write_labelled(tmp_path / "whole"), tmp_path / "some", 2))
    prompts = ClassPrompts(classes={name: (name,) for name in CLASSES}, templates=("{}", "An image of {}."))
    task = ClassificationTask(name="findings", shards=shards, prompts=prompts)
    return EvalConfig(tasks=(task, RetrievalTask(name="captions", shards=shards, ks=(1,))))


def test_every_ratio_is_measured_and_both_sides_score_the_same(
    model: Path, config: EvalConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "WORKERS", 0)
    (measured,) = benchmark.measure(tmp_path, model, config, 1, ("fp32",))
    assert list(measured) == ["cold_fp32_vs_loop", "cached_fp32_vs_loop", "cached_vs_cold"]
    assert all(value > 0 for value in measured.values())
    assert "both sides agree on 24 images" in capsys.readouterr().out
    # One file of features for each of two rounds: the second evaluation of a round has found it.
    assert len(list(tmp_path.glob("features-*/*.safetensors"))) == 2
    theirs = loop(model, file_tasks(config, tmp_path / "again"), precision="fp32", workers=0)
    own = {result.name: result.value for result in evaluate(load_folder(model), config).tasks[0].results}
    assert theirs["findings"][0] == pytest.approx(own["top-1"])


def test_features_that_differ_are_found(
    model: Path, config: EvalConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = file_tasks(config, tmp_path / "files")
    benchmark.check(model, config, tasks)

    def turned(*arguments: object, **options: object) -> dict[str, tuple[float, Tensor]]:
        return {name: (score, rows.roll(1, dims=0)) for name, (score, rows) in loop(*arguments, **options).items()}  # type: ignore[arg-type]

    monkeypatch.setattr(benchmark, "evaluate", turned)
    with pytest.raises(AssertionError, match="image features of the two sides differ"):
        benchmark.check(model, config, tasks)
