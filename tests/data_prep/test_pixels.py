"""Cleaned images: what identifies people is gone, what is seen is unchanged."""

from __future__ import annotations

import struct
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms, PngImagePlugin

from clip_med.data.images import ImageError, decode_image
from data_prep.pixels import clean_image, encode_png, scaled_down

SECRET = b"MUSTERMANN^ERIKA"


def picture(mode: str = "RGB") -> Image.Image:
    """Left red, right blue, with a bright corner: every flip, turn and swap of channels shows."""
    pixels = np.zeros((40, 64, 3), np.uint8)
    pixels[:, :32] = (200, 30, 10)
    pixels[:, 32:] = (10, 60, 180)
    pixels[:12, :12] = 250
    return Image.fromarray(pixels).convert(mode)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int = 1) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010E] = SECRET.decode()
    block.get_ifd(0x8825)[1] = "N"
    block.get_ifd(0x8825)[2] = (52.0, 31.0, 12.0)
    return block


def jpeg_with_everything(orientation: int = 1, mode: str = "RGB") -> bytes:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = saved(
        picture(mode), "JPEG", quality=90, exif=exif(orientation), comment=SECRET, icc_profile=profile, xmp=SECRET
    )
    block = b"Photoshop 3.0\0" + SECRET
    return data[:2] + b"\xff\xed" + struct.pack(">H", len(block) + 2) + block + data[2:] + b"trailer " + SECRET


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_keeps_its_compressed_pixels_and_nothing_else(mode: str) -> None:
    data = jpeg_with_everything(mode=mode)
    kept, suffix = clean_image(data, source="a", max_side=None)
    assert suffix == "jpg"
    assert SECRET in data
    assert SECRET not in kept
    assert b"Exif" not in kept
    assert b"ICC_PROFILE" not in kept
    scan = data.index(b"\xff\xda")
    assert data[scan : data.rindex(b"\xff\xd9")] in kept
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))
    assert clean_image(kept, source="a", max_side=None)[0] == kept


@pytest.mark.parametrize("options", [{"progressive": True}, {"restart_marker_blocks": 2}, {"keep_rgb": True}])
def test_rare_codings_of_jpeg_keep_their_pixels_too(options: dict[str, Any]) -> None:
    data = saved(picture(), "JPEG", comment=SECRET, **options)
    kept, _ = clean_image(data, source="a", max_side=None)
    assert SECRET not in kept
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))


def test_cmyk_jpeg_keeps_its_colours() -> None:
    data = saved(picture("CMYK"), "JPEG", quality=95, comment=SECRET)
    kept, suffix = clean_image(data, source="a", max_side=None)
    assert suffix == "jpg"
    assert SECRET not in kept
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))
    assert decode_image(kept)[20, 5, 0] > 150 > decode_image(kept)[20, 5, 2]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_turned_jpeg_is_stored_upright(orientation: int) -> None:
    data = jpeg_with_everything(orientation)
    kept, suffix = clean_image(data, source="a", max_side=None)
    assert suffix == "jpg"
    assert SECRET not in kept
    assert b"Exif" not in kept
    expected = decode_image(data)
    plain = np.asarray(Image.open(BytesIO(kept)))
    assert plain.shape == expected.shape
    assert np.abs(plain.astype(int) - expected).mean() < 2


def test_jpeg_keeps_how_its_colours_are_coded() -> None:
    """RGB whose components are numbered as those of YCbCr usually are: only the Adobe segment tells them apart."""
    data = saved(picture(), "JPEG", quality=95, keep_rgb=True)
    frame, scan = data.index(b"\xff\xc0") + 10, data.index(b"\xff\xda") + 5
    coded = bytearray(data)
    for i in range(3):
        assert coded[frame + 3 * i] == coded[scan + 2 * i] == b"RGB"[i]
        coded[frame + 3 * i] = coded[scan + 2 * i] = i + 1
    expected = decode_image(bytes(coded))
    assert expected[20, 5, 0] > 150 > expected[20, 5, 2]
    kept, _ = clean_image(bytes(coded), source="a", max_side=None)
    assert b"Adobe" in kept
    np.testing.assert_array_equal(decode_image(kept), expected)


def test_the_thumbnail_of_a_jpeg_is_gone() -> None:
    data = saved(picture(), "JPEG")
    assert data[2:11] == b"\xff\xe0\x00\x10JFIF\0"
    head = data[:4] + struct.pack(">H", 16 + 21) + data[6:18]
    with_thumbnail = head + b"\x07\x01" + SECRET.ljust(21, b".") + data[20:]
    kept, _ = clean_image(with_thumbnail, source="a", max_side=None)
    assert kept == data


def test_png_loses_text_and_keeps_pixels() -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Patient", SECRET.decode())
    text.add_itxt("Comment", SECRET.decode())
    for mode in ("RGB", "L", "P", "1"):
        data = saved(picture(mode), "PNG", pnginfo=text, exif=exif()) + SECRET
        kept, suffix = clean_image(data, source="a", max_side=None)
        assert suffix == "png"
        assert SECRET in data
        assert SECRET not in kept
        assert len(Image.open(BytesIO(kept)).getexif()) == 0
        np.testing.assert_array_equal(decode_image(kept), decode_image(data))


