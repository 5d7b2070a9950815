"""The protocol: what is drawn, what the seed decides, patients apart, base and novel classes, harmonic means."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from clip_med.data.shards import ShardSet
from clip_med.prompt_learning.base_novel import halves, harmonic_means, of_classes
from clip_med.prompt_learning.shots import Labelled, draw_shots, find_classes, labelled
from tests.labelled_shards import CLASS_OF, CLASSES, write_labelled


@pytest.fixture
def shards(tmp_path: Path) -> ShardSet:
    return ShardSet.open(write_labelled(tmp_path / "s"))


@pytest.fixture
def train(shards: ShardSet) -> Labelled:
    return labelled(shards, CLASSES)


def test_labels_and_groups_are_those_of_the_samples(shards: ShardSet) -> None:
    data = labelled(shards, CLASSES, dataset="odd")
    assert data.indices == tuple(range(1, 24, 2))
    assert data.labels.tolist() == [CLASS_OF[index] for index in data.indices]
    assert data.groups == tuple(f"g{index // 2}" for index in data.indices)
    assert find_classes(shards) == ("cyst", "mass", "normal")
    with pytest.raises(ValueError, match="no sample of data set 'other'"):
        labelled(shards, CLASSES, dataset="other")
    with pytest.raises(ValueError, match="no sample of data set other has a label"):
        find_classes(shards, "other")
    with pytest.raises(
        ValueError, match=r"test: sample k20 has 0 of the 2 classes among its labels \['normal', 'other'"
    ):
        labelled(shards, CLASSES[:2], name="test")


@pytest.mark.parametrize("shots", [1, 2, 4])
def test_each_class_gives_its_shots_and_the_seed_decides_which(train: Labelled, shots: int) -> None:
    draw = draw_shots(train, shots, seed=1)
    assert Counter(train.labels[draw.support].tolist()) == dict.fromkeys(range(3), shots)
    assert len(set(draw.support.tolist())) == 3 * shots
    assert not len(draw.validation)
    np.testing.assert_array_equal(draw.support, draw_shots(train, shots, seed=1).support)
    assert len({tuple(draw_shots(train, shots, seed=seed).support) for seed in range(6)}) > 1


def test_draws_are_nested_and_all_is_all(train: Labelled) -> None:
    sets = [set(draw_shots(train, shots, seed=3).support.tolist()) for shots in (1, 2, 4)]
    assert sets[0] < sets[1] < sets[2]
    assert set(draw_shots(train, None, seed=3).support.tolist()) == set(range(24))


def test_a_second_image_of_a_patient_waits_for_the_first_of_all(train: Labelled) -> None:
    # Twelve cysts of six patients, two of each.
    for seed in range(10):
        rows = [row for row in draw_shots(train, 2, seed=seed).support if train.labels[row] < 2]
        assert max(Counter(train.groups[row] for row in rows).values()) == 1


def test_no_patient_is_in_support_and_validation(train: Labelled) -> None:
    for seed in range(10):
        # Both splits are the same set here: the hardest case.
        draw = draw_shots(train, 1, seed=seed, validation=train)
        assert Counter(train.labels[draw.validation].tolist()) == dict.fromkeys(range(3), 1)
        used = {train.groups[row] for row in draw.support}
        assert not used & {train.groups[row] for row in draw.validation}
    with pytest.raises(ValueError, match="class 'mass' has no validation image of a group"):
        draw_shots(train, 4, seed=0, validation=train)


def test_at_most_four_validation_images_of_a_class(train: Labelled) -> None:
    apart = Labelled(
        shards=train.shards,
        classes=train.classes,
        indices=train.indices,
        labels=train.labels,
        groups=tuple(f"v{row}" for row in range(24)),
    )
    draw = draw_shots(train, None, seed=0, validation=apart)
    assert Counter(apart.labels[draw.validation].tolist()) == dict.fromkeys(range(3), 4)


def test_too_few_images_are_an_error_with_their_count(train: Labelled) -> None:
    with pytest.raises(ValueError, match="class 'normal' has 4 training images, fewer than the 8 shots"):
        draw_shots(train, 8, seed=0)
    with pytest.raises(ValueError, match="shots must be at least 1, got 0"):
        draw_shots(train, 0, seed=0)
    empty = train.only([row for row in range(24) if train.labels[row] < 2])
    with pytest.raises(ValueError, match="class 'normal' has 0 training images"):
        draw_shots(empty, None, seed=0)


def test_halves_of_the_classes_are_numbered_anew(train: Labelled) -> None:
    base, novel = halves(CLASSES)
    assert (base, novel) == (("cyst", "mass"), ("normal",))
    part = of_classes(train, ("normal", "cyst"))
    assert [part.classes[label] for label in part.labels] == [CLASSES[CLASS_OF[index]] for index in part.indices]
    assert len(part.indices) == 16
    with pytest.raises(ValueError, match="class 'tumour' is none of"):
        of_classes(train, ("tumour",))
    with pytest.raises(ValueError, match="at least two"):
        halves(["a"])


def test_harmonic_means_both_ways() -> None:
    mean_of_means, of_means = harmonic_means([(0.8, 0.4), (0.6, 0.6)])
    assert mean_of_means == pytest.approx((2 * 0.8 * 0.4 / 1.2 + 0.6) / 2)
    assert of_means == pytest.approx(2 * 0.7 * 0.5 / 1.2)
    assert harmonic_means([(0.0, 0.0)]) == (0.0, 0.0)
    with pytest.raises(ValueError, match="no pairs"):
        harmonic_means([])
