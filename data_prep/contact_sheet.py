"""A contact sheet: evenly spread images of a shard set with what is said of them, to look at before training."""

from __future__ import annotations

import textwrap
from typing import Final

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from clip_med.data.images import decode_image
from clip_med.data.sample import VOLUME_SUFFIX, Sample
from clip_med.data.shards import ShardSet
from clip_med.data.volume import decode_volume, middle_slice

_SIDE: Final = 160
_TEXT: Final = 62


def contact_sheet(shards: ShardSet, *, rows: int = 4, columns: int = 6) -> Image.Image:
    """Up to rows * columns samples at even distances through the set, each with its modality and first caption.

    Of a study the first image is shown, of a volume the middle slice.

    Raises:
        ValueError: a damaged sample, by shard and key.
    """
    number = min(rows * columns, len(shards))
    sheet = Image.new("RGB", (columns * (_SIDE + 8) + 8, -(-number // columns) * (_SIDE + _TEXT) + 8), "white")
    pen = ImageDraw.Draw(sheet)
    for place in range(number):
        sample = shards.read(place * len(shards) // number)
        pixels = _pixels(sample)
        image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("RGB")
        image.thumbnail((_SIDE, _SIDE))
        x, y = 8 + place % columns * (_SIDE + 8), 8 + place // columns * (_SIDE + _TEXT)
        sheet.paste(image, (x + (_SIDE - image.width) // 2, y + (_SIDE - image.height) // 2))
        lines = textwrap.wrap(f"{sample.modality}: {sample.captions[0]}", width=28, max_lines=4, placeholder="...")
        # Pillow's built-in font has no letters beyond Latin-1.
        text = "\n".join(lines).encode("latin-1", "replace").decode("latin-1")
        pen.multiline_text((x, y + _SIDE + 2), text, fill="black", font_size=10, spacing=2)
    return sheet


def _pixels(sample: Sample) -> UInt8[np.ndarray, "H W C"]:
    if sample.image_suffix == VOLUME_SUFFIX:
        return middle_slice(decode_volume(sample.image, source=sample.key))
    return decode_image(sample.image, source=sample.key)


__all__ = ["contact_sheet"]
