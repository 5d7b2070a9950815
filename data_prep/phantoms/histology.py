"""Colonic mucosa stained with haematoxylin and eosin. No orientation: nothing here has a side or an up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from data_prep.phantoms.draw import Array, Frame, Rendered, blob, cloud, field, grain, mix, scatter, step

_NUCLEUS: Final = (0.30, 0.18, 0.50)
_DARK_NUCLEUS: Final = (0.20, 0.09, 0.38)


def _region(rng: np.random.Generator, frame: Frame, extent: str) -> Array:
    """Where the finding is, 0..1: one patch of about a fifth of the image, five small ones, or nearly everything."""
    if extent == "diffuse":
        return step(field(rng, frame.size, 3) + 1.6, 0.4)
    if extent == "focal":
        centre = (rng.uniform(-0.35, 0.35), rng.uniform(-0.35, 0.35))
        return step(blob(rng, frame, centre, (0.50, 0.46), ragged=0.12, lobes=5), 0.12)
    total = np.zeros_like(frame.x)
    for x, y in scatter(rng, 5, low=(-0.72, -0.72), high=(0.72, 0.72), apart=0.72):
        r = rng.uniform(0.22, 0.26)
        total = np.maximum(total, step(blob(rng, frame, (x, y), (r, r), ragged=0.12, lobes=4), 0.15))
    return total


def _crypts(rng: np.random.Generator, frame: Frame, image: Array, keep: Array) -> Array:
    """Round glands in rows: a pale lumen, mucin, and a ring of nuclei; drawn where `keep` is 1."""
    spacing = rng.uniform(0.44, 0.50)
    turn = rng.uniform(0.0, math.pi / 2)
    start = rng.uniform(0.0, spacing, size=2)
    centres: list[tuple[float, float]] = []
    for i in range(-5, 6):
        for j in range(-5, 6):
            u, v = i * spacing + start[0] + 0.5 * spacing * (j % 2), j * spacing * 0.87 + start[1]
            x, y = u * math.cos(turn) - v * math.sin(turn), u * math.sin(turn) + v * math.cos(turn)
            if abs(x) < 1.2 and abs(y) < 1.2:
                centres.append((x + rng.normal(0.0, 0.02), y + rng.normal(0.0, 0.02)))
    where = np.asarray(centres)
    radius = rng.uniform(0.155, 0.175)
    image = mix(image, (0.80, 0.62, 0.82), frame.dots(where, np.full(len(where), radius)) * keep)
    image = mix(image, (0.94, 0.90, 0.96), frame.dots(where, np.full(len(where), radius * 0.62)) * keep)
    angles = np.linspace(0.0, 2 * math.pi, 15)[:-1]
    ring = np.stack([np.cos(angles), np.sin(angles)], axis=1) * radius * 0.9
    nuclei = (where[:, None] + ring[None]).reshape(-1, 2)
    return mix(image, _NUCLEUS, frame.dots(nuclei, np.full(len(nuclei), 0.026)) * keep * np.float32(0.9))


def _cells(rng: np.random.Generator, frame: Frame, count: int, radius: float, stretch: float = 1.0) -> Array:
    points = rng.uniform(-1.05, 1.05, size=(count, 2))
    radii = rng.uniform(0.85, 1.15, size=count) * radius
    return frame.dots(points, radii, stretch=stretch, angles=rng.uniform(0.0, math.pi, size=count))


def _adenocarcinoma(rng: np.random.Generator, frame: Frame, image: Array, region: Array) -> Array:
    """Crowded irregular glands of dark, uneven nuclei back to back."""
    image = mix(image, (0.62, 0.42, 0.68), region)
    gaps = step(field(rng, frame.size, 9) - 0.8, 0.25)
    image = mix(image, (0.95, 0.88, 0.94), gaps * region)
    return mix(image, _DARK_NUCLEUS, _cells(rng, frame, 420, 0.036, 1.5) * region * (1.0 - gaps) * np.float32(0.95))


def _inflammation(rng: np.random.Generator, frame: Frame, image: Array, region: Array) -> Array:
    """A carpet of small, round, dark cells between glands that are left."""
    return mix(image, (0.17, 0.13, 0.52), _cells(rng, frame, 900, 0.024) * region * np.float32(0.95))


def _necrosis(rng: np.random.Generator, frame: Frame, image: Array, region: Array) -> Array:
    """Granular pink debris without nuclei."""
    image = mix(image, (0.93, 0.62, 0.72), region)
    return mix(image, (0.74, 0.40, 0.52), step(field(rng, frame.size, 30) - 0.6, 0.3) * region * np.float32(0.8))


def _fibrosis(rng: np.random.Generator, frame: Frame, image: Array, region: Array) -> Array:
    """Pale, wavy bundles of collagen with few thin nuclei."""
    image = mix(image, (0.97, 0.80, 0.86), region)
    waves = np.sin(np.float32(34.0) * (frame.y + np.float32(0.10) * field(rng, frame.size, 4)))
    image = mix(image, (0.86, 0.55, 0.70), step(waves - 0.35, 0.3) * region * np.float32(0.85))
    return mix(image, _NUCLEUS, _cells(rng, frame, 40, 0.016, 3.5) * region)


def _haemorrhage(rng: np.random.Generator, frame: Frame, image: Array, region: Array) -> Array:
    """Sheets of red cells outside the vessels."""
    image = mix(image, (0.86, 0.30, 0.30), region * np.float32(0.8))
    return mix(image, (0.72, 0.06, 0.10), _cells(rng, frame, 700, 0.030) * region * np.float32(0.9))


_FINDINGS: Final = {
    "adenocarcinoma": _adenocarcinoma,
    "inflammation": _inflammation,
    "necrosis": _necrosis,
    "fibrosis": _fibrosis,
    "haemorrhage": _haemorrhage,
}
# Findings that take the place of glands; the others lie between and over them.
_DESTROYS: Final = ("adenocarcinoma", "necrosis", "fibrosis", "haemorrhage")


def draw(rng: np.random.Generator, size: int, name: str, attributes: Mapping[str, str]) -> Rendered:
    """A section in colour; `name` and `attributes` as in `tables.KINDS["histology"]`."""
    facts = {"stain": str(rng.choice(["even", "even", "pale", "strong"]))}
    frame = Frame(size)
    image = np.empty((size, size, 3), dtype=np.float32)
    image[:] = np.asarray([0.93, 0.74, 0.84], dtype=np.float32)
    image += np.float32(0.02) * cloud(rng, size, 8)[:, :, None]
    image = mix(image, _NUCLEUS, _cells(rng, frame, 130, 0.020, 1.6) * np.float32(0.75))
    normal = name == "normal colonic mucosa"
    region = np.zeros((size, size), dtype=np.float32) if normal else _region(rng, frame, attributes["extent"])
    image = _crypts(rng, frame, image, 1.0 - region if name in _DESTROYS else np.ones_like(region))
    if not normal:
        image = _FINDINGS[name](rng, frame, image, region.astype(np.float32))
    strength = {"even": 1.0, "pale": 0.8, "strong": 1.15}[facts["stain"]]
    image = 1.0 - (1.0 - image) * np.float32(strength)
    return Rendered(image + np.float32(0.02) * grain(rng, size)[:, :, None], facts)


__all__ = ["draw"]
