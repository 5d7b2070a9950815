"""Whole-slide images through tiffslide: resolution, tissue, regions and an overview. The label image is never read."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageDraw
from tiffslide import TiffSlide

from data_prep.record import RejectedImageError

# Tissue is looked for in an image of at most this many pixels a side, made from a level of at most so many pixels.
OVERVIEW_SIDE: Final = 2048
MAX_LEVEL_PIXELS: Final = 100_000_000
# Of the file's own blocks, each of which is decoded whole.
MAX_BLOCK_PIXELS: Final = 16_000_000
# An objective of 1x shows 10 micrometres per pixel, by the convention of scanners: 20x 0.5, 40x 0.25.
MPP_AT_1X: Final = 10.0
# Of 255: paler is glass, whatever Otsu's threshold says of a slide without tissue; darker than this is padding.
_LEAST_SATURATION: Final = 18
_BLACK: Final = 30
# What the parsers of tiffslide, tifffile and imagecodecs raise on damaged files.
_DAMAGED: Final = (
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    EOFError,
    MemoryError,
    struct.error,
    zlib.error,
)


@dataclass(frozen=True, kw_only=True)
class Level:
    """One level of the pyramid: its number, its size, and how many pixels of level 0 one of its pixels covers."""

    number: int
    width: int
    height: int
    down_x: float
    down_y: float


class Slide:
    """An opened slide of RGB pixels with 8 bits; `close` it.

    Attributes:
        levels: from the largest.
        mpp: micrometres per pixel of level 0 (x, y), or None where the file does not say.

    Raises:
        RejectedImageError: damaged, no RGB, or built of blocks that are too large.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._slide = TiffSlide(path)
        except OSError:
            raise
        except _DAMAGED as error:
            raise _damaged(error) from error
        try:
            self._check()
            width, height = self._slide.level_dimensions[0]
            self.levels = tuple(
                Level(number=number, width=w, height=h, down_x=width / w, down_y=height / h)
                for number, (w, h) in enumerate(self._slide.level_dimensions)
            )
            self.mpp = _mpp(self._slide.properties)
        except BaseException as error:
            self.close()
            if isinstance(error, _DAMAGED) and not isinstance(error, RejectedImageError):
                raise _damaged(error) from error
            raise

    def close(self) -> None:
        """Close its file."""
        self._slide.close()

    def region(self, level: Level, x: int, y: int, width: int, height: int) -> UInt8[np.ndarray, "H W 3"]:
        """Pixels of a level from (x, y), counted in that level, inside of it."""
        try:
            # The location is that of level 0; half a pixel more, since tiffslide rounds down on the way back.
            start = (int((x + 0.5) * level.down_x), int((y + 0.5) * level.down_y))
            pixels: Any = self._slide.read_region(start, level.number, (width, height), as_array=True)
        except OSError:
            raise
        except _DAMAGED as error:
            raise _damaged(error) from error
        return np.ascontiguousarray(pixels)

    def overview(self) -> UInt8[np.ndarray, "H W 3"]:
        """The whole slide with its long side at most `OVERVIEW_SIDE`, from the smallest level that is not smaller.

        Raises:
            RejectedImageError: that level is too large: the slide has no pyramid.
        """
        enough = [level for level in self.levels if max(level.width, level.height) >= OVERVIEW_SIDE]
        level = (enough or self.levels[:1])[-1]
        if level.width * level.height > MAX_LEVEL_PIXELS:
            raise RejectedImageError("no low level", f"the smallest that serves has {level.width} x {level.height}")
        pixels = self.region(level, 0, 0, level.width, level.height)
        scale = max(level.width, level.height) / OVERVIEW_SIDE
        if scale <= 1:
            return pixels
        size = (max(1, round(level.width / scale)), max(1, round(level.height / scale)))
        return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BOX))

    def _check(self) -> None:
        number = int(self._slide.properties["tiffslide.series-index"])
        for page in (level.keyframe for level in self._slide.ts_tifffile.series[number].levels):
            if int(np.prod(page.chunks, dtype=object)) > 3 * MAX_BLOCK_PIXELS:
                raise RejectedImageError("too large", f"blocks of {page.chunks}: not tiled")
            if page.dtype != np.uint8 or page.samplesperpixel != 3:
                raise RejectedImageError("not RGB", f"{page.samplesperpixel} x {page.dtype}, expected 3 x uint8")
        if min(map(min, self._slide.level_dimensions)) < 1:
            raise RejectedImageError("damaged slide", f"levels of {self._slide.level_dimensions}")


def tissue_mask(overview: UInt8[np.ndarray, "H W 3"]) -> tuple[Bool[np.ndarray, "H W"], int]:
    """Where tissue is, and the threshold: saturation (of HSV, 0 .. 255) above Otsu's threshold, and not black.

    Otsu (1979): the threshold that makes the variance between both classes largest. It always divides; so pixels paler
    than 18 of 255 are never tissue, which leaves a slide of glass alone empty. Ink is coloured, and so is taken along.
    """
    most = overview.max(2).astype(np.int64)
    saturation = 255 * (most - overview.min(2)) // np.maximum(most, 1)
    lit = most > _BLACK
    counts = np.bincount(saturation[lit], minlength=256).astype(np.float64)
    threshold = max(otsu(counts), _LEAST_SATURATION)
    return lit & (saturation > threshold), threshold


def otsu(counts: np.ndarray) -> int:
    """The level t of a histogram that parts 0 .. t from the rest with the largest variance between both; 0 if empty."""
    below = np.cumsum(counts)
    total = below[-1]
    sums = np.cumsum(counts * np.arange(len(counts)))
    with np.errstate(divide="ignore", invalid="ignore"):
        between = (sums[-1] * below - sums * total) ** 2 / (below * (total - below))
    return int(np.argmax(np.nan_to_num(between, nan=0.0, posinf=0.0)))


def draw_grid(
    overview: UInt8[np.ndarray, "H W 3"], boxes: Iterable[tuple[float, float, float, float]], file: Path
) -> None:
    """Write the overview as PNG with a frame round every tile, given as (left, top, right, bottom) in 0 .. 1."""
    image = Image.fromarray(overview)
    pen = ImageDraw.Draw(image)
    for left, top, right, bottom in boxes:
        corners = (left * image.width, top * image.height, right * image.width - 1, bottom * image.height - 1)
        pen.rectangle([round(corner) for corner in corners], outline=(0, 140, 60))
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, "PNG")


def _mpp(properties: Any) -> tuple[float, float] | None:
    found = [properties.get(f"tiffslide.mpp-{axis}") for axis in "xy"]
    if None in found and (power := properties.get("tiffslide.objective-power")):
        found = [MPP_AT_1X / float(power)] * 2
    if None in found:
        return None
    x, y = (float(value) for value in found)
    # A scan has 0.1 to 1 micrometre per pixel; 72 dots per inch, which editors write everywhere, are 353.
    return (x, y) if min(x, y) >= 0.01 and max(x, y) <= 50 else None


def _damaged(error: BaseException) -> RejectedImageError:
    return RejectedImageError("damaged slide", f"{type(error).__name__}: {error}")


__all__ = ["MPP_AT_1X", "Level", "Slide", "draw_grid", "otsu", "tissue_mask"]
