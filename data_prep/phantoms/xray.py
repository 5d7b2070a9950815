"""Frontal chest radiographs. The patient faces the viewer: the patient's right is on the left of the image (x < 0)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
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
    step,
    vignette,
)

# Patient's side to the sign of x.
_SIGN: Final = {"right": -1.0, "left": 1.0}


@dataclass(frozen=True)
class _Chest:
    """Masks 0..1 and surfaces of one chest, all [H, W]."""

    frame: Frame
    hemithorax: Array
    """Both pleural cavities down to the costophrenic angles."""
    dome: Array
    """y of the diaphragm at every pixel's x."""
    inner: Array
    """Distance inwards from the lateral chest wall; 0 on the wall, growing towards the mediastinum."""

    @property
    def lungs(self) -> Array:
        """What holds air."""
        return self.hemithorax * step(self.dome - self.frame.y, 0.02)

    def half(self, side: str) -> Array:
        """1 on the given side of the patient, 0 on the other."""
        return (self.frame.x * np.float32(_SIGN[side]) > 0).astype(np.float32)


def _anatomy(rng: np.random.Generator, frame: Frame) -> _Chest:
    x, y = frame.x, frame.y
    breadth = np.abs(x)
    width = rng.uniform(0.70, 0.78)
    apex, base = -0.80 + rng.uniform(-0.03, 0.03), rng.uniform(0.50, 0.60)
    # The wall is a quarter superellipse from the apex outwards, then nearly straight down to the angle.
    t = np.clip((y - np.float32(apex)) / np.float32(base - apex), 0.0, 1.3)
    rise = np.sqrt(np.clip(1.0 - np.square(np.clip(1.0 - t, 0.0, 1.0)), 0.0, 1.0))
    wall = np.float32(0.12) + np.float32(width - 0.12) * rise ** np.float32(0.8)
    inner = wall - breadth
    hemithorax = step(inner, 0.02) * step(breadth - 0.10, 0.03) * step(y - np.float32(apex), 0.03)
    hemithorax *= step(base + 0.16 - y, 0.02)
    # The right dome (over the liver) stands higher; both fall away to the costophrenic angle.
    dome = np.float32(base - 0.16) + np.float32(0.30) * np.square((breadth - 0.36) / np.float32(0.36))
    dome -= np.float32(rng.uniform(0.03, 0.08)) * (x < 0)
    return _Chest(frame, hemithorax, dome, inner)


def _soft_tissue(rng: np.random.Generator, chest: _Chest) -> Array:
    """Trunk, shoulders, neck and abdomen on air."""
    x, y = chest.frame.x, chest.frame.y
    breadth = np.abs(x)
    shoulder = np.float32(0.34) + np.float32(0.62) * np.sqrt(np.clip((y + 1.02) / np.float32(0.45), 0.0, 1.0))
    flank = np.float32(rng.uniform(0.84, 0.93))
    # Below the shoulders the outline narrows to the flank over a fifth of the image: the arms are held away.
    outline = shoulder + (flank - shoulder) * step(y + 0.45, 0.2)
    body = step(outline - breadth, 0.04)
    image = np.float32(0.03) + body * (np.float32(0.46) + np.float32(0.05) * np.clip(chest.inner + 0.2, -0.3, 0.3))
    abdomen = step(y - chest.dome, 0.03) * body
    return mix(image, 0.74, abdomen * np.float32(0.8))


def _bones(rng: np.random.Generator, chest: _Chest, image: Array) -> Array:
    """Ribs (posterior ones clear, anterior ones faint), clavicles and the spine behind the mediastinum."""
    frame = chest.frame
    x, y = frame.x, frame.y
    breadth = np.abs(x)
    spacing = rng.uniform(0.165, 0.195)
    phase = rng.uniform(0.0, 1.0)
    back = (y - np.float32(0.55) * breadth * (np.float32(0.95) - breadth) - np.float32(0.30) * breadth**2) / spacing
    front = (y - np.float32(0.75) * (np.float32(0.8) - breadth) ** 2) / np.float32(spacing * 1.05)
    cage = step(chest.inner + 0.04, 0.03) * step(y + 0.82, 0.05) * step(0.62 - y, 0.1)
    image += np.float32(0.085) * cage * step(np.cos(2 * np.pi * (back + phase)) - 0.25, 0.35)
    image += np.float32(0.035) * cage * step(np.cos(2 * np.pi * (front + phase * 0.7)) - 0.35, 0.35)
    tilt = rng.uniform(-0.04, 0.04)
    lines = [
        curve([(s * 0.10, -0.62 + tilt * s), (s * 0.30, -0.60), (s * 0.45, -0.78), (s * 0.78, -0.74 - tilt * s)])
        for s in (-1.0, 1.0)
    ]
    image += np.float32(0.16) * frame.strokes(lines, [0.065, 0.065])
    spine = step(0.085 - breadth, 0.03)
    return image + np.float32(0.04) * spine * np.cos(2 * np.pi * y / np.float32(0.13))


