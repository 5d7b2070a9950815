"""`clip-med data SOURCE`: one action for every kind of place that images come from."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay

if TYPE_CHECKING:
    from data_prep.record import Source

_WINDOWS = ("file", "lung", "bone", "soft_tissue", "brain", "mediastinum")


def add_sources(actions: Any) -> None:
    """Add an action for each source."""
    _add_table(actions)
    _add_folder(actions)
    _add_medmnist(actions)
    _add_dicom(actions)
    _add_volumes(actions)


def add_source(
    actions: Any, name: str, build: Callable[[argparse.Namespace], Source], *, text: str, note: str, example: str
) -> Any:
    """An action with the options that every source has."""
    parser = actions.add_parser(
        name,
        help=text,
        description=f"{text}. {note} What is left out is counted and listed in OUT/rejected.jsonl. Interrupting and "
        "repeating is safe.",
        epilog=f"example: clip-med data {name} {example}",
        allow_abbrev=False,
    )
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets one folder per split")
    for field in ("modality", "dataset", "split"):
        parser.add_argument(f"--{field}", metavar="TEXT", help=f"the {field} of every sample, whatever the source says")
    parser.add_argument(
        "--fractions",
        metavar="SHARE",
        type=float,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        help="train, val, test, where the source names no split; groups stay together; default 0.8 0.1 0.1",
    )
    parser.add_argument("--templates", metavar="FILE.yaml", type=Path, help="sentences for samples with a label only")
    parser.add_argument("--max-side", metavar="PIXELS", type=int, help="scale larger images down")
    parser.add_argument(
        "--scrub",
        action="store_true",
        help="replace names, dates, numbers, addresses in captions, as far as rules find them (see docs/data_prep.md)",
    )
    parser.add_argument("--samples-per-shard", metavar="N", type=int, default=1000, help="default 1000")
    parser.add_argument(
        "--secret", metavar="FILE", type=Path, help="key of the hashes; default: OUT.secret, beside OUT"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that check images; default 0")
    parser.add_argument("--strict", action="store_true", help="look at every image first and refuse all if one is bad")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=partial(_run, build))
    return parser


def shared_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options that every source has, as values for its configuration."""
    names = ("modality", "dataset", "split", "max_side", "samples_per_shard", "scrub")
    return {
        "fractions": list(arguments.fractions),
        "templates": None if arguments.templates is None else str(arguments.templates),
        **{name: getattr(arguments, name) for name in names},
    }


def _run(build: Callable[[argparse.Namespace], Source], arguments: argparse.Namespace) -> int:
    from data_prep.writing import REJECTED_FILE, source_to_shards

    source = build(arguments)
    with ItemDisplay(quiet=arguments.json) as display:
        report = source_to_shards(
            source,
            arguments.out,
            secret_file=arguments.secret,
            workers=arguments.workers,
            strict=arguments.strict,
            on_progress=partial(display.on_item, "images"),
        )
    print_values(arguments, {**vars(report), "kept_splits": list(report.kept_splits), "secret": str(report.secret)})
    warnings = {
        f"{report.rejected} rows are in no shard; {arguments.out / REJECTED_FILE} says why": report.rejected,
        f"{report.groups_in_several_splits} groups are in several splits": report.groups_in_several_splits,
        f"{report.unknown_modality} rows have the modality 'unknown'; see --modality": report.unknown_modality,
    }
    for text, number in warnings.items():
        if number:
            print(f"warning: {text}", file=sys.stderr)
    return 0 if sum(report.written.values()) else 1


