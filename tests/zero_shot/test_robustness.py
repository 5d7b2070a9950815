"""One run over a task's images: what is measured under every condition, and on which halves."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from clip_med.config import ConfigError, validate
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import ClassPrompts
from clip_med.models.features import image_features
from clip_med.models.folder import build_model
from tests.labelled_shards import CLASS_OF, CLASSES, perfect, write_labelled
from tests.tiny_run import TINY
from zero_shot.conditions import condition_features
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.regions import discover_regions, region_features
from zero_shot.robustness import RobustnessConfig, calibrate, halves, robustness
from zero_shot.suite import evaluate
from zero_shot.task_images import labelled

PROMPTS = ClassPrompts(classes={name: (name,) for name in CLASSES}, templates=("{}", "An image of {}."))
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    changed: dict[int, dict[str, object]] = {i: {"provenance": {"sex": "FM"[i % 2]}} for i in range(20)}
    return write_labelled(tmp_path_factory.mktemp("robust") / "test", changed)


def tasks(shards: Path) -> EvalConfig:
    odd = ClassificationTask(name="odd", shards=str(shards), prompts=PROMPTS, datasets=("odd",))
    even = ClassificationTask(name="even", shards=str(shards), prompts=PROMPTS, datasets=("even",))
    return EvalConfig(tasks=(odd, RetrievalTask(name="r", shards=str(shards)), even), batch_size=5)


def test_clean_features_are_those_of_an_evaluation_and_a_limit_spreads(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    config = tasks(shards)
    part = labelled(config.tasks[0])  # type: ignore[arg-type]
    assert part.indices == tuple(range(1, 24, 2))
    assert part.truth.tolist() == [CLASS_OF[i] for i in part.indices]
    found = condition_features(encoder, part, [None, ("noise", 3)], batch_size=5)
    expected = image_features(encoder, ShardSet.open(shards), part.indices)
    assert found[None] == pytest.approx(expected, abs=1e-6)
    assert np.abs(found["noise", 3] - expected).max() > 1e-3
    few = labelled(config.tasks[0], limit=4)  # type: ignore[arg-type]
    assert few.indices == (1, 7, 13, 19)
    # The same image is damaged in the same way, whichever others are there.
    again = condition_features(encoder, few, [("noise", 3)])
    assert again["noise", 3] == pytest.approx(found["noise", 3][[0, 3, 6, 9]], abs=1e-5)


def test_a_whole_run(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    config = tasks(shards)
    seen: list[tuple[str, int, int]] = []
    options = RobustnessConfig(levels=(1, 5), by=("modality", "provenance.sex"), templates=("{}", "Seen: {}."))
    found = robustness(encoder, config, options, on_progress=lambda *step: seen.append(step))
    assert [task.name for task in found] == ["odd", "even"]
    assert seen[:3] == [("odd", 5, 12), ("odd", 10, 12), ("odd", 12, 12)]
    plain = evaluate(encoder, config)
    for task, report in zip(found, (plain.tasks[0], plain.tasks[2]), strict=True):
        assert task.clean.value == pytest.approx(report.results[0].value)
        assert len(task.corrupted) == 14
        for one in task.corrupted:
            assert one.change.value == pytest.approx(one.top1.value - task.clean.value)
        assert task.mean_corrupted is not None
        assert task.mean_corrupted.value == pytest.approx(np.mean([one.top1.value for one in task.corrupted]))
        assert [r.name for r in task.prompts.templates] == ["{}", "An image of {}.", "Seen: {}."]
        keys = ["class", "modality", "class and modality", "provenance.sex", "class and provenance.sex"]
        assert [table.key for table in task.subgroups] == keys
        assert sum(r.n for r in task.subgroups[4].results) == 12
        assert {r.name for r in task.subgroups[3].results} <= {"F", "M", "unknown"}
        assert set(task.unknown) == {"max concept matching", "energy", "Mahalanobis"}
        for one in task.unknown.values():
            assert (one.known, one.unknown) == (6, 12)
        json.dumps(task.to_dict(), allow_nan=False)
    again = robustness(encoder, config, options)
    assert [task.to_dict() for task in found] == [task.to_dict() for task in again]
    one_task = EvalConfig(tasks=config.tasks[:1])
    (alone,) = robustness(encoder, one_task, RobustnessConfig(corruptions=(), limit=8))
    assert (alone.unknown, alone.corrupted, alone.mean_corrupted, alone.n) == ({}, (), None, 8)


def test_halves_keep_patients_together_and_calibration_is_judged_on_the_other() -> None:
    groups = [f"g{i // 3}" for i in range(30)]
    first, second = halves(groups, 0)
    assert sorted([*first, *second]) == list(range(30))
    assert len(first) == len(second) == 15
    assert not {groups[i] for i in first} & {groups[i] for i in second}
    rng = np.random.default_rng(0)
    logits = 2 * rng.standard_normal((900, 4))
    truth = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    names = [f"g{i}" for i in range(900)]
    found = calibrate(4 * logits, truth, names, alpha=0.2, seed=1)
    assert (found.n, found.note) == (450, "")
    assert found.temperature == pytest.approx(4, rel=0.25)
    assert found.after["nll"] < found.before["nll"]
    assert found.after["ece"] < found.before["ece"]
    assert 0.72 < found.coverage < 0.88
    right = calibrate(np.eye(3)[[0, 1, 2, 0]] * 9.0, np.array([0, 1, 2, 0]), list("abcd"), alpha=0.2, seed=0)
    assert np.isnan(right.temperature)
    assert "all answers right" in right.note
    assert right.before == right.after
    with pytest.raises(ValueError, match="at least two patients"):
        halves(["a", "a"], 0)


def test_cells_of_images(shards: Path) -> None:
    torch.manual_seed(0)
    encoder = build_model(TINY).eval()
    part = labelled(tasks(shards).tasks[0])  # type: ignore[arg-type]
    rows = region_features(encoder, part, 2, batch_size=5)
    assert rows.shape == (12, 4, 16)
    assert np.linalg.norm(rows, axis=-1) == pytest.approx(np.ones((12, 4)), abs=1e-5)
    found = discover_regions(encoder, part, 2)
    assert found.assignment.shape == (48,)
    with pytest.raises(ValueError, match="2 x 2 places, fewer than 9"):
        region_features(encoder, part, 9)


def test_refusals(shards: Path) -> None:
    config = tasks(shards)
    retrieval = EvalConfig(tasks=config.tasks[1:2])
    for evaluation, options, expected in (
        (retrieval, RobustnessConfig(), "no classification task"),
        (config, RobustnessConfig(by=("view",)), "no sample of any task states view"),
        (config, RobustnessConfig(by=("age",)), "got 'age'"),
    ):
        with pytest.raises(ValueError, match=expected):
            robustness(perfect(), evaluation, options)
    for values, expected in (
        ({"levels": [6]}, r"levels must lie in 1 \.\. 5"),
        ({"levels": [1, 1]}, "levels must be different"),
        ({"alpha": 1.5}, "alpha"),
        ({"corruptions": ["snow"]}, "snow"),
    ):
        with pytest.raises(ConfigError, match=expected):
            validate(RobustnessConfig, values)
    other = ClassificationTask(name="x", shards=str(shards), prompts=PROMPTS, datasets=("none",))
    with pytest.raises(ValueError, match="task x: no sample"):
        labelled(other)
    with pytest.raises(ValueError, match="limit must be at least 1"):
        labelled(config.tasks[0], limit=0)  # type: ignore[arg-type]
    two = ClassPrompts(classes={name: (name,) for name in CLASSES[:2]})
    with pytest.raises(ValueError, match="task x: sample k20 has 0 of the 2 classes"):
        labelled(ClassificationTask(name="x", shards=str(shards), prompts=two))
