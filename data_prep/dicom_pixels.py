"""One frame of a DICOM image as it is to be looked at: 8-bit grey or RGB.

The order is that of DICOM PS3.4 N.2: stored values, modality LUT or rescale, VOI LUT or window, inversion, 8 bits.
Grey goes through one table of all stored values, built in float64: at most one grey level from the float path, and at
2048 x 2048 about seven times faster.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from jaxtyping import Float64, Integer, UInt8
from pydicom.dataset import Dataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut
from pydicom.pixels.utils import pixel_array

from clip_med.config import config
from data_prep import dicom_codecs
from data_prep.dicom_reading import DAMAGED
from data_prep.record import RejectedImageError
from data_prep.windows import WINDOWS, WindowName

MAX_PIXELS: Final = 64_000_000
_GREY: Final = ("MONOCHROME1", "MONOCHROME2")
_COLOUR: Final = ("RGB", "PALETTE COLOR", "YBR_FULL", "YBR_FULL_422", "YBR_RCT", "YBR_ICT")
# Pixels that are not a picture: masks, doses and measured maps.
_NO_PICTURE: Final = {"SEG": "segmentation", "RTDOSE": "dose grid", "REG": "registration", "PR": "presentation state"}
# Their modality LUT undoes the logarithm, for subtraction; it is not for display (PS3.3 C.8.7.1.1.2).
_XRAY_ANGIO: Final = ("1.2.840.10008.5.1.4.1.1.12.1", "1.2.840.10008.5.1.4.1.1.12.2")


@config
class PixelRules:
    """How stored values become grey levels."""

    window: WindowName = "file"
    """The VOI LUT or window in the file, or a preset in Hounsfield units for all CT images. A CT image without a window
    is shown with soft_tissue; another image of more than 8 bits without one from its 0.5 to its 99.5 percentile."""
    window_index: int = 0
    """Which of several windows (or VOI LUTs) of a file; the last one where there are fewer."""
    for_processing: bool = False
    """Also take images for processing: raw detector values, which are not made to be looked at."""


def check_picture(dataset: Dataset, rules: PixelRules) -> None:
    """Refuse what is no picture, from the header alone.

    Raises:
        RejectedImageError: with the name of what it is.
    """
    modality = str(dataset.get("Modality", ""))
    if modality in _NO_PICTURE:
        raise RejectedImageError(_NO_PICTURE[modality])
    if "Rows" not in dataset or "Columns" not in dataset:
        raise RejectedImageError("no pixels", "neither rows nor columns")
    if str(dataset.get("PresentationIntentType", "")) == "FOR PROCESSING" and not rules.for_processing:
        raise RejectedImageError("for processing", "raw detector values; see --for-processing")
    photometric = str(dataset.get("PhotometricInterpretation", ""))
    if photometric not in _GREY + _COLOUR:
        raise RejectedImageError("unknown colours", f"PhotometricInterpretation {photometric!r}")
    rows, columns = (_number(dataset, name) for name in ("Rows", "Columns"))
    if not 0 < rows * columns <= MAX_PIXELS:
        raise RejectedImageError("too large", f"{columns} x {rows} pixels; the most is {MAX_PIXELS:,}")
    stored, allocated, high = (_number(dataset, name) for name in ("BitsStored", "BitsAllocated", "HighBit"))
    if not 0 < stored <= allocated <= 32 or high != stored - 1:
        raise RejectedImageError("odd bits", f"{stored} of {allocated} bits, the highest is number {high}")


def number_of_frames(dataset: Dataset) -> int:
    """What the header says of it; 1 where it says nothing.

    Raises:
        RejectedImageError: no number above 0.
    """
    try:
        number = int(dataset.get("NumberOfFrames") or 1)
    except DAMAGED as error:
        raise RejectedImageError("damaged DICOM", f"NumberOfFrames: {error}") from error
    if number < 1:
        raise RejectedImageError("damaged DICOM", f"NumberOfFrames is {number}")
    return number


def displayed_frame(dataset: Dataset, frame: int, rules: PixelRules) -> UInt8[np.ndarray, "H W C"]:
    """Frame `frame` (from 0) as [H, W, 1] grey or [H, W, 3] RGB.

    Padding is black, also in an inverted image. Overlays are not drawn; those that share bits with the pixels are
    masked out.

    Raises:
        RejectedImageError: no picture, or it does not decode.
    """
    check_picture(dataset, rules)
    if "PixelData" not in dataset:
        raise RejectedImageError("no pixels", "no pixel data")
    stored = _decoded(dataset, frame)
    try:
        if str(dataset.PhotometricInterpretation) in _GREY:
            if stored.ndim != 2:
                raise RejectedImageError("undecodable image", f"grey of shape {stored.shape}")
            return _grey(dataset, frame, stored, rules)[:, :, None]
        return _colour(dataset, stored)
    except DAMAGED as error:
        if isinstance(error, RejectedImageError):
            raise
        raise RejectedImageError("damaged DICOM", f"{type(error).__name__}: {error}") from error


def _decoded(dataset: Dataset, frame: int) -> Integer[np.ndarray, "..."]:
    dicom_codecs.register()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return pixel_array(dataset, index=frame)
    except MemoryError as error:
        raise RejectedImageError("too large", "out of memory") from error
    except DAMAGED as error:
        # Decoders put a line per plug-in into the message.
        lines = [line.strip() for line in str(error).splitlines()]
        raise RejectedImageError("undecodable image", f"{type(error).__name__}: {'; '.join(lines)}") from error


def _colour(dataset: Dataset, stored: Integer[np.ndarray, "..."]) -> UInt8[np.ndarray, "H W 3"]:
    bits = _number(dataset, "BitsStored")
    if str(dataset.PhotometricInterpretation) == "PALETTE COLOR":
        stored = apply_color_lut(stored, dataset)
        bits = 8 * stored.dtype.itemsize
    if stored.ndim != 3 or stored.shape[2] != 3:
        raise RejectedImageError("undecodable image", f"colours of shape {stored.shape}")
    if bits == 8:
        return stored.astype(np.uint8)
    return np.rint(stored * (255.0 / (2**bits - 1))).astype(np.uint8)


def _grey(
    dataset: Dataset, frame: int, stored: Integer[np.ndarray, "H W"], rules: PixelRules
) -> UInt8[np.ndarray, "H W"]:
    bits = _number(dataset, "BitsStored")
    scopes = _scopes(dataset, frame)
    padding = _padding(dataset)
    voi = _voi(scopes, rules, bits, lambda: _percentiles(dataset, scopes, stored, padding))
    inverted = (
        str(dataset.PhotometricInterpretation) == "MONOCHROME1"
        or str(dataset.get("PresentationLUTShape", "")) == "INVERSE"
    )
    signed = bool(dataset.get("PixelRepresentation", 0))
    if bits > 16:
        return _levels(voi(_modality(dataset, scopes, stored)), inverted, stored, padding)
    codes = np.arange(2**bits, dtype=np.int64)
    codes = np.where(codes >= 2 ** (bits - 1), codes - 2**bits, codes) if signed else codes
    # Decoders may give more bits than the header says: those values have no code and are cut by the mask.
    table = _levels(voi(_modality(dataset, scopes, codes)), inverted, codes, padding)
    unsigned = stored.astype(stored.dtype.newbyteorder("="), copy=False).view(f"u{stored.dtype.itemsize}")
    return table[unsigned & np.asarray(2**bits - 1, unsigned.dtype)]


def _levels(
    shown: Float64[np.ndarray, "..."],
    inverted: bool,
    stored: Integer[np.ndarray, "..."],
    padding: tuple[int, int] | None,
) -> UInt8[np.ndarray, "..."]:
    """0..1 to 0..255, inverted where the file says so; padding is black."""
    levels = np.rint(255 * (1 - shown if inverted else shown)).astype(np.uint8)
    if padding is not None:
        levels[(stored >= padding[0]) & (stored <= padding[1])] = 0
    return levels


def _modality(
    dataset: Dataset, scopes: list[Dataset], values: Integer[np.ndarray, "..."]
) -> Float64[np.ndarray, "..."]:
    """Stored values as what they measure (PS3.3 C.11.1): through a table, or slope and intercept."""
    if "ModalityLUTSequence" in dataset:
        if str(dataset.get("SOPClassUID", "")) in _XRAY_ANGIO:
            return values.astype(np.float64)
        return np.asarray(apply_modality_lut(values, dataset), np.float64)
    slope, intercept = (_first(scopes, name) for name in ("RescaleSlope", "RescaleIntercept"))
    return values * float(1 if slope is None else slope) + float(intercept or 0)


def _voi(
    scopes: list[Dataset], rules: PixelRules, bits: int, percentiles: Callable[[], tuple[float, float]]
) -> Callable[[Float64[np.ndarray, "..."]], Float64[np.ndarray, "..."]]:
    """Measured values to 0..1 (PS3.3 C.11.2): the chosen preset, a table, a window, or what fits."""
    ct = str(scopes[-1].get("Modality", "")) == "CT"
    if ct and rules.window != "file":
        return lambda values: windowed(values, *WINDOWS[rules.window])
    sequence = _first(scopes, "VOILUTSequence")
    if sequence:
        item = sequence[min(rules.window_index, len(sequence) - 1)]
        return lambda values: _through_table(values, item)
    centers, widths = (_several(_first(scopes, name)) for name in ("WindowCenter", "WindowWidth"))
    if centers and len(centers) == len(widths):
        place = min(rules.window_index, len(centers) - 1)
        function = str(_first(scopes, "VOILUTFunction") or "LINEAR").upper()
        return lambda values: windowed(values, centers[place], widths[place], function)
    if ct:
        return lambda values: windowed(values, *WINDOWS["soft_tissue"])
    if bits <= 8:
        slope = float(_first(scopes, "RescaleSlope") or 1)
        intercept = float(_first(scopes, "RescaleIntercept") or 0)
        low = -(2 ** (bits - 1)) if scopes[-1].get("PixelRepresentation", 0) else 0
        return lambda values: np.clip(((values - intercept) / slope - low) / (2**bits - 1), 0, 1)
    low, high = percentiles()
    return lambda values: np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def windowed(
    values: Float64[np.ndarray, "..."], center: float, width: float, function: str = "LINEAR"
) -> Float64[np.ndarray, "..."]:
    """Values in a window as 0..1; the three functions of PS3.3 C.11.2.1.2 and C.11.2.1.3.

    Raises:
        RejectedImageError: a width that the function does not allow, or another function.

    Example:
        >>> windowed(np.array([0.0, 50.0, 100.0]), 50, 100, "LINEAR_EXACT").tolist()
        [0.0, 0.5, 1.0]
    """
    if (width < 1 and function == "LINEAR") or width <= 0:
        raise RejectedImageError("odd window", f"{function} with width {width}")
    match function:
        case "LINEAR" if width == 1:
            return (values > center - 0.5).astype(np.float64)
        case "LINEAR":
            return np.clip((values - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
        case "LINEAR_EXACT":
            return np.clip((values - center) / width + 0.5, 0, 1)
        case "SIGMOID":
            # Beyond 30 the result is 0 or 1 in float64, and exp would overflow beyond 709.
            return 1 / (1 + np.exp(np.clip(-4 * (values - center) / width, -30, 30)))
        case other:
            raise RejectedImageError("odd window", f"VOILUTFunction {other!r}")


def _through_table(values: Float64[np.ndarray, "..."], item: Dataset) -> Float64[np.ndarray, "..."]:
    """A VOI LUT (PS3.3 C.11.2.1.1): number of entries, first value mapped, and bits of an entry in its descriptor."""
    entries, first, bits = (int(number) for number in item.LUTDescriptor)
    entries = entries or 65536
    data = item.LUTData
    if isinstance(data, bytes):
        table = np.frombuffer(data, "<u2" if len(data) >= 2 * entries else "u1")
    else:
        table = np.asarray(data, np.float64)
    if len(table) < entries:
        raise RejectedImageError("odd window", f"a VOI LUT of {len(table)} entries instead of {entries}")
    places = np.clip(np.trunc(values) - first, 0, entries - 1).astype(np.int64)
    return np.clip(table[places] / (2**bits - 1), 0, 1)


def _percentiles(
    dataset: Dataset, scopes: list[Dataset], stored: Integer[np.ndarray, "H W"], padding: tuple[int, int] | None
) -> tuple[float, float]:
    """0.5 and 99.5: minimum and maximum would let one hot pixel make the picture black."""
    pixels = stored if padding is None else stored[(stored < padding[0]) | (stored > padding[1])]
    if not pixels.size:
        return 0.0, 1.0
    low, high = np.sort(_modality(dataset, scopes, np.percentile(pixels, (0.5, 99.5), method="nearest")))
    return float(low), float(high)


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """Lowest and highest stored value that means no pixel (PS3.3 C.7.5.1.1.2)."""
    value = dataset.get("PixelPaddingValue")
    if not isinstance(value, int):
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    low, high = sorted((value, limit if isinstance(limit, int) else value))
    return low, high


def _scopes(dataset: Dataset, frame: int) -> list[Dataset]:
    """Where an attribute of a frame may stand, the nearest first: its functional groups, the shared ones, the file."""
    scopes: list[Dataset] = []
    per_frame = dataset.get("PerFrameFunctionalGroupsSequence") or []
    shared = dataset.get("SharedFunctionalGroupsSequence") or []
    for groups in [*per_frame[frame : frame + 1], *shared[:1]]:
        for name in ("PixelValueTransformationSequence", "FrameVOILUTSequence"):
            scopes += list(groups.get(name) or [])[:1]
    return [*scopes, dataset]


def _first(scopes: list[Dataset], name: str) -> Any:
    return next((value for scope in scopes if (value := scope.get(name)) not in (None, "")), None)


def _several(value: Any) -> list[float]:
    if value is None:
        return []
    return [float(value)] if isinstance(value, int | float | str) else [float(number) for number in value]


def _number(dataset: Dataset, name: str) -> int:
    value = dataset.get(name)
    if not isinstance(value, int):
        raise RejectedImageError("damaged DICOM", f"{name} is {value!r}")
    return value


__all__ = ["PixelRules", "check_picture", "displayed_frame", "number_of_frames", "windowed"]
