"""Primitives of all phantoms: a turned coordinate frame, smooth noise, soft shapes and antialiased strokes.

Everything is elementwise float32 arithmetic (no matrix products), so that the number of BLAS threads of a process
cannot change a single pixel. Coordinates run from -1 to 1, x to the right and y downwards, in units of half the
image, whatever its size in pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import TypeAlias

import numpy as np
from PIL import Image, ImageDraw

Array: TypeAlias = np.ndarray

# Strokes and dots are drawn this many times larger and averaged down: Pillow itself draws without antialiasing.
_OVERSAMPLING = 3
# A cubic B-spline keeps 0.479 of the variance of white noise per axis (the mean of its squared weights, summed).
_SPLINE_GAIN = 1.0 / 0.479


@dataclass(frozen=True)
class Rendered:
    """What a modality draws.

    Attributes:
        image: float32 [H, W] or [H, W, 3], 0 .. 1 (values beyond are clipped later).
        facts: what was drawn besides the finding, in words that captions may use.
    """

    image: Array
    facts: dict[str, str]


class Frame:
    """Coordinates of the patient on the image: turned by `angle` (radians), scaled by `zoom`, moved by `shift`.

    Attributes:
        x, y: float32 [size, size], the patient's coordinates of every pixel.

    Example:
        >>> Frame(96).x[0, [0, -1]].round(2).tolist()
        [-0.99, 0.99]
    """

    def __init__(
        self, size: int, *, angle: float = 0.0, zoom: float = 1.0, shift: tuple[float, float] = (0.0, 0.0)
    ) -> None:
        self.size = size
        self._zoom, self._shift = zoom, shift
        self._cos, self._sin = math.cos(angle), math.sin(angle)
        u, v = _grid(size)
        u, v = (u - np.float32(shift[0])) / np.float32(zoom), (v - np.float32(shift[1])) / np.float32(zoom)
        self.x: Array = u * np.float32(self._cos) + v * np.float32(self._sin)
        self.y: Array = v * np.float32(self._cos) - u * np.float32(self._sin)

    def strokes(self, lines: Sequence[Array], widths: Sequence[float]) -> Array:
        """Coverage 0..1 of polylines ([n, 2] points) of the given widths; a stroke is never thinner than 1/3 pixel."""
        canvas, pen = self._canvas()
        scale = self.size * _OVERSAMPLING / 2.0 * self._zoom
        for line, width in zip(lines, widths, strict=True):
            pen.line(self._pixels(line), fill=255, width=max(1, round(width * scale)), joint="curve")
        return _reduced(canvas)

    def dots(self, centres: Array, radii: Array, *, stretch: Array | float = 1.0, angles: Array | float = 0.0) -> Array:
        """Coverage 0..1 of filled ellipses: `centres` [n, 2], `radii` [n], long axis `stretch` times, at `angles`."""
        canvas, pen = self._canvas()
        if len(centres):
            turn = np.linspace(0.0, 2.0 * np.pi, 12, endpoint=False)
            long = np.cos(turn)[None] * (radii * stretch)[:, None]
            short = np.sin(turn)[None] * radii[:, None]
            angle = np.broadcast_to(angles, radii.shape)[:, None]
            x = centres[:, :1] + long * np.cos(angle) - short * np.sin(angle)
            y = centres[:, 1:] + long * np.sin(angle) + short * np.cos(angle)
            for outline in np.stack([x, y], axis=-1):
                pen.polygon(self._pixels(outline), fill=255)
        return _reduced(canvas)

    def _canvas(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        side = self.size * _OVERSAMPLING
        canvas = Image.new("L", (side, side))
        return canvas, ImageDraw.Draw(canvas)

    def _pixels(self, points: Array) -> list[tuple[float, float]]:
        x, y = points[:, 0], points[:, 1]
        u = self._zoom * (x * self._cos - y * self._sin) + self._shift[0]
        v = self._zoom * (x * self._sin + y * self._cos) + self._shift[1]
        half = self.size * _OVERSAMPLING / 2.0
        return list(zip(((u + 1.0) * half).tolist(), ((v + 1.0) * half).tolist(), strict=True))


def _reduced(canvas: Image.Image) -> Array:
    return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / np.float32(255.0)


@cache
def _grid(size: int) -> tuple[Array, Array]:
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size * 2.0 - 1.0).astype(np.float32)
    x, y = np.meshgrid(axis, axis)
    x.flags.writeable = y.flags.writeable = False
    return x, y


@cache
def _taps(size: int, cells: int) -> tuple[Array, Array]:
    """First control point [size] and the four cubic B-spline weights [4, size, 1] of every pixel."""
    position = (np.arange(size) + 0.5) / size * cells
    first = np.minimum(position.astype(np.int64), cells - 1)
    t = position - first
    weights = np.stack([(1 - t) ** 3, 3 * t**3 - 6 * t**2 + 4, -3 * t**3 + 3 * t**2 + 3 * t + 1, t**3]) / 6.0
    return first, weights.astype(np.float32)[:, :, None]


def _upsample_rows(low: Array, size: int) -> Array:
    first, weights = _taps(size, low.shape[0] - 3)
    out = weights[0] * low[first]
    for k in range(1, 4):
        out += weights[k] * low[first + k]
    return out


def field(rng: np.random.Generator, size: int, cells: int | tuple[int, int]) -> Array:
    """Smooth noise [size, size] of mean 0 and standard deviation about 1, with `cells` (down, across) bumps.

    Example:
        >>> field(np.random.default_rng(0), 96, 6).shape
        (96, 96)
    """
    down, across = (cells, cells) if isinstance(cells, int) else cells
    low = rng.standard_normal((down + 3, across + 3), dtype=np.float32)
    low *= np.float32(_SPLINE_GAIN)
    rows = np.ascontiguousarray(_upsample_rows(low, size).T)
    return np.ascontiguousarray(_upsample_rows(rows, size).T)


def cloud(rng: np.random.Generator, size: int, cells: int) -> Array:
    """Noise of three octaves (`cells`, twice, four times) of standard deviation about 1: tissue texture."""
    total = field(rng, size, cells)
    total += np.float32(0.5) * field(rng, size, cells * 2)
    total += np.float32(0.25) * field(rng, size, cells * 4)
    return total * np.float32(0.873)  # 1 / sqrt(1 + 1/4 + 1/16)


def grain(rng: np.random.Generator, size: int) -> Array:
    """White noise [size, size], standard deviation 1: film and sensor noise."""
    return rng.standard_normal((size, size), dtype=np.float32)


def step(value: Array, width: float) -> Array:
    """0 below -width, 1 above +width, smooth between: a soft threshold at 0."""
    t = np.clip(value / np.float32(2.0 * width) + np.float32(0.5), 0.0, 1.0)
    return t * t * (np.float32(3.0) - np.float32(2.0) * t)


def radius(x: Array, y: Array, centre: tuple[float, float], radii: tuple[float, float], angle: float = 0.0) -> Array:
    """Elliptic distance from `centre`: 1 on the ellipse with `radii` turned by `angle`, 0 at its centre."""
    dx, dy = x - np.float32(centre[0]), y - np.float32(centre[1])
    if angle:
        cos, sin = np.float32(math.cos(angle)), np.float32(math.sin(angle))
        dx, dy = dx * cos + dy * sin, dy * cos - dx * sin
    dx, dy = dx / np.float32(radii[0]), dy / np.float32(radii[1])
    return np.sqrt(dx * dx + dy * dy)


def ellipse(
    frame: Frame, centre: tuple[float, float], radii: tuple[float, float], *, angle: float = 0.0, edge: float = 0.1
) -> Array:
    """Mask 0..1 of an ellipse; `edge` is the half-width of its soft border as a share of its radius."""
    return step(1.0 - radius(frame.x, frame.y, centre, radii, angle), edge)


def blob(
    rng: np.random.Generator,
    frame: Frame,
    centre: tuple[float, float],
    radii: tuple[float, float],
    *,
    angle: float = 0.0,
    ragged: float = 0.1,
    lobes: int = 6,
) -> Array:
    """Signed depth of an irregular ellipse: 1 at its centre, 0 on its border, negative outside (see `step`).

    `ragged` is the amplitude of the border as a share of the radius, `lobes` the highest number of bulges around it.
    """
    r = radius(frame.x, frame.y, centre, radii, angle)
    theta = np.arctan2(frame.y - np.float32(centre[1]), frame.x - np.float32(centre[0]))
    border = np.ones_like(r)
    for k in range(2, lobes + 1):
        amplitude = ragged * rng.normal() / math.sqrt(k)
        border += np.float32(amplitude) * np.cos(np.float32(k) * theta + np.float32(rng.uniform(0, 2 * np.pi)))
    return 1.0 - r / np.maximum(border, np.float32(0.3))


def mix(image: Array, color: Sequence[float] | float, mask: Array) -> Array:
    """Blend a colour (or grey level) into `image` [H, W] or [H, W, 3] by `mask` [H, W] in 0..1, in place."""
    if image.ndim == 3:
        image += mask[:, :, None] * (np.asarray(color, dtype=np.float32) - image)
    else:
        image += mask * (np.asarray(color, dtype=np.float32) - image)
    return image


def scatter(
    rng: np.random.Generator, count: int, *, low: tuple[float, float], high: tuple[float, float], apart: float
) -> Array:
    """`count` points [n, 2] in a box, at least `apart` from each other where 30 tries per point find such a place."""
    points: list[tuple[float, float]] = []
    tries = rng.uniform(low, high, size=(count, 30, 2)).tolist()
    for choices in tries:
        best, best_distance = choices[0], -1.0
        for choice in choices:
            distance = min((math.dist(choice, point) for point in points), default=math.inf)
            if distance > best_distance:
                best, best_distance = choice, distance
            if distance >= apart:
                break
        points.append((best[0], best[1]))
    return np.asarray(points, dtype=np.float64).reshape(-1, 2)


def curve(points: Sequence[tuple[float, float]], count: int = 16) -> Array:
    """A Bezier curve of 3 or 4 control points as a polyline [count, 2]."""
    p = np.asarray(points, dtype=np.float64)
    t = np.linspace(0.0, 1.0, count)[:, None]
    assert len(p) in (3, 4), f"a curve needs 3 or 4 control points, got {len(p)}"
    if len(p) == 3:
        return (1 - t) ** 2 * p[0] + 2 * t * (1 - t) * p[1] + t**2 * p[2]
    return (1 - t) ** 3 * p[0] + 3 * t * (1 - t) ** 2 * p[1] + 3 * t**2 * (1 - t) * p[2] + t**3 * p[3]


def vignette(frame: Frame, strength: float) -> Array:
    """Factor [H, W] that falls from 1 in the middle of the image to 1 - strength in its corners."""
    u, v = _grid(frame.size)
    return 1.0 - np.float32(strength / 2.0) * (u * u + v * v)


def to_uint8(image: Array) -> Array:
    """Float 0..1 [H, W] or [H, W, 3] to uint8 [H, W, 1 or 3], clipped and rounded."""
    pixels = np.rint(np.clip(image, 0.0, 1.0) * np.float32(255.0)).astype(np.uint8)
    return pixels[:, :, None] if pixels.ndim == 2 else pixels


__all__ = [
    "Array",
    "Frame",
    "Rendered",
    "blob",
    "cloud",
    "curve",
    "ellipse",
    "field",
    "grain",
    "mix",
    "radius",
    "scatter",
    "step",
    "to_uint8",
    "vignette",
]
