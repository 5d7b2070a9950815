"""Colour fundus photographs, centred on the macula.

The optic disc lies nasally: on the right of the image for a right eye, on the left for a left eye. Superior is up.
"""

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
    ellipse,
    field,
    grain,
    mix,
    radius,
    scatter,
    step,
)

# Sign of y (downwards) of the half of the retina.
_VERTICAL: Final = {"superior": -1.0, "inferior": 1.0}
_FIELD_RADIUS: Final = 0.96


def _background(rng: np.random.Generator, frame: Frame) -> Array:
    """Orange-red retina with choroidal texture, brighter in the middle."""
    pigment = rng.uniform(0.0, 1.0)
    base = np.asarray([0.80, 0.38, 0.18]) * (1 - pigment) + np.asarray([0.62, 0.26, 0.13]) * pigment
    texture = np.float32(0.035) * cloud(rng, frame.size, 7) + np.float32(0.02) * field(rng, frame.size, 28)
    light = np.float32(1.0) - np.float32(rng.uniform(0.15, 0.30)) * (frame.x**2 + frame.y**2) + texture
    return light[:, :, None] * base.astype(np.float32)


def _tree(rng: np.random.Generator, disc: tuple[float, float], nasal: float) -> tuple[list[Array], list[float]]:
    """Arcades above and below the macula and nasal vessels, with side branches, as polylines and widths."""
    lines: list[Array] = []
    widths: list[float] = []
    x, y = disc
    for up in (-1.0, 1.0):
        reach = rng.uniform(0.50, 0.60)
        end = (x - nasal * rng.uniform(1.10, 1.25), up * rng.uniform(0.16, 0.30))
        bow = (x - nasal * 0.25, y + up * reach * 1.5)
        lines.append(curve([(x, y), (x + nasal * 0.02, y + up * reach * 0.9), bow, end], 24))
        widths.append(rng.uniform(0.036, 0.044))
        lines.append(
            curve([(x, y), (x + nasal * 0.15, y + up * 0.25), (x + nasal * 0.45, y + up * rng.uniform(0.3, 0.6))])
        )
        widths.append(0.028)
        start = lines[-2][rng.integers(4, 7)]
        lines.append(
            curve([tuple(start), (x - nasal * 0.05, up * 0.8), (x - nasal * rng.uniform(0.3, 0.5), up * 0.98)])
        )
        widths.append(0.026)
    for line in list(lines):
        for at in rng.integers(5, len(line) - 4, size=2):
            heading = line[at] - line[at - 1]
            turn = rng.choice([-1.0, 1.0]) * rng.uniform(0.5, 0.9)
            angle = math.atan2(heading[1], heading[0]) + turn
            length = rng.uniform(0.2, 0.35)
            p = line[at]
            q = (p[0] + 0.5 * length * math.cos(angle), p[1] + 0.5 * length * math.sin(angle))
            lines.append(
                curve(
                    [
                        tuple(p),
                        q,
                        (p[0] + length * math.cos(angle - 0.5 * turn), p[1] + length * math.sin(angle - 0.5 * turn)),
                    ],
                    8,
                )
            )
            widths.append(0.017)
    return lines, widths


def _vessels(rng: np.random.Generator, frame: Frame, image: Array, disc: tuple[float, float], nasal: float) -> Array:
    """Dark veins and, beside them, thinner and brighter arteries."""
    for color, share, strength in (((0.42, 0.08, 0.07), 1.0, 0.75), ((0.62, 0.17, 0.10), 0.7, 0.7)):
        lines, widths = _tree(rng, disc, nasal)
        clear = step(radius(frame.x, frame.y, (0.0, 0.0), (0.16, 0.16)) - 1.0, 0.3)  # the fovea has no vessels
        mask = frame.strokes(lines, [w * share for w in widths]) * clear
        image = mix(image, color, mask * np.float32(strength))
    return image


def _disc(rng: np.random.Generator, frame: Frame, image: Array, disc: tuple[float, float], *, cupped: bool) -> Array:
    """Optic disc with its cup: cup-to-disc ratio about 0.35, or 0.8 with a pale, thin rim when cupped."""
    r = rng.uniform(0.155, 0.18)
    x, y = disc
    image = mix(image, (0.97, 0.72, 0.40), ellipse(frame, (x, y), (r * 0.94, r * 1.05), edge=0.12) * np.float32(0.9))
    ratio = rng.uniform(0.76, 0.86) if cupped else rng.uniform(0.30, 0.38)
    cup = (1.0, 0.98, 0.90) if cupped else (1.0, 0.86, 0.58)
    return mix(image, cup, ellipse(frame, (x, y), (r * ratio * 0.94, r * ratio), edge=0.16))


def _places(rng: np.random.Generator, place: str, count: int, nasal: float, apart: float) -> Array:
    """Points in the superior or inferior half, inside the photograph, off the disc and off the fovea's height."""
    sign = _VERTICAL[place]
    points = scatter(rng, count, low=(-0.55, 0.20), high=(0.50, 0.66), apart=apart)
    return np.stack([points[:, 0] * nasal - 0.05 * nasal, points[:, 1] * sign], axis=1)


