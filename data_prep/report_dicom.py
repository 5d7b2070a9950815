"""DICOM images of the studies in a tree of reports: their picture, and what their header says of it and of whom."""

from __future__ import annotations

from pathlib import Path

from data_prep.dicom_fields import PEOPLE_FIELDS, header_seeds, says_burned_in
from data_prep.dicom_pixels import PixelRules, displayed_frame
from data_prep.dicom_reading import read_dicom
from data_prep.pixels import encode_png, scaled_down


def header_of_study(file: Path) -> tuple[tuple[str, ...], bool]:
    """Names and numbers of people, for the scrubber; and whether text is said to be in the pixels.

    Raises:
        RejectedImageError, OSError: see `read_dicom`.
    """
    header = read_dicom(file, stop_before_pixels=True, specific_tags=[*PEOPLE_FIELDS, "BurnedInAnnotation"])
    return header_seeds(header, PEOPLE_FIELDS), says_burned_in(header)


def dicom_image(file: Path, max_side: int | None) -> bytes:
    """The first frame as PNG.

    Raises:
        RejectedImageError: see `displayed_frame`.
    """
    return encode_png(scaled_down(displayed_frame(read_dicom(file), 0, PixelRules()), max_side))


__all__ = ["dicom_image", "header_of_study"]
