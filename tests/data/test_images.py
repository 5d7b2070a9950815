"""Decoding: measured before decoded, upright, one or three channels, and an error with a name for everything else."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from clip_med.config import validate
from clip_med.data.images import ImageError, Preprocess, decode_image


def picture(height: int = 48, width: int = 64, channels: int = 3) -> np.ndarray:
    """A smooth picture without any symmetry, so that every turn and flip of it differs."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * 3 + 20 * c) % 200 + y * 50 // height for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def jpeg(image: np.ndarray, **options: object) -> bytes:
    return encoded(Image.fromarray(image.squeeze()), "JPEG", quality=95, **options)


def with_claimed_size(data: bytes, width: int, height: int) -> bytes:
    """A small JPEG whose header claims another size."""
    at = data.index(b"\xff\xc0")
    return data[: at + 5] + struct.pack(">HH", height, width) + data[at + 9 :]


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_equals_pillow(channels: int) -> None:
    data = jpeg(picture(channels=channels))
    image = decode_image(data)
    with Image.open(io.BytesIO(data)) as reference:
        assert image.shape == (48, 64, channels)
        assert np.abs(image.squeeze().astype(int) - np.asarray(reference).astype(int)).max() <= 1
    assert image.flags.writeable
    assert image.flags.c_contiguous


