"""Where in an image a text is: similarity maps, and how well they meet boxes. In NumPy, in double precision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float, Float64
from numpy.typing import NDArray

from clip_med.data.images import Preprocess

Doubles = NDArray[np.float64]

# BioViL's (hi-ml), on the cosine itself; recalled, not read.
THRESHOLDS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)


@dataclass(frozen=True, kw_only=True)
class Grounding:
    """How a map meets the boxes of a phrase. Published tables differ in these: say which.

    `cnr` is signed (generate_to_ground), `absolute_cnr` its size (BioViL); `hit` is the pointing game, 0 to 1; `iou` is
    the mean over thresholds. NaN where it is undefined: no pixel of a box, or none outside, was seen.
    """

    cnr: float
    absolute_cnr: float
    hit: float
    iou: float


def similarity_map(patches: Float[np.ndarray, "h w D"], text: Float[np.ndarray, " D"]) -> Float64[np.ndarray, "h w"]:
    """Cosine of every place with a text; both are unit rows."""
    return patches.astype(np.float64) @ text.astype(np.float64)


def smooth(values: Float[np.ndarray, "h w"], sigma: float = 1.5) -> Float64[np.ndarray, "h w"]:
    """A Gaussian of `sigma` places, cut at 4 sigma; beyond the edge the map is mirrored. 0 changes nothing.

    BioViL smooths its 14 x 14 grid with 1.5 before it enlarges it.

    Raises:
        ValueError: a negative sigma.
    """
    if sigma < 0:
        raise ValueError(f"sigma must be at least 0, got {sigma}")
    smoothed = values.astype(np.float64)
    if sigma == 0:
        return smoothed
    radius = int(4 * sigma + 0.5)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        width = [(radius, radius) if a == axis else (0, 0) for a in (0, 1)]
        padded = np.pad(smoothed, width, mode="symmetric")
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(kernel), axis=axis)
        smoothed = windows @ kernel
    return smoothed


def to_image(
    values: Float[np.ndarray, "h w"], height: int, width: int, preprocess: Preprocess
) -> Float64[np.ndarray, "H W"]:
    """The map on the pixels of the original image, linearly between places; NaN where the model saw nothing.

    Undoes the resizing of `preprocess`: of resize mode "shortest" the ends of the long side lie outside.
    """
    rows, columns = _frame_positions(height, width, preprocess)
    down = _interpolation(rows / preprocess.size, values.shape[0])
    across = _interpolation(columns / preprocess.size, values.shape[1])
    return down @ values.astype(np.float64) @ across.T


def box_mask(boxes: Sequence[Sequence[int | float]], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """Pixels whose centre lies in one of the boxes (left, top, right, bottom), in pixels.

    Raises:
        ValueError: no box, or one that is empty or not four numbers.
    """
    if not boxes:
        raise ValueError("there are no boxes")
    y, x = np.arange(height)[:, None] + 0.5, np.arange(width)[None] + 0.5
    mask = np.zeros((height, width), dtype=bool)
    for box in boxes:
        if len(box) != 4 or not (box[0] < box[2] and box[1] < box[3]):
            raise ValueError(f"a box is left, top, right, bottom with left < right and top < bottom, got {list(box)}")
        mask |= (x >= box[0]) & (x < box[2]) & (y >= box[1]) & (y < box[3])
    return mask


def contrast_to_noise(values: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> float:
    """(mean inside - mean outside) / sqrt(variance inside + variance outside), signed.

    0 for a map without variance whose means agree, infinite if they do not; NaN if inside or outside is empty. NaN
    pixels are left out.
    """
    seen = ~np.isnan(values)
    inside, outside = (values[seen & part].astype(np.float64) for part in (mask, ~mask))
    if not len(inside) or not len(outside):
        return float("nan")
    difference = float(inside.mean() - outside.mean())
    # Sums of equal numbers leave a rounding error of some units in the last place.
    if abs(difference) <= 1e-12 * max(1.0, float(np.abs(inside).max())):
        return 0.0
    noise = float(np.sqrt(inside.var() + outside.var()))
    return difference / noise if noise > 0 else float(np.copysign(np.inf, difference))


def pointing_game(values: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"]) -> float:
    """1 if the highest pixel lies in a box, else 0; of equal ones the share (Zhang et al., arXiv 1608.00507).

    The paper allows a margin of 15 pixels about the box, we none. NaN if no pixel of a box was seen.
    """
    seen = ~np.isnan(values)
    if not (seen & mask).any():
        return float("nan")
    best = seen & (values == np.max(values[seen]))
    return float(mask[best].mean())


def intersection_over_union(values: Float[np.ndarray, "H W"], mask: Bool[np.ndarray, "H W"], threshold: float) -> float:
    """Of the pixels at or above a threshold and those of the boxes: shared ones over all. NaN pixels are left out."""
    seen = ~np.isnan(values)
    if not (seen & mask).any():
        return float("nan")
    found = seen & (np.where(seen, values, -np.inf) >= threshold)
    return float((found & mask).sum() / ((found | mask) & seen).sum())


def ground(
    values: Float[np.ndarray, "H W"],
    mask: Bool[np.ndarray, "H W"],
    *,
    thresholds: Sequence[float] = THRESHOLDS,
) -> Grounding:
    """All metrics of one map. Thresholds are on the map itself, so the IoU depends on the model's cosines.

    The mean over 0.1 to 0.5 is what BioViL is said to report; generate_to_ground averages the IoU of foreground and
    background after a mixture of two Gaussians, which cannot be compared with it.

    Raises:
        ValueError: no thresholds.
    """
    if not thresholds:
        raise ValueError("thresholds must hold at least one number")
    cnr = contrast_to_noise(values, mask)
    return Grounding(
        cnr=cnr,
        absolute_cnr=abs(cnr),
        hit=pointing_game(values, mask),
        iou=float(np.mean([intersection_over_union(values, mask, t) for t in thresholds])),
    )


def _frame_positions(height: int, width: int, preprocess: Preprocess) -> tuple[Doubles, Doubles]:
    """Where the centres of rows and columns of an image lie in the square that the model sees, in its pixels."""
    size = preprocess.size
    match preprocess.resize_mode:
        case "squash":
            sides = (size, size)
        case "longest":
            factor = max(height, width) / size
            sides = (max(1, round(height / factor)), max(1, round(width / factor)))
        case "shortest":
            short = min(height, width)
            sides = (int(size * height / short), int(size * width / short))
    positions: list[Doubles] = []
    for length, side in zip((height, width), sides, strict=True):
        # Padding begins with the smaller half; cropping rounds half to even, as torchvision's does.
        start = (size - side) // 2 if side <= size else -round((side - size) / 2)
        positions.append((np.arange(length) + 0.5) * side / length + start)
    return positions[0], positions[1]


def _interpolation(positions: Doubles, places: int) -> Doubles:
    """Weights [N, places] of the two nearest places; positions in 0 .. 1, others are NaN."""
    at = np.clip(positions * places - 0.5, 0, places - 1)
    lower = np.minimum(np.floor(at).astype(np.int64), max(places - 2, 0))
    weights = np.zeros((len(positions), places))
    rows = np.arange(len(positions))
    weights[rows, lower] = 1 - (at - lower)
    if places > 1:
        weights[rows, lower + 1] = at - lower
    weights[(positions < 0) | (positions > 1)] = np.nan
    return weights


__all__ = [
    "THRESHOLDS",
    "Grounding",
    "box_mask",
    "contrast_to_noise",
    "ground",
    "intersection_over_union",
    "pointing_game",
    "similarity_map",
    "smooth",
    "to_image",
]
