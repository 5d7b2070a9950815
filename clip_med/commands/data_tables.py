"""`clip-med data table | few-shot`: sources whose captions, labels or splits stand in a file."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clip_med.commands.data_sources import add_source, file, folder, settings

if TYPE_CHECKING:
    from data_prep.record import Source

_FIELDS = ("path", "caption", "label", "modality", "dataset", "split", "group", "licence", "view", "study")


def add_tables(actions: Any) -> None:
    """Add an action for each source."""
    _add_table(actions)
    _add_few_shot(actions)


def add_columns(parser: Any) -> None:
    """An option for the column of every field."""
    for field in _FIELDS:
        several = "; may be given several times" if field in ("caption", "label") else ""
        parser.add_argument(
            f"--{field}-column",
            metavar="NAME",
            action="append",
            help=f"column of the {field}, if not named as usual{several}",
        )
    parser.add_argument("--label-separator", metavar="TEXT", default="|", help="between labels of a cell; default |")


def columns(arguments: argparse.Namespace) -> dict[str, list[str]]:
    """Field to the columns that were named for it."""
    chosen = {field: getattr(arguments, f"{field}_column") for field in _FIELDS}
    return {field: names for field, names in chosen.items() if names is not None}


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
    add_columns(parser)


def _table(arguments: argparse.Namespace) -> Source:
    from data_prep.table import TableConfig, TableSource

    root = folder(arguments.images_root, named="--images-root")
    return TableSource(file(arguments.manifest), root, settings(TableConfig, arguments, columns=columns(arguments)))


def _add_few_shot(actions: Any) -> None:
    parser = add_source(
        actions,
        "few-shot",
        _few_shot,
        text="make shards from a few-shot split JSON in the form of CoOp, with its splits",
        note='{"train": [[path, label, class name], ...], "val": ..., "test": ...}.',
        example="split_zhou_BUSI.json --images-root BUSI --out shards/busi --modality ultrasound",
    )
    parser.add_argument("file", metavar="FILE.json", type=Path, help="lists of [path, label, class name] by split")
    parser.add_argument("--images-root", metavar="DIR", type=Path, required=True, help="paths are relative to this")
    parser.add_argument(
        "--group-pattern", metavar="REGEX", default="", help="its one group finds the patient in a path"
    )


def _few_shot(arguments: argparse.Namespace) -> Source:
    from data_prep.few_shot import FewShotConfig, FewShotSource

    root = folder(arguments.images_root, named="--images-root")
    return FewShotSource(file(arguments.file), root, settings(FewShotConfig, arguments))


__all__ = ["add_columns", "add_tables", "columns"]
