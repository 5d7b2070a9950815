"""What becomes of images with text in their pixels: they are left out, or the text is painted over."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final, Literal, cast

import numpy as np
from jaxtyping import UInt8

from clip_med.data.images import decode_image
from clip_med.data.sample import Sample
from data_prep.pixels import clean_image, encode_png
from data_prep.record import RejectedImageError, Source, Task
from data_prep.text_finder import Box, find_text

# Of painting over and looking again; what is found after them is in no place that painting reaches.
_ROUNDS: Final = 3
# In `Task.where`: the source itself says that text is in the pixels.
SAID: Final = "burned_in"
# In the provenance of a sample: how many places were painted over.
BLACKENED: Final = "blackened"
NOT_LOOKED: Final = "not looked at for text"
WORDS: Final = {
    "ignore": NOT_LOOKED,
    "quarantine": "those with text left out, as far as found",
    "blacken": "text blackened, as far as found",
}


def blackened(sample: Sample) -> dict[str, str]:
    """What the provenance of a sample says of it; empty if nothing was painted over."""
    return {name: value for name, value in (sample.provenance or {}).items() if name == BLACKENED}


def open_checked(source: Source, task: Task) -> tuple[bytes, str, int]:
    """The image of a task as bytes and suffix, and in how many places text was painted over.

    Text is looked for at full size, before `max_side` makes it too small to be found (and perhaps not to be read).

    Raises:
        RejectedImageError, ImageError, OSError: as `Source.open_image`; text that was found or left.
    """
    settings = source.settings
    if settings.burned_in == "ignore":
        return *source.open_image(task), 0
    full = replace(cast(Any, source), settings=replace(settings, max_side=None))
    image, suffix = full.open_image(task)
    image, suffix, places = _without_text(image, suffix, settings.burned_in, task)
    if not places:
        # As without a look: a JPEG that was made of the pixels is not made small and encoded once more.
        return (image, suffix, 0) if settings.max_side is None else (*source.open_image(task), 0)
    return *clean_image(image, source=task.path, max_side=settings.max_side), places


def _without_text(
    image: bytes, suffix: str, treatment: Literal["quarantine", "blacken"], task: Task
) -> tuple[bytes, str, int]:
    pixels = decode_image(image, source=task.path)
    boxes = find_text(pixels)
    if not boxes and not task.where.get(SAID):
        return image, suffix, 0
    if treatment == "quarantine" or not boxes:
        raise text_found(boxes)
    painted, places = painted_over(pixels, boxes)
    # A PNG: nothing but the text changes.
    return encode_png(painted), "png", places


def text_found(boxes: Sequence[Box], place: str = "") -> RejectedImageError:
    """Why an image is left out: where its text is, or, without boxes, that its header says so.

    Args:
        place: stands before the boxes.
    """
    return RejectedImageError(
        "burned-in text", f"{place}at {_written(boxes)}" if boxes else "its header says so; not found"
    )


def painted_over(pixels: UInt8[np.ndarray, "H W C"], boxes: Sequence[Box]) -> tuple[UInt8[np.ndarray, "H W C"], int]:
    """A copy with black boxes where text was found, then and when looked at again; and how many they are.

    Raises:
        RejectedImageError: there is still text after three rounds.
    """
    painted, places = pixels.copy(), 0
    for _ in range(_ROUNDS):
        for left, top, right, bottom in boxes:
            painted[top:bottom, left:right] = 0
        places += len(boxes)
        boxes = find_text(painted)
        if not boxes:
            return painted, places
    raise RejectedImageError("burned-in text", f"left after blackening: at {_written(boxes)}")


def _written(boxes: Sequence[Box]) -> str:
    """Left, top, right and bottom of each in pixels; never what is written there."""
    return ", ".join(str(list(box)) for box in boxes)


__all__ = ["BLACKENED", "NOT_LOOKED", "SAID", "WORDS", "blackened", "open_checked", "painted_over", "text_found"]
