"""`clip-med data card`: what a data set holds, as a page to keep beside it."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

from clip_med.commands.printing import print_values
from clip_med.commands.progress import ItemDisplay


def add_card(actions: Any) -> None:
    """Add the action."""
    text = "write DIR/card.md and DIR/card.html: counts, licences, captions, image sizes, duplicates, caveats, images"
    parser = actions.add_parser(
        "card",
        help=text,
        description=f"{text}. DIR is the output of a source (all its splits) or one shard set.",
        epilog="example: clip-med data card shards/mine",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="DIR", type=Path, help="a folder of shard sets, or one")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=_card)


def _card(arguments: argparse.Namespace) -> int:
    from clip_med.commands.data_sources import folder
    from data_prep.card import caveats, write_card

    with ItemDisplay(quiet=arguments.json) as display:
        facts = write_card(folder(arguments.folder), on_progress=partial(display.on_item, "reading"))
    print_values(
        arguments,
        {
            "samples": {part.name: len(part.shards) for part in facts.parts},
            "caveats": caveats(facts),
            "card": str(arguments.folder / "card.html"),
        },
    )
    return 0


__all__ = ["add_card"]
