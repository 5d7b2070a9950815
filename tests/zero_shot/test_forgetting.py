"""Changes from before to after: numbers by hand, paired intervals narrower than unpaired ones, other images refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clip_med.knowledge.prompts import ClassPrompts
from tests.labelled_shards import CLASS_OF, CLASSES, Answering, class_in, write_labelled
from zero_shot.config import ClassificationTask, EvalConfig, RetrievalTask
from zero_shot.forgetting import Change, changes, plain, snapshot
from zero_shot.suite import evaluate

PROMPTS = ClassPrompts(classes={label: (label,) for label in CLASSES})


def encoder(wrong: set[int]) -> Answering:
    """Right on all images but some, which it calls by the next class."""

    def of_image(i: int) -> int:
        return (CLASS_OF[i] + (i in wrong)) % 3

    return Answering(of_image, class_in)


def config(shards: Path) -> EvalConfig:
    even, odd = (
        ClassificationTask(name=name, shards=str(shards), datasets=(name,), prompts=PROMPTS) for name in ("even", "odd")
    )
    return EvalConfig(tasks=(even, odd, RetrievalTask(name="captions", shards=str(shards), ks=(1,))))


def test_changes_by_hand(tmp_path: Path) -> None:
    settings = config(write_labelled(tmp_path / "shards"))
    before = json.loads(json.dumps(snapshot(evaluate(encoder({0, 2, 4}), settings))))
    after = snapshot(evaluate(encoder({0, 1, 3, 5, 7}), settings))
    found = {(change.task, change.name): change for change in changes(before, after)}
    # Of the 12 even images 3 were wrong and 1 is; of the 12 odd ones none was and 4 are.
    for task, old, new in (("even", 9 / 12, 11 / 12), ("odd", 1.0, 8 / 12)):
        change = found[task, "top-1"]
        assert (change.before, change.after, change.n) == (pytest.approx(old), pytest.approx(new), 12)
        assert change.difference == pytest.approx(new - old)
        assert change.low <= change.difference <= change.high
    mean = found["all tasks", "mean top-1"]
    assert (mean.before, mean.after) == (pytest.approx(21 / 24), pytest.approx(19 / 24))
    assert mean.difference == pytest.approx(-2 / 24)
    # Group g_i holds an even and an odd image, but within a task every image is its own patient: plain pairs.
    differences = np.array([0.0, 1.0, 1.0, *[0.0] * 9])
    drawn = np.random.default_rng(0).integers(0, 12, (1000, 12))
    low, high = np.quantile(differences[drawn].mean(axis=1), [0.025, 0.975])
    assert (found["even", "top-1"].low, found["even", "top-1"].high) == (pytest.approx(low), pytest.approx(high))
    retrieval = found["captions", "image to text R@1"]
    assert math.isnan(retrieval.low)
    assert retrieval.difference == pytest.approx(-2 / 24)
    text = plain(list(found.values()))
    assert text.splitlines()[2].split()[:3] == ["all", "tasks", "mean"]
    assert "-0.333 [" in text
    assert all(str(Change.from_dict(c.to_dict())) == str(c) for c in found.values())


def test_a_model_that_does_not_change_has_no_difference(tmp_path: Path) -> None:
    settings = config(write_labelled(tmp_path / "shards"))
    same = snapshot(evaluate(encoder({0, 5}), settings))
    for change in changes(same, same):
        assert change.difference == 0.0
        assert math.isnan(change.low) or (change.low, change.high) == (0.0, 0.0)


def test_other_images_are_refused(tmp_path: Path) -> None:
    settings = config(write_labelled(tmp_path / "shards"))
    after = snapshot(evaluate(encoder(set()), settings))
    before: dict[str, Any] = json.loads(json.dumps(after))
    before["outcomes"]["odd"]["groups"][3] = "another"
    with pytest.raises(ValueError, match="task odd: before and after were evaluated on other images"):
        changes(before, after)
    before = json.loads(json.dumps(after))
    del before["tasks"][2]
    with pytest.raises(ValueError, match="task captions: image to text R@1 was not measured before"):
        changes(before, after)
