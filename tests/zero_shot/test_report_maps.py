"""Similarity maps of the report: which images get them, what they show, and towers that have none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.folder import build_model, save_folder
from tests.labelled_shards import CLASSES, write_labelled
from tests.tiny_run import TINY
from zero_shot import report_maps
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.evaluation import Evaluation
from zero_shot.report import write_report
from zero_shot.report_maps import similarity_maps
from zero_shot.report_run import what_was_run
from zero_shot.suite import evaluate


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[DualEncoder, EvalConfig, Evaluation, Path]:
    """An untrained model and what it says of three classes."""
    folder = tmp_path_factory.mktemp("maps")
    shards = write_labelled(folder / "shards")
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    save_folder(encoder, folder / "model")
    task = ClassificationTask(
        name="findings",
        shards=str(shards),
        prompts=ClassPrompts(classes={name: (name, f"A {name}") for name in CLASSES}),
    )
    config = EvalConfig(tasks=(task, RetrievalTask(name="captions", shards=str(shards))))
    return encoder, config, evaluate(encoder, config), folder / "model"


def test_right_and_wrong_examples_get_maps_of_truth_and_answer(
    evaluated: tuple[DualEncoder, EvalConfig, Evaluation, Path], tmp_path: Path
) -> None:
    encoder, config, done, model = evaluated
    found = similarity_maps(encoder, done)
    assert found.refused is None
    assert list(found.by_task) == ["findings"]
    maps = found.by_task["findings"]
    examples = done.tasks[0].examples
    expected = [e for right in (True, False) for e in [one for one in examples if one.right == right][:2]]
    assert [one.index for one in maps] == [e.index for e in expected]
    for one, example in zip(maps, expected, strict=True):
        assert list(one.maps) == list(dict.fromkeys((example.truth, example.answers[0].text)))
        assert {pixels.shape for pixels in one.maps.values()} == {(32, 32, 3)}
        # The images are grey: what is coloured is the map.
        assert all(np.ptp(pixels.astype(int), axis=2).max() > 10 for pixels in one.maps.values())
    run = what_was_run({"model": model}, [config], settings=[("encoded on", "cpu")])
    for name, images in (("with", True), ("without", False)):
        write_report(tmp_path / name, title="t", metrics=[], evaluation=done, run=run, similarity=found, images=images)
    page, bare = (tmp_path / "with").read_text(), (tmp_path / "without").read_text()
    drawn = sum(len(one.maps) for one in maps)
    assert page.count("Where the image is most like") == drawn
    assert f"{found.grid[0]} x {found.grid[1]} places" in page
    assert "<img" not in bare
    for text in ("SHA-256 of open_clip_model.safetensors", "seed 0", "torch", "24 samples in 2 shards", "written"):
        assert text in page
        assert text in bare
    assert "name: findings" in page


def test_a_tower_without_places_is_said_so(
    evaluated: tuple[DualEncoder, EvalConfig, Evaluation, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder, _, done, _ = evaluated

    def refuse(*_: object) -> None:
        raise ValueError("the image tower pools by attention")

    monkeypatch.setattr(report_maps, "patch_features", refuse)
    found = similarity_maps(encoder, done)
    assert found.by_task == {}
    write_report(tmp_path / "r.html", title="t", metrics=[], evaluation=done, similarity=found)
    assert "None: the image tower pools by attention." in (tmp_path / "r.html").read_text()
