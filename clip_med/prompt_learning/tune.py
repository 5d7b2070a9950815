"""One cell of a few-shot grid: draw the shots, adapt, and only then open the test split and score."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clip_med.config import config_hash, to_plain
from clip_med.models.features import Progress
from clip_med.models.folder import load_folder, resolve_folder
from clip_med.prompt_learning.base_novel import halves, of_classes
from clip_med.prompt_learning.method import Method, Support
from clip_med.prompt_learning.methods import MethodConfig, adapt, for_other_classes, takes_images, transfers
from clip_med.prompt_learning.shots import draw_shots
from clip_med.prompt_learning.tune_config import TuneConfig
from clip_med.prompt_learning.tune_data import Encoding, TaskData


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of a grid. `id` changes with anything that the row depends on but the model's weights and the images."""

    index: int
    task: str
    method: MethodConfig
    shots: int
    seed: int
    id: str

    @property
    def label(self) -> str:
        """For people."""
        return f"{self.task} {self.method.kind} {self.shots or 'all'} shots seed {self.seed}"


def cells(config: TuneConfig) -> tuple[Cell, ...]:
    """All cells, in the order task, method, shots, seed."""
    made: list[Cell] = []
    for task in config.tasks:
        for method in config.methods:
            for shots in config.shots:
                for seed in config.seeds:
                    rest = [task, method, shots, seed, config.fits.get(method.kind)]
                    rest += [config.model, config.protocol, config.validate, config.views, config.augment]
                    if config.protocol == "cross_dataset":
                        rest += [config.tasks]
                    made.append(
                        Cell(
                            index=len(made),
                            task=task.name,
                            method=method,
                            shots=shots,
                            seed=seed,
                            id=config_hash(rest),
                        )
                    )
    return tuple(made)


class Grid:
    """The tasks and the model of a grid, loaded once for all of its cells.

    Args:
        cache: folder of image features; None keeps them in memory only.

    Raises:
        ValueError: a model that cannot be loaded.
    """

    def __init__(
        self, config: TuneConfig, *, cache: Path | None, device: str = "cpu", on_progress: Progress | None = None
    ) -> None:
        self.config = config
        self.folder = resolve_folder(Path(config.model))
        encoder = load_folder(self.folder).to(device).eval()
        self.encoding = Encoding(
            encoder=encoder, cache=cache, views=config.views, augment=config.augment, on_progress=on_progress
        )
        self.tasks = {task.name: TaskData(task, self.encoding) for task in config.tasks}

    def run(self, cell: Cell) -> list[dict[str, Any]]:
        """The rows of a cell: one, or one for each set that it answers on.

        The test split is opened after the method has been fitted and its settings chosen.

        Raises:
            ValueError: see `TaskData`, `draw_shots` and `adapt`; a method that cannot answer for other classes in a
                protocol that asks it to.
        """
        began = time.perf_counter()
        config, data = self.config, self.tasks[cell.task]
        base = config.protocol == "base_to_novel"
        if config.protocol != "all_classes" and not transfers(cell.method):
            raise ValueError(
                f"{cell.method.kind} learns something for each class and cannot answer for others; protocol "
                f"{config.protocol} needs a method that can, such as coop"
            )
        names = halves(data.labels)[0] if base else data.labels
        method, used = self._adapted(cell, data, names)
        row = {
            "cell": cell.id,
            "task": cell.task,
            "method": cell.method.kind,
            "config": to_plain(cell.method),
            "shots": cell.shots,
            "seed": cell.seed,
            "protocol": config.protocol,
            "model": str(self.folder),
            "image_tower": self.encoding.digest[:16],
            **used,
        }
        seconds = time.perf_counter() - began
        return [
            {**row, "scored_on": name, **scores, "seconds": round(seconds, 3)}
            for name, scores in self._scores(cell, data, method)
        ]

    def _adapted(self, cell: Cell, data: TaskData, labels: Sequence[str]) -> tuple[Method, dict[str, Any]]:
        train, val = of_classes(data.train, labels), None
        if self.config.validate and data.val is not None:
            val = of_classes(data.val, labels)
        draw = draw_shots(train, cell.shots or None, seed=cell.seed, validation=val)
        images = takes_images(cell.method)
        support = data.support(train, draw.support, images=images)
        held = None if val is None else data.shown(val, draw.validation, images=images)
        texts = data.texts(self._names(data, labels))
        method = adapt(
            cell.method,
            self.encoding.encoder,
            texts,
            support,
            shots=cell.shots or None,
            seed=cell.seed,
            validation=held,
            fitting=self.config.fits.get(cell.method.kind),
        )
        described = 0 if texts.descriptions is None else texts.descriptions.shape[1]
        return method, {
            "support": len(draw.support),
            "validation": len(draw.validation),
            "descriptions": described,
        }

    def _scores(self, cell: Cell, data: TaskData, method: Method) -> Iterator[tuple[str, dict[str, Any]]]:
        match self.config.protocol:
            case "all_classes":
                yield "test", self._score(cell, data, data.labels, method)
            case "base_to_novel":
                base, novel = halves(data.labels)
                yield "base", self._score(cell, data, base, method)
                yield "novel", self._score(cell, data, novel, self._other(cell, data, novel, method))
            case "cross_dataset":
                yield cell.task, self._score(cell, data, data.labels, method)
                for name, other in self.tasks.items():
                    if name != cell.task:
                        moved = self._other(cell, other, other.labels, method)
                        yield name, self._score(cell, other, other.labels, moved)

    def _other(self, cell: Cell, data: TaskData, labels: Sequence[str], method: Method) -> Method:
        texts = data.texts(self._names(data, labels))
        return for_other_classes(method, cell.method, self.encoding.encoder, texts)

    def _score(self, cell: Cell, data: TaskData, labels: Sequence[str], method: Method) -> dict[str, Any]:
        test = of_classes(data.test, labels)
        shown = data.shown(test, np.arange(len(test.labels)), images=takes_images(cell.method))
        return scores(method, shown)

    @staticmethod
    def _names(data: TaskData, labels: Sequence[str]) -> tuple[str, ...]:
        return tuple(data.names[data.labels.index(label)] for label in labels)


def scores(method: Method, test: Support) -> dict[str, Any]:
    """Top-1 and balanced accuracy (mean over classes of each one's recall) on labelled images."""
    inputs: Tensor = test.features[0] if test.images is None else test.images[0]
    answers = method.predict(inputs, batch_size=1024 if test.images is None else 64).argmax(dim=1)
    right = (answers == test.labels).double()
    recalls = [float(right[test.labels == label].mean()) for label in torch.unique(test.labels)]
    return {"top1": float(right.mean()), "balanced": float(np.mean(recalls)), "n": len(right)}


__all__ = ["Cell", "Grid", "cells", "scores"]
