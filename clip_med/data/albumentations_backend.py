"""albumentations as the one that varies a training crop: the presets of `presets.py`, drawn by its transforms.

Crop and antialiased resizing stay where they are (`augment.py`), so scaled decoding and the crop's distribution are the
same for either backend. albumentations 2.0.8 is the last release under the MIT licence; it is an extra (`aug`).
"""

from __future__ import annotations

import functools
import importlib.util
import math
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float64, UInt8

from clip_med.data.augment import Changes


def require_albumentations() -> None:
    """Refuse at the start what would otherwise fail in a worker.

    Raises:
        ValueError: albumentations is not installed.
    """
    if importlib.util.find_spec("albumentations") is None:
        raise ValueError(
            "augment.backend is 'albumentations', which is not installed: pip install 'clip-med[aug]', "
            "or choose 'builtin'"
        )


def vary(
    image: UInt8[np.ndarray, "H W C"], changes: Changes, draws: Float64[np.ndarray, "9"]
) -> UInt8[np.ndarray, "H W C"]:
    """Brightness, contrast about the mean, gamma and channel gains within the ranges of `changes`; never hue."""
    return _applied(_intensity(changes.brightness, changes.contrast, changes.gamma, changes.color), image, draws[:3])


def arrange(
    image: UInt8[np.ndarray, "S S C"], changes: Changes, draws: Float64[np.ndarray, "9"], fill: int
) -> UInt8[np.ndarray, "S S C"]:
    """A rotation with `fill` in the corners, and the flips and quarter turns that `changes` allows."""
    allowed = (changes.horizontal_flip, changes.vertical_flip, changes.quarter_turns)
    return _applied(_arrangement(changes.rotation, allowed, fill), image, draws[3:7])


def _applied(
    transforms: Sequence[Any], image: UInt8[np.ndarray, "H W C"], draws: Float64[np.ndarray, " N"]
) -> UInt8[np.ndarray, "H W C"]:
    """One transform after the other, each from a seed of its own.

    `Compose.set_random_seed` gives all of its transforms the same seed, and with it the same first numbers: a bright
    image would always be a mirrored one, turned to the same side.
    """
    for transform, draw in zip(transforms, draws, strict=False):
        transform.set_random_seed(int(draw * 2.0**53))
        image = transform(image=image)["image"]
    return image


@functools.lru_cache(maxsize=128)
def _intensity(brightness: float, contrast: float, gamma: float, color: float) -> tuple[Any, ...]:
    package = _albumentations()
    return (
        package.ColorJitter(
            brightness=(1.0 - brightness, 1.0 + brightness),
            contrast=(1.0 - contrast, 1.0 + contrast),
            saturation=(1.0, 1.0),
            hue=(0.0, 0.0),
            p=1.0,
        ),
        # In percent of the exponent; its table cuts fractions off, so an exponent of 1 is left out.
        package.RandomGamma(gamma_limit=(100.0 * math.exp(-gamma), 100.0 * math.exp(gamma)), p=float(gamma > 0.0)),
        package.MultiplicativeNoise(multiplier=(1.0 - color, 1.0 + color), per_channel=True, p=float(color > 0.0)),
    )


@functools.lru_cache(maxsize=128)
def _arrangement(rotation: float, allowed: tuple[bool, bool, bool], fill: int) -> tuple[Any, ...]:
    package = _albumentations()
    horizontal, vertical, quarters = allowed
    return (
        package.Rotate(limit=(-rotation, rotation), fill=fill, p=float(rotation > 0.0)),
        package.HorizontalFlip(p=0.5 * horizontal),
        package.VerticalFlip(p=0.5 * vertical),
        package.RandomRotate90(p=float(quarters)),
    )


@functools.cache
def _albumentations() -> Any:
    # It asks a server for news at import, unless told not to: a cluster's nodes may not, and a hospital's should not.
    os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
    import albumentations  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]
    import cv2  # pyright: ignore[reportMissingTypeStubs, reportMissingImports]

    # One core is one worker's share; and OpenCV's threads would not survive the fork that makes a worker.
    cv2.setNumThreads(0)
    return albumentations


__all__ = ["arrange", "require_albumentations", "vary"]