def _haemorrhages(rng: np.random.Generator, frame: Frame, image: Array, nasal: float, amount: str, place: str) -> Array:
    """Dark red blots of uneven size."""
    count = int(rng.integers(14, 20)) if amount == "numerous" else int(rng.integers(3, 5))
    points = _places(rng, place, count, nasal, 0.15)
    radii = rng.uniform(0.045, 0.075, size=count)
    mask = frame.dots(points, radii, stretch=rng.uniform(1.0, 1.5, size=count), angles=rng.uniform(0, 3.1, size=count))
    return mix(image, (0.30, 0.02, 0.03), mask * np.float32(0.9))


def _exudates(rng: np.random.Generator, frame: Frame, image: Array, nasal: float, amount: str, place: str) -> Array:
    """Sharp yellow-white deposits; numerous ones stand in clusters of three or four."""
    count = int(rng.integers(9, 12)) if amount == "numerous" else int(rng.integers(3, 5))
    points = _places(rng, place, count, nasal, 0.15)
    if amount == "numerous":
        points = np.concatenate([points + rng.normal(0.0, 0.05, size=points.shape) for _ in range(3)])
    radii = rng.uniform(0.030, 0.050, size=len(points))
    return mix(image, (1.0, 0.95, 0.55), frame.dots(points, radii, stretch=1.2, angles=rng.uniform(0, 3.1)))


def _patch(rng: np.random.Generator, frame: Frame, nasal: float, size: str, place: str) -> Array:
    r = rng.uniform(0.25, 0.30) if size == "large" else rng.uniform(0.105, 0.13)
    x = nasal * rng.uniform(-0.38, 0.22)
    y = _VERTICAL[place] * rng.uniform(0.40, 0.52)
    return blob(rng, frame, (x, y), (r * rng.uniform(1.0, 1.2), r), ragged=0.10, lobes=5)


def _naevus(rng: np.random.Generator, frame: Frame, image: Array, nasal: float, size: str, place: str) -> Array:
    """A flat slate-grey patch with a feathered border."""
    depth = _patch(rng, frame, nasal, size, place)
    return mix(image, (0.20, 0.17, 0.17), step(depth, 0.22) * np.float32(0.88))


def _scar(rng: np.random.Generator, frame: Frame, image: Array, nasal: float, size: str, place: str) -> Array:
    """A punched-out white patch (sclera shows through) with a dark pigmented rim."""
    depth = _patch(rng, frame, nasal, size, place) + np.float32(0.06) * field(rng, frame.size, 14)
    image = mix(image, (0.13, 0.07, 0.05), step(depth + 0.12, 0.10) * np.float32(0.85))
    return mix(image, (0.97, 0.90, 0.72), step(depth - 0.16, 0.12) * np.float32(0.95))


def draw(rng: np.random.Generator, size: int, name: str, attributes: Mapping[str, str]) -> Rendered:
    """A fundus photograph in colour; `name` and `attributes` as in `tables.KINDS["fundus"]`."""
    eye = str(rng.choice(["right", "left"]))
    nasal = 1.0 if eye == "right" else -1.0
    facts = {"eye": eye, "light": str(rng.choice(["good", "good", "low"])), "reflex": str(rng.choice(["none", "arc"]))}
    shift = (rng.uniform(-0.03, 0.03), rng.uniform(-0.03, 0.03))
    frame = Frame(size, angle=math.radians(rng.uniform(-6.0, 6.0)), shift=shift)
    image = _background(rng, frame)
    macula = ellipse(frame, (-0.08 * nasal, 0.02), (0.26, 0.23), edge=0.9)
    image = mix(image, (0.38, 0.13, 0.08), macula * np.float32(rng.uniform(0.35, 0.5)))
    disc = (nasal * rng.uniform(0.50, 0.56), rng.uniform(-0.05, 0.03))
    image = _disc(rng, frame, image, disc, cupped=name == "glaucomatous cupping")
    image = _vessels(rng, frame, image, disc, nasal)
    match name:
        case "retinal haemorrhages":
            image = _haemorrhages(rng, frame, image, nasal, **attributes)
        case "hard exudates":
            image = _exudates(rng, frame, image, nasal, **attributes)
        case "choroidal naevus":
            image = _naevus(rng, frame, image, nasal, **attributes)
        case "chorioretinal scar":
            image = _scar(rng, frame, image, nasal, **attributes)
    if facts["reflex"] == "arc":  # flash light on the edge of the pupil
        r = radius(frame.x, frame.y, (0.0, 0.0), (_FIELD_RADIUS, _FIELD_RADIUS))
        side = step(frame.x * math.cos(a := rng.uniform(0, 6.28)) + frame.y * math.sin(a) - 0.6, 0.25)
        image = mix(image, (0.75, 0.72, 0.80), side * step(r - 0.88, 0.1) * np.float32(0.5))
    image *= np.float32(rng.uniform(0.88, 1.12))
    image += np.float32(0.018 if facts["light"] == "good" else 0.035) * grain(rng, size)[:, :, None]
    film = Frame(size)
    return Rendered(image * ellipse(film, (0.0, 0.0), (_FIELD_RADIUS, _FIELD_RADIUS), edge=0.02)[:, :, None], facts)


__all__ = ["draw"]
