"""What a model says of every single item of a task, in files from which models can be compared without running them.

A folder holds `NAME.scores.npz` for each task: `task`, `keys` and `groups` (texts [N]), and either `classes` (texts
[C]), `truth` and `scores` (numbers [N, C], higher is likelier), or `metric` and `values` [N], with other numbers [N]
under names of their own. `truth` holds whole numbers [N] where each image has one class, and 0 or 1 [N, C] where an
image has any number of labels. Everything that can write these files, a linear probe or another program, can be
compared.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

SUFFIX: Final = ".scores.npz"
_NAMES: Final = ("task", "keys", "groups", "metric", "values")


@dataclass(frozen=True, kw_only=True)
class ClassScores:
    """Scores [N, C] of N images for C classes, of which `truth` [N] numbers the right one. `groups`: patients."""

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    truth: NDArray[np.int64]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        _check_keys(self.keys, self.groups)
        shape = (len(self.keys), len(self.classes))
        if self.scores.shape != shape or self.truth.shape != shape[:1] or len(set(self.classes)) != shape[1]:
            raise ValueError(
                f"expected scores {shape}, as many truths and different classes, got {self.scores.shape}, "
                f"{self.truth.shape} and {list(self.classes)}"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("scores must be finite")
        if self.truth.min() < 0 or self.truth.max() >= shape[1]:
            raise ValueError(f"truth must lie in 0 .. {shape[1] - 1}, got {self.truth.min()} .. {self.truth.max()}")


@dataclass(frozen=True, kw_only=True)
class LabelScores:
    """Scores [N, C] of N images for C labels, of which an image has any number: `truth` [N, C] says which."""

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    classes: tuple[str, ...]
    truth: NDArray[np.bool_]
    scores: NDArray[np.float64]

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        _check_keys(self.keys, self.groups)
        shape = (len(self.keys), len(self.classes))
        if not self.scores.shape == self.truth.shape == shape or len(set(self.classes)) != shape[1]:
            raise ValueError(
                f"expected scores and truth {shape} and different labels, got {self.scores.shape}, {self.truth.shape} "
                f"and {list(self.classes)}"
            )
        if not np.isfinite(self.scores).all():
            raise ValueError("scores must be finite")


@dataclass(frozen=True, kw_only=True)
class ItemScores:
    """A value [N] for each of N items, whose mean is the metric, such as average precisions of queries.

    `others`: [N] by name, from which further metrics come; models are not compared by them.
    """

    keys: tuple[str, ...]
    groups: tuple[str, ...]
    metric: str
    values: NDArray[np.float64]
    others: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse what does not belong together."""
        _check_keys(self.keys, self.groups)
        if self.values.shape != (len(self.keys),) or not np.isfinite(self.values).all():
            raise ValueError(f"expected {len(self.keys)} finite values, got {self.values.shape}")
        for name, values in self.others.items():
            if values.shape != self.values.shape or name in _NAMES:
                raise ValueError(f"expected {len(self.keys)} values of a name of its own, got {name} {values.shape}")


Scores = ClassScores | LabelScores | ItemScores


def write_scores(folder: Path, scores: Mapping[str, Scores]) -> None:
    """Write one file for each task; one of the same name is replaced.

    Raises:
        ValueError: two tasks whose names would be one file.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = {task: re.sub(r"[^A-Za-z0-9._-]+", "_", task) for task in scores}
    if len(set(names.values())) != len(names):
        raise ValueError(f"names of tasks must differ in letters and digits, got {list(names)}")
    for task, own in scores.items():
        if isinstance(own, ItemScores):
            arrays = {"metric": np.array(own.metric), "values": own.values, **own.others}
        else:
            arrays = {"classes": np.array(own.classes), "truth": own.truth, "scores": own.scores}
        about = {"task": np.array(task), "keys": np.array(own.keys), "groups": np.array(own.groups)}
        temporary = folder / f".{names[task]}.partial.npz"
        np.savez(temporary, allow_pickle=False, **about, **arrays)
        temporary.replace(folder / f"{names[task]}{SUFFIX}")


def has_scores(folder: Path) -> bool:
    """Whether a folder holds scores."""
    return any(folder.glob(f"*{SUFFIX}"))


def read_scores(folder: Path) -> dict[str, Scores]:
    """The scores of a folder by task, in alphabetical order.

    Raises:
        ValueError: no files of scores, a damaged one, one with other arrays, or two of one task; names the file.
    """
    found: dict[str, Scores] = {}
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {name: stored[name] for name in stored.files}
            task, scores = _scores(arrays)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path}: no scores of a task: {error}") from error
        if task in found:
            raise ValueError(f"{path}: another file of this folder has task {task!r}")
        found[task] = scores
    if not found:
        raise ValueError(f"{folder}: no scores (files called NAME{SUFFIX})")
    return dict(sorted(found.items()))


def _scores(arrays: Mapping[str, NDArray[np.generic]]) -> tuple[str, Scores]:
    keys, groups = (tuple(map(str, arrays[name].tolist())) for name in ("keys", "groups"))
    task = str(arrays["task"])
    if "values" in arrays:
        values = arrays["values"].astype(np.float64)
        others = {name: own.astype(np.float64) for name, own in arrays.items() if name not in _NAMES}
        return task, ItemScores(keys=keys, groups=groups, metric=str(arrays["metric"]), values=values, others=others)
    classes = tuple(map(str, arrays["classes"].tolist()))
    truth, scores = arrays["truth"], arrays["scores"].astype(np.float64)
    if truth.ndim == 2:
        if not np.isin(truth, (0, 1)).all():
            raise ValueError("truth of labels must be 0 or 1")
        present = truth.astype(np.bool_)
        return task, LabelScores(keys=keys, groups=groups, classes=classes, truth=present, scores=scores)
    truth = truth.astype(np.int64)
    return task, ClassScores(keys=keys, groups=groups, classes=classes, truth=truth, scores=scores)


def _check_keys(keys: tuple[str, ...], groups: tuple[str, ...]) -> None:
    if not keys or len(groups) != len(keys):
        raise ValueError(f"expected at least one item and a group of each, got {len(keys)} and {len(groups)}")
    if len(set(keys)) != len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ValueError(f"keys must differ, got {twice!r} twice")


__all__ = ["SUFFIX", "ClassScores", "ItemScores", "LabelScores", "Scores", "has_scores", "read_scores", "write_scores"]
