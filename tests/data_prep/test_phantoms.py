"""Phantoms: the same bytes every time, held-out combinations held out, and captions that say what was drawn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import render_prompts
from data_prep.phantoms.captions import combination_prompts, finding_prompts
from data_prep.phantoms.tables import CLASSES, COMBINATIONS, HELD_OUT, KINDS, MODALITIES
from data_prep.phantoms.write import draw_phantom, phantom_sample, write_phantoms

# Every combination of a split stands in this many samples in a row.
ROUND = 90


def test_every_combination_is_drawn_in_its_split_and_in_no_other() -> None:
    seen = {split: set[str]() for split in ("train", "test", "heldout")}
    for split, names in seen.items():
        for index in range(5 * ROUND if split == "heldout" else ROUND):
            _, modality, _, finding, _ = draw_phantom(index, split, size=32)
            names.add(f"{modality}/{finding.combination}")
    held_out = {f"{modality}/{name}" for modality in MODALITIES for name in HELD_OUT[modality]}
    every = {f"{modality}/{name}" for modality in MODALITIES for name in COMBINATIONS[modality]}
    assert seen["heldout"] == held_out
    assert seen["train"] == seen["test"] == every - held_out
    # Every value of a held-out combination is trained with the same finding and with others: it can be composed.
    for modality in MODALITIES:
        for kind in KINDS[modality]:
            for axis, value in zip(kind.axes, kind.held_out, strict=False):
                assert len(kind.axes) == 1 or any(c[axis] == value for c in kind.combinations("train"))
                assert any(
                    c[axis] == value
                    for other in KINDS[modality]
                    if other is not kind and axis in other.axes
                    for c in other.combinations("train")
                )


def test_captions_state_the_finding_and_every_attribute_and_deny_nothing_that_is_there() -> None:
    for split in ("train", "heldout"):
        for index in range(2 * ROUND):
            _, modality, kind, finding, _ = draw_phantom(index, split, size=32)
            for caption in phantom_sample(index, split, size=32).captions:
                words = caption.lower()
                for needed in (kind.name, *finding.attributes.values()):
                    assert needed.lower() in words, (caption, needed)
                denied = [name for name in CLASSES[modality] if f"no {name.lower()}" in words]
                assert kind.name not in denied, caption


def test_captions_vary_and_some_have_distractors() -> None:
    second = {phantom_sample(index, "train", size=32).captions[1] for index in range(0, 40 * 75, 75)}
    assert len(second) > 20
    assert any("No " in caption for caption in second)


def test_equal_seeds_give_equal_bytes_for_any_number_of_workers(tmp_path: Path) -> None:
    counts = {"train": 40, "heldout": 10}
    write_phantoms(tmp_path / "a", counts, size=32)
    write_phantoms(tmp_path / "b", counts, size=32, workers=2)
    write_phantoms(tmp_path / "c", counts, size=32, seed=1)
    digests = {name: [ShardSet.open(tmp_path / name / split).digest for split in counts] for name in "abc"}
    assert digests["a"] == digests["b"]
    assert not set(digests["a"]) & set(digests["c"])


def test_repeating_keeps_what_is_complete_and_other_settings_are_refused(tmp_path: Path) -> None:
    counts = {"train": 20, "test": 10}
    write_phantoms(tmp_path, counts, size=32)
    before = (tmp_path / "train/000000.tar").stat().st_mtime_ns
    (tmp_path / "test/dataset.json").unlink()  # as if interrupted
    write_phantoms(tmp_path, counts, size=32)
    assert (tmp_path / "train/000000.tar").stat().st_mtime_ns == before
    assert len(ShardSet.open(tmp_path / "test")) == 10
    with pytest.raises(ValueError, match="other settings \\(seed differ"):
        write_phantoms(tmp_path, counts, size=32, seed=3)
    with pytest.raises(ValueError, match="'tests': 10"):
        write_phantoms(tmp_path / "x", {"tests": 10})
    with pytest.raises(ValueError, match="not written by this command"):
        write_phantoms(tmp_path / "train", counts)


def test_sides_are_the_patients() -> None:
    """The patient faces the viewer: an effusion on the left whitens the base on the right of the image."""
    bases: dict[str, list[float]] = {"left": [], "right": []}
    for index in range(6 * ROUND):
        image, modality, kind, finding, _ = draw_phantom(index, "train")
        if modality == "X-ray" and kind.name == "pleural effusion":
            base = image[55:75, :, 0].astype(float)
            bases[finding.attributes["side"]].append(base[:, 56:80].mean() - base[:, 16:40].mean())
    assert min(len(values) for values in bases.values()) >= 5
    assert np.mean(bases["left"]) > 20
    assert np.mean(bases["right"]) < -20


def test_labels_fit_the_prompts_of_both_kinds_of_task() -> None:
    for index in range(ROUND):
        sample = phantom_sample(index, "train", size=32)
        for prompts in (finding_prompts(sample.modality), combination_prompts(sample.modality)):
            assert sum(label in prompts.classes for label in sample.labels) == 1, sample.labels
            assert all(len(texts) >= 2 for texts in render_prompts(prompts).values())