def _mediastinum(rng: np.random.Generator, chest: _Chest, image: Array, *, big_heart: bool, view: str) -> Array:
    """Heart (cardiothoracic ratio about 0.45, or 0.63 when enlarged), great vessels, trachea and hila."""
    frame = chest.frame
    x, y = frame.x, frame.y
    ratio = rng.uniform(0.60, 0.68) if big_heart else rng.uniform(0.40, 0.46)
    half = ratio * 0.74 * (1.06 if view == "AP" else 1.0)
    # An enlarged heart grows mostly towards the patient's left.
    centre = (0.10 + 0.28 * (half - 0.32), 0.27)
    heart = ellipse(frame, centre, (half, 0.27 + 0.32 * (half - 0.3)), angle=0.42, edge=0.07)
    column = step(np.float32(0.125) - np.abs(x - np.float32(0.02)) + np.float32(0.05) * np.clip(y, 0, 1), 0.03)
    knob = ellipse(frame, (0.10, -0.34), (0.10, 0.13), edge=0.25)
    shadow = np.maximum(np.maximum(heart, column * step(y + 0.9, 0.1)), knob)
    image = mix(image, 0.70, shadow * np.float32(0.88))
    for side, height in ((-1.0, -0.08), (1.0, -0.13)):
        hilum = ellipse(frame, (side * 0.19, height), (0.09, 0.15), angle=side * 0.3, edge=0.8)
        image += np.float32(0.13) * hilum * (1.0 - shadow)
    trachea = ellipse(frame, (rng.uniform(-0.02, 0.02), -0.70), (0.05, 0.34), edge=0.4)
    return image - np.float32(0.16) * trachea


def _markings(rng: np.random.Generator, chest: _Chest) -> Array:
    """Vessels: fine bright streaks that thin out from the hila to the periphery."""
    size = chest.frame.size
    streaks = np.abs(field(rng, size, 14)) * np.float32(-1.0) + np.float32(0.45)
    near = np.exp(-((np.abs(chest.frame.x) - 0.2) ** 2 + (chest.frame.y + 0.02) ** 2) / np.float32(0.16))
    return np.float32(0.085) * np.clip(streaks, 0.0, 0.45) / np.float32(0.45) * (0.25 + near)


def _effusion(rng: np.random.Generator, chest: _Chest, image: Array, size: str, side: str) -> Array:
    """Fluid with a meniscus that rises to the lateral wall; a small one fills the base, a large one half the lung."""
    top = rng.uniform(-0.18, 0.0) if size == "large" else rng.uniform(0.36, 0.42)
    meniscus = np.float32(0.24) * np.clip(1.0 - chest.inner / np.float32(0.5), 0.0, 1.2) ** 2
    fluid = step(chest.frame.y - (np.float32(top) - meniscus), 0.035) * chest.half(side)
    return mix(image, rng.uniform(0.69, 0.74), fluid * chest.hemithorax * np.float32(0.94))


def _pneumothorax(rng: np.random.Generator, chest: _Chest, image: Array, size: str, side: str) -> Array:
    """Black space without markings between wall and a thin pleural line; a large one leaves a dense collapsed lung."""
    gap = rng.uniform(0.34, 0.40) if size == "large" else rng.uniform(0.13, 0.17)
    x, y = chest.frame.x, chest.frame.y
    # Air rises: the gap widens towards the apex.
    edge = np.float32(gap) * (np.float32(0.80) - np.float32(0.55) * np.clip(y, -0.9, 0.5))
    depth = np.minimum(chest.inner, y + np.float32(0.86))
    own = chest.lungs * chest.half(side)
    free = step(edge - depth, 0.015) * own
    if size == "large":
        image = mix(image, 0.52, own * (1.0 - free) * np.float32(0.55) * (np.abs(x) > 0.05))
    image = mix(image, 0.02, free * np.float32(0.93))
    line = np.exp(-np.square((depth - edge) / np.float32(0.018)))
    return image + np.float32(0.30) * line * own


def _consolidation(rng: np.random.Generator, chest: _Chest, image: Array, side: str, zone: str) -> Array:
    """Fluffy white airspace shadowing with soft borders and a few dark air bronchograms."""
    sign = _SIGN[side]
    centre = _in_zone(rng, sign, zone)
    radii = (rng.uniform(0.22, 0.27), rng.uniform(0.19, 0.25))
    depth = blob(rng, chest.frame, centre, radii, ragged=0.16, lobes=7)
    depth += np.float32(0.22) * field(rng, chest.frame.size, 12)
    cover = step(depth, 0.32) * chest.lungs
    image = mix(image, rng.uniform(0.68, 0.76), cover * np.float32(0.88))
    lines = []
    for spread in rng.uniform(-0.6, 0.6, size=3):
        end = (centre[0] + sign * 0.16 * math.cos(spread), centre[1] + 0.16 * math.sin(spread))
        lines.append(np.asarray([(centre[0] - sign * 0.14, centre[1] - 0.04), end]))
    return image - np.float32(0.16) * chest.frame.strokes(lines, [0.018] * 3) * cover