def test_png_that_exif_turns_is_stored_upright() -> None:
    data = saved(picture(), "PNG", exif=exif(6))
    kept, _ = clean_image(data, source="a", max_side=None)
    assert np.asarray(Image.open(BytesIO(kept))).shape == (64, 40, 3)
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))


def test_what_transparency_hides_is_not_stored() -> None:
    hidden = picture("RGBA")
    hidden.putalpha(Image.new("L", hidden.size, 0))
    kept, _ = clean_image(saved(hidden, "PNG"), source="a", max_side=None)
    assert np.asarray(Image.open(BytesIO(kept)).convert("RGB")).max() == 0
    seen = picture().quantize(4, dither=Image.Dither.NONE)
    data = saved(seen, "PNG", transparency=seen.getpixel((40, 20)))
    kept, _ = clean_image(data, source="a", max_side=None)
    pixels = np.asarray(Image.open(BytesIO(kept)).convert("RGB"))
    np.testing.assert_array_equal(pixels, decode_image(data))
    assert pixels[:, 32:].max() == 0 < pixels[:, :32].max()


@pytest.mark.parametrize("kind", ["TIFF", "BMP", "GIF", "WEBP", "PPM"])
def test_other_formats_become_png(kind: str) -> None:
    options = {"lossless": True, "exif": exif()} if kind == "WEBP" else {}
    data = saved(picture("P" if kind == "GIF" else "RGB"), kind, **options)
    kept, suffix = clean_image(data, source="a", max_side=None)
    assert suffix == "png"
    assert kept[:8] == b"\x89PNG\r\n\x1a\n"
    assert SECRET not in kept
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))


def test_sixteen_bits_become_eight() -> None:
    values = (np.arange(40 * 64, dtype=np.uint16) * 25).reshape(40, 64)
    data = saved(Image.fromarray(values), "PNG")
    kept, _ = clean_image(data, source="a", max_side=None)
    assert Image.open(BytesIO(kept)).mode == "L"
    np.testing.assert_array_equal(decode_image(kept), decode_image(data))


def test_larger_images_are_scaled_down_and_smaller_ones_left() -> None:
    data = saved(picture(), "JPEG", quality=95)
    small, suffix = clean_image(data, source="a", max_side=32)
    assert suffix == "jpg"
    assert decode_image(small).shape == (20, 32, 3)
    assert decode_image(small)[15, 4, 0] > 150 > decode_image(small)[15, 28, 0]
    assert clean_image(data, source="a", max_side=64) == clean_image(data, source="a", max_side=None)
    grey, suffix = clean_image(saved(picture("L"), "PNG"), source="a", max_side=16)
    assert (suffix, decode_image(grey).shape) == ("png", (10, 16, 1))


def test_what_is_no_image_is_refused_with_its_name() -> None:
    whole = jpeg_with_everything()
    truncated = whole[: whole.rindex(b"\xff\xda") + 100]
    for data in (b"", b"\xff\xd8", b"no image", saved(picture(), "PNG")[:60], truncated):
        with pytest.raises(ImageError, match=r"a/b\.png"):
            clean_image(data, source="a/b.png", max_side=None)
    with pytest.raises(ImageError, match="max_pixels"):
        clean_image(saved(picture(), "PNG"), source="a", max_side=None, max_pixels=100)


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["JPEG", "PNG"]), st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=4))
def test_a_damaged_file_is_refused_or_stored_as_it_is_seen(kind: str, damage: list[tuple[int, int]]) -> None:
    data = bytearray(jpeg_with_everything() if kind == "JPEG" else saved(picture("P"), "PNG", exif=exif()))
    for place, value in damage:
        data[place % len(data)] = value
    try:
        seen = decode_image(bytes(data))
    except ImageError:
        seen = None
    try:
        kept = decode_image(clean_image(bytes(data), source="a", max_side=None)[0])
    except ImageError:
        # A damaged block that is dropped cannot spoil what is stored; the other way round nothing may be lost.
        assert seen is None
        return
    if seen is not None:
        assert kept.shape == seen.shape
        assert np.abs(kept.astype(int) - seen).mean() < 2


@pytest.mark.parametrize("shape", [(1, 1, 1), (5, 1, 3), (1, 7, 1), (33, 20, 3), (16, 16, 1)])
def test_png_holds_every_pixel(shape: tuple[int, int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    data = encode_png(pixels)
    np.testing.assert_array_equal(decode_image(data), pixels)
    with Image.open(BytesIO(data)) as image:
        np.testing.assert_array_equal(np.asarray(image).reshape(shape), pixels)
    assert clean_image(data, source="", max_side=None) == (data, "png")


def test_scaling_keeps_proportions_and_leaves_small_images_alone() -> None:
    pixels = np.zeros((40, 20, 3), np.uint8)
    assert scaled_down(pixels, 40) is pixels
    assert scaled_down(pixels, 10).shape == (10, 5, 3)
    assert scaled_down(pixels[:, :, :1], 10).shape == (10, 5, 1)
