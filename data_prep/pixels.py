"""Image files without what identifies people: metadata is stripped, compressed pixels are kept where they can be."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from io import BytesIO

from PIL import Image

from clip_med.data.images import ImageError, decode_image

# Parameters of the scan itself. Of the application segments only the two that decide colours stay: JFIF and Adobe.
_KEPT_PNG_CHUNKS = (b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND")


def clean_image(data: bytes, *, source: str, max_side: int | None, max_pixels: int = 64_000_000) -> tuple[bytes, str]:
    """The image as (bytes, "jpg" or "png"), decoded once to prove that it is whole.

    JPEG and 8-bit PNG keep their compressed pixels and lose every comment, EXIF, XMP and text block; a picture that
    EXIF turns is stored upright (JPEG at quality 95); other formats become PNG. `max_side` scales larger ones down.

    Raises:
        ImageError: not an image, damaged or larger than `max_pixels`.
    """
    pixels = decode_image(data, max_pixels=max_pixels, source=source)
    jpeg, png = data[:2] == b"\xff\xd8", data[:8] == b"\x89PNG\r\n\x1a\n"
    height, width = pixels.shape[:2]
    too_large = max_side is not None and max(height, width) > max_side
    if not too_large and not _is_turned(data):
        if jpeg:
            return b"".join(_jpeg_segments(data, source)), "jpg"
        if png and data[24] <= 8:
            return data[:8] + b"".join(_png_chunks(data, source)), "png"
    image = Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels)
    if too_large:
        assert max_side is not None
        scale = max_side / max(height, width)
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        image = image.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0)
    file = BytesIO()
    if jpeg:
        image.save(file, "JPEG", quality=95, subsampling=0)
        return file.getvalue(), "jpg"
    image.save(file, "PNG")
    return file.getvalue(), "png"


def _is_turned(data: bytes) -> bool:
    """Whether EXIF asks for another orientation; unreadable EXIF asks for nothing, as in `decode_image`."""
    if b"Exif\0\0" not in data and b"eXIf" not in data:
        return False
    with Image.open(BytesIO(data)) as image:
        try:
            return image.getexif().get(0x0112, 1) not in (None, 0, 1)
        except (OSError, ValueError, SyntaxError, struct.error):
            return False


def _jpeg_segments(data: bytes, source: str) -> Iterator[bytes]:
    """The file from its first marker to its end marker, without application and comment segments."""
    yield data[:2]
    position = 2
    while position < len(data):
        if data[position] != 0xFF:
            raise ImageError(f"{source}: damaged JPEG: no marker at byte {position}")
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        if marker == 0xD9:
            yield data[position : position + 2]
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4], "big")
        body = data[position + 4 : end]
        application = 0xE0 <= marker <= 0xEF
        colours = (marker == 0xE0 and body[:5] == b"JFIF\0") or (marker == 0xEE and body[:5] == b"Adobe")
        if marker == 0xE0 and colours:
            # Without its thumbnail, which may show more than the picture does.
            yield b"\xff\xe0\x00\x10" + body[:12] + b"\0\0"
        elif colours or not (application or marker == 0xFE):
            yield data[position:end]
        if marker == 0xDA:
            start = end
            end = _scan_end(data, start)
            yield data[start:end]
        position = end
    raise ImageError(f"{source}: damaged JPEG: no end marker")


def _scan_end(data: bytes, position: int) -> int:
    """First byte after the compressed data of a scan: a marker other than a stuffed zero or a restart."""
    while True:
        position = data.find(b"\xff", position)
        if position < 0 or position + 1 >= len(data):
            return len(data)
        following = data[position + 1]
        if following != 0x00 and not 0xD0 <= following <= 0xD7:
            return position
        position += 2


def _png_chunks(data: bytes, source: str) -> Iterator[bytes]:
    position = 8
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4], "big")
        kind = data[position + 4 : position + 8]
        if kind in _KEPT_PNG_CHUNKS:
            yield data[position:end]
        if kind == b"IEND":
            return
        position = end
    raise ImageError(f"{source}: damaged PNG: no end chunk")


__all__ = ["clean_image"]
