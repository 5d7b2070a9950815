"""The sides of `benchmarks.knowledge`: how each is trained without some classes, and what it then says of images."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.knowledge_data import PROMPTS, Task
from clip_med.config import load_config
from clip_med.data.shards import ShardSet
from clip_med.knowledge.prompts import prompt_weights
from clip_med.models.config import TwoTowerModel
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import image_features
from clip_med.models.folder import load_folder
from clip_med.pretrain import PretrainConfig, pretrain
from clip_med.training.config import ScheduleConfig
from clip_med.training.facets import FacetConfig
from clip_med.training.prototypes import PrototypeConfig
from clip_med.training.queries import QueryConfig
from zero_shot.classify import class_scores
from zero_shot.metrics import macro_auroc
from zero_shot.prompt_features import prompt_features
from zero_shot.query_answers import Queries, query_answers

SIDES: Final = (
    "corpus_small",
    "corpus_unimed_clip",
    "corpus_flair",
    "corpus_keep",
    "corpus_devide",
    "corpus_medclip",
    "corpus_kad",
    "corpus_k2sight",
)
QUERIES: Final = "queries"
# What the configurations call the text tower that `clip-med knowledge train` writes.
_TEXT_TOWER: Final = "runs/knowledge_text"

Doubles = NDArray[np.float64]
Head = TypeVar("Head", FacetConfig, QueryConfig, PrototypeConfig)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is trained: samples of each run, side of the images, steps of the text tower, seeds, rows."""

    samples: int
    seeds: int
    image_size: int = 64
    batch_size: int = 64
    text_steps: int = 60
    every: int = 1


@dataclass(frozen=True, kw_only=True)
class Images:
    """The test images of one source, in the order of the shards."""

    task: Task
    indices: list[int]
    truth: NDArray[np.int64]
    groups: list[str]

    @classmethod
    def of(cls, task: Task, test: ShardSet) -> Images:
        """Those of a task among all."""
        samples = [(i, test.metadata(i)) for i in range(len(test))]
        own = [(i, sample) for i, sample in samples if sample.dataset == task.source]
        numbers = {label: number for number, label in enumerate(task.classes)}
        truth = np.array([numbers[sample.labels[0]] for _, sample in own], dtype=np.int64)
        return cls(task=task, indices=[i for i, _ in own], truth=truth, groups=[sample.group for _, sample in own])


def configured(side: str, seed: int, scale: Scale, shards: Path, weights: Path, text: Path) -> PretrainConfig:
    """The configuration of a side with our data, budget, image size and text tower; its classes are still all."""
    config = load_config(PretrainConfig, f"pretrain/{side}")
    model, queries = config.model, config.queries
    assert isinstance(model, TwoTowerModel)
    if model.text.path == _TEXT_TOWER:
        model = replace(model, text=replace(model.text, path=str(text)))
    if queries is not None:
        assert queries.text.path == _TEXT_TOWER
        queries = replace(queries, text=replace(queries.text, path=str(text)))
    train = replace(
        config.train,
        samples=scale.samples,
        epochs=None,
        batch_size=scale.batch_size,
        seed=seed,
        precision="fp32",
        schedule=ScheduleConfig(warmup_samples=scale.samples // 10),
        save_every_samples=10**9,
        keep=1,
    )
    return replace(
        config,
        model=replace(model, image=replace(model.image, weights=weights, image_size=scale.image_size)),
        shards=(str(shards),),
        sources=(),
        loader=replace(config.loader, workers=0),
        train=train,
        queries=queries,
    )


def without(config: PretrainConfig, labels: Collection[str]) -> PretrainConfig:
    """The same without classes that training must not know of: as a negative, a class would be known by its text."""
    prototypes = tuple(_fewer(one, labels) for one in config.prototypes)
    facets = config.facets and _fewer(config.facets, labels)
    queries = config.queries and _fewer(config.queries, labels)
    for heads in ((config.facets,), (config.queries,), config.prototypes):
        named = {label for head in heads if head is not None for label in head.prompts.classes}
        assert not named or named.issuperset(labels), "every label that is left out was a class"
    return replace(config, facets=facets, queries=queries, prototypes=prototypes)


def _fewer(head: Head, labels: Collection[str]) -> Head:
    classes = {label: names for label, names in head.prompts.classes.items() if label not in labels}
    return replace(head, prompts=replace(head.prompts, classes=classes))


def trained(config: PretrainConfig, run: Path) -> DualEncoder:
    """The model at the end of the run."""
    summary = pretrain(config, run, device="cpu", on_start=lambda _: None)
    return load_folder(summary.checkpoint / "model")


def judged(
    encoder: DualEncoder, config: PretrainConfig, test: ShardSet, images: list[Images], seed: int
) -> dict[str, dict[str, Doubles]]:
    """By what tells the classes (prompts, or queries where there is a decoder) and by source: see `outcome`.

    Args:
        config: of the side, with all classes: the decoder is asked for those that were left out, too.
    """
    features = image_features(encoder, test, range(len(test)))
    found: dict[str, dict[str, Doubles]] = {}
    for kind in PROMPTS:
        found[kind] = {}
        for part in images:
            # A model that has learnt projections of facets is asked through them.
            prompts = part.task.prompts(kind, project=encoder.facets is not None)
            told, weights = prompt_features(encoder, prompts), prompt_weights(prompts)
            found[kind] |= outcome(part, class_scores(features[part.indices], told, weights=weights), seed)
    if encoder.queries is not None and config.queries is not None:
        # All classes of all sources at once, as in training, where they attend to each other.
        asked = Queries.of(encoder, config.queries.prompts, config.queries.text)
        answers = query_answers(encoder, test, range(len(test)), asked)
        columns = {label: number for number, label in enumerate(asked.texts)}
        found[QUERIES] = {}
        for part in images:
            own = answers[np.ix_(part.indices, [columns[label] for label in part.task.classes])]
            found[QUERIES] |= outcome(part, own, seed)
    return found


def outcome(part: Images, scores: Doubles, seed: int) -> dict[str, Doubles]:
    """Hits of every image, NaN where it belongs to the other group; and the AUROC of the held-out class."""
    source, held = part.task.source, list(part.task.classes).index(part.task.held_out(seed))
    hits = (scores.argmax(axis=1) == part.truth).astype(np.float64)
    own = part.truth == held
    margin = scores[:, held] - np.delete(scores, held, axis=1).max(axis=1)
    two = np.stack([-margin, margin], axis=1)
    return {
        f"{source}/seen": np.where(own, np.nan, hits),
        f"{source}/held out": np.where(own, hits, np.nan),
        f"{source}/AUROC": np.array([macro_auroc(two, own.astype(np.int64))]),
    }


__all__ = ["QUERIES", "SIDES", "Images", "Scale", "configured", "judged", "outcome", "trained", "without"]
