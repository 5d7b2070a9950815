"""B-mode ultrasound of the breast: skin at the top, then fat, gland and muscle; speckle everywhere. One channel."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from data_prep.phantoms.draw import Array, Frame, Rendered, blob, cloud, curve, ellipse, field, grain, mix, step

# y of the middle of a lesion: -1 is the skin, +1 the lower edge.
_DEPTH: Final = {"superficial": -0.38, "deep": 0.34}


def _layers(rng: np.random.Generator, frame: Frame) -> Array:
    """Skin line, dark fat, bright gland with streaks, muscle with fibres, and the loss of echoes with depth."""
    x, y = frame.x, frame.y
    wave = np.float32(0.05) * field(rng, frame.size, 3)
    image = np.full_like(x, 0.30) + np.float32(0.06) * cloud(rng, frame.size, 5)
    gland = step(y + np.float32(0.62) + wave, 0.08) * step(np.float32(0.68) + wave - y, 0.08)
    image = mix(image, 0.46, gland * np.float32(0.8))
    image += np.float32(0.07) * gland * field(rng, frame.size, (16, 5))
    muscle = step(y - np.float32(0.72) - wave, 0.05)
    image = mix(image, 0.34, muscle * np.float32(0.7))
    image += np.float32(0.06) * muscle * field(rng, frame.size, (26, 4))
    skin = np.exp(-np.square((y + np.float32(0.93)) / np.float32(0.045)))
    image += np.float32(0.42) * skin
    return image * (np.float32(1.05) - np.float32(0.16) * (y + 1.0) / 2 - np.float32(0.08) * x * x)


def _place(rng: np.random.Generator, attributes: Mapping[str, str]) -> tuple[tuple[float, float], float]:
    """Centre and radius of the lesion: 0.14 to 0.17, or 0.33 to 0.38 when large."""
    r = rng.uniform(0.33, 0.38) if attributes["size"] == "large" else rng.uniform(0.14, 0.17)
    return (rng.uniform(-0.35, 0.35), _DEPTH[attributes["depth"]] + rng.uniform(-0.05, 0.05)), r


def _behind(frame: Frame, centre: tuple[float, float], half: float, top: float) -> Array:
    """Mask of the column under a lesion, from `top` downwards and fading."""
    column = step(np.float32(half) - np.abs(frame.x - np.float32(centre[0])), 0.06)
    below = frame.y - np.float32(top)
    return column * step(below, 0.05) * np.exp(-np.clip(below, 0.0, 2.0) / np.float32(0.9))


def _cyst(rng: np.random.Generator, frame: Frame, image: Array, centre: tuple[float, float], r: float) -> Array:
    """Round, without echoes, with a thin bright wall and brighter tissue behind it."""
    image = image + np.float32(0.30) * _behind(frame, centre, r * 0.85, centre[1] + r * 0.9)
    depth = blob(rng, frame, centre, (r * 1.1, r), ragged=0.03, lobes=3)
    image = image + np.float32(0.25) * np.exp(-np.square(depth / np.float32(0.09)))
    return mix(image, 0.03, step(depth - 0.06, 0.06))


def _fibroadenoma(rng: np.random.Generator, frame: Frame, image: Array, centre: tuple[float, float], r: float) -> Array:
    """Oval, wider than tall, smooth, evenly grey and darker than the gland."""
    depth = blob(rng, frame, centre, (r * 1.55, r * 0.72), ragged=0.04, lobes=4)
    return mix(image, 0.21, step(depth, 0.07) * np.float32(0.92))


def _carcinoma(rng: np.random.Generator, frame: Frame, image: Array, centre: tuple[float, float], r: float) -> Array:
    """Taller than wide, ragged, with spicules, a bright halo and a shadow."""
    image = image * (1.0 - np.float32(0.75) * _behind(frame, centre, r * 0.7, centre[1] + r * 0.7))
    lines = []
    for turn in np.linspace(0.0, 2 * math.pi, 11)[:-1] + rng.uniform(0, 0.6):
        far = r * rng.uniform(1.4, 1.9)
        end = (centre[0] + far * math.cos(turn), centre[1] + far * math.sin(turn))
        lines.append(curve([centre, ((centre[0] + end[0]) / 2, (centre[1] + end[1]) / 2), end], 6))
    image = mix(image, 0.08, frame.strokes(lines, [0.04] * len(lines)) * np.float32(0.8))
    depth = blob(rng, frame, centre, (r * 0.75, r * 1.15), ragged=0.22, lobes=9)
    image = image + np.float32(0.16) * np.exp(-np.square((depth + 0.2) / np.float32(0.15)))
    return mix(image, 0.09, step(depth, 0.12) * np.float32(0.95))


def _lipoma(rng: np.random.Generator, frame: Frame, image: Array, centre: tuple[float, float], r: float) -> Array:
    """Oval, evenly bright, with a thin brighter capsule."""
    depth = blob(rng, frame, centre, (r * 1.4, r * 0.8), ragged=0.04, lobes=4)
    image = mix(image, 0.70, step(depth, 0.06) * np.float32(0.85))
    return image + np.float32(0.28) * np.exp(-np.square(depth / np.float32(0.08)))


def _calcification(
    rng: np.random.Generator, frame: Frame, image: Array, centre: tuple[float, float], r: float
) -> Array:
    """A white arc, open downwards, and a sharp black shadow to the lower edge."""
    column = step(np.float32(r) - np.abs(frame.x - np.float32(centre[0])), 0.03)
    image = image * (1.0 - np.float32(0.9) * column * step(frame.y - np.float32(centre[1]), 0.05))
    arc = ellipse(frame, centre, (r * 1.05, r * 0.7), edge=0.08)
    inner = ellipse(frame, (centre[0], centre[1] + r * 0.38), (r * 1.0, r * 0.75), edge=0.08)
    return mix(image, 1.0, np.clip(arc - inner, 0.0, 1.0))


_FINDINGS: Final = {
    "simple cyst": _cyst,
    "fibroadenoma": _fibroadenoma,
    "carcinoma": _carcinoma,
    "lipoma": _lipoma,
    "coarse calcification": _calcification,
}


def draw(rng: np.random.Generator, size: int, name: str, attributes: Mapping[str, str]) -> Rendered:
    """A breast ultrasound image; `name` and `attributes` as in `tables.KINDS["ultrasound"]`."""
    facts = {"gain": str(rng.choice(["normal", "normal", "high", "low"]))}
    frame = Frame(size, angle=math.radians(rng.uniform(-3.0, 3.0)))
    image = _layers(rng, frame)
    if name != "normal breast":
        image = _FINDINGS[name](rng, frame, image, *_place(rng, attributes))
    # Speckle multiplies: where nothing echoes, nothing speckles.
    speckle = np.float32(0.6) * grain(rng, size) + np.float32(0.8) * field(rng, size, (40, 26))
    image = image * np.exp(np.float32(0.22) * speckle)
    gain = {"normal": 1.0, "high": 1.2, "low": 0.82}[facts["gain"]]
    return Rendered((image * np.float32(gain)).astype(np.float32), facts)


__all__ = ["draw"]
