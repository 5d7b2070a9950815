"""Damage that medical images meet in practice, at five levels each. Imports no torch.

In the manner of ImageNet-C (Hendrycks and Dietterich, arXiv 1903.12261), with kinds and strengths of our own. What is
drawn depends on (seed, index, kind) alone: not on the level, so that a higher one does more of the same, and not on the
order of images, workers or ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Final, Literal, get_args

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from PIL.Image import Resampling

from clip_med.data.images import decode_image
from zero_shot.grounding import smooth

Corruption = Literal["noise", "blur", "contrast", "jpeg", "rotation", "crop", "marker"]
CORRUPTIONS: Final[tuple[Corruption, ...]] = get_args(Corruption)
LEVELS: Final = (1, 2, 3, 4, 5)

Pixels = UInt8[np.ndarray, "H W C"]
Changed = UInt8[np.ndarray, "H2 W2 C"]
Corrupt = Callable[[Pixels, float, np.random.Generator], Changed]

STRENGTHS: Final[Mapping[Corruption, tuple[float, float, float, float, float]]] = {
    "noise": (5.0, 10.0, 18.0, 28.0, 42.0),  # standard deviation in grey levels
    "blur": (0.004, 0.008, 0.013, 0.02, 0.03),  # standard deviation as a share of the short side
    "contrast": (0.8, 0.6, 0.45, 0.3, 0.18),  # share of the contrast that is left
    "jpeg": (50.0, 30.0, 18.0, 10.0, 5.0),  # quality
    "rotation": (3.0, 6.0, 10.0, 16.0, 25.0),  # degrees, to either side
    "crop": (0.95, 0.9, 0.83, 0.75, 0.65),  # share of each side that is left
    "marker": (
        1.0,
        2.0,
        3.0,
        4.0,
        5.0,
    ),  # how many; n of them are 4 + 2 n % of the short side high
}

# What stands on films and screens, and nothing that could belong to a person.
_MARKERS: Final = ("L", "R", "AP", "PA", "SUPINE", "ERECT", "PORTABLE", "SEATED")


def corrupt(image: Pixels, kind: Corruption, level: int, *, seed: int, index: int) -> Changed:
    """One kind of damage done to an image; level 0 gives the image itself.

    - noise: normal, added to each value
    - blur: Gaussian
    - contrast: drawn towards the image's mean
    - jpeg: written as JPEG of low quality
    - rotation: to a random side about the centre, corners black
    - crop: a random part; the result is smaller
    - marker: letters burned in near the corners, white

    Args:
        image: uint8, one or three channels.
        level: 0 .. 5; see `STRENGTHS`.
        seed, index: which draws; index is the number of the sample in its shard set.

    Raises:
        ValueError: a level out of range.

    Example:
        >>> grey = np.full((32, 32, 1), 100, dtype=np.uint8)
        >>> corrupt(grey, "crop", 5, seed=0, index=0).shape
        (21, 21, 1)
    """
    if not 0 <= level <= len(LEVELS):
        raise ValueError(f"level must lie in 0 .. {len(LEVELS)}, got {level}")
    if level == 0:
        return image
    rng = np.random.default_rng(np.random.SeedSequence((seed, index, CORRUPTIONS.index(kind))))
    return _DO[kind](image, STRENGTHS[kind][level - 1], rng)


def _noise(image: Pixels, deviation: float, rng: np.random.Generator) -> Pixels:
    return _bytes(image + deviation * rng.standard_normal(image.shape))


def _blur(image: Pixels, share: float, rng: np.random.Generator) -> Pixels:
    radius = share * min(image.shape[:2])
    if radius < 1:
        # Pillow's three box filters do nothing under about half a pixel.
        return _bytes(np.stack([smooth(channel.astype(np.float64), radius) for channel in np.moveaxis(image, 2, 0)], 2))
    return _array(_picture(image).filter(ImageFilter.GaussianBlur(radius)), image)


def _contrast(image: Pixels, left: float, rng: np.random.Generator) -> Pixels:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return _bytes(mean + left * (image - mean))


def _jpeg(image: Pixels, quality: float, rng: np.random.Generator) -> Pixels:
    file = BytesIO()
    _picture(image).save(file, "JPEG", quality=int(quality))
    return decode_image(file.getvalue())


def _rotation(image: Pixels, degrees: float, rng: np.random.Generator) -> Pixels:
    angle = degrees * rng.choice((-1, 1))
    return _array(_picture(image).rotate(angle, resample=Resampling.BILINEAR), image)


def _crop(image: Pixels, share: float, rng: np.random.Generator) -> Changed:
    at = rng.random(2)
    sizes = [max(1, round(share * length)) for length in image.shape[:2]]
    top, left = (round(a * (whole - size)) for a, whole, size in zip(at, image.shape[:2], sizes, strict=True))
    return np.ascontiguousarray(image[top : top + sizes[0], left : left + sizes[1]])


def _marker(image: Pixels, count: float, rng: np.random.Generator) -> Pixels:
    height, width = image.shape[:2]
    texts = rng.permutation(len(_MARKERS))
    corners = rng.permutation(4)
    offsets = rng.random((len(STRENGTHS["marker"]), 2))
    picture = _picture(image)
    draw = ImageDraw.Draw(picture)
    size = max(6, round((0.04 + 0.02 * count) * min(height, width)))
    font = ImageFont.load_default(size)
    for number in range(int(count)):
        text = _MARKERS[texts[number]]
        _, _, wide, high = draw.textbbox((0, 0), text, font=font)
        corner = corners[number % 4]
        down, across = 0.02 + 0.13 * offsets[number]
        x = across * width if corner % 2 == 0 else (1 - across) * width - wide
        y = down * height if corner < 2 else (1 - down) * height - high
        draw.text((x, y), text, font=font, fill="white" if picture.mode == "RGB" else 255)
    return _array(picture, image)


_DO: Final[Mapping[Corruption, Corrupt]] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "rotation": _rotation,
    "crop": _crop,
    "marker": _marker,
}


def _bytes(values: np.ndarray) -> Pixels:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def _picture(image: Pixels) -> Image.Image:
    return Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image)


def _array(picture: Image.Image, like: Pixels) -> Pixels:
    return np.array(picture).reshape(*like.shape)


__all__ = ["CORRUPTIONS", "LEVELS", "STRENGTHS", "Corruption", "corrupt"]
