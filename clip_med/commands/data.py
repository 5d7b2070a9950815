"""`clip-med data`: index, verify and count shard sets."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_parser(commands: Any) -> None:
    """Add `data index`, `data verify` and `data show`."""
    parser = commands.add_parser("data", help="index, verify and count WebDataset shards")
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _add(actions, "index", _index, "index tars (ours, or written by open_clip, img2dataset or webdataset)")
    _add(actions, "verify", _verify, "re-read every byte; exit code 1 if a digest, checksum, count or sample is wrong")
    _add(actions, "show", _show, "count samples per modality, dataset, split and label")


def _add(actions: Any, name: str, call: Callable[[argparse.Namespace], int], help_text: str) -> None:
    parser = actions.add_parser(
        name, help=help_text, description=help_text, epilog=f"example: clip-med data {name} shards/train --json"
    )
    parser.add_argument("directory", metavar="DIR", type=Path, help="the folder that holds the *.tar files")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.set_defaults(call=call)


def _index(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import index_directory

    with _Progress("indexing", quiet=arguments.json) as progress:
        shards = index_directory(arguments.directory, on_progress=progress)
    _print(arguments, {"shards": len(shards.sizes), "samples": len(shards), "digest": shards.digest})
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import ShardSet

    shards = ShardSet.open(arguments.directory)
    with _Progress("verifying", quiet=arguments.json) as progress:
        faults = shards.verify(on_progress=progress)
    _print(arguments, {"samples": len(shards), "faults": list(faults), "digest": shards.digest})
    return 1 if faults else 0


def _show(arguments: argparse.Namespace) -> int:
    from clip_med.data.shards import ShardSet, count

    shards = ShardSet.open(arguments.directory)
    counts = count(shards)
    _print(
        arguments,
        {"shards": len(shards.sizes), "samples": counts.samples, "captions": counts.captions, **counts.by_field},
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
            for item in value:
                print(f"  {item}")
        else:
            print(f"{name}: {value:,}" if isinstance(value, int) else f"{name}: {value}")


class _Progress:
    """A rich bar over shards on a terminal; nothing when the output is JSON or not a terminal."""

    def __init__(self, title: str, *, quiet: bool) -> None:
        from rich.console import Console
        from rich.progress import Progress

        console = Console(stderr=True)
        self._bar = Progress(console=console, transient=True, disable=quiet or not console.is_terminal)
        self._task = self._bar.add_task(title, total=None)

    def __enter__(self) -> Callable[[int, int], None]:
        self._bar.start()
        return lambda done, total: self._bar.update(self._task, completed=done, total=total)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


__all__ = ["add_parser"]
