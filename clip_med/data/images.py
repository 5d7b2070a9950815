"""Decoding of stored images to uint8 arrays, and the description of a model's preprocessing. Imports no torch.

Every image is measured before it is decoded: a JPEG of 631 bytes can claim 65,000 x 65,000 pixels and make a
decoder allocate 10 GB. JPEG goes through simplejpeg (libjpeg-turbo; 1.3 times Pillow's speed on one core), greyscale
JPEG stays one channel, everything else goes through Pillow.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Annotated, Any, Final, Literal, cast

import numpy as np
import simplejpeg  # pyright: ignore[reportMissingTypeStubs]
from annotated_types import Ge, Le
from jaxtyping import UInt8
from PIL import ExifTags, Image

from clip_med.config import PositiveInt, config, nearest

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD: Final = (0.26862954, 0.26130258, 0.27577711)

# An allow-list: among Pillow's other readers are ones that start programs (EPS calls Ghostscript) or are rarely
# exercised by anybody; none of them is a format in which medical image-text data is published.
_FORMATS: Final = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "JPEG2000")

# EXIF orientations that ask for a flip or a turn.
_TURNED: Final = range(2, 9)

# What Pillow's readers raise on damaged files: besides OSError the errors of parsers that met unexpected bytes.
_DAMAGED: Final = (
    OSError,
    ValueError,
    SyntaxError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


class ImageError(ValueError):
    """An image that cannot or must not be decoded; the message names its source."""


class VolumeError(ValueError):
    """A volume where an image is needed. Not damage: `loader.on_bad_sample: replace` stops at it too."""


@config
class Preprocess:
    """How a model wants its images: the same names and defaults as open_clip's `preprocess_cfg`.

    Example:
        >>> Preprocess.from_open_clip({"size": [336, 336], "mode": "RGB"}).size
        336
    """

    size: PositiveInt = 224
    """Height and width of the square that the image tower sees, in pixels."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Subtracted per channel from values in 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Divides per channel afterwards."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    resize_mode: Literal["shortest", "longest", "squash"] = "shortest"
    """shortest: scale the short side, crop the centre; longest: scale the long side, pad; squash: ignore the ratio."""
    fill_color: Annotated[int, Ge(0), Le(255)] = 0
    """Grey level of padding."""

    @classmethod
    def from_open_clip(cls, preprocess_cfg: Mapping[str, Any]) -> Preprocess:
        """Read open_clip's dictionary; absent and None entries take the defaults, as they do there.

        Raises:
            ValueError: an unknown key, a mode other than RGB, a size that is not square, or another bad value.
        """
        known = {"size", "mode", "mean", "std", "interpolation", "resize_mode", "fill_color"}
        for key in preprocess_cfg:
            if key not in known:
                raise ValueError(f"preprocess_cfg has an unknown key {key!r}; {nearest(key, known)}")
        values = {key: value for key, value in preprocess_cfg.items() if value is not None}
        mode = values.pop("mode", "RGB")
        if mode != "RGB":
            raise ValueError(f"preprocess_cfg: mode must be 'RGB', got {mode!r}")
        for key, valid in (("interpolation", _INTERPOLATIONS), ("resize_mode", _RESIZE_MODES)):
            if key in values and values[key] not in valid:
                raise ValueError(f"preprocess_cfg: {key} must be one of {', '.join(valid)}, got {values[key]!r}")
        if "size" in values:
            values["size"] = _square(values["size"])
        for key in ("mean", "std"):
            if key in values:
                values[key] = _three(key, values[key])
        return cls(**values)

    def to_open_clip(self) -> dict[str, Any]:
        """The dictionary that open_clip stores as `preprocess_cfg`; `from_open_clip` reads it back."""
        return {
            "size": self.size,
            "mode": "RGB",
            "mean": list(self.mean),
            "std": list(self.std),
            "interpolation": self.interpolation,
            "resize_mode": self.resize_mode,
            "fill_color": self.fill_color,
        }


_INTERPOLATIONS: Final = ("bicubic", "bilinear")
_RESIZE_MODES: Final = ("shortest", "longest", "squash")


