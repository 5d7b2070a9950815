"""The benchmark of knowledge leaves classes out of training, and counts them where they belong."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import knowledge
from benchmarks.knowledge_data import PROMPTS, TASKS, write_shards
from clip_med.data.shards import ShardSet
from clip_med.knowledge.hierarchy import plain_name
from tests.labelled_shards import perfect


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
        named, both, told = (task.prompts(kind) for kind in PROMPTS)
        for label, name in task.classes.items():
            assert both[label] == named[label] + told[label]
            assert not any(plain_name(name) in plain_name(text) for text in told[label])


def test_images_count_as_seen_or_held_out_by_the_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An encoder that takes every image of the second task for its first class."""
    test = write_shards(corpus(tmp_path / "corpus"), tmp_path / "test", tested=True)
    images = [knowledge._images(task, ShardSet.open(tmp_path / "test/shards/test")) for task in TASKS[1:2]]
    assert images[0].truth.tolist() == [0, 1, 2]
    features = np.zeros((len(test), 3), dtype=np.float32)
    features[:, 0] = 1.0
    rows = iter([np.eye(3, dtype=np.float32)] * 9)
    monkeypatch.setattr(knowledge, "text_features", lambda *_: next(rows))
    outcomes = {("corpus_flair", "name", s): knowledge._judged(perfect(), features, images, "name", s) for s in (0, 1)}
    held = [list(TASKS[1].classes).index(TASKS[1].held_out(seed)) for seed in (0, 1)]
    assert held == [0, 1]
    results = {
        (row["source"], row["what"]): row for row in knowledge._summarised("corpus_flair", "name", images, outcomes, 2)
    }
    # Image 0 is held out by seed 0 and right, image 1 by seed 1 and wrong. Seen: 1 and 2 with seed 0, 0 and 2 with 1.
    assert results["mean", "held out"]["value"] == 0.5
    assert results["mean", "held out"]["n"] == 2
    assert results["mean", "seen"]["value"] == pytest.approx((1 + 0 + 0) / 3, abs=1e-4)
    assert results["lc25000_lung", "held-out AUROC"]["value"] == 0.5
    assert results["mean", "seen"]["sd_over_seeds"] == pytest.approx(2**0.5 / 4, abs=1e-4)
