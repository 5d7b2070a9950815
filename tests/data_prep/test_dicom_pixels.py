"""DICOM pixels against pydicom's float path on every file that pydicom ships, and against the equations of PS3.3."""

from __future__ import annotations

import copy
import tomllib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.pixels.processing import apply_color_lut, apply_modality_lut, apply_voi_lut
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian

from data_prep import dicom_codecs
from data_prep.dicom_pixels import PixelRules, displayed_frame, windowed
from data_prep.dicom_reading import read_dicom
from data_prep.record import RejectedImageError
from data_prep.windows import WINDOWS

FILES = Path(pydicom.__file__).parent / "data"


def bundled() -> list[Path]:
    """Everything in pydicom's package that is not Python, in one order."""
    kept = [path for path in FILES.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc", ".json")]
    return sorted(kept)


def float_path(dataset: Dataset, frame: int) -> np.ndarray:
    """Whole-image reference in float64: pydicom's functions, inverted after the window, scaled by their range."""
    dicom_codecs.register()
    dataset = copy.deepcopy(dataset)
    stored = pydicom.pixels.pixel_array(dataset, index=frame)
    bits = int(dataset.BitsStored)
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        return apply_color_lut(stored, dataset) / 65535 * 255 if stored.ndim == 2 else stored
    if stored.ndim == 3:
        return stored / (2**bits - 1) * 255
    if dataset.get("Modality") == "CT" and "WindowCenter" not in dataset and "VOILUTSequence" not in dataset:
        dataset.WindowCenter, dataset.WindowWidth = WINDOWS["soft_tissue"]
    values = np.asarray(apply_modality_lut(stored, dataset), np.float64)
    padding = dataset.get("PixelPaddingValue")
    if "WindowCenter" in dataset or "VOILUTSequence" in dataset:
        shown = np.asarray(apply_voi_lut(values, dataset), np.float64)
        low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if dataset.PixelRepresentation else (0, 2**bits - 1)
        slope, intercept = float(dataset.get("RescaleSlope", 1)), float(dataset.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    elif bits <= 8:
        shown, low, high = values, 0, 2**bits - 1
    else:
        shown = values
        low, high = np.percentile(values[stored != padding], (0.5, 99.5), method="nearest")
    levels = np.clip((shown - low) / max(high - low, 1e-12), 0, 1)
    if dataset.PhotometricInterpretation == "MONOCHROME1" or dataset.get("PresentationLUTShape") == "INVERSE":
        levels = 1 - levels
    return np.where(stored == padding, 0, levels * 255)


def test_every_bundled_file_equals_the_float_path_or_is_refused_by_name() -> None:
    equal, refused = 0, dict[str, str]()
    for path in bundled():
        try:
            dataset = read_dicom(path)
            image = displayed_frame(dataset, 0, PixelRules())
        except RejectedImageError as error:
            refused[path.name] = error.reason
            continue
        assert image.dtype == np.uint8
        assert image.ndim == 3
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            reference = float_path(dataset, 0)
        reference = reference[:, :, None] if reference.ndim == 2 else reference
        # One level, and a hair for what float64 makes of a half.
        assert np.abs(image - reference).max() <= 1 + 1e-9, path
        equal += 1
    # A new release of pydicom may bring more files, never fewer that we can show.
    assert equal >= 88
    assert refused["MR_truncated.dcm"] == "undecodable image"
    assert refused["no_meta.dcm"] == "not DICOM"
    assert refused["liver_1frame.dcm"] == "segmentation"
    assert refused["rtdose.dcm"] == "dose grid"
    assert refused["rtplan.dcm"] == "no pixels"
    assert set(refused.values()) <= {
        "not DICOM",
        "damaged DICOM",
        "undecodable image",
        "no pixels",
        "segmentation",
        "dose grid",
        "unknown colours",
        "odd bits",
    }


def test_jpeg_of_12_bits_is_decoded() -> None:
    image = displayed_frame(read_dicom(FILES / "test_files/JPGExtended.dcm"), 0, PixelRules())
    assert image.shape == (1024, 256, 1)
    assert len(np.unique(image)) > 50


def test_a_jpeg_that_claims_more_pixels_than_its_header_is_refused_before_it_is_decoded() -> None:
    dataset = read_dicom(FILES / "test_files/JPGExtended.dcm")
    data = bytearray(dataset.PixelData)
    place = data.index(b"\xff\xc1")
    assert bytes(data[place + 5 : place + 9]) == (1024).to_bytes(2, "big") + (256).to_bytes(2, "big")
    data[place + 5 : place + 9] = (60_000).to_bytes(2, "big") * 2
    dataset.PixelData = bytes(data)
    with pytest.raises(RejectedImageError, match="a JPEG of \\(60000, 60000\\)"):
        displayed_frame(dataset, 0, PixelRules())
    # Before a marker there may be more of its first byte.
    assert dicom_codecs._frame_size(b"\xff\xd8\xff\xff\xff\xc1\x00\x0b\x0c\x04\x00\x01\x00\x01") == (1024, 256)


def test_no_decoder_that_we_ask_for_is_gpl() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    asked = [one for extra in (*extras, project["dependency-groups"]["dev"]) for one in extra]
    assert any(one.startswith("pylibjpeg-openjpeg") for one in asked)
    # pylibjpeg[all] and [libjpeg] bring it too.
    assert not any(one.startswith(("pylibjpeg-libjpeg", "pylibjpeg[")) for one in asked)


def made(stored: Any, **values: Any) -> Dataset:
    """A grey image of 16-bit words, as written by a scanner."""
    stored = np.atleast_2d(np.asarray(stored))
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.Rows, dataset.Columns, dataset.SamplesPerPixel = *stored.shape[-2:], 1
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PhotometricInterpretation, dataset.Modality = "MONOCHROME2", "CR"
    dataset.PixelData = stored.astype("<u2").tobytes()
    for name, value in values.items():
        setattr(dataset, name, value)
    return dataset


def levels(dataset: Dataset, frame: int = 0, **rules: Any) -> list[int]:
    return displayed_frame(dataset, frame, PixelRules(**rules))[0, :, 0].tolist()


def test_window_functions_are_those_of_the_standard() -> None:
    x = np.linspace(-3000, 3000, 601)
    center, width = 40.0, 400.0
    linear = np.where(
        x <= center - 0.5 - (width - 1) / 2,
        0,
        np.where(x > center - 0.5 + (width - 1) / 2, 1, (x - (center - 0.5)) / (width - 1) + 0.5),
    )
    exact = np.where(x <= center - width / 2, 0, np.where(x > center + width / 2, 1, (x - center) / width + 0.5))
    np.testing.assert_allclose(windowed(x, center, width), linear, atol=1e-12)
    np.testing.assert_allclose(windowed(x, center, width, "LINEAR_EXACT"), exact, atol=1e-12)
    sigmoid = 1 / (1 + np.exp(-4 * (x - center) / width))
    np.testing.assert_allclose(windowed(x, center, width, "SIGMOID"), sigmoid, atol=1e-12)
    assert windowed(np.array([39.5, 39.6]), 40, 1).tolist() == [0, 1]
    with pytest.raises(RejectedImageError, match="odd window"):
        windowed(x, center, 0)
    with pytest.raises(RejectedImageError, match="SIGMA"):
        windowed(x, center, width, "SIGMA")


def test_inversion_comes_after_the_window_and_padding_is_black() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 1001, "PixelPaddingValue": 4095}
    plain = made([0, 500, 1000, 1500, 4095], **window)
    # (500 - 999.5) / 1000 + 0.5 = 0.0005; 0.5005; 1.
    assert levels(plain) == [0, 0, 128, 255, 0]
    assert levels(made([0, 500, 1000, 1500, 4095], **window, PhotometricInterpretation="MONOCHROME1")) == [
        255,
        255,
        127,
        0,
        0,
    ]
    assert levels(made([0, 1500], **window, PresentationLUTShape="INVERSE")) == [255, 0]
    limited = made([0, 3999, 4000, 4095], **window, PixelPaddingRangeLimit=4000)
    assert levels(limited) == [0, 255, 0, 0]


def test_signed_values_and_unused_bits_are_read_as_they_are_meant() -> None:
    # -1 in 12 bits is 0x0FFF; the four bits above hold an overlay.
    signed = {"PixelRepresentation": 1, "WindowCenter": 0.5, "WindowWidth": 4097}
    assert levels(made([0x0FFF, 0xFFFF, 0x7000, 0x07FF, 0x0800], **signed)) == [127, 127, 128, 255, 0]
    assert levels(made([0xF000, 0x0FFF], WindowCenter=2048, WindowWidth=4096)) == [0, 255]


def test_several_windows_presets_and_ct_without_a_window() -> None:
    several = made([100, 200], WindowCenter=[100, 1000], WindowWidth=[2, 2])
    assert levels(several) == [255, 255]
    assert levels(several, window_index=1) == [0, 0]
    assert levels(several, window_index=7) == [0, 0]
    ct = {"Modality": "CT", "RescaleSlope": 1, "RescaleIntercept": -1024}
    air, lung, water, bone = 24, 424, 1024, 2024
    without = made([air, lung, water, bone], **ct)
    center, width = WINDOWS["soft_tissue"]
    assert levels(without) == [0, 0, round(255 * ((0 - (center - 0.5)) / (width - 1) + 0.5)), 255]
    assert levels(without, window="lung") == [60, 128, 230, 255]
    # A preset in Hounsfield units says nothing of an X-ray.
    assert levels(several, window="lung") == [255, 255]


def test_lookup_tables_are_taken_before_windows() -> None:
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [4, 10, 8], [0, 10, 200, 255]
    voi = made([0, 10, 11, 12, 13, 99], VOILUTSequence=Sequence([item]), WindowCenter=0, WindowWidth=1)
    assert levels(voi) == [0, 0, 10, 200, 255, 255]
    table = Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [3, 0, 16], [100, 300, 200], "US"
    modality = made([0, 1, 2, 3], ModalityLUTSequence=Sequence([table]), WindowCenter=200.5, WindowWidth=201)
    assert levels(modality) == [0, 255, 128, 128]
    angio = made([0, 4095], ModalityLUTSequence=Sequence([table]), WindowCenter=2048, WindowWidth=4096)
    angio.SOPClassUID, angio.PixelIntensityRelationship = "1.2.840.10008.5.1.4.1.1.12.1", "LOG"
    assert levels(angio) == [0, 255]


def test_enhanced_images_have_a_window_per_frame() -> None:
    stored = np.array([[[10, 20]], [[10, 20]]])
    dataset = made(stored, NumberOfFrames=2)

    def group(center: float, slope: float) -> Dataset:
        window, transform, item = Dataset(), Dataset(), Dataset()
        window.WindowCenter, window.WindowWidth = center, 2
        transform.RescaleSlope, transform.RescaleIntercept = slope, 0
        item.FrameVOILUTSequence, item.PixelValueTransformationSequence = Sequence([window]), Sequence([transform])
        return item

    dataset.PerFrameFunctionalGroupsSequence = Sequence([group(15, 1), group(150, 10)])
    assert levels(dataset, 0) == levels(dataset, 1) == [0, 255]
    dataset.PerFrameFunctionalGroupsSequence = Sequence([group(15, 1), group(50, 10)])
    assert levels(dataset, 1) == [255, 255]


def test_one_hot_pixel_does_not_make_the_picture_black() -> None:
    values = np.full((50, 50), 100)
    values[:, ::2] = 200
    values[0, 0] = 4095
    image = displayed_frame(made(values, Modality="MR"), 0, PixelRules())
    assert image[1, :2, 0].tolist() == [255, 0]


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("for processing", {"PresentationIntentType": "FOR PROCESSING"}),
        ("too large", {"Rows": 65535, "Columns": 65535}),
        ("odd bits", {"HighBit": 15}),
        ("unknown colours", {"PhotometricInterpretation": "CMYK"}),
        ("presentation state", {"Modality": "PR"}),
        ("damaged DICOM", {"Rows": None}),
        ("undecodable image", {"PixelData": b"\0\0"}),
    ],
)
def test_what_is_no_picture_is_refused_by_name(reason: str, values: dict[str, Any]) -> None:
    with pytest.raises(RejectedImageError) as error:
        displayed_frame(made([[0, 1], [2, 3]], **values), 0, PixelRules())
    assert error.value.reason == reason
    if reason == "for processing":
        assert displayed_frame(made([0, 4000], **values), 0, PixelRules(for_processing=True)).shape == (1, 2, 1)
