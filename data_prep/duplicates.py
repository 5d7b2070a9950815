"""Images that are the same, or nearly: digests of pixels, and perceptual hashes compared by bands."""

from __future__ import annotations

import hashlib
from typing import Final

import numpy as np
from jaxtyping import Int64, UInt8, UInt64
from PIL import Image

_SIDE: Final = 16
BITS: Final = _SIDE * _SIDE
# Neighbouring cells must differ by more: the noise of JPEG in a flat background would toss coins otherwise.
_MARGIN: Final = 2
# With fewer bits set an image is too plain to be compared by them (blank film, background).
PLAIN: Final = 8


def pixel_digest(pixels: UInt8[np.ndarray, "H W C"]) -> bytes:
    """SHA-256 of shape and pixels: the same for the same picture in any lossless format."""
    return hashlib.sha256(str(pixels.shape).encode() + np.ascontiguousarray(pixels).tobytes()).digest()


def difference_hash(pixels: UInt8[np.ndarray, "H W C"]) -> UInt64[np.ndarray, "4"]:
    """256 bits: whether each of 16 x 16 cells is darker than its right neighbour, by more than 2 levels.

    Re-compression, scaling and changes of brightness leave nearly all bits; another picture differs in many.

    Example:
        >>> ramp = np.tile(np.arange(170, dtype=np.uint8), (64, 1))[:, :, None]
        >>> int(np.bitwise_count(difference_hash(ramp)).sum())
        256
    """
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).convert("L")
    cells = np.asarray(image.resize((_SIDE + 1, _SIDE), Image.Resampling.BOX), np.int16)
    return np.packbits(cells[:, 1:] - cells[:, :-1] > _MARGIN).view(np.uint64)


def near_pairs(hashes: UInt64[np.ndarray, "N 4"], distance: int) -> Int64[np.ndarray, "P 2"]:
    """All pairs (i < j) whose hashes differ in at most `distance` bits, plain images left out; sorted.

    Exact: two hashes that differ in `distance` bits agree in one of `distance` + 1 bands. The bits of a band come from
    all over the picture, so that dark borders do not fill one band with zeros. Equal hashes are compared once and give
    the pairs (first, other).

    Raises:
        ValueError: see `check_distance`.
    """
    check_distance(distance)
    compared = np.flatnonzero(np.bitwise_count(hashes).sum(1) >= PLAIN)
    unique, first, inverse = np.unique(hashes[compared], axis=0, return_index=True, return_inverse=True)
    leader = compared[first]
    equal = np.stack([leader[inverse.reshape(-1)], compared], 1)
    found = [equal[equal[:, 0] != equal[:, 1]]]
    bits = np.unpackbits(unique.view(np.uint8), axis=1)
    bands = distance + 1
    for band in range(bands):
        packed = np.packbits(bits[:, band::bands], axis=1)
        keys = np.zeros((len(packed), 8 * -(-packed.shape[1] // 8)), np.uint8)
        keys[:, : packed.shape[1]] = packed
        pairs = _pairs_of_band(keys.view(np.uint64), unique, distance)
        found.append(leader[pairs])
    pairs = np.sort(np.concatenate(found).reshape(-1, 2), axis=1)
    return np.unique(pairs, axis=0).astype(np.int64)


def check_distance(distance: int) -> None:
    """Refuse a distance at which bands are too narrow to tell anything apart.

    Raises:
        ValueError: it is not between 0 and 31.
    """
    if not 0 <= distance <= 31:
        raise ValueError(f"distance must be between 0 and 31 of {BITS} bits, got {distance}")


def _pairs_of_band(
    keys: UInt64[np.ndarray, "U W"], hashes: UInt64[np.ndarray, "U 4"], distance: int
) -> Int64[np.ndarray, "P 2"]:
    """Pairs with equal keys and near hashes: sorted, equal keys are neighbours, so steps of 1, 2, ... meet all."""
    order = np.lexsort(keys.T)
    keys, hashes = keys[order], hashes[order]
    found: list[np.ndarray] = [np.empty((0, 2), np.int64)]
    candidates = np.arange(len(keys))
    step = 1
    while len(candidates := candidates[candidates + step < len(keys)]):
        candidates = candidates[(keys[candidates] == keys[candidates + step]).all(1)]
        differing = np.bitwise_count(hashes[candidates] ^ hashes[candidates + step]).sum(1)
        near = candidates[differing <= distance]
        found.append(np.stack([order[near], order[near + step]], 1))
        step += 1
    return np.concatenate(found)


__all__ = ["BITS", "PLAIN", "difference_hash", "near_pairs", "pixel_digest"]
