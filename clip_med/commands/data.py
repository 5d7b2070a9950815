"""`clip-med data`: make, index, verify and show shard sets."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from clip_med.commands import data_card, data_dedup, data_privacy
from clip_med.commands.data_images import IMAGES
from clip_med.commands.data_sources import add_source
from clip_med.commands.data_tables import TABLES
from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay

# Every source; `clip-med data --help` lists them.
SOURCES: Final = (*TABLES, *IMAGES)


def add_parser(commands: Any) -> None:
    """Add `data index`, `data verify`, `data show`, `data phantoms` and a `data SOURCE` for every source."""
    parser = commands.add_parser(
        "data",
        help="make, index, verify and show WebDataset shards",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog=_examples(),
    )
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
    for source in SOURCES:
        add_source(actions, source)
    data_privacy.add_privacy(actions)
    data_dedup.add_dedup(actions)
    data_card.add_card(actions)
    _add_phantoms(actions)


def _examples() -> str:
    words = [f"{source.name} {source.example}" for source in SOURCES]
    words += ["dedup shards/train --against shards/test --out shards/train-clean"]
    words += ["verify shards/mine/train", "card shards/mine"]
    return "\n".join(["examples:", *(f"  clip-med data {line}" for line in words)])


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
    print_values(arguments, {"out": str(arguments.out), "images": counts})
    return 0


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
    print_values(
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
    print_values(arguments, {"samples": len(shards), "faults": list(faults), "digest": shards.digest})
    return 1 if faults else 0


def _show(arguments: argparse.Namespace) -> int:
    from clip_med.data.counts import count
    from clip_med.data.shards import ShardSet

    shards = ShardSet.open(arguments.location)
    counts = count(shards)
    if arguments.sheet is not None:
        from data_prep.contact_sheet import contact_sheet

        contact_sheet(shards).save(arguments.sheet)
    print_values(
        arguments,
        {
            "shards": len(shards.sizes),
            "samples": counts.samples,
            **({"of several images": counts.studies, "images of these": counts.study_images} if counts.studies else {}),
            **({"volumes": counts.volumes} if counts.volumes else {}),
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


__all__ = ["SOURCES", "add_parser"]
