"""From the bytes of a stored image to one training view: the crop is chosen first, then only as much is decoded.

A large JPEG whose crop will be shrunk anyway is decoded at 1/2, 1/4 or 1/8 of its size, which skips most of the inverse
transform and of the resizing. The scales between (5/8, 3/4) have no vector code in libjpeg-turbo and took longer than
the full size.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from clip_med.data.augment import DRAWS, AugmentConfig, crop_box, eval_image, view_of_crop
from clip_med.data.images import Preprocess, decode_image

# A scaled crop keeps at least this many times the model's size. At 1.0 the decoder's sharp low-pass meets frequencies
# that the view would have shown: 2 grey levels of mean error on CT, histology and ultrasound. From 1.6 on it stays
# under 1.5 on every modality (tests/data/test_train_view.py).
MARGIN: Final = 1.6


def train_view(
    data: bytes,
    preprocess: Preprocess,
    augment: AugmentConfig,
    rng: np.random.Generator,
    modality: str,
    *,
    caption: str = "",
    max_pixels: int = 64_000_000,
    scaled_decode: bool = True,
    source: str = "",
) -> UInt8[Tensor, "3 S S"]:
    """What `decode_image` and `train_image` give together, without decoding detail that the crop cannot show.

    The crop is drawn on the full upright size, so it is the same for either value of `scaled_decode`; where the image
    was decoded at 1/d, the crop's edges are rounded to multiples of d pixels, a shift of at most d / 2. With
    `scaled_decode=False`, and for everything but an upright JPEG, the result is bit for bit that of the two functions,
    but as a view that a batch has yet to copy (`view_of_crop`).

    Raises:
        ImageError: empty, truncated, damaged, too large (refused before decoding), or of an unknown format.
    """
    if not augment.enabled:
        return eval_image(decode_image(data, max_pixels=max_pixels, source=source), preprocess)
    draws = rng.random(DRAWS)
    chosen: list[int] = [1, 0, 0]

    def divisor(height: int, width: int) -> int:
        box = crop_box(height, width, preprocess, augment, draws)
        chosen[:] = crop_divisor(box[2], box[3], preprocess), height, width
        return chosen[0]

    image = decode_image(data, max_pixels=max_pixels, source=source, divisor=divisor if scaled_decode else None)
    factor, height, width = chosen
    if factor == 1 or image.shape[:2] != (-(-height // factor), -(-width // factor)):
        # The second: Pillow has read a JPEG that simplejpeg gave back, at full size.
        factor, (height, width) = 1, image.shape[:2]
    top, left, box_height, box_width = crop_box(height, width, preprocess, augment, draws)
    rows = slice(round(top / factor), round((top + box_height) / factor))
    columns = slice(round(left / factor), round((left + box_width) / factor))
    return view_of_crop(image[rows, columns], preprocess, augment, draws, modality, caption=caption)


def crop_divisor(height: int, width: int, preprocess: Preprocess) -> int:
    """The largest of 8, 4, 2 and 1 at which both sides of a crop keep `MARGIN` times the model's."""
    needed = MARGIN * preprocess.size
    return next((divisor for divisor in (8, 4, 2) if min(height, width) >= divisor * needed), 1)


__all__ = ["MARGIN", "crop_divisor", "train_view"]
