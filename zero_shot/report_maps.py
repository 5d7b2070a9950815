"""Similarity maps for the report: where some images of each task are like their class, and like the model's answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import UInt8

from clip_med.data.augment import eval_image
from clip_med.data.images import decode_image
from clip_med.data.shards import ShardSet
from clip_med.models.dual_encoder import DualEncoder
from clip_med.models.features import evaluating, text_features
from zero_shot.evaluation import Evaluation, Example, TaskReport
from zero_shot.grounding import similarity_map, smooth, to_image
from zero_shot.overlay import overlay
from zero_shot.patches import patch_features

# Right and wrong examples that get maps.
_EACH: Final = 2


@dataclass(frozen=True, kw_only=True)
class ImageMaps:
    """An image of a task with a map over it for its true class and, if that is another, for the answer."""

    shards: str
    index: int
    truth: str
    answer: str
    maps: Mapping[str, UInt8[np.ndarray, "H W 3"]]


@dataclass(frozen=True, kw_only=True)
class ReportMaps:
    """Maps by classification task, and the places of the tower's grid (rows, columns).

    `refused`: why the image tower has no features of places; then there are no maps.
    """

    by_task: Mapping[str, tuple[ImageMaps, ...]]
    grid: tuple[int, int] = (0, 0)
    refused: str | None = None


def similarity_maps(encoder: DualEncoder, evaluation: Evaluation) -> ReportMaps:
    """Maps of two right and two wrong examples of every classification task that compares images with prompts.

    A class is the normalised mean of its prompts, whatever the ensemble of the task; smoothed as in
    `zero_shot.explanation`, by as much of the image as BioViL's 1.5 of 14 places.
    """
    by_task: dict[str, tuple[ImageMaps, ...]] = {}
    opened: dict[str, ShardSet] = {}
    grid = (0, 0)
    for task in evaluation.tasks:
        chosen = [one for right in (True, False) for one in [e for e in task.examples if e.right == right][:_EACH]]
        if task.kind != "classification" or task.score == "queries" or not chosen:
            continue
        labels = sorted({name for one in chosen for name in (one.truth, one.answers[0].text)})
        texts = {label: _class_feature(encoder, task, label) for label in labels}
        found: list[ImageMaps] = []
        for one in chosen:
            if one.shards not in opened:
                opened[one.shards] = ShardSet.open(one.shards)
            pixels = decode_image(opened[one.shards].read(one.index).image, source=one.key)
            try:
                with evaluating(encoder):
                    images = eval_image(pixels, encoder.preprocess)[None].to(encoder.logit_scale.device)
                    places = patch_features(encoder, images)[0].float().cpu().numpy()
            except ValueError as error:
                # A tower of a kind whose places are not known; the report says so in the place of the maps.
                return ReportMaps(by_task={}, refused=str(error))
            grid = (places.shape[0], places.shape[1])
            found.append(_maps(encoder, one, pixels, places, texts))
        by_task[task.name] = tuple(found)
    return ReportMaps(by_task=by_task, grid=grid)


def _class_feature(encoder: DualEncoder, task: TaskReport, label: str) -> np.ndarray:
    mean = text_features(encoder, task.prompts[label]).mean(axis=0)
    return mean / np.linalg.norm(mean)


def _maps(
    encoder: DualEncoder, example: Example, pixels: np.ndarray, places: np.ndarray, texts: Mapping[str, np.ndarray]
) -> ImageMaps:
    height, width = pixels.shape[:2]
    answer = example.answers[0].text
    drawn: dict[str, np.ndarray] = {}
    labels = dict.fromkeys((example.truth, answer))
    for label in labels:
        values = smooth(similarity_map(places, texts[label]), 1.5 * places.shape[0] / 14)
        drawn[label] = overlay(pixels, to_image(values, height, width, encoder.preprocess))
    return ImageMaps(shards=example.shards, index=example.index, truth=example.truth, answer=answer, maps=drawn)


__all__ = ["ImageMaps", "ReportMaps", "similarity_maps"]
