"""DICOM files from disk: what is damaged, or would fill the memory, is refused by name."""

from __future__ import annotations

import struct
import warnings
import zlib
from pathlib import Path
from typing import Any, Final

from pydicom import dcmread
from pydicom.config import IGNORE, settings
from pydicom.dataset import FileDataset
from pydicom.errors import InvalidDicomError

from data_prep.files import check_size
from data_prep.record import RejectedImageError

# A file is read whole for its pixels: the longest films of ultrasound have 1 GB.
_MOST_BYTES: Final = 2 * 1024**3
# A deflated file of 2 MB can hold 2 GB.
_MOST_INFLATED: Final = 1 << 30
_DEFLATED: Final = b"1.2.840.10008.1.2.1.99"
# What pydicom and its decoders raise on damaged files, beside their own errors.
DAMAGED: Final = (
    InvalidDicomError,
    ValueError,
    TypeError,
    AttributeError,
    KeyError,
    IndexError,
    ArithmeticError,
    NotImplementedError,
    RuntimeError,
    OSError,
    EOFError,
    struct.error,
)


def read_dicom(file: Path, **options: Any) -> FileDataset:
    """A DICOM file; values that break the rules of their type are taken as they are.

    Sets `pydicom.config.settings.reading_validation_mode` for the process: values are parsed when they are first used,
    and a warning of pydicom would print them, names included.

    Raises:
        RejectedImageError: not a DICOM file, damaged, larger than 2 GiB (unless pixels are left out), or deflated and
            larger than 1 GiB when inflated.
        OSError: it cannot be read.
    """
    if not options.get("stop_before_pixels"):
        check_size(file.stat().st_size, _MOST_BYTES)
    _check_inflated(file)
    settings.reading_validation_mode = IGNORE
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return dcmread(file, **options)
    except OSError:
        raise
    except InvalidDicomError as error:
        raise RejectedImageError("not DICOM", "no meta header") from error
    except DAMAGED as error:
        raise RejectedImageError("damaged DICOM", f"{type(error).__name__}: {error}") from error


def _check_inflated(path: Path) -> None:
    """Refuse a deflated file that would fill the memory, before pydicom inflates all of it."""
    with path.open("rb") as file:
        if _DEFLATED not in file.read(1024):
            return
        check_size(path.stat().st_size, _MOST_BYTES)
        file.seek(0)
        data = file.read()
    start = data.find(b"\x02\x00\x00\x00UL\x04\x00")
    if start < 0:
        raise RejectedImageError("damaged DICOM", "deflated, and no FileMetaInformationGroupLength says from where")
    begin = start + 12 + int.from_bytes(data[start + 8 : start + 12], "little")
    inflater, total, rest = zlib.decompressobj(-zlib.MAX_WBITS), 0, data[begin:]
    try:
        while rest and not inflater.eof:
            total += len(inflater.decompress(rest, 1 << 20))
            rest = inflater.unconsumed_tail
            if total > _MOST_INFLATED:
                raise RejectedImageError("too large", f"a deflated file of more than {_MOST_INFLATED:,} bytes")
    except zlib.error as error:
        raise RejectedImageError("damaged DICOM", f"deflated: {error}") from error


__all__ = ["DAMAGED", "read_dicom"]
