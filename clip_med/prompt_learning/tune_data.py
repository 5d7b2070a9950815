"""The data of one few-shot task: splits, frozen features and class texts, each computed when first asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from jaxtyping import Float, Int64

from clip_med.config import nearest
from clip_med.data.augment import AugmentConfig
from clip_med.data.shards import ShardSet
from clip_med.data.views import ViewConfig, view_batches
from clip_med.knowledge.facets import Facet, facet_texts
from clip_med.knowledge.load import load_base
from clip_med.knowledge.schema import Finding
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.feature_cache import cached_view_features, image_tower_digest
from clip_med.models.features import Progress
from clip_med.prompt_learning.class_texts import encode_class_texts
from clip_med.prompt_learning.method import ClassTexts, Support
from clip_med.prompt_learning.shots import Labelled, find_classes, labelled
from clip_med.prompt_learning.tune_config import FewShotTask

_FACETS: Final[tuple[Facet, ...]] = ("definition", "appearance", "attributes", "report")


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are encoded: the frozen model, the folder of its features, and the views of training images."""

    encoder: DualEncoder
    cache: Path | None
    views: int = 1
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    on_progress: Progress | None = None

    @cached_property
    def digest(self) -> str:
        """Of the image tower."""
        return image_tower_digest(self.encoder)


class TaskData:
    """Splits of a task and what the frozen model makes of them.

    `train` and `val` may be looked at to learn and to choose; `test` is opened when the score is asked for.

    Raises:
        ValueError: an unknown class, a class without images, a sample with none or several of the classes, no or too
            few descriptions where there must be some, or texts that the context cuts; see the functions used.
    """

    def __init__(self, task: FewShotTask, encoding: Encoding) -> None:
        self.task = task
        self.encoding = encoding
        self._whole: list[Labelled] = []
        self._texts: dict[tuple[str, ...], ClassTexts] = {}
        self._known: dict[tuple[int, int], Float[np.ndarray, "M N D"]] = {}

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """Labels of the classes, in the order of their numbers."""
        found = find_classes(ShardSet.open(self.task.train), self.task.dataset)
        if unknown := [label for label in self.task.classes if label not in found]:
            raise ValueError(
                f"task {self.task.name}: class {unknown[0]!r} is no label of {self.task.train}; "
                f"{nearest(unknown[0], found)}"
            )
        return tuple(self.task.classes) or found

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes in prompts."""
        return tuple(self.task.classes.get(label, label) for label in self.labels)

    @cached_property
    def train(self) -> Labelled:
        """Images to draw shots from."""
        return self._split(self.task.train, "train")

    @cached_property
    def val(self) -> Labelled | None:
        """Images to choose settings on."""
        return None if self.task.val is None else self._split(self.task.val, "val")

    @cached_property
    def test(self) -> Labelled:
        """Images to be scored on."""
        return self._split(self.task.test, "test")

    @cached_property
    def descriptions(self) -> Mapping[str, Sequence[str]] | None:
        """Sentences of each class, as many for each: the fewest that any class has."""
        if self.task.descriptions is None:
            return None
        if self.task.descriptions == "knowledge":
            told = {name: facet_texts(_finding(name), _FACETS) for name in self.names}
            fewest = min(map(len, told.values()))
            return {name: texts[:fewest] for name, texts in told.items()}
        file = Path(self.task.descriptions)
        try:
            found: Any = json.loads(file.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ValueError(f"{file}: no such file of descriptions") from None
        except (OSError, ValueError) as error:
            raise ValueError(f"{file}: descriptions must be a JSON object of lists of sentences: {error}") from error
        if not isinstance(found, dict):
            raise ValueError(f"{file}: expected an object of class names, got {type(found).__name__}")
        for name in self.names:
            if not found.get(name):
                raise ValueError(f"{file}: no descriptions of class {name!r}; {nearest(name, found)}")
        fewest = min(len(found[name]) for name in self.names)
        return {name: found[name][:fewest] for name in self.names}

    def texts(self, names: Sequence[str] | None = None) -> ClassTexts:
        """Templates and descriptions of the classes (None: all) through the text tower, once."""
        chosen = self.names if names is None else tuple(names)
        if chosen not in self._texts:
            self._texts[chosen] = encode_class_texts(
                self.encoding.encoder, chosen, self.task.templates, self.descriptions
            )
        return self._texts[chosen]

    def support(self, data: Labelled, rows: Int64[np.ndarray, " R"], *, images: bool) -> Support:
        """Views of some rows of the training split, as features and, where they are needed, as pixels."""
        return self._support(data, rows, self.encoding.views, images)

    def shown(self, data: Labelled, rows: Int64[np.ndarray, " R"], *, images: bool) -> Support:
        """Some rows of a split as evaluation shows them."""
        return self._support(data, rows, 1, images)

    def _support(self, data: Labelled, rows: Int64[np.ndarray, " R"], views: int, images: bool) -> Support:
        indices = [data.indices[row] for row in rows]
        device = self.encoding.encoder.logit_scale.device
        features = torch.from_numpy(self._features(data.shards, indices, views)).to(device)
        labels = torch.from_numpy(data.labels[rows]).to(device)
        if not images:
            return Support(features=features, labels=labels)
        preprocess = self.encoding.encoder.preprocess
        pixels = torch.cat(list(view_batches(data.shards, indices, preprocess, self._views(views))), dim=1)
        return Support(features=features, labels=labels, images=pixels.to(device))

    def _features(self, shards: ShardSet, indices: Sequence[int], views: int) -> Float[np.ndarray, "M R D"]:
        """Of some samples, out of those of the whole split, which are computed or read once."""
        number = next(number for number, whole in enumerate(self._whole) if whole.shards is shards)
        whole = self._whole[number].indices
        if (number, views) not in self._known:
            self._known[number, views] = cached_view_features(
                self.encoding.encoder,
                shards,
                whole,
                self._views(views),
                cache=self.encoding.cache,
                model_digest=self.encoding.digest,
                on_progress=self.encoding.on_progress,
            )
        return self._known[number, views][:, np.searchsorted(whole, indices)]

    def _views(self, count: int) -> ViewConfig:
        return ViewConfig(count=count, augment=self.encoding.augment)

    def _split(self, location: str, name: str) -> Labelled:
        split = labelled(
            ShardSet.open(location), self.labels, dataset=self.task.dataset, name=f"task {self.task.name}: {name}"
        )
        self._whole.append(split)
        return split


def _finding(name: str) -> Finding:
    try:
        found = load_base().find(name)
    except ValueError as error:
        raise ValueError(f"class {name!r}: {error}; or give descriptions as a JSON file") from None
    if len(found) != 1:
        ids = ", ".join(finding.id for finding in found)
        raise ValueError(f"class {name!r} stands for several findings ({ids}): give descriptions as a JSON file")
    return found[0]


__all__ = ["Encoding", "TaskData"]
