"""Results of a command as text, or as one JSON object with `--json`; of an evaluator as a page too, with `--report`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zero_shot.result import without_nan

if TYPE_CHECKING:
    from zero_shot.config import EvalConfig
    from zero_shot.table import Tables

# Lines of a list that a terminal can bear.
_LISTED = 20


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of a document; numbers that are undefined become null, since JSON has neither NaN nor infinities."""
    return json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


def add_report(parser: argparse.ArgumentParser) -> None:
    """Add `--report` and `--json` of an evaluator, for `give`."""
    parser.add_argument("--report", metavar="FILE", type=page_file, help="write the tables as one HTML page here too")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")


def page_file(text: str) -> Path:
    """The path of a page that is written at the end of long work, for `type` of an argument.

    Raises:
        argparse.ArgumentTypeError: it is a folder.
    """
    path = Path(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder, expected a file")
    return path


def give(
    arguments: argparse.Namespace,
    document: Mapping[str, Any],
    tables: Tables,
    remarks: Sequence[str] = (),
    *,
    title: str,
    models: Mapping[str, Path],
    configs: Sequence[EvalConfig] = (),
) -> None:
    """Print the tables of an evaluator, or its JSON; with `--report` write the page too.

    Args:
        title: of the page; models, configs: what was evaluated, see `zero_shot.report_run.what_was_run`.
    """
    from zero_shot.table import text

    try:
        # First, so that a page that cannot be written does not cost the numbers.
        print(as_json(document) if arguments.json else text(tables, remarks), flush=True)
    finally:
        # Also where the reader of the numbers has left (`| head`).
        if arguments.report is not None:
            from zero_shot.report_run import what_was_run
            from zero_shot.report_tables import write_tables

            write_tables(arguments.report, title, tables, remarks, what_was_run(models, configs, settings=[]))
            print(f"report: {arguments.report}", file=sys.stderr)


def print_values(arguments: argparse.Namespace, values: dict[str, Any]) -> None:
    """Print names with their values; mappings of counts and long lists get lines of their own."""
    if arguments.json:
        print(as_json(values))
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


__all__ = ["add_report", "as_json", "give", "page_file", "print_values"]
