"""`clip-med export`: a model folder that open_clip loads, from a run or a checkpoint."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from clip_med.commands.model_argument import MODEL
from clip_med.commands.printing import as_json


def add_parser(commands: Any) -> None:
    """Add `export`."""
    text = "write the model of a run as a folder that open_clip loads too"
    parser = commands.add_parser(
        "export",
        help=text,
        description=text + ", by open_clip.create_model_and_transforms('local-dir:OUT').",
        epilog="example: clip-med export runs/first models/first. Adapters on the model that they were trained on: "
        "clip-med export models/base models/adapted --lora runs/lora",
    )
    parser.add_argument("model", metavar="RUN", type=Path, help=MODEL)
    parser.add_argument("out", metavar="OUT", type=Path, help="a new folder")
    parser.add_argument(
        "--lora", metavar="DIR", type=Path, help="merge the adapters of this run or folder (lora.safetensors) into RUN"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.set_defaults(call=_export)


def _export(arguments: argparse.Namespace) -> int:
    from clip_med.models.folder import load_folder, resolve_folder, save_folder
    from clip_med.models.lora import ADAPTERS_NAME, DESCRIPTION_NAME, load_adapters

    folder = resolve_folder(arguments.model)
    encoder = load_folder(folder)
    if arguments.lora is not None:
        # A folder of adapters alone is no model folder.
        alone = (arguments.lora / ADAPTERS_NAME).is_file()
        load_adapters(encoder, arguments.lora if alone else resolve_folder(arguments.lora))
    save_folder(encoder, arguments.out)
    for name in (ADAPTERS_NAME, DESCRIPTION_NAME):
        if encoder.lora is None and (folder / name).is_file():
            shutil.copyfile(folder / name, arguments.out / name)
    if arguments.json:
        print(as_json({"source": str(folder), "model": str(arguments.out)}))
    else:
        print(f"{arguments.out}: open_clip.create_model_and_transforms('local-dir:{arguments.out.resolve()}')")
    return 0


__all__ = ["add_parser"]