def decode_image(
    data: bytes,
    *,
    max_pixels: int = 64_000_000,
    source: str = "",
    min_size: int | None = None,
    divisor: Callable[[int, int], int] | None = None,
) -> UInt8[np.ndarray, "H W C"]:
    """Decode a stored image to uint8 [H, W, 1 or 3] (RGB), upright according to its EXIF orientation.

    Transparency is composited on black, the background of most medical images and the default padding. 16-bit
    greyscale is scaled from 0..65535 to 0..255: data that uses fewer bits must be windowed when it is stored. Of an
    animation the first frame is taken.

    Args:
        data: the whole file: JPEG, PNG, WebP, TIFF, BMP, GIF, PNM or JPEG 2000.
        max_pixels: refuse larger images; read from the header, before anything is decoded. Files other than JPEG
            are also refused above Pillow's own limit (89 million).
        source: name for error messages, for example a sample key.
        min_size: decode JPEG at the smallest of 1, 1/2, 1/4 and 1/8 of its size whose short side is still at least
            this long (about 1.3 times faster at 1/2; mean error about one grey level after resizing to 224).
        divisor: called with height and width of a JPEG that needs no turning; answers 1, 2, 4 or 8, and the image is
            decoded to ceil(height / divisor) x ceil(width / divisor). Pixel i of it covers i * divisor onwards, which
            a turned image would count from its other end: those and all other formats are decoded whole.

    Raises:
        ImageError: empty, truncated, damaged, too large, or not an image of these formats.
        VolumeError: the `.npy` file of a volume.

    Example:
        >>> tiny = BytesIO(); Image.new("L", (3, 2), 7).save(tiny, "PNG")
        >>> decode_image(tiny.getvalue()).shape
        (2, 3, 1)
    """
    if not data:
        raise ImageError(f"{_named(source)}: the image is empty (0 bytes)")
    if data[:2] == b"\xff\xd8":
        if min_size is not None:
            divisor = partial(_divisor_for_side, min_size)
        image = _decode_jpeg(data, max_pixels, source, divisor)
        if image is not None:
            return image
    if data.startswith(b"\x93NUMPY"):
        raise VolumeError(
            f"{_named(source)}: a volume (.npy), and a 2-D image is needed here: make slices of the scans "
            f"(`clip-med data volumes` without --whole)"
        )
    return _decode_pillow(data, max_pixels, source)


