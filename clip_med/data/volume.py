"""Volumes as the bytes of an `.npy` file: the third kind of image that a sample may hold. Imports no torch.

The header is matched against the only form that NumPy writes for plain numbers; nothing is evaluated or unpickled.
"""

from __future__ import annotations

import math
import re
from io import BytesIO
from typing import Final

import numpy as np
from jaxtyping import Shaped, UInt8

from clip_med.data.tar import MAX_MEMBER_BYTES

# A header of three axes has 118 bytes behind the 10 of magic, version and length.
HEADER_BYTES: Final = 1024
_TYPES: Final = ("uint8", "int8", "uint16", "int16", "float16", "float32")
_MAGIC: Final = b"\x93NUMPY\x01\x00"
_HEADER: Final = re.compile(
    rb"\{'descr': '([<>|][uif][124])', 'fortran_order': (True|False), "
    rb"'shape': \(((?:[0-9]{1,9}, )*[0-9]{0,9},?)\), \} *\n"
)


def encode_volume(volume: Shaped[np.ndarray, "X Y Z"]) -> bytes:
    """The bytes of the `.npy` file of a volume, in C order; equal volumes give equal bytes.

    Raises:
        ValueError: not three axes, values of another type than those of 8 or 16 bits and float32, or over 256 MiB.
    """
    _check(volume.shape, volume.dtype.name, "volume")
    if volume.nbytes + HEADER_BYTES > MAX_MEMBER_BYTES:
        raise ValueError(f"volume: {volume.nbytes} bytes are more than the {MAX_MEMBER_BYTES} that a shard takes")
    file = BytesIO()
    np.lib.format.write_array(file, np.ascontiguousarray(volume), version=(1, 0), allow_pickle=False)
    return file.getvalue()


def decode_volume(data: bytes, *, source: str = "volume") -> Shaped[np.ndarray, "X Y Z"]:
    """The volume in the bytes of an `.npy` file, without a copy (so read-only).

    Raises:
        ValueError: damaged, objects, not three axes, or of another size than the header says; names `source`.

    Example:
        >>> decode_volume(encode_volume(np.zeros((2, 3, 4), np.int16))).shape
        (2, 3, 4)
    """
    start, dtype, fortran, shape = _header(data[:HEADER_BYTES], len(data), source)
    return np.frombuffer(data, dtype, offset=start).reshape(shape, order="F" if fortran else "C")


def check_volume(beginning: bytes, size: int, *, source: str) -> None:
    """Refuse an `.npy` file of `size` bytes that `decode_volume` would refuse, from its first `HEADER_BYTES`.

    Raises:
        ValueError: see `decode_volume`.
    """
    _header(beginning, size, source)


def middle_slice(volume: Shaped[np.ndarray, "X Y Z"]) -> UInt8[np.ndarray, "Y X 1"]:
    """The middle slice along the last axis as grey levels from its least to its greatest value, to look at.

    Of a volume in canonical order (left-right, back-front, foot-head) it is axial, as radiologists hang it.
    """
    image = np.nan_to_num(volume[::-1, ::-1, volume.shape[2] // 2].T.astype(np.float32), posinf=0, neginf=0)
    low, high = float(image.min()), float(image.max())
    return np.rint(255 * (image - low) / max(high - low, 1e-12)).astype(np.uint8)[:, :, None]


def _header(beginning: bytes, size: int, source: str) -> tuple[int, np.dtype, bool, tuple[int, ...]]:
    """Where the values begin, their type, whether in Fortran order, and the shape."""
    start = len(_MAGIC) + 2 + int.from_bytes(beginning[8:10], "little")
    if not beginning.startswith(_MAGIC) or start > min(size, HEADER_BYTES):
        raise ValueError(f"{source}: no .npy file of version 1.0: it begins with {beginning[:10]!r}")
    found = _HEADER.fullmatch(beginning[10:start])
    if found is None:
        raise ValueError(f"{source}: not the .npy header of an array of plain numbers: {beginning[10:90]!r}")
    try:
        dtype = np.dtype(found[1].decode())
    except TypeError as error:
        raise ValueError(f"{source}: an .npy file of the unknown type {found[1].decode()!r}") from error
    shape = tuple(int(side) for side in found[3].decode().split(",") if side.strip())
    _check(shape, dtype.name, source)
    if (expected := start + math.prod(shape) * dtype.itemsize) != size:
        raise ValueError(f"{source}: {shape} of {dtype} takes {expected} bytes, the file has {size}")
    return start, dtype, found[2] == b"True", shape


def _check(shape: tuple[int, ...], dtype: str, source: str) -> None:
    if len(shape) != 3 or min(shape) < 1:
        raise ValueError(f"{source}: a volume has three axes, got the shape {shape}")
    if dtype not in _TYPES:
        raise ValueError(f"{source}: the values of a volume are {', '.join(_TYPES)}, got {dtype}")


__all__ = ["HEADER_BYTES", "check_volume", "decode_volume", "encode_volume", "middle_slice"]
