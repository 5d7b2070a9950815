"""The few-shot protocol: which labelled images a method may learn from, and which it may choose settings on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Int64

from clip_med.data.sample import Sample
from clip_med.data.shards import ShardSet

# Validation images of each class, at most.
MOST_VALIDATION: Final = 4


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The samples of one shard set that have exactly one of the classes, without their images.

    Row i is sample `indices[i]` of the set; `labels` are numbers into `classes`.
    """

    shards: ShardSet
    classes: tuple[str, ...]
    indices: tuple[int, ...]
    labels: Int64[np.ndarray, " N"]
    groups: tuple[str, ...]

    def only(self, rows: Sequence[int] | Int64[np.ndarray, " R"]) -> Labelled:
        """Some of the rows, in the order given."""
        return Labelled(
            shards=self.shards,
            classes=self.classes,
            indices=tuple(self.indices[row] for row in rows),
            labels=self.labels[np.asarray(rows, dtype=np.int64)],
            groups=tuple(self.groups[row] for row in rows),
        )


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Rows of the training set to learn from, and of the validation set to choose on; the second may be empty."""

    support: Int64[np.ndarray, " S"]
    validation: Int64[np.ndarray, " V"]


def find_classes(shards: ShardSet, dataset: str | None = None) -> tuple[str, ...]:
    """The first labels of the samples, in alphabetical order.

    Raises:
        ValueError: no sample of the data set, or none with a label.
    """
    found = {sample.labels[0] for sample in _samples(shards, dataset) if sample.labels}
    if not found:
        raise ValueError(f"no sample of data set {dataset or 'any'} has a label; give the classes, or other shards")
    return tuple(sorted(found))


def all_labels(shards: ShardSet, dataset: str | None = None) -> tuple[str, ...]:
    """Every label that a sample has, in alphabetical order.

    Raises:
        ValueError: no sample of the data set, or none with a label.
    """
    found = {label for sample in _samples(shards, dataset) for label in sample.labels}
    if not found:
        raise ValueError(f"no sample of data set {dataset or 'any'} has a label; give the classes, or other shards")
    return tuple(sorted(found))


def labelled(shards: ShardSet, classes: Sequence[str], *, dataset: str | None = None, name: str = "") -> Labelled:
    """Read labels and groups of all samples.

    Args:
        dataset: only samples of this data set.
        name: of the split, for messages.

    Raises:
        ValueError: no sample, or one with none or several of the classes, naming its key.
    """
    numbers = {label: number for number, label in enumerate(classes)}
    indices: list[int] = []
    labels: list[int] = []
    groups: list[str] = []
    for index in range(len(shards)):
        sample = shards.metadata(index)
        if dataset is not None and sample.dataset != dataset:
            continue
        own = [numbers[label] for label in sample.labels if label in numbers]
        if len(own) != 1:
            raise ValueError(
                f"{name or shards.tar(index)}: sample {sample.key} has {len(own)} of the {len(numbers)} classes among "
                f"its labels {list(sample.labels)}; exactly one is needed"
            )
        indices.append(index)
        labels.append(own[0])
        groups.append(sample.group)
    if not indices:
        raise ValueError(f"{name or 'shards'}: no sample of data set {dataset!r}")
    return Labelled(
        shards=shards,
        classes=tuple(classes),
        indices=tuple(indices),
        labels=np.array(labels, dtype=np.int64),
        groups=tuple(groups),
    )


def draw_shots(train: Labelled, shots: int | None, *, seed: int, validation: Labelled | None = None) -> Draw:
    """Draw `shots` training images of each class (None: all), and min(shots, 4) validation images of each.

    The rule on groups (patients):

    - The images of a class come from as many groups as there are: a second image of a group is drawn only after every
      group of the class has given one.
    - No group of the support is in the validation images. Those come from the validation split; groups of the support
      are left out of it first.

    The draw depends on (seed, class, order of the set) alone. Draws of one seed are nested: the images for 4 shots
    are among those for 8.

    Args:
        validation: the validation split; None: nothing is chosen on images, and `Draw.validation` is empty. A class
            with fewer images than wanted gives all of them.

    Raises:
        ValueError: a class with fewer images than shots, naming class, count and shots; a count below 1; or a class
            without a validation image.
    """
    if shots is not None and shots < 1:
        raise ValueError(f"shots must be at least 1, got {shots}")
    support: list[int] = []
    for number, name in enumerate(train.classes):
        own = _order(train, number, seed)
        wanted = len(own) if shots is None else shots
        if len(own) < max(wanted, 1):
            raise ValueError(f"class {name!r} has {len(own)} training images, fewer than the {max(wanted, 1)} shots")
        support += own[:wanted]
    if validation is None:
        return Draw(support=np.array(support), validation=np.zeros(0, dtype=np.int64))
    used = {train.groups[row] for row in support}
    held: list[int] = []
    per_class = MOST_VALIDATION if shots is None else min(shots, MOST_VALIDATION)
    for number, name in enumerate(validation.classes):
        own = [row for row in _order(validation, number, seed) if validation.groups[row] not in used]
        if not own:
            raise ValueError(f"class {name!r} has no validation image of a group that is not among the shots")
        held += own[:per_class]
    return Draw(support=np.array(support), validation=np.array(held))


def _order(data: Labelled, number: int, seed: int) -> list[int]:
    """Rows of a class in random order, first one of each group, then a second of each, and so on."""
    rows = np.flatnonzero(data.labels == number)
    rows = np.random.default_rng([seed, number]).permutation(rows)
    taken: dict[str, int] = {}
    turn: list[int] = []
    for row in rows:
        group = data.groups[int(row)]
        turn.append(taken.get(group, 0))
        taken[group] = turn[-1] + 1
    return rows[np.argsort(turn, kind="stable")].tolist()


def _samples(shards: ShardSet, dataset: str | None) -> Iterator[Sample]:
    for index in range(len(shards)):
        sample = shards.metadata(index)
        if dataset is None or sample.dataset == dataset:
            yield sample


__all__ = ["MOST_VALIDATION", "Draw", "Labelled", "all_labels", "draw_shots", "find_classes", "labelled"]
