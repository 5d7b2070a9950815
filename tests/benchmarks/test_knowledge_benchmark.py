"""The benchmark of knowledge leaves classes out of training, and counts them where they belong."""

from __future__ import annotations

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import knowledge, knowledge_sides, knowledge_table
from benchmarks.knowledge_data import PROMPTS, TASKS, write_shards
from clip_med.knowledge.hierarchy import plain_name
from clip_med.knowledge.prompts import render_prompts
from clip_med.pretrain import PretrainConfig


def corpus(root: Path) -> Path:
    """Two training images and a test image of every class of every task."""
    (root / "images").mkdir(parents=True)
    rows: list[dict[str, str]] = []
    for task in TASKS:
        for number, label in enumerate(task.classes):
            for i, split in enumerate(("train", "train", "test")):
                path = f"images/{task.source}_{number}_{i}.png"
                Image.fromarray(np.full((8, 8), 9 * len(rows) % 255, dtype=np.uint8)).save(root / path)
                rows.append({"path": path, "source": task.source, "modality": task.modality, "label": label})
                rows[-1] |= {"caption": "", "split": split, "group": path, "licence": "none"}
    with (root / "manifest.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return root


def test_classes_are_left_out_of_training_and_all_are_tested(tmp_path: Path) -> None:
    source = corpus(tmp_path / "corpus")
    for seed in (0, 1):
        out = [(task.source, task.held_out(seed)) for task in TASKS]
        train = write_shards(source, tmp_path / f"train{seed}", without=out)
        found = {(train.metadata(i).dataset, train.metadata(i).labels[0]) for i in range(len(train))}
        assert found == {(task.source, label) for task in TASKS for label in task.classes} - set(out)
        assert len(train) == 2 * len(found)
    test = write_shards(source, tmp_path / "test", tested=True)
    assert len(test) == sum(len(task.classes) for task in TASKS)


def test_descriptions_do_not_hold_the_name() -> None:
    for task in TASKS:
        named, both, told = (render_prompts(task.prompts(kind)) for kind in PROMPTS)
        for label, name in task.classes.items():
            assert both[label] == named[label] + told[label]
            assert not any(plain_name(name) in plain_name(text) for text in told[label])


def classes_of_heads(config: PretrainConfig) -> set[str]:
    heads = [head for head in (config.facets, config.queries, *config.prototypes) if head is not None]
    return {label for head in heads for label in head.prompts.classes}


def test_every_side_is_a_configuration_and_heads_do_not_know_what_is_left_out(tmp_path: Path) -> None:
    scale, labels = knowledge_sides.Scale(samples=640, seeds=1), {task.held_out(1) for task in TASKS}
    configs = [
        knowledge_sides.configured(side, 1, scale, tmp_path, tmp_path / "weights", tmp_path / "text")
        for side in knowledge_sides.SIDES
    ]
    kinds = [config.loss.kind for config in configs]
    assert kinds == [*["info_nce"] * 3, "group_positives", "info_nce", "soft_targets", "info_nce", "info_nce"]
    assert len({(c.train.samples, c.train.batch_size, c.train.seed, c.train.optim, c.shards) for c in configs}) == 1
    classes = [classes_of_heads(config) for config in configs]
    fewer = [classes_of_heads(knowledge_sides.without(config, labels)) for config in configs]
    everything = {label for task in TASKS for label in task.classes}
    assert [bool(of) for of in classes] == [False] * 4 + [True, False, True, True]
    for before, after in zip(classes, fewer, strict=True):
        assert before in (set(), everything)
        assert before - after == (labels if before else set())


def test_images_count_as_seen_or_held_out_by_the_seed(tmp_path: Path) -> None:
    """Scores that take every image of the second task for its first class."""
    test = write_shards(corpus(tmp_path / "corpus"), tmp_path / "test", tested=True)
    images = [knowledge_sides.Images.of(task, test) for task in TASKS[1:2]]
    assert images[0].truth.tolist() == [0, 1, 2]
    scores = np.tile([1.0, 0.0, 0.0], (3, 1))
    outcomes = {("corpus_flair", "name", s): knowledge_sides.outcome(images[0], scores, s) for s in (0, 1)}
    held = [list(TASKS[1].classes).index(TASKS[1].held_out(seed)) for seed in (0, 1)]
    assert held == [0, 1]
    results = {(row["source"], row["what"]): row for row in knowledge_table.summarised(images, outcomes, 2)}
    # Image 0 is held out by seed 0 and right, image 1 by seed 1 and wrong. Seen: 1 and 2 with seed 0, 0 and 2 with 1.
    assert results["mean", "held out"]["value"] == 0.5
    assert results["mean", "held out"]["n"] == 2
    assert results["mean", "seen"]["value"] == pytest.approx((1 + 0 + 0) / 3, abs=1e-4)
    assert results["lc25000_lung", "held-out AUROC"]["value"] == 0.5
    assert results["mean", "seen"]["sd_over_seeds"] == pytest.approx(2**0.5 / 4, abs=1e-4)
    lines = knowledge_table.table({"results": list(results.values())})
    assert lines[2].startswith("| corpus_flair | name | 33.3 ± 35.4 [")


def test_outcomes_that_are_there_are_not_trained_again_and_other_scales_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scale = knowledge_sides.Scale(samples=64, seeds=1)
    knowledge._check_scale(tmp_path / "scale.json", scale)
    knowledge._check_scale(tmp_path / "scale.json", dataclasses.replace(scale, seeds=3))
    with pytest.raises(ValueError, match="take another folder"):
        knowledge._check_scale(tmp_path / "scale.json", dataclasses.replace(scale, samples=128))
    outcome = {"seconds": 1.0, "outcomes": {"name": {"busi/seen": [1.0, None]}}}
    (tmp_path / "corpus_flair-0.json").write_text(json.dumps(outcome))
    monkeypatch.setattr(knowledge, "trained", lambda *_: pytest.fail("was there"))
    nowhere: Any = None
    bench = knowledge.Bench(
        root=tmp_path, scale=scale, corpus=nowhere, weights=nowhere, text=nowhere, test=nowhere, images=[]
    )
    assert bench.run("corpus_flair", 0) == outcome