@pytest.mark.parametrize("form", ["PNG", "BMP", "TIFF", "PPM", "WEBP", "JPEG2000"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_formats_are_exact(form: str, channels: int) -> None:
    options = {"WEBP": {"lossless": True}, "JPEG2000": {"irreversible": False}}.get(form, {})
    image = decode_image(encoded(Image.fromarray(picture(channels=channels).squeeze()), form, **options))
    if form == "WEBP" and channels == 1:  # WebP has no greyscale
        image = image[:, :, :1]
    np.testing.assert_array_equal(image, picture(channels=channels))


def test_sixteen_bit_grey_is_scaled_and_rounded() -> None:
    values = np.array([[0, 128, 129, 257, 32768, 65535]], dtype=np.uint16)
    expected = np.round(values / 257.0).astype(np.uint8)
    for form in ("PNG", "TIFF"):
        image = decode_image(encoded(Image.fromarray(values), form))
        assert image.shape == (1, 6, 1)
        np.testing.assert_array_equal(image[:, :, 0], expected)
    assert expected.tolist() == [[0, 0, 1, 1, 128, 255]]


def test_values_without_a_range_are_refused() -> None:
    for pixels, message in [
        (np.array([[0, 70000]], np.int32), r"case-7: grey values 0 \.\. 70000 lie outside"),
        (np.array([[0.0, 1.0]], np.float32), "case-7: floating-point pixels"),
    ]:
        with pytest.raises(ImageError, match=message):
            decode_image(encoded(Image.fromarray(pixels), "TIFF"), source="case-7")
    np.testing.assert_array_equal(
        decode_image(encoded(Image.fromarray(np.array([[0, 65535]], np.int32)), "TIFF"))[0, :, 0], [0, 255]
    )


def test_alpha_lies_on_black() -> None:
    colour = np.array([[[200, 100, 50, 255], [200, 100, 50, 0], [200, 100, 50, 128]]], np.uint8)
    image = decode_image(encoded(Image.fromarray(colour), "PNG"))
    np.testing.assert_array_equal(image, [[[200, 100, 50], [0, 0, 0], [100, 50, 25]]])
    grey = decode_image(encoded(Image.fromarray(colour[:, :, [0, 3]]), "PNG"))
    np.testing.assert_array_equal(grey, [[[200], [0], [100]]])


def test_palettes_bilevel_and_transparent_palette() -> None:
    paletted = Image.fromarray(np.array([[0, 1, 2]], np.uint8), mode=None)
    paletted.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    assert paletted.mode == "P"
    np.testing.assert_array_equal(decode_image(encoded(paletted, "PNG")), [[[10, 20, 30], [40, 50, 60], [70, 80, 90]]])
    np.testing.assert_array_equal(
        decode_image(encoded(paletted, "PNG", transparency=1)), [[[10, 20, 30], [0, 0, 0], [70, 80, 90]]]
    )
    bilevel = encoded(Image.fromarray(np.array([[0, 255]], np.uint8)).convert("1"), "PNG")
    np.testing.assert_array_equal(decode_image(bilevel), [[[0], [255]]])


def test_first_frame_of_an_animation() -> None:
    frames = [Image.fromarray(np.full((4, 4), value, np.uint8)) for value in (30, 200)]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode_image(data).max() == 30


def test_cmyk_jpeg_goes_through_pillow() -> None:
    data = encoded(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
    assert simplejpeg.decode_jpeg_header(data)[2] in ("CMYK", "YCCK")
    with Image.open(io.BytesIO(data)) as reference:
        np.testing.assert_array_equal(decode_image(data), np.asarray(reference.convert("RGB")))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = picture()
    # How a camera stores the scene for each value: the inverse of what the viewer must do.
    stored = {
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.swapaxes(0, 1),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(upright, -1),
    }[orientation]
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}.get(form, {})
    image = decode_image(encoded(Image.fromarray(np.ascontiguousarray(stored)), form, exif=exif, **options))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).mean() < 2  # JPEG; every wrong turn differs by more than 20
    assert np.abs(image[:, ::-1].astype(int) - upright).mean() > 20


def test_damaged_exif_says_nothing_about_orientation() -> None:
    body = b"Exif\0\0" + b"garbage that is no TIFF header"
    segment = b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
    data = jpeg(picture())
    assert decode_image(data[:2] + segment + data[2:]).shape == (48, 64, 3)


@pytest.mark.parametrize("orientation", [0, 9, 300])
def test_undefined_orientations_mean_upright(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(decode_image(encoded(Image.fromarray(picture()), "PNG", exif=exif)), picture())


@pytest.mark.parametrize(
    ("height", "width", "min_size", "expected"),
    [
        (512, 640, None, (512, 640)),
        (512, 640, 512, (512, 640)),
        (512, 640, 257, (512, 640)),
        (512, 640, 256, (256, 320)),
        (513, 641, 257, (257, 321)),
        (512, 640, 129, (256, 320)),
        (512, 640, 128, (128, 160)),
        (512, 640, 60, (64, 80)),
        (512, 640, 1, (64, 80)),
        (100, 90, 224, (100, 90)),
    ],
)
def test_scaled_decoding(height: int, width: int, min_size: int | None, expected: tuple[int, int]) -> None:
    full = picture(height, width)
    image = decode_image(jpeg(full), min_size=min_size)
    assert image.shape[:2] == expected
    assert abs(float(image.mean()) - float(full.mean())) < 3


def test_scaled_decoding_leaves_other_formats_alone() -> None:
    assert decode_image(encoded(Image.fromarray(picture()), "PNG"), min_size=8).shape == (48, 64, 3)


def test_jpeg_bomb_is_refused_before_decoding() -> None:
    bomb = with_claimed_size(jpeg(picture()), 60000, 50000)
    assert len(bomb) < 5000
    with pytest.raises(
        ImageError, match=r"^abc in shard 3: 60000 x 50000 = 3000000000 pixels .* max_pixels = 64000000$"
    ):
        decode_image(bomb, source="abc in shard 3")


def test_limit_is_inclusive() -> None:
    for data in (jpeg(picture()), encoded(Image.fromarray(picture()), "PNG")):
        assert decode_image(data, max_pixels=48 * 64).shape == (48, 64, 3)
        with pytest.raises(ImageError, match=r"64 x 48 = 3072 pixels are more than max_pixels = 3071"):
            decode_image(data, max_pixels=48 * 64 - 1)


def claimed_png(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 64)) + chunk(b"IEND", b"")
    )


@pytest.mark.parametrize(("side", "reason"), [(9000, "max_pixels = 64000000"), (10000, "exceeds"), (30000, "exceeds")])
def test_png_bomb_is_refused_before_decoding(side: int, reason: str) -> None:
    with pytest.raises(ImageError, match=reason) as caught:
        decode_image(claimed_png(side, side), source="k1")
    assert str(caught.value).startswith("k1: ")
    assert "64000000" in str(caught.value)


def test_a_raised_limit_does_not_raise_pillows() -> None:
    with pytest.raises(ImageError, match="exceeds"):
        decode_image(claimed_png(10000, 10000), max_pixels=10**9)


