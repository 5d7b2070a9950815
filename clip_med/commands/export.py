"""`clip-med export`: a model folder that open_clip loads, from a run or a checkpoint."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add `export`."""
    text = "write the model of a run as a folder that open_clip loads too"
    parser = commands.add_parser(
        "export",
        help=text,
        description=text + ", by open_clip.create_model_and_transforms('local-dir:OUT').",
        epilog="example: clip-med export runs/first models/first",
    )
    parser.add_argument("model", metavar="RUN", type=Path, help="a run folder or a model folder")
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(call=_export)


def _export(arguments: argparse.Namespace) -> int:
    from clip_med.models.folder import load_folder, resolve_folder, save_folder

    folder = resolve_folder(arguments.model)
    save_folder(load_folder(folder), arguments.out)
    if arguments.json:
        print(json.dumps({"source": str(folder), "model": str(arguments.out)}))
    else:
        print(f"{arguments.out}: open_clip.create_model_and_transforms('local-dir:{arguments.out.resolve()}')")
    return 0


__all__ = ["add_parser"]
