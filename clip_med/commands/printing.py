"""Results of a command as text, or as one JSON object with `--json`."""

from __future__ import annotations

import argparse
import json
from typing import Any

from zero_shot.result import without_nan

# Lines of a list that a terminal can bear.
_LISTED = 20


def as_json(value: Any, *, indent: int | None = None) -> str:
    """JSON text of a document; numbers that are undefined become null, since JSON has neither NaN nor infinities."""
    return json.dumps(without_nan(value), indent=indent, ensure_ascii=False, allow_nan=False)


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


__all__ = ["as_json", "print_values"]