def _decode_jpeg(
    data: bytes, max_pixels: int, source: str, divisor: Callable[[int, int], int] | None
) -> UInt8[np.ndarray, "H W C"] | None:
    """The image, or None for a JPEG that simplejpeg has no way to read as grey or RGB and Pillow may have."""
    try:
        header = simplejpeg.decode_jpeg_header(data)
    except ValueError:
        return None  # a broken header, or a rare subsampling: Pillow reads the latter and names what ails the former
    height, width, colorspace = int(header[0]), int(header[1]), str(header[2])
    _check_pixels(width, height, max_pixels, source)
    if colorspace not in ("Gray", "YCbCr", "RGB"):
        return None  # CMYK and YCCK
    orientation = _jpeg_orientation(data, source) if _may_have_exif(data) else 1
    factor = divisor(height, width) if divisor is not None and orientation not in _TURNED else 1
    try:
        image = simplejpeg.decode_jpeg(
            data,
            "GRAY" if colorspace == "Gray" else "RGB",
            # The decoder takes the smallest of its scales that reaches these; 0 = full size.
            min_height=-(-height // factor) if factor > 1 else 0,
            min_width=-(-width // factor) if factor > 1 else 0,
        )
    except ValueError as error:
        # The only damage that loses no pixel: stray bytes between two markers. Pillow skips them.
        if "extraneous bytes before marker" in str(error):
            return None
        raise ImageError(f"{_named(source)}: damaged JPEG of {width} x {height} pixels: {error}") from error
    return _upright(image, orientation)


def _may_have_exif(data: bytes) -> bool:
    """Whether an Exif block stands before the first scan; where the headers are odd, whether one stands anywhere.

    From header to header: 2 µs, against 50 for a search through 100 kB and 100 for Pillow's parsing.
    """
    at = 2
    while len(data) >= at + 10 and data[at] == 0xFF and 0xC0 <= data[at + 1] <= 0xFE:
        if data[at + 1] == 0xDA:  # start of scan
            return False
        if data[at + 1] == 0xE1 and data[at + 4 : at + 10] == b"Exif\0\0":
            return True
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return b"Exif\0\0" in data


def _jpeg_orientation(data: bytes, source: str) -> int:
    try:
        with _pillow_rules(), Image.open(BytesIO(data), formats=("JPEG",)) as headers:
            return _orientation(headers)
    except _DAMAGED as error:
        raise ImageError(f"{_named(source)}: damaged JPEG headers: {error}") from error


def _divisor_for_side(side: int, height: int, width: int) -> int:
    """The largest divisor that leaves the short side at least `side` pixels."""
    return next((divisor for divisor in (8, 4, 2) if -(-min(height, width) // divisor) >= side), 1)


@contextmanager
def _pillow_rules() -> Generator[None, None, None]:
    """Pillow only warns between one and two times its pixel limit (an error here) and of odd metadata (ignored)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        yield


def _decode_pillow(data: bytes, max_pixels: int, source: str) -> UInt8[np.ndarray, "H W C"]:
    try:
        with _pillow_rules(), Image.open(BytesIO(data), formats=_FORMATS) as image:
            _check_pixels(*image.size, max_pixels, source)
            image.load()
            pixels = _to_uint8(image, source)
            return _upright(pixels, _orientation(image))
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(f"{_named(source)}: {error} (max_pixels is {max_pixels})") from error
    except Image.UnidentifiedImageError as error:
        raise ImageError(
            f"{_named(source)}: not an image of a known format ({', '.join(_FORMATS)}): it begins with {data[:8]!r}"
        ) from error
    except _DAMAGED as error:
        raise ImageError(f"{_named(source)}: damaged image: {type(error).__name__}: {error}") from error


def _to_uint8(image: Image.Image, source: str) -> UInt8[np.ndarray, "H W C"]:
    """Grey or RGB bytes of a loaded Pillow image of any mode that has a defined range."""
    if image.mode in ("I;16", "I;16B", "I;16L", "I;16N", "I"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise ImageError(
                f"{_named(source)}: grey values {values.min()} .. {values.max()} lie outside 0 .. 65535: "
                f"window the image to 8 or 16 bits when storing it"
            )
        return ((values + 128) // 257).astype(np.uint8)[:, :, None]
    if image.mode == "F":
        raise ImageError(f"{_named(source)}: floating-point pixels have no defined range: store 8 or 16 bits")
    if image.has_transparency_data:
        with_alpha = image.convert("LA" if image.mode in ("1", "L", "LA", "La") else "RGBA")
        values = np.asarray(with_alpha).astype(np.uint32)
        return ((values[:, :, :-1] * values[:, :, -1:] + 127) // 255).astype(np.uint8)
    if image.mode in ("1", "L"):
        return np.array(image.convert("L"))[:, :, None]
    return np.array(image.convert("RGB"))


def _orientation(image: Image.Image) -> int:
    """EXIF orientation 1..8; 1 (upright) when there is none or when the EXIF block is too damaged to say."""
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except _DAMAGED:
        return 1  # metadata of a camera, beside pixels that are whole
    return value if isinstance(value, int) else 1


def _upright(image: UInt8[np.ndarray, "H W C"], orientation: int) -> UInt8[np.ndarray, "H2 W2 C"]:
    """Undo an EXIF orientation (Exif 2.32, tag 0x0112): flips for 2 and 4, turns for 3, 6, 8, both for 5 and 7."""
    match orientation:
        case 2:
            turned = image[:, ::-1]
        case 3:
            turned = image[::-1, ::-1]
        case 4:
            turned = image[::-1]
        case 5:
            turned = image.swapaxes(0, 1)
        case 6:
            turned = np.rot90(image, -1)
        case 7:
            turned = image.swapaxes(0, 1)[::-1, ::-1]
        case 8:
            turned = np.rot90(image, 1)
        case _:
            turned = image
    return np.ascontiguousarray(turned)


def _check_pixels(width: int, height: int, max_pixels: int, source: str) -> None:
    if width * height > max_pixels:
        raise ImageError(
            f"{_named(source)}: {width} x {height} = {width * height} pixels are more than max_pixels = {max_pixels}"
        )
    if width * height == 0:
        raise ImageError(f"{_named(source)}: the image has no pixels ({width} x {height})")


def _named(source: str) -> str:
    return source or "image"


def _square(size: Any) -> int:
    sides = _items(size, 2)
    if len(sides) != 2 or sides[0] != sides[1] or not isinstance(sides[0], int) or sides[0] < 1:
        raise ValueError(f"preprocess_cfg: size must be one positive int or an equal pair (square input), got {size!r}")
    return sides[0]


def _three(key: str, values: Any) -> tuple[float, float, float]:
    numbers = _items(values, 3)
    if len(numbers) != 3 or not all(isinstance(number, int | float) for number in numbers):
        raise ValueError(f"preprocess_cfg: {key} must be one number or three, got {values!r}")
    return float(numbers[0]), float(numbers[1]), float(numbers[2])


def _items(values: Any, count: int) -> list[Any]:
    """A list or tuple as it is, a single value `count` times."""
    return list(cast(Sequence[Any], values)) if isinstance(values, list | tuple) else [values] * count


__all__ = ["CLIP_MEAN", "CLIP_STD", "ImageError", "Preprocess", "VolumeError", "decode_image"]
