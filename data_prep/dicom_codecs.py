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
        ValueError: not a JPEG with 8 or 12 bits.
    """
    import imagecodecs

    try:
        frame = imagecodecs.jpeg8_decode(src)
    except imagecodecs.Jpeg8Error as error:
        raise ValueError(f"imagecodecs: {error}") from error
    runner.set_option("bits_allocated", 8 * frame.dtype.itemsize)
    runner.set_option("planar_configuration", 0)
    return bytearray(np.ascontiguousarray(frame).tobytes())


__all__ = ["DECODER_DEPENDENCIES", "decode_frame", "is_available", "register"]
