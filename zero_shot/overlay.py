"""A similarity map over its image."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from typing import Final

import numpy as np
from jaxtyping import Float, UInt8

# Share of the colour over the image.
_STRENGTH: Final = 0.5
_BOX: Final = (0, 255, 255)


def overlay_png(
    image: UInt8[np.ndarray, "H W C"],
    values: Float[np.ndarray, "H W"],
    *,
    boxes: Sequence[Sequence[int | float]] = (),
) -> bytes:
    """`overlay` as a PNG file, with boxes as (left, top, right, bottom) in pixels."""
    from PIL import Image, ImageDraw

    picture = Image.fromarray(overlay(image, values))
    draw = ImageDraw.Draw(picture)
    for left, top, right, bottom in boxes:
        draw.rectangle((left, top, right - 1, bottom - 1), outline=_BOX, width=max(1, min(values.shape) // 128))
    file = BytesIO()
    picture.save(file, "PNG")
    return file.getvalue()


def overlay(image: UInt8[np.ndarray, "H W C"], values: Float[np.ndarray, "H W"]) -> UInt8[np.ndarray, "H W 3"]:
    """The image in grey under the map in colour, from its lowest value (dark) to its highest (bright).

    What the model did not see (NaN) keeps its grey, at half brightness. Colours of two maps cannot be compared: each
    has its own range.
    """
    from matplotlib import colormaps

    grey = np.repeat(image.mean(axis=2, keepdims=True), 3, axis=2)
    seen = ~np.isnan(values)
    scaled = np.zeros(values.shape)
    if seen.any():
        low, high = values[seen].min(), values[seen].max()
        scaled[seen] = (values[seen] - low) / (high - low) if high > low else 0.0
    colours = 255 * colormaps["inferno"](scaled)[:, :, :3]
    mixed = np.where(seen[:, :, None], (1 - _STRENGTH) * grey + _STRENGTH * colours, grey / 2)
    return np.clip(np.rint(mixed), 0, 255).astype(np.uint8)


__all__ = ["overlay", "overlay_png"]
