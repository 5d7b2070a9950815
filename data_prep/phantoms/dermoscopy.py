"""Dermoscopic photographs of one pigmented or vascular lesion. No orientation: nothing here has a side or an up."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import numpy as np

from data_prep.phantoms.draw import (
    Array,
    Frame,
    Rendered,
    blob,
    cloud,
    curve,
    field,
    grain,
    mix,
    scatter,
    step,
    vignette,
)

# Body and accent colours (RGB) by tone. "Pale" is told from skin by hue and border, "dark" is far from any skin drawn.
_COLORS: Final[Mapping[str, Mapping[str, tuple[tuple[float, float, float], tuple[float, float, float]]]]] = {
    "melanocytic naevus": {
        "pale": ((0.66, 0.44, 0.27), (0.52, 0.32, 0.18)),
        "dark": ((0.34, 0.19, 0.11), (0.20, 0.10, 0.06)),
    },
    "melanoma": {"pale": ((0.60, 0.42, 0.34), (0.50, 0.50, 0.58)), "dark": ((0.17, 0.10, 0.10), (0.36, 0.40, 0.52))},
    "seborrhoeic keratosis": {
        "pale": ((0.74, 0.60, 0.38), (0.60, 0.46, 0.26)),
        "dark": ((0.40, 0.31, 0.21), (0.28, 0.20, 0.13)),
    },
    "basal cell carcinoma": {
        "pale": ((0.93, 0.72, 0.70), (0.62, 0.55, 0.66)),
        "dark": ((0.62, 0.44, 0.48), (0.24, 0.24, 0.36)),
    },
    "haemangioma": {"pale": ((0.88, 0.26, 0.28), (0.95, 0.66, 0.64)), "dark": ((0.46, 0.05, 0.17), (0.60, 0.30, 0.38))},
}


def _skin(rng: np.random.Generator, frame: Frame) -> Array:
    """Pink to light-brown skin with fine furrows."""
    warm = rng.uniform(0.0, 1.0)
    base = np.asarray([0.93, 0.76, 0.69]) * (1 - warm) + np.asarray([0.86, 0.67, 0.54]) * warm
    texture = np.float32(0.018) * cloud(rng, frame.size, 6) - np.float32(0.012) * np.abs(field(rng, frame.size, 24))
    return (1.0 + texture)[:, :, None] * base.astype(np.float32)


def _outline(rng: np.random.Generator, frame: Frame, size: str, ragged: float) -> tuple[Array, float]:
    """Signed depth of the lesion and its radius: 0.24 to 0.30, or 0.56 to 0.66 when large."""
    r = rng.uniform(0.56, 0.66) if size == "large" else rng.uniform(0.24, 0.30)
    centre = (rng.uniform(-0.08, 0.08), rng.uniform(-0.08, 0.08))
    radii = (r * rng.uniform(0.98, 1.15), r)
    return blob(rng, frame, centre, radii, angle=rng.uniform(0.0, math.pi), ragged=ragged, lobes=7), r


def _naevus(rng: np.random.Generator, frame: Frame, image: Array, depth: Array, tone: str) -> Array:
    """Even pigment with a regular net and a border that fades out."""
    body, net = _COLORS["melanocytic naevus"][tone]
    cover = step(depth - 0.02, 0.16)
    image = mix(image, body, cover * np.float32(0.92))
    ridges = step(0.30 - np.abs(field(rng, frame.size, 22)), 0.2)
    return mix(image, net, ridges * cover * np.float32(0.55))


def _melanoma(rng: np.random.Generator, frame: Frame, image: Array, depth: Array, tone: str) -> Array:
    """Asymmetric patches of several colours, a blue-grey veil, black dots and an abrupt border."""
    body, veil = _COLORS["melanoma"][tone]
    cover = step(depth, 0.05)
    image = mix(image, body, cover)
    tan = (0.58, 0.34, 0.20) if tone == "dark" else (0.80, 0.56, 0.44)
    image = mix(image, tan, step(field(rng, frame.size, 4) - 0.5, 0.3) * cover * np.float32(0.9))
    image = mix(image, veil, step(field(rng, frame.size, 3) - 0.55, 0.35) * cover * step(depth - 0.2, 0.2))
    image = mix(image, (0.70, 0.24, 0.24), step(field(rng, frame.size, 5) - 1.2, 0.3) * cover * np.float32(0.8))
    dots = step(field(rng, frame.size, 26) - 1.5, 0.25) * cover
    return mix(image, (0.06, 0.04, 0.05), dots * np.float32(0.85 if tone == "dark" else 0.5))


def _keratosis(rng: np.random.Generator, frame: Frame, image: Array, depth: Array, tone: str, r: float) -> Array:
    """A waxy plaque with a cut-out border, white milia-like cysts and dark comedo-like openings."""
    body, crust = _COLORS["seborrhoeic keratosis"][tone]
    cover = step(depth, 0.03)
    image = mix(image, body, cover)
    image = mix(image, crust, step(field(rng, frame.size, 12), 0.6) * cover * np.float32(0.7))
    count = 8 if r < 0.4 else 18
    points = rng.normal(0.0, 0.42 * r, size=(2 * count, 2))
    radii = rng.uniform(0.022, 0.036, size=2 * count)
    image = mix(image, (0.99, 0.97, 0.90), frame.dots(points[:count], radii[:count]) * step(depth - 0.12, 0.08))
    return mix(
        image,
        (0.12, 0.08, 0.05),
        frame.dots(points[count:], radii[count:]) * step(depth - 0.12, 0.08) * np.float32(0.9),
    )


def _carcinoma(rng: np.random.Generator, frame: Frame, image: Array, depth: Array, tone: str, r: float) -> Array:
    """A shiny pink plaque with branching vessels and blue-grey ovoid nests."""
    body, nest = _COLORS["basal cell carcinoma"][tone]
    cover = step(depth, 0.08)
    image = mix(image, body, cover * np.float32(0.92))
    count = int(rng.integers(3, 5)) if tone == "pale" else int(rng.integers(8, 11))
    points = scatter(rng, count, low=(-0.6 * r, -0.6 * r), high=(0.6 * r, 0.6 * r), apart=0.35 * r)
    nests = frame.dots(
        points, rng.uniform(0.09, 0.15, size=count) * r, stretch=1.5, angles=rng.uniform(0, 3.1, size=count)
    )
    image = mix(image, nest, nests * cover * np.float32(0.85))
    lines, widths = [], []
    for start in rng.uniform(0, 2 * math.pi, size=4):
        p = np.asarray([math.cos(start), math.sin(start)]) * r * 0.95
        for turn in rng.uniform(-0.7, 0.7, size=3):
            heading = start + math.pi + turn
            q = p + 0.55 * r * np.asarray([math.cos(heading), math.sin(heading)])
            middle = (p + q) / 2 + rng.normal(0.0, 0.1 * r, size=2)
            lines.append(curve([tuple(p), tuple(middle), tuple(q)], 10))
            widths.append(0.022)
    return mix(image, (0.75, 0.12, 0.16), frame.strokes(lines, widths) * step(depth + 0.05, 0.1) * np.float32(0.8))


def _haemangioma(rng: np.random.Generator, frame: Frame, image: Array, depth: Array, tone: str, r: float) -> Array:
    """Round red lacunae divided by paler septa."""
    body, septum = _COLORS["haemangioma"][tone]
    cover = step(depth, 0.06)
    image = mix(image, septum, cover)
    count = 16 if r < 0.4 else 26
    points = scatter(rng, count, low=(-r, -r), high=(r, r), apart=0.42 * r)
    lacunae = frame.dots(
        points, rng.uniform(0.20, 0.25, size=count) * r, stretch=1.1, angles=rng.uniform(0, 3.1, size=count)
    )
    return mix(image, body, lacunae * cover * np.float32(0.95))


def _artefacts(rng: np.random.Generator, frame: Frame, image: Array, facts: Mapping[str, str]) -> Array:
    if facts["hair"] == "present":
        lines = []
        for _ in range(int(rng.integers(3, 8))):
            p, q = rng.uniform(-1.1, 1.1, size=(2, 2))
            lines.append(curve([tuple(p), tuple((p + q) / 2 + rng.normal(0.0, 0.2, size=2)), tuple(q)], 12))
        image = mix(image, (0.16, 0.10, 0.07), frame.strokes(lines, [0.014] * len(lines)) * np.float32(0.85))
    if facts["gel"] == "bubbles":
        points = rng.uniform(-0.95, 0.95, size=(5, 2))
        radii = rng.uniform(0.02, 0.05, size=5)
        rings = np.clip(frame.dots(points, radii) - frame.dots(points, radii * 0.7), 0.0, 1.0)
        image = mix(image, (1.0, 1.0, 1.0), rings * np.float32(0.55))
    return image


def draw(rng: np.random.Generator, size: int, name: str, attributes: Mapping[str, str]) -> Rendered:
    """A dermoscopic image in colour; `name` and `attributes` as in `tables.KINDS["dermoscopy"]`."""
    facts = {
        "hair": str(rng.choice(["present", "none", "none"])),
        "gel": str(rng.choice(["bubbles", "none", "none"])),
        "light": str(rng.choice(["polarised", "immersion"])),
    }
    frame = Frame(size)
    image = _skin(rng, frame)
    if name != "normal skin":
        depth, r = _outline(rng, frame, attributes["size"], 0.20 if name == "melanoma" else 0.06)
        tone = attributes["tone"]
        match name:
            case "melanocytic naevus":
                image = _naevus(rng, frame, image, depth, tone)
            case "melanoma":
                image = _melanoma(rng, frame, image, depth, tone)
            case "seborrhoeic keratosis":
                image = _keratosis(rng, frame, image, depth, tone, r)
            case "basal cell carcinoma":
                image = _carcinoma(rng, frame, image, depth, tone, r)
            case "haemangioma":
                image = _haemangioma(rng, frame, image, depth, tone, r)
    image = _artefacts(rng, frame, image, facts)
    cast = np.asarray([rng.uniform(0.97, 1.03) for _ in range(3)], dtype=np.float32) * np.float32(
        rng.uniform(0.92, 1.06)
    )
    shade = vignette(frame, rng.uniform(0.05, 0.45))
    return Rendered(image * cast * shade[:, :, None] + np.float32(0.015) * grain(rng, size)[:, :, None], facts)


__all__ = ["draw"]
