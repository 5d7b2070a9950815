"""What `clip-med tune` runs: labelled tasks, methods, shots and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Literal

from clip_med.config import NonNegativeInt, PositiveInt, config
from clip_med.data.augment import AugmentConfig
from clip_med.prompt_learning.fitting import FitConfig
from clip_med.prompt_learning.methods import MethodConfig


@config
class FewShotTask:
    """A labelled data set with its official splits. Each image has exactly one of the classes among its labels."""

    name: str
    train: str
    """Shard set that the shots are drawn from."""
    test: str
    """Shard set that the method is scored on, once, after everything is chosen."""
    val: str | None = None
    """Shard set of the validation images; None: there are none, and settings stay as configured."""
    dataset: str | None = None
    """Only samples of this data set; None: all."""
    classes: Mapping[str, str] = field(default_factory=dict[str, str])
    """Label to the name that prompts use; empty: all first labels of `train`, which are their own names."""
    templates: tuple[str, ...] = ("a photo of a {}.",)
    """Of the zero-shot prompts; their class features are averaged."""
    descriptions: str | None = None
    """JSON file: class name to sentences, for methods that need them (BiomedCoOp, vMFCoOp). `knowledge`: what the
    shipped knowledge base says of the finding of that name."""


@config
class TuneConfig:
    """A grid: every task x method x number of shots x seed is one cell, and gives one row."""

    model: str
    """A run folder or a model folder."""
    tasks: tuple[FewShotTask, ...]
    methods: tuple[MethodConfig, ...]
    shots: tuple[NonNegativeInt, ...] = (1, 2, 4, 8, 16)
    """Training images of each class; 0: all."""
    seeds: tuple[NonNegativeInt, ...] = (0, 1, 2)
    """Of the draw, of what a method starts from and of the order that it sees."""
    protocol: Literal["all_classes", "base_to_novel", "cross_dataset"] = "all_classes"
    """base_to_novel: learn the first half of the classes, answer among these and, apart, among the others.
    cross_dataset: learn on each task, answer on every other one too."""
    validate: bool = True
    """Choose what no gradient learns on min(shots, 4) validation images of each class, where the task has any."""
    views: PositiveInt = 1
    """Views of each training image: the image as evaluation shows it, and views - 1 augmented ones."""
    augment: AugmentConfig = AugmentConfig()
    fits: Mapping[str, FitConfig] = field(default_factory=dict[str, FitConfig])
    """By method: optimiser and schedule instead of the published ones."""

    def __post_init__(self) -> None:
        """Refuse grids of nothing, and cells that could not be told apart."""
        for name in ("tasks", "methods", "shots", "seeds"):
            values = getattr(self, name)
            if not values:
                raise ValueError(f"{name} must hold at least one")
            if len({repr(value) for value in values}) != len(values):
                raise ValueError(f"{name} holds one twice: {[getattr(v, 'name', v) for v in values]}")
        names = [task.name for task in self.tasks]
        if len(set(names)) != len(names):
            raise ValueError(f"tasks must have different names, got {', '.join(names)}")
        if self.protocol == "cross_dataset" and len(names) < 2:
            raise ValueError("protocol cross_dataset needs at least two tasks")
        kinds = {method.kind for method in self.methods}
        if unknown := sorted(set(self.fits) - kinds):
            raise ValueError(f"fits: {unknown[0]!r} is no method of this grid ({', '.join(sorted(kinds))})")


__all__ = ["FewShotTask", "TuneConfig"]
