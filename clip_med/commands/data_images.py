"""`clip-med data folder | medmnist | dicom | volumes | slides`: sources that are images in folders or arrays."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clip_med.commands.data_sources import (
    SourceCommand,
    add_group_pattern,
    add_window,
    file,
    folder,
    naming_extra,
    settings,
)
from clip_med.commands.medmnist_download import SIZES, download

if TYPE_CHECKING:
    from data_prep.record import Source


def _folder_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="holds a folder per class, or per split")
    add_group_pattern(parser)


def _folder(arguments: argparse.Namespace) -> Source:
    from data_prep.image_folder import ImageFolderConfig, ImageFolderSource

    return ImageFolderSource(folder(arguments.root), settings(ImageFolderConfig, arguments))


FOLDER = SourceCommand(
    name="folder",
    text="make shards from images in folders named after their class",
    note="CLASS/.../image, or train|val|test/CLASS/.../image.",
    example="images/ --modality ultrasound --out shards/mine",
    options=_folder_options,
    build=_folder,
)


def _medmnist_options(parser: Any) -> None:
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "file", metavar="FILE.npz", type=Path, nargs="?", help="SPLIT_images and SPLIT_labels of train, val, test"
    )
    where.add_argument("--download", metavar="NAME", help="get this set by the package medmnist, with its class names")
    parser.add_argument("--size", type=int, default=28, choices=SIZES, help="of a download, in pixels; default 28")
    parser.add_argument(
        "--download-to",
        metavar="DIR",
        type=Path,
        default=Path("medmnist"),
        help="where files are kept; default medmnist",
    )
    parser.add_argument("--classes", metavar="NAME", nargs="+", help="of the classes, by number; a file needs them")
    parser.add_argument("--negative", metavar="TEXT", default="no finding", help="label of an image without any")
    parser.add_argument("--licence", metavar="TEXT", help="of the images; a download brings its own")


def _medmnist(arguments: argparse.Namespace) -> Source:
    from data_prep.medmnist import MedMnistConfig, MedMnistSource

    path, known = arguments.file, dict[str, Any]()
    if arguments.download is not None:
        found = download(arguments.download, arguments.size, arguments.download_to)
        path, known = found.file, {"classes": found.classes, "licence": found.licence, "dataset": arguments.download}
    more = {name: value for name, value in known.items() if value and getattr(arguments, name) is None}
    if not (arguments.classes or more.get("classes")):
        raise ValueError(f"{path}: does not name its classes: give --classes")
    return MedMnistSource(file(path), settings(MedMnistConfig, arguments, **more))


MEDMNIST = SourceCommand(
    name="medmnist",
    text="make shards from an .npz in the form of MedMNIST, or one that is downloaded, with its official splits",
    note="One class, several labels or grades per image.",
    example="breastmnist.npz --classes malignant benign --modality ultrasound --out shards/mine",
    options=_medmnist_options,
    build=_medmnist,
)


def _dicom_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of DICOM files, at any depth")
    add_window(parser, "what the file says")
    parser.add_argument("--window-index", metavar="N", type=int, default=0, help="which of several windows; default 0")
    parser.add_argument("--for-processing", action="store_true", help="also take raw detector images")
    parser.add_argument("--frames", default="middle", choices=("first", "middle", "all"), help="default middle")
    parser.add_argument("--frame-step", metavar="N", type=int, default=1, help="with all frames: every so many")
    parser.add_argument("--image-format", default="png", choices=("png", "jpg"), help="default png, without a loss")


def _dicom(arguments: argparse.Namespace) -> Source:
    with naming_extra("dicom"):
        from data_prep.dicom_tree import DicomConfig, DicomSource
    pixels = {name: getattr(arguments, name) for name in ("window", "window_index", "for_processing")}
    return DicomSource(folder(arguments.root), settings(DicomConfig, arguments, pixels=pixels))


DICOM = SourceCommand(
    name="dicom",
    text="make shards from a folder of DICOM files",
    note="Pixels and an allow-list of coded fields leave a file, nothing else.",
    example="export/ --out shards/ct --window lung --frames all",
    options=_dicom_options,
    build=_dicom,
)


def _volumes_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of .nii and .nii.gz files, at any depth")
    parser.add_argument(
        "--whole", action="store_true", help="keep volumes with their values as .npy, which models of 2-D images refuse"
    )
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="default axial")
    parser.add_argument("--step", metavar="N", type=int, default=1, help="every so many slices; default 1")
    add_window(parser, "by percentiles")
    parser.add_argument("--time", metavar="N", type=int, default=0, help="which volume of a series; default 0")


def _volumes(arguments: argparse.Namespace) -> Source:
    with naming_extra("volumes"):
        from data_prep.volumes import VolumeConfig, VolumeSource
    return VolumeSource(folder(arguments.root), settings(VolumeConfig, arguments))


VOLUMES = SourceCommand(
    name="volumes",
    text="make shards from NIfTI volumes, as slices or whole",
    note="Every file is a case; --modality is required.",
    example="scans/ --modality CT --window lung --step 5 --out shards/ct",
    options=_volumes_options,
    build=_volumes,
)


def _slides_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of .svs, .ndpi, .tif and the like")
    resolution = parser.add_mutually_exclusive_group()
    resolution.add_argument("--mpp", metavar="MICROMETRES", type=float, default=0.5, help="per pixel; default 0.5")
    resolution.add_argument("--magnification", metavar="X", type=float, help="20 is --mpp 0.5, 40 is --mpp 0.25")
    parser.add_argument("--tile", metavar="PIXELS", type=int, default=256, help="width and height; default 256")
    parser.add_argument(
        "--tile-overlap", metavar="PIXELS", type=int, default=0, help="that neighbours share; default 0"
    )
    parser.add_argument("--min-tissue", metavar="SHARE", type=float, default=0.5, help="of a tile; default 0.5")
    parser.add_argument("--slide-mpp", metavar="MICROMETRES", type=float, help="of slides that do not say theirs")
    parser.add_argument("--image-format", default="jpg", choices=("jpg", "png"), help="default jpg, quality 95")
    add_group_pattern(parser)
    parser.add_argument(
        "--class-folders", action="store_true", help="the folder directly below DIR names the class of its slides"
    )
    parser.add_argument("--no-overviews", action="store_true", help="write no pictures with the tiles")


def _slides(arguments: argparse.Namespace) -> Source:
    with naming_extra("wsi"):
        from data_prep.slide_reading import MPP_AT_1X
        from data_prep.slides import SlideConfig, SlideSource
    if (power := arguments.magnification) is not None:
        if power <= 0:
            raise ValueError(f"--magnification must be positive, got {power:g}")
        arguments.mpp = MPP_AT_1X / power
    overviews = None if arguments.no_overviews else arguments.out.with_name(arguments.out.name + ".overviews")
    return SlideSource(folder(arguments.root), settings(SlideConfig, arguments), overviews)


SLIDES = SourceCommand(
    name="slides",
    text="make shards from tiles of whole-slide images",
    note="Tiles without enough tissue are left out; OUT.overviews, beside OUT, gets a picture of every slide with "
    "the tiles that were taken, named like the slide.",
    example="scans/ --mpp 0.5 --tile 256 --out shards/slides",
    options=_slides_options,
    build=_slides,
)

IMAGES: Final = (FOLDER, MEDMNIST, DICOM, VOLUMES, SLIDES)

__all__ = ["IMAGES"]
