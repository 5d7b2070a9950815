"""`clip-med data dedup`: duplicates within a shard set and between training and evaluation."""

from __future__ import annotations

import argparse
import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay


def add_dedup(actions: Any) -> None:
    """Add the action."""
    text = "find exact and near duplicates in a shard set, and what it shares with evaluation sets"
    parser = actions.add_parser(
        "dedup",
        help=text,
        description=f"{text}. With --out a copy without them is written. Patients in both are an error (exit code 1) "
        "unless --drop-groups leaves them out.",
        epilog="example: clip-med data dedup shards/train --against shards/test --out shards/train-clean",
        allow_abbrev=False,
    )
    parser.add_argument("location", metavar="DIR", help="the shard set that is cleaned")
    parser.add_argument(
        "--against", metavar="DIR", action="append", default=[], help="an evaluation set; may be given several times"
    )
    parser.add_argument(
        "--distance", metavar="BITS", type=int, default=10, help="of 256 in which near duplicates differ; default 10"
    )
    parser.add_argument("--drop-groups", action="store_true", help="also remove patients who are in an evaluation set")
    parser.add_argument("--out", metavar="DIR", type=Path, help="gets the shard set without duplicates")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_dedup)


def _dedup(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import ShardSet
    from data_prep.dedup import find_duplicates, write_without

    shards = ShardSet.open(arguments.location)
    against = [ShardSet.open(location) for location in arguments.against]
    with ItemDisplay(quiet=arguments.json) as display:
        report = find_duplicates(
            shards,
            against,
            distance=arguments.distance,
            drop_groups=arguments.drop_groups,
            on_progress=partial(display.on_item, "images"),
        )
    leaking = report.shared_groups > 0 and not arguments.drop_groups
    values: dict[str, Any] = {
        "samples": report.samples,
        "duplicates": report.counts(),
        "compared exactly only": report.plain,
        "shared groups": report.shared_groups,
    }
    if arguments.out is not None and not leaking:
        dataset = json.loads((Path(arguments.location) / "dataset.json").read_text(encoding="utf-8"))
        values["kept"] = write_without(shards, report, arguments.out, sources=dataset.get("sources", {}))
    print_values(arguments, values)
    if leaking:
        print(
            f"clip-med: error: {report.shared_groups} patients or cases are in {arguments.location} and in an "
            "evaluation set; nothing was written (--drop-groups leaves them out)",
            file=sys.stderr,
        )
    return 1 if leaking else 0


__all__ = ["add_dedup"]
