"""`clip-med data`: make, index, verify and show shard sets."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from clip_med.commands.progress import ItemDisplay

# Lines of a list that a terminal can bear.
_LISTED = 20


def add_parser(commands: Any) -> None:
    """Add `data table`, `data phantoms`, `data index`, `data verify` and `data show`."""
    parser = commands.add_parser("data", help="make, index, verify and show WebDataset shards")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    index = _add(actions, "index", _index, "index tars (ours, or written by open_clip, img2dataset or webdataset)")
    index.add_argument(
        "--out", metavar="DIR", type=Path, help="write the indexes here, not beside the tars; training then takes DIR"
    )
    index.add_argument(
        "--exclude-bad",
        action="store_true",
        help="leave out samples without image, caption or readable fields, and list them in the index",
    )
    _add(actions, "verify", _verify, "re-read every byte; exit code 1 if a digest, checksum, count or sample is wrong")
    show = _add(actions, "show", _show, "samples per modality, dataset, split and label, caption lengths, a picture")
    show.add_argument(
        "--sheet", metavar="FILE", type=Path, help="write a contact sheet of evenly spread images (.png, .jpg)"
    )
    _add_table(actions)
    _add_phantoms(actions)


def _add(actions: Any, name: str, call: Callable[[argparse.Namespace], int], help_text: str) -> Any:
    parser = actions.add_parser(
        name, help=help_text, description=help_text, epilog=f"example: clip-med data {name} shards/train --json"
    )
    parser.add_argument(
        "location",
        metavar="DIR",
        help="the folder of the *.tar files, a pattern 'shards/{000..099}.tar', or a URL (s3, gs, http)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=call)
    return parser


def _add_table(actions: Any) -> None:
    text = "make shards from a table of image paths with captions or labels"
    parser = actions.add_parser(
        "table",
        help=text,
        description=text
        + ". Bad rows are counted and listed in OUT/rejected.jsonl. Interrupting and repeating is safe.",
        epilog="example: clip-med data table studies.csv --images-root images --out shards/mine --modality X-ray",
        allow_abbrev=False,
    )
    parser.add_argument("manifest", metavar="MANIFEST", type=Path, help="a .csv, .tsv, .jsonl or .parquet file")
    parser.add_argument("--images-root", metavar="DIR", type=Path, required=True, help="paths are relative to this")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="gets one folder per split")
    for field in ("path", "caption", "label", "modality", "dataset", "split", "group", "licence", "view", "study"):
        several = "; may be given several times" if field in ("caption", "label") else ""
        parser.add_argument(
            f"--{field}-column",
            metavar="NAME",
            action="append",
            help=f"column of the {field}, if not named as usual{several}",
        )
    for field in ("modality", "dataset", "split"):
        parser.add_argument(f"--{field}", metavar="TEXT", help=f"the {field} of every row, whatever the table says")
    parser.add_argument("--label-separator", metavar="TEXT", default="|", help="between labels of a cell; default |")
    parser.add_argument(
        "--fractions",
        metavar="SHARE",
        type=float,
        nargs=3,
        default=(0.8, 0.1, 0.1),
        help="train, val, test, where there is no split column; groups stay together; default 0.8 0.1 0.1",
    )
    parser.add_argument("--templates", metavar="FILE.yaml", type=Path, help="sentences for rows with a label only")
    parser.add_argument("--max-side", metavar="PIXELS", type=int, help="scale larger images down")
    parser.add_argument("--samples-per-shard", metavar="N", type=int, default=1000, help="default 1000")
    parser.add_argument(
        "--secret", metavar="FILE", type=Path, help="key of the hashes; default: OUT.secret, beside OUT"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that check images; default 0")
    parser.add_argument("--strict", action="store_true", help="look at every row first and refuse all if one is bad")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_table)


def _add_phantoms(actions: Any) -> None:
    text = "draw procedural phantoms: a teaching and testing set, no real images"
    parser = actions.add_parser(
        "phantoms", help=text, description=text, epilog="example: clip-med data phantoms shards/phantoms --train 9000"
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="gets one folder per split")
    for split, count in (("train", 7200), ("val", 900), ("test", 900), ("heldout", 900)):
        parser.add_argument(
            f"--{split}", metavar="N", type=int, default=count, help=f"images; default {count}, 0: none"
        )
    parser.add_argument("--size", metavar="PIXELS", type=int, default=96, help="height and width; default 96")
    parser.add_argument("--seed", metavar="N", type=int, default=0, help="default 0")
    parser.add_argument("--workers", metavar="N", type=int, default=0, help="processes that draw; default 0")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_phantoms)


def _phantoms(arguments: argparse.Namespace) -> int:
    from data_prep.phantoms.write import write_phantoms

    counts = {split: n for split in ("train", "val", "test", "heldout") if (n := getattr(arguments, split))}
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "drawing")
        write_phantoms(
            arguments.out,
            counts,
            size=arguments.size,
            seed=arguments.seed,
            workers=arguments.workers,
            on_progress=progress,
        )
    _print(arguments, {"out": str(arguments.out), "images": counts})
    return 0


def _table(arguments: argparse.Namespace) -> int:
    from clip_med.config import validate
    from data_prep.table import TableConfig, table_to_shards

    chosen = {
        name.removesuffix("_column"): value for name, value in vars(arguments).items() if name.endswith("_column")
    }
    settings = validate(
        TableConfig,
        {
            "columns": {field: name for field, name in chosen.items() if name is not None},
            "fractions": list(arguments.fractions),
            **{
                name: getattr(arguments, name)
                for name in ("label_separator", "modality", "dataset", "split", "max_side", "samples_per_shard")
            },
            "templates": None if arguments.templates is None else str(arguments.templates),
        },
    )
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "images")
        report = table_to_shards(
            arguments.manifest,
            arguments.images_root,
            arguments.out,
            settings,
            secret_file=arguments.secret,
            workers=arguments.workers,
            strict=arguments.strict,
            on_progress=progress,
        )
    _print(arguments, {**vars(report), "kept_splits": list(report.kept_splits), "secret": str(report.secret)})
    _warn_of_table(arguments, report)
    return 0 if sum(report.written.values()) else 1


def _warn_of_table(arguments: argparse.Namespace, report: Any) -> None:
    warnings = {
        f"{report.rejected} rows are in no shard; {arguments.out / 'rejected.jsonl'} says why": report.rejected,
        f"{report.groups_in_several_splits} groups are in several splits": report.groups_in_several_splits,
        f"{report.unknown_modality} rows have the modality 'unknown'; see --modality": report.unknown_modality,
    }
    for text, number in warnings.items():
        if number:
            print(f"warning: {text}", file=sys.stderr)


def _index(arguments: argparse.Namespace) -> int:
    from clip_med.data.indexing import index_directory, index_into, index_pattern
    from clip_med.data.remote import scheme_of
    from clip_med.data.shards import is_pattern, local_path

    location, exclude = local_path(arguments.location), arguments.exclude_bad
    if arguments.out is None and scheme_of(location) is not None:
        raise ValueError(f"{location}: the indexes of tars at a URL need a folder of their own: give --out DIR")
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "indexing")
        if arguments.out is not None:
            shards = index_into(location, arguments.out, exclude_bad=exclude, on_progress=progress)
        elif is_pattern(location):
            shards = index_pattern(location, exclude_bad=exclude, on_progress=progress)
        else:
            shards = index_directory(Path(location), exclude_bad=exclude, on_progress=progress)
    left_out = [reason for shard in range(len(shards.sizes)) for _, reason in shards.index_of(shard).excluded]
    _print(
        arguments,
        {"shards": len(shards.sizes), "samples": len(shards), "excluded": left_out, "digest": shards.digest},
    )
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import ShardSet

    shards = ShardSet.open(arguments.location)
    with ItemDisplay(quiet=arguments.json) as display:
        progress = partial(display.on_item, "verifying")
        faults = shards.verify(on_progress=progress)
    _print(arguments, {"samples": len(shards), "faults": list(faults), "digest": shards.digest})
    return 1 if faults else 0


def _show(arguments: argparse.Namespace) -> int:
    from clip_med.data.counts import count
    from clip_med.data.shards import ShardSet

    shards = ShardSet.open(arguments.location)
    counts = count(shards)
    if arguments.sheet is not None:
        from data_prep.contact_sheet import contact_sheet

        contact_sheet(shards).save(arguments.sheet)
    _print(
        arguments,
        {
            "shards": len(shards.sizes),
            "samples": counts.samples,
            "captions": counts.captions,
            "distinct captions": counts.distinct_captions,
            **{
                f"{unit} per caption": dict(zip(("5 %", "50 %", "95 %", "most"), lengths, strict=True))
                for unit, lengths in (("words", counts.caption_words), ("characters", counts.caption_characters))
            },
            **counts.by_field,
        },
    )
    return 0


def _print(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
    if arguments.json:
        print(json.dumps(values, ensure_ascii=False))
        return
    for name, value in values.items():
        if isinstance(value, dict):
            print(f"{name}:")
            for key, number in value.items():
                print(f"  {number:>9,}  {key}")
        elif isinstance(value, list):
            print(f"{name}: {len(value)}")
            for item in value[:_LISTED]:
                print(f"  {item}")
            if len(value) > _LISTED:
                print(f"  ... and {len(value) - _LISTED} more; all of them with --json")
        else:
            print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


__all__ = ["add_parser"]
