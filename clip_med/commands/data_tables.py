"""`clip-med data table | huggingface | few-shot | reports`: sources whose texts or splits stand in files."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clip_med.commands.data_sources import SourceCommand, add_group_pattern, file, folder, naming_extra, settings

if TYPE_CHECKING:
    from data_prep.record import Source

_FIELDS = (
    *("path", "caption", "label", "modality", "dataset", "split", "group", "licence", "view", "study"),
    *("absent", "age", "sex", "site", "sequence", "window"),
)
_PRESETS = ("roco", "rocov2", "pmc-oa")


def add_columns(parser: Any) -> None:
    """An option for the column of every field."""
    for field in _FIELDS:
        several = "; may be given several times" if field in ("caption", "label", "absent") else ""
        parser.add_argument(
            f"--{field}-column",
            metavar="NAME",
            action="append",
            help=f"column of the {field}, if not named as usual{several}",
        )
    parser.add_argument("--label-separator", metavar="TEXT", default="|", help="between labels of a cell; default |")
    parser.add_argument(
        "--finding-columns",
        metavar="NAME",
        nargs="+",
        default=[],
        help="columns that are findings, as CheXpert's: 1 present, 0 absent, -1 uncertain, empty not mentioned",
    )
    parser.add_argument(
        "--uncertain",
        choices=("reject", "present", "absent"),
        default="reject",
        help="what becomes of -1: the row is left out and listed, or it counts as present or absent; default reject",
    )
    parser.add_argument(
        "--negative", metavar="LABEL", default="no finding", help="of an image that has none of them (%(default)s)"
    )


def columns(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Field to the columns that were named for it."""
    chosen = {field: getattr(arguments, f"{field}_column") for field in _FIELDS}
    return {field: names for field, names in chosen.items() if names is not None}


def _findings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The columns of findings and what becomes of them."""
    return {
        "columns": arguments.finding_columns,
        "uncertain": arguments.uncertain,
        "negative": arguments.negative,
    }


def _table_options(parser: Any) -> None:
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a .csv, .tsv, .jsonl or .parquet file")
    parser.add_argument("--images-root", metavar="DIR", type=Path, required=True, help="paths are relative to this")
    add_columns(parser)
    parser.add_argument("--preset", choices=_PRESETS, help="a published table, whose columns are known")
    parser.add_argument("--path-suffix", metavar="TEXT", help="added to every path, for example .jpg")
    add_group_pattern(parser)


def _table(arguments: argparse.Namespace) -> Source:
    from data_prep.table import TableConfig, TableSource
    from data_prep.table_presets import PRESETS, TablePreset

    preset = PRESETS[arguments.preset] if arguments.preset else TablePreset()
    more = {
        "columns": {**{field: list(names) for field, names in preset.columns.items()}, **columns(arguments)},
        "findings": _findings(arguments),
        **{
            name: getattr(preset, name) if getattr(arguments, name) is None else getattr(arguments, name)
            for name in ("path_suffix", "group_pattern")
        },
    }
    root = folder(arguments.images_root, named="--images-root")
    return TableSource(file(arguments.manifest), root, settings(TableConfig, arguments, **more))


TABLE = SourceCommand(
    name="table",
    text="make shards from a table of image paths with captions or labels",
    note="A .csv, .tsv, .jsonl or .parquet file.",
    example="studies.csv --images-root images --out shards/mine --modality X-ray",
    options=_table_options,
    build=_table,
)


def _huggingface_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of .parquet or .arrow files, at any depth")
    add_columns(parser)


def _huggingface(arguments: argparse.Namespace) -> Source:
    with naming_extra("parquet"):
        from data_prep.embedded import EmbeddedConfig, EmbeddedSource

    return EmbeddedSource(
        folder(arguments.root),
        settings(EmbeddedConfig, arguments, columns=columns(arguments), findings=_findings(arguments)),
    )


HUGGINGFACE = SourceCommand(
    name="huggingface",
    text="make shards from Parquet or Arrow files with images in them, as Hugging Face datasets have them",
    note="Splits come from the names of folders and files. Needs pyarrow.",
    example="downloads/pathvqa --caption-column answer --modality histology --out shards/mine",
    options=_huggingface_options,
    build=_huggingface,
)


def _few_shot_options(parser: Any) -> None:
    parser.add_argument("file", metavar="FILE.json", type=Path, help="lists of [path, label, class name] by split")
    parser.add_argument("--images-root", metavar="DIR", type=Path, required=True, help="paths are relative to this")
    add_group_pattern(parser)


def _few_shot(arguments: argparse.Namespace) -> Source:
    from data_prep.few_shot import FewShotConfig, FewShotSource

    root = folder(arguments.images_root, named="--images-root")
    return FewShotSource(file(arguments.file), root, settings(FewShotConfig, arguments))


FEW_SHOT = SourceCommand(
    name="few-shot",
    text="make shards from a few-shot split JSON in the form of CoOp, with its splits",
    note='{"train": [[path, label, class name], ...], "val": ..., "test": ...}.',
    example="split_zhou_BUSI.json --images-root BUSI --out shards/busi --modality ultrasound",
    options=_few_shot_options,
    build=_few_shot,
)


def _reports_options(parser: Any) -> None:
    parser.add_argument("root", metavar="DIR", type=Path, help="a folder of .txt or .xml reports, at any depth")
    parser.add_argument("--images-root", metavar="DIR", type=Path, help="the same tree with images; default: DIR")
    parser.add_argument(
        "--sections",
        nargs="+",
        default=["findings", "impression"],
        choices=("findings", "impression", "report"),
        help="each is a caption; report: all of it; default findings impression",
    )
    parser.add_argument(
        "--views",
        default="apart",
        choices=("apart", "together"),
        help="each image of a study is a sample, or all are one, of which training shows one at a time; default apart",
    )
    add_group_pattern(parser)
    parser.add_argument(
        "--table",
        metavar="FILE.csv",
        dest="tables",
        action="append",
        default=[],
        help="split and view of images by dicom_id or image; .csv or .csv.gz; may be given several times",
    )


def _reports(arguments: argparse.Namespace) -> Source:
    from data_prep.report_tree import ReportTreeConfig, ReportTreeSource

    root = folder(arguments.root)
    images = folder(arguments.images_root, named="--images-root") if arguments.images_root else root
    return ReportTreeSource(root, images, settings(ReportTreeConfig, arguments))


REPORTS = SourceCommand(
    name="reports",
    text="make shards from a tree of radiology reports with the images of their studies",
    note="Text reports as in MIMIC-CXR, XML reports as in Open-i.",
    example="mimic-cxr-reports/files --images-root mimic-cxr-jpg/files --modality X-ray --out shards/mimic",
    options=_reports_options,
    build=_reports,
)

TABLES: Final = (TABLE, HUGGINGFACE, FEW_SHOT, REPORTS)

__all__ = ["TABLES"]
