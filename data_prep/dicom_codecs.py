"""A decoder of JPEG with 12 bits for pydicom: imagecodecs (BSD), since the packages that others use are GPL.

pydicom looks a plug-in up by module name: it wants `DECODER_DEPENDENCIES`, `is_available` and a function per frame.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from pydicom.pixels.decoders.base import JPEGExtended12BitDecoder
from pydicom.uid import JPEGExtended12Bit

DECODER_DEPENDENCIES: Final = {JPEGExtended12Bit: ("numpy", "imagecodecs>=2026.3")}
_LABEL: Final = "imagecodecs"


def is_available(_uid: str) -> bool:
    """imagecodecs comes with the extra `dicom`, as pydicom does."""
    return True


def register() -> None:
    """Make pydicom decode 12-bit JPEG; repeating it changes nothing."""
    if _LABEL not in JPEGExtended12BitDecoder.available_plugins:
        JPEGExtended12BitDecoder.add_plugin(_LABEL, (__name__, "decode_frame"))


def decode_frame(src: bytes, runner: Any) -> bytearray:
    """The samples of one frame, as pydicom wants them: 8 or 16 bits each, little endian.

    Raises:
        ValueError: not a JPEG with 8 or 12 bits, or not one of the size that the header says.
    """
    import imagecodecs

    if (size := _frame_size(src)) != (runner.rows, runner.columns):
        # Before the decoder makes room for it: a few hundred bytes can claim 65,000 x 65,000 pixels.
        raise ValueError(
            f"imagecodecs: a JPEG of {size} in an image of {(runner.rows, runner.columns)} (rows, columns)"
        )
    try:
        frame = imagecodecs.jpeg8_decode(src)
    except imagecodecs.Jpeg8Error as error:
        raise ValueError(f"imagecodecs: {error}") from error
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(np.ascontiguousarray(frame).tobytes())


def _frame_size(data: bytes) -> tuple[int, int] | None:
    """Rows and columns from the frame header of a JPEG (ITU T.81, B.2.2); None if it ends before one."""
    place = 2
    while place + 9 <= len(data):
        if data[place : place + 2] == b"\xff\xff":
            place += 1  # a marker may have any number of these before it (B.1.1.2)
            continue
        marker = data[place + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return int.from_bytes(data[place + 5 : place + 7], "big"), int.from_bytes(
                data[place + 7 : place + 9], "big"
            )
        place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


__all__ = ["DECODER_DEPENDENCIES", "decode_frame", "is_available", "register"]