def _add_table(actions: Any) -> None:
    parser = add_source(
        actions,
        "table",
        _table,
        text="make shards from a table of image paths with captions or labels",
        note="A .csv, .tsv, .jsonl or .parquet file.",
        example="studies.csv --images-root images --out shards/mine --modality X-ray",
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a .csv, .tsv, .jsonl or .parquet file")
    parser.add_argument("--images-root", metavar="DIR", type=Path, required=True, help="paths are relative to this")
    for field in ("path", "caption", "label", "modality", "dataset", "split", "group", "licence", "view", "study"):
        several = "; may be given several times" if field in ("caption", "label") else ""
        parser.add_argument(
            f"--{field}-column",
            metavar="NAME",
            action="append",
            help=f"column of the {field}, if not named as usual{several}",
        )
    parser.add_argument("--label-separator", metavar="TEXT", default="|", help="between labels of a cell; default |")


def _table(arguments: argparse.Namespace) -> Source:
    from clip_med.config import validate
    from data_prep.table import TableConfig, TableSource

    chosen = {
        name.removesuffix("_column"): value for name, value in vars(arguments).items() if name.endswith("_column")
    }
    settings = validate(
        TableConfig,
        {
            "columns": {field: name for field, name in chosen.items() if name is not None},
            "label_separator": arguments.label_separator,
            **shared_settings(arguments),
        },
    )
    if not arguments.images_root.is_dir():
        raise ValueError(f"--images-root {arguments.images_root}: no such folder")
    return TableSource(arguments.manifest, arguments.images_root, settings)


def _add_folder(actions: Any) -> None:
    parser = add_source(
        actions,
        "folder",
        _folder,
        text="make shards from images in folders named after their class",
        note="CLASS/.../image, or train|val|test/CLASS/.../image.",
        example="images/ --modality ultrasound --out shards/mine",
    )
    parser.add_argument("root", metavar="DIR", type=Path, help="holds a folder per class, or per split")
    parser.add_argument(
        "--group-pattern", metavar="REGEX", default="", help="its one group finds the patient in a path"
    )


def _folder(arguments: argparse.Namespace) -> Source:
    from clip_med.config import validate
    from data_prep.image_folder import ImageFolderConfig, ImageFolderSource

    folder(arguments.root)
    values = {"group_pattern": arguments.group_pattern, **shared_settings(arguments)}
    return ImageFolderSource(arguments.root, validate(ImageFolderConfig, values))


def _add_medmnist(actions: Any) -> None:
    parser = add_source(
        actions,
        "medmnist",
        _medmnist,
        text="make shards from an .npz in the form of MedMNIST, with its official splits",
        note="One class, several labels or grades per image.",
        example="breastmnist.npz --classes malignant benign --modality ultrasound --out shards/mine",
    )
    parser.add_argument("file", metavar="FILE.npz", type=Path, help="SPLIT_images and SPLIT_labels of train, val, test")
    parser.add_argument("--classes", metavar="NAME", nargs="+", required=True, help="of the classes, by number")
    parser.add_argument("--negative", metavar="TEXT", default="no finding", help="label of an image without any")


def _medmnist(arguments: argparse.Namespace) -> Source:
    from clip_med.config import validate
    from data_prep.medmnist import MedMnistConfig, MedMnistSource

    values = {"classes": arguments.classes, "negative": arguments.negative, **shared_settings(arguments)}
    return MedMnistSource(arguments.file, validate(MedMnistConfig, values))


def _add_dicom(actions: Any) -> None:
    parser = add_source(
        actions,
        "dicom",
        _dicom,
        text="make shards from a folder of DICOM files",
        note="Pixels and an allow-list of coded fields leave a file, nothing else.",
        example="export/ --out shards/ct --window lung --frames all",
    )
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of DICOM files, at any depth")
    parser.add_argument("--window", default="file", choices=_WINDOWS, help="of CT images; default: what the file says")
    parser.add_argument("--window-index", metavar="N", type=int, default=0, help="which of several windows; default 0")
    parser.add_argument("--for-processing", action="store_true", help="also take raw detector images")
    parser.add_argument("--frames", default="middle", choices=("first", "middle", "all"), help="default middle")
    parser.add_argument("--frame-step", metavar="N", type=int, default=1, help="with all frames: every so many")
    parser.add_argument("--image-format", default="png", choices=("png", "jpg"), help="default png, without a loss")


def _dicom(arguments: argparse.Namespace) -> Source:
    from clip_med.config import validate

    with naming_extra("dicom"):
        from data_prep.dicom_tree import DicomConfig, DicomSource
    folder(arguments.root)
    pixels = {name: getattr(arguments, name) for name in ("window", "window_index", "for_processing")}
    frames = {name: getattr(arguments, name) for name in ("frames", "frame_step", "image_format")}
    settings = validate(DicomConfig, {"pixels": pixels, **frames, **shared_settings(arguments)})
    return DicomSource(arguments.root, settings)


def _add_volumes(actions: Any) -> None:
    parser = add_source(
        actions,
        "volumes",
        _volumes,
        text="make shards from the slices of NIfTI volumes",
        note="Every file is a case; --modality is required.",
        example="scans/ --modality CT --window lung --step 5 --out shards/ct",
    )
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of .nii and .nii.gz files, at any depth")
    parser.add_argument("--plane", default="axial", choices=("axial", "coronal", "sagittal"), help="default axial")
    parser.add_argument("--step", metavar="N", type=int, default=1, help="every so many slices; default 1")
    parser.add_argument("--window", default="file", choices=_WINDOWS, help="of CT volumes; default: by percentiles")
    parser.add_argument("--time", metavar="N", type=int, default=0, help="which volume of a series; default 0")


def _volumes(arguments: argparse.Namespace) -> Source:
    from clip_med.config import validate

    with naming_extra("volumes"):
        from data_prep.volumes import VolumeConfig, VolumeSource
    folder(arguments.root)
    values = {name: getattr(arguments, name) for name in ("plane", "step", "window", "time")}
    return VolumeSource(arguments.root, validate(VolumeConfig, {**values, **shared_settings(arguments)}))


def folder(path: Path) -> None:
    """Refuse what is none.

    Raises:
        ValueError: names the path.
    """
    if not path.is_dir():
        raise ValueError(f"{path}: no such folder")


@contextmanager
def naming_extra(extra: str) -> Iterator[None]:
    """Say which extra brings a package that is not installed.

    Raises:
        ValueError: with the line to type.
    """
    try:
        yield
    except ImportError as error:
        raise ValueError(f"{error.name} is not installed: pip install 'clip-med[{extra}]'") from error


__all__ = ["add_source", "add_sources", "folder", "naming_extra", "shared_settings"]