def _mass(rng: np.random.Generator, chest: _Chest, image: Array, side: str, zone: str) -> Array:
    """A dense round shadow with a sharp, slightly lobulated border, 3.5 to 5 cm across."""
    r = rng.uniform(0.105, 0.145)
    depth = blob(
        rng, chest.frame, _in_zone(rng, _SIGN[side], zone), (r, r * rng.uniform(0.9, 1.1)), ragged=0.05, lobes=4
    )
    return mix(image, rng.uniform(0.72, 0.80), step(depth, 0.12) * np.float32(0.95))


def _in_zone(rng: np.random.Generator, sign: float, zone: str) -> tuple[float, float]:
    if zone == "upper":
        return sign * rng.uniform(0.34, 0.44), rng.uniform(-0.50, -0.38)
    return sign * rng.uniform(0.44, 0.54), rng.uniform(0.06, 0.18)


def _extras(rng: np.random.Generator, frame: Frame, image: Array, facts: dict[str, str]) -> Array:
    """Things that no report needs: a lead marker on the patient's left or right, and ECG leads."""
    if facts["marker"] != "none":
        left = facts["marker"] == "L"
        x0, y0 = (0.82, -0.86) if left else (-0.90, -0.86)
        glyph = (
            [(0, 0), (0, 0.16), (0.09, 0.16)] if left else [(0, 0.16), (0, 0), (0.09, 0.03), (0, 0.08), (0.09, 0.16)]
        )
        # Letters are drawn upright on the film, whatever the patient's turn.
        film = Frame(frame.size)
        image = mix(image, 0.97, film.strokes([np.asarray(glyph) + np.asarray([x0, y0])], [0.03]))
    if facts["leads"] == "present":
        lines = [
            curve(
                [(s * rng.uniform(0.4, 0.6), -0.3), (s * rng.uniform(0.1, 0.9), 0.3), (s * rng.uniform(0.2, 0.7), 1.1)]
            )
            for s in (-1.0, 1.0)
        ]
        image += np.float32(0.22) * frame.strokes(lines, [0.012, 0.012])
        pads = np.asarray([line[0] for line in lines])
        image = mix(image, 0.93, frame.dots(pads, np.asarray([0.022, 0.022])))
    return image


def draw(rng: np.random.Generator, size: int, name: str, attributes: Mapping[str, str]) -> Rendered:
    """A frontal chest radiograph, one channel; `name` and `attributes` as in `tables.KINDS["X-ray"]`."""
    exposure = str(rng.choice(["normal", "normal", "light", "dark"]))
    facts = {
        "view": str(rng.choice(["PA", "PA", "AP"])),
        "marker": str(rng.choice(["L", "R", "none"])),
        "leads": str(rng.choice(["present", "none", "none", "none"])),
        "exposure": exposure,
    }
    shift = (rng.uniform(-0.04, 0.04), rng.uniform(-0.04, 0.04))
    frame = Frame(size, angle=math.radians(rng.uniform(-4.0, 4.0)), zoom=rng.uniform(0.96, 1.05), shift=shift)
    chest = _anatomy(rng, frame)
    image = _soft_tissue(rng, chest)
    lungs = chest.lungs
    image = mix(image, 0.17, lungs * np.float32(0.9)) + lungs * _markings(rng, chest)
    if rng.random() < 0.6:  # the stomach's air bubble under the patient's left dome
        image -= np.float32(0.25) * ellipse(frame, (0.38, 0.60), (0.15, 0.07), edge=0.4) * (1.0 - lungs)
    image = _mediastinum(rng, chest, image, big_heart=name == "cardiomegaly", view=facts["view"])
    match name:
        case "pleural effusion":
            image = _effusion(rng, chest, image, **attributes)
        case "pneumothorax":
            image = _pneumothorax(rng, chest, image, **attributes)
        case "consolidation":
            image = _consolidation(rng, chest, image, **attributes)
        case "lung mass":
            image = _mass(rng, chest, image, **attributes)
    image = _bones(rng, chest, image)
    image = _extras(rng, frame, image, facts)
    image += np.float32(0.012) * cloud(rng, size, 10)
    gamma = {"normal": 1.0, "light": 0.78, "dark": 1.35}[exposure] * rng.uniform(0.95, 1.05)
    image = np.clip(image * vignette(frame, rng.uniform(0.0, 0.08)), 0.0, 1.0) ** np.float32(gamma)
    return Rendered(image + np.float32(rng.uniform(0.01, 0.025)) * grain(rng, size), facts)


__all__ = ["draw"]