def broken(kind: str) -> bytes:
    whole = jpeg(picture())
    png = encoded(Image.fromarray(picture()), "PNG")
    scan = whole.index(b"\xff\xda") + 40
    return {
        "empty": b"",
        "text": b"this is a report, not an image",
        "two bytes": b"\xff\xd8",
        "half jpeg": whole[: len(whole) // 2],
        "jpeg without end": whole[:-2],
        "progressive jpeg, third": (p := jpeg(picture(), progressive=True))[: len(p) // 3],
        "flipped jpeg": whole[:scan] + bytes(b ^ 0xFF for b in whole[scan : scan + 20]) + whole[scan + 20 :],
        "half png": png[: len(png) // 2],
        "flipped png": png[:60] + bytes([png[60] ^ 0xFF]) + png[61:],
        "png header": png[:20],
        "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "pickle": b"\x80\x04\x95\x0b\x00\x00\x00\x00\x00\x00\x00",
    }[kind]


KINDS = (
    "empty",
    "text",
    "two bytes",
    "half jpeg",
    "jpeg without end",
    "progressive jpeg, third",
    "flipped jpeg",
    "half png",
    "flipped png",
    "png header",
    "eps",
    "pickle",
)


@pytest.mark.parametrize("kind", KINDS)
def test_broken_data_names_its_source(kind: str) -> None:
    with pytest.raises(ImageError, match=r"^9f3a in shard-000\.tar: "):
        decode_image(broken(kind), source="9f3a in shard-000.tar")


def test_every_truncation_and_every_flipped_byte_ends_in_an_image_or_an_image_error() -> None:
    small = picture(16, 24)
    files = [jpeg(small), encoded(Image.fromarray(small), "PNG"), encoded(Image.fromarray(small), "GIF")]
    files += [encoded(Image.fromarray(small), "TIFF"), encoded(Image.fromarray(small), "WEBP")]
    outcomes = {"image": 0, "error": 0}
    for data in files:
        step = max(1, len(data) // 150)
        damaged = [data[:cut] for cut in range(0, len(data), step)]
        damaged += [data[:i] + bytes([data[i] ^ 0xFF]) + data[i + 1 :] for i in range(0, len(data), step)]
        for variant in damaged:
            try:
                image = decode_image(variant, max_pixels=10**6, source="x")
            except ImageError:
                outcomes["error"] += 1
            else:
                outcomes["image"] += 1
                assert image.dtype == np.uint8
                assert image.shape[2] in (1, 3)
    assert outcomes["error"] > 400
    assert outcomes["image"] > 50


def test_stray_bytes_between_markers_lose_nothing() -> None:
    data = jpeg(picture())
    table = data.index(b"\xff\xdb")
    stray = data[:table] + b"\x12\x34\x56" + data[table:]
    with pytest.raises(ValueError, match="extraneous"):
        simplejpeg.decode_jpeg(stray)
    assert np.abs(decode_image(stray).astype(int) - decode_image(data)).max() <= 1


def test_preprocess_equals_open_clips_defaults() -> None:
    from dataclasses import asdict

    from open_clip.transform import PreprocessCfg

    theirs = asdict(PreprocessCfg())
    ours = Preprocess()
    assert ours.to_open_clip() == {**theirs, "mean": list(theirs["mean"]), "std": list(theirs["std"])}
    assert Preprocess.from_open_clip(theirs) == ours
    assert PreprocessCfg(**ours.to_open_clip()).input_size == (3, 224, 224)


def test_preprocess_round_trip() -> None:
    stored = Preprocess(size=336, mean=(0.5, 0.5, 0.5), interpolation="bilinear", resize_mode="longest", fill_color=9)
    assert Preprocess.from_open_clip(stored.to_open_clip()) == stored
    assert Preprocess.from_open_clip({"size": (336, 336), "mean": None, "std": 0.25}) == Preprocess(
        size=336, std=(0.25, 0.25, 0.25)
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"resize_mod": "squash"}, "unknown key 'resize_mod'; did you mean 'resize_mode'"),
        ({"mode": "L"}, "mode must be 'RGB', got 'L'"),
        ({"size": (224, 256)}, r"size must be one positive int or an equal pair .* got \(224, 256\)"),
        ({"size": 0}, "size must be one positive int"),
        ({"size": "big"}, "size must be one positive int"),
        ({"interpolation": "random"}, "interpolation must be one of bicubic, bilinear, got 'random'"),
        ({"resize_mode": "crop"}, "resize_mode must be one of shortest, longest, squash"),
        ({"mean": [0.5, 0.5]}, "mean must be one number or three"),
    ],
)
def test_preprocess_refuses(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Preprocess.from_open_clip(entry)


def test_preprocess_is_a_config() -> None:
    assert validate(Preprocess, {"size": 64, "mean": [0.1, 0.2, 0.3]}) == Preprocess(size=64, mean=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="fill_color"):
        validate(Preprocess, {"fill_color": 256})


def test_imports_no_torch() -> None:
    code = "import sys, clip_med.data.images; print('torch' in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
